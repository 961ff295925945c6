//! Networks as they are on real machines: with a manager, with tunnels and bridges of others, with
//! addresses that change.

use crate::stage::{ORIGIN, Stage, prepare, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::ffi::CString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use whimbrel_tests::daemon::{edit, set};
use whimbrel_tests::lab::{GATEWAY_V6, Layout, LinkLayout, World};

fn path(stage: &Stage, link: &str) -> Result<Option<Value>> {
    let status = stage.client.status(&stage.world)?;
    let paths = status["paths"].as_array().into_iter().flatten();
    Ok(paths.into_iter().find(|path| path["link"] == link).cloned())
}

fn active(stage: &Stage) -> Result<String> {
    let status = stage.client.status(&stage.world)?;
    let paths = status["paths"].as_array().into_iter().flatten();
    let active = paths.into_iter().find(|path| path["state"] == "active");
    Ok(active.and_then(|path| path["link"].as_str()).unwrap_or_default().to_owned())
}

fn until_metered(stage: &Stage, link: &str, metered: bool) -> Result<()> {
    until(&format!("{link} is metered: {metered}"), || {
        Ok(path(stage, link)?.is_some_and(|path| path["metered"] == metered))
    })
}

pub(crate) fn what_the_network_manager_knows_counts_while_it_is_there() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let mut managers = world.start_login()?;
    managers.say("metered wifi0 3")?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    let stage = Stage { client, gateway, origin, world };
    // A phone's hotspot, as the manager guesses: the other network carries, though its metric is
    // worse.
    until_metered(&stage, "wifi0", true)?;
    until("the network that costs nothing carries", || Ok(active(&stage)? == "cell0"))?;
    let mut pair = stage.pair(ORIGIN[0])?;
    pair.converse()?;
    managers.say("metered cell0 1")?;
    until_metered(&stage, "cell0", true)?;
    managers.say("metered wifi0 2")?;
    until_metered(&stage, "wifi0", false)?;
    until("the other one carries", || Ok(active(&stage)? == "wifi0"))?;
    pair.converse()?;
    let sleep =
        |stage: &Stage| Ok::<_, anyhow::Error>(stage.client.status(&stage.world)?["sleep"].clone());
    ensure!(sleep(&stage)? == "delayed", "the login manager on the same bus waits for the client");
    // Without a manager nobody says that it costs money, and its class does not either.
    managers.say("break")?;
    until_metered(&stage, "cell0", false)?;
    until("nobody announces sleep", || Ok(sleep(&stage)? == "unannounced"))?;
    managers.say("mend")?;
    managers.say("metered cell0 1")?;
    until_metered(&stage, "cell0", true)?;
    // It says that a network wants a sign-in; the gateway answers there, and knows better.
    managers.say("portal wifi0 2")?;
    managers.say("metered cell0 4")?;
    until_metered(&stage, "cell0", false)?;
    ensure!(path(&stage, "wifi0")?.is_some_and(|path| path["captive"] == false));
    pair.converse()
}

pub(crate) fn an_address_that_is_renewed_or_replaced_costs_no_connection() -> Result<()> {
    let stage = Stage::raise()?;
    let mut pair = stage.pair(ORIGIN[0])?;
    pair.converse()?;
    let before = stage.session()?;
    let laptop = stage.world.host("laptop");
    let moves =
        |stage: &Stage| Ok::<_, anyhow::Error>(stage.client.status(&stage.world)?["moves"].clone());
    // A lease that is renewed is the same address, set again.
    let own = IpAddr::from(Ipv4Addr::new(192, 168, 10, 2));
    for _ in 0..5 {
        // It is there already, which is what is told to a DHCP client too.
        let _there = laptop.run(move |wiring| wiring.add_address("wifi0", own, 24));
    }
    pair.converse()?;
    ensure!(moves(&stage)? == 0, "a renewal moved the traffic");
    // A router that gives another address: for a moment both are there, then the new one alone.
    let other = IpAddr::from(Ipv4Addr::new(192, 168, 10, 77));
    laptop.run(move |wiring| wiring.add_address("wifi0", other, 32))?;
    pair.converse()?;
    laptop.run(move |wiring| {
        wiring.flush_addresses("wifi0")?;
        wiring.add_address("wifi0", other, 24)?;
        wiring.add_default_route("wifi0", Ipv4Addr::new(192, 168, 10, 1).into(), 100)
    })?;
    for _ in 0..3 {
        pair.converse()?;
    }
    until("the link is in use again", || {
        Ok(path(&stage, "wifi0")?
            .is_some_and(|path| path["state"] == "warm" || path["state"] == "active"))
    })?;
    ensure!(stage.session()? == before, "the session is another one");
    pair.converse()
}

/// What a privacy extension does every day (RFC 8981): another address for what begins, the old one
/// for what there is, and then no more.
pub(crate) fn an_ipv6_address_that_rotates_costs_no_connection() -> Result<()> {
    let without_v4 = |link: &mut LinkLayout| link.v4 = None;
    let layout = Layout::standard().with_link("wifi0", without_v4).with_link("cell0", without_v4);
    let stage = raise_in_v6(layout)?;
    let mut pair = stage.pair(ORIGIN[1])?;
    pair.converse()?;
    let before = stage.session()?;
    let laptop = stage.world.host("laptop");
    let address = |number| IpAddr::from(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, number));
    for (old, new) in [(2, 0x2001), (0x2001, 0x2002)] {
        laptop.run(move |wiring| {
            wiring.add_address("wifi0", address(new), 64)?;
            wiring.deprecate_address("wifi0", address(old), 64)
        })?;
        pair.converse()?;
        stage.pair(ORIGIN[1])?.converse()?;
        laptop.run(move |wiring| wiring.remove_address(address(old)))?;
        pair.converse()?;
        stage.pair(ORIGIN[1])?.converse()?;
    }
    ensure!(stage.session()? == before, "the session is another one");
    let events = stage.client.show(&stage.world, "events")?;
    let lost = |event: &&Value| event["event"] == "link-down";
    let lost = events.as_array().into_iter().flatten().filter(lost).count();
    ensure!(lost == 0, "a link with an address went down: {events:#}");
    Ok(())
}

/// Wi-Fi that roams to another access point of the same network: the carrier goes for a moment,
/// addresses and routes stay.
pub(crate) fn roaming_to_another_access_point_keeps_the_session() -> Result<()> {
    let stage = Stage::raise()?;
    let cell = stage.world.link("cell0");
    cell.down()?;
    until("Wi-Fi is alone", || Ok(path(&stage, "cell0")?.is_none()))?;
    let mut pair = stage.pair(ORIGIN[0])?;
    pair.converse()?;
    let before = stage.session()?;
    for round in 1..=3 {
        let carrier =
            |on| stage.world.host("laptop").run(move |wiring| wiring.set_carrier("wifi0", on));
        carrier(false)?;
        until("the loss is noticed", || Ok(downs(&stage)? == 1 + round))?;
        carrier(true)?;
        until("Wi-Fi carries again", || Ok(active(&stage)? == "wifi0"))?;
        pair.converse()?;
        stage.pair(ORIGIN[1])?.converse()?;
    }
    ensure!(stage.session()? == before, "the session is another one");
    Ok(())
}

/// How often a link went down.
fn downs(stage: &Stage) -> Result<usize> {
    let events = stage.client.show(&stage.world, "events")?;
    let events = events.as_array().into_iter().flatten();
    Ok(events.filter(|event| event["event"] == "link-down").count())
}

/// A VPN of another program, with a default route better than any.
fn start_vpn(world: &World) -> Result<tun::Device> {
    world.host("laptop").run(|wiring| {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name("vpn0");
        configuration.platform_config(|platform| {
            platform.ensure_root_privileges(false);
        });
        let device = tun::create(&configuration)?;
        wiring.set_up("vpn0")?;
        wiring.add_address("vpn0", Ipv4Addr::new(10, 8, 0, 2).into(), 24)?;
        wiring.add_default_route("vpn0", Ipv4Addr::new(10, 8, 0, 1).into(), 1)?;
        Ok(device)
    })
}

pub(crate) fn a_vpn_of_others_carries_nothing_unless_asked() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let _vpn = start_vpn(&world)?;
    let client = world.start_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    until("both links are ready", || {
        let is = |link, state| {
            Ok::<_, anyhow::Error>(path(&stage, link)?.is_some_and(|it| it["state"] == state))
        };
        Ok(is("wifi0", "active")? && is("cell0", "warm")?)
    })?;
    stage.pair(ORIGIN[0])?.converse()?;
    ensure!(path(&stage, "vpn0")?.is_none(), "the VPN is used");
    let config = stage.world.client_config("laptop");
    let config = config.to_str().context("a plain name")?;
    let output = stage.world.run_client("laptop", &["doctor", "--config", config])?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said.contains("vpn0 is a VPN with a default route"), "{said}");

    drop(stage.client);
    edit(&stage.world.client_config("laptop"), |table| set(table, "paths", "prefer", &["vpn0"]))?;
    stage.client = stage.world.start_client("laptop")?;
    until("the VPN is tried", || Ok(path(&stage, "vpn0")?.is_some()))?;
    // It leads nowhere, and the others carry.
    stage.pair(ORIGIN[0])?.converse()
}

pub(crate) fn a_laptop_with_ipv6_alone_reaches_both_families() -> Result<()> {
    let without_v4 = |link: &mut LinkLayout| link.v4 = None;
    let layout = Layout::standard().with_link("wifi0", without_v4).with_link("cell0", without_v4);
    let stage = raise_in_v6(layout)?;
    for origin in ORIGIN {
        stage.pair(origin)?.converse()?;
    }
    Ok(())
}

/// Both daemons, and the gateway known by its IPv6 address.
fn raise_in_v6(layout: Layout) -> Result<Stage> {
    let world = World::build(layout)?;
    let origin = world.start_origin()?;
    world.init_gateway(SocketAddr::new(GATEWAY_V6.into(), 443))?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    Ok(Stage { client, gateway, origin, world })
}

/// The gateway as a translator makes it of its IPv4 address (RFC 6052).
const TRANSLATED: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc000, 0x020a);

/// Networks of IPv6 alone, and a gateway that is known by an IPv4 address.
pub(crate) fn a_gateway_of_ipv4_alone_is_reached_through_a_translator() -> Result<()> {
    let without_v4 = |link: &mut LinkLayout| link.v4 = None;
    let translated = |link: &mut LinkLayout| link.further = vec![(TRANSLATED.into(), 96)];
    let layout = Layout::standard()
        .with_link("wifi0", without_v4)
        .with_link("cell0", without_v4)
        .with_link("gateway/eth0", translated);
    let world = World::build(layout)?;
    let origin = world.start_origin()?;
    let gateway = world.start_gateway()?;

    // Nobody translates.
    know_translator(&world, "")?;
    let refused = world.join_client("laptop").err().map(|error| format!("{error:#}"));
    let refused = refused.context("it joined")?;
    ensure!(refused.contains("no address of its family"), "{refused}");
    ensure!(!world.client_config("laptop").exists(), "half configured");

    know_translator(&world, "64:ff9b::192.0.0.170 ipv4only.arpa\n")?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    for origin in ORIGIN {
        stage.pair(origin)?.converse()?;
    }
    let remote = path(&stage, "wifi0")?.context("no path")?["remote"].clone();
    ensure!(remote == format!("[{TRANSLATED}]:443"), "{remote}");

    drop(stage.client);
    stage.world.ask_client("laptop", &["cleanup"])?;
    know_translator(&stage.world, "")?;
    stage.client = stage.world.launch_client("laptop")?;
    let no_family = |status: &Value| status["trouble_kind"] == "no-family";
    stage.client.wait_until(&stage.world, "knows what is wrong", no_family)?;
    let config = stage.world.client_config("laptop");
    let config = config.to_str().context("a plain name")?;
    let output = stage.world.run_client("laptop", &["doctor", "--config", config])?;
    let said = String::from_utf8_lossy(&output.stdout).replace("\n  ", " ");
    ensure!(said.contains("no address of a family this machine's networks have"), "{said}");
    Ok(())
}

/// Makes a table of hosts the laptop's own, with this in it.
fn know_translator(world: &World, line: &str) -> Result<()> {
    let table = world.folder().join("hosts");
    let first = !table.exists();
    fs::write(&table, format!("127.0.0.1 localhost\n{line}"))?;
    if first {
        let table = CString::new(table.as_os_str().as_bytes())?;
        let laptop = world.host("laptop");
        laptop.run(move |_| rustix::mount::mount_bind(table.as_c_str(), c"/etc/hosts"))?;
    }
    Ok(())
}
