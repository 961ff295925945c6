//! The examination, and obstacles that are really there.

use crate::stage::{ORIGIN, Stage, expect, join, prepare, tell, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use whimbrel_common::identity::SecretKey;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{BOTH, Layout, Wiring, World};

/// What `doctor --json` says, and whether it is content.
fn examine(world: &World) -> Result<(bool, Value)> {
    let config = world.client_config("laptop");
    let config = config.to_str().context("a plain name")?;
    let output = world.run_client("laptop", &["doctor", "--json", "--config", config])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let document: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let well = output.status.success();
    ensure!(document["well"] == well, "{} and {document:#}", output.status);
    Ok((well, document))
}

/// The findings about a subject: weight and text of each.
fn findings(document: &Value, subject: &str) -> Vec<(String, String)> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = document["findings"].as_array().into_iter().flatten();
    let about = all.filter(|finding| finding["subject"] == subject);
    about.map(|finding| (text(finding, "weight"), text(finding, "text"))).collect()
}

fn commands(document: &Value, subject: &str) -> Vec<String> {
    let all = document["findings"].as_array().into_iter().flatten();
    let about = all.filter(|finding| finding["subject"] == subject);
    let remedies = about.flat_map(|finding| finding["remedies"].as_array().into_iter().flatten());
    remedies.filter_map(|remedy| remedy["command"].as_str().map(str::to_owned)).collect()
}

fn sysctl(world: &World, key: &'static str, value: &'static str) -> Result<()> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let set = world.host("laptop").run(move |_| {
        fs::write(&path, value)?;
        fs::read_to_string(&path)
    });
    ensure!(set?.trim() == value, "{key} is not {value}");
    Ok(())
}

fn state_of(stage: &Stage, link: &str) -> Result<String> {
    let status = stage.client.status(&stage.world)?;
    let paths = status["paths"].as_array().into_iter().flatten();
    let path = paths.into_iter().find(|path| path["link"] == link);
    Ok(path.and_then(|path| path["state"].as_str()).unwrap_or("none").to_owned())
}

pub(crate) fn a_machine_that_works_is_well() -> Result<()> {
    let stage = Stage::raise()?;
    until("the spare link is ready", || Ok(state_of(&stage, "cell0")? == "warm"))?;
    let (well, document) = examine(&stage.world)?;
    ensure!(well, "{document:#}");
    for subject in ["gateway", "links", "routing rules", "reverse-path filter", "TUN address"] {
        let fine = document["fine"].as_array().context("no list")?;
        ensure!(fine.iter().any(|it| it == subject), "{subject} is not in order: {document:#}");
    }
    Ok(())
}

pub(crate) fn strict_filtering_is_named_and_the_command_mends_it() -> Result<()> {
    // Where both families are there, the spare path may be of IPv6, which is not filtered.
    let layout = Layout::standard().with_link("cell0", |link| link.v6 = None);
    let (world, origin) = prepare(layout, |_| {})?;
    for link in ["all", "wifi0"] {
        let key = if link == "all" {
            "net.ipv4.conf.all.rp_filter"
        } else {
            "net.ipv4.conf.wifi0.rp_filter"
        };
        sysctl(&world, key, "0")?;
    }
    sysctl(&world, "net.ipv4.conf.cell0.rp_filter", "1")?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    let stage = Stage { client, gateway, origin, world };
    until("the filtered link is given up", || Ok(state_of(&stage, "cell0")? == "cooldown"))?;
    let (well, document) = examine(&stage.world)?;
    ensure!(!well, "{document:#}");
    let found = findings(&document, "reverse-path filter");
    let hampered = matches!(found.as_slice(), [(weight, text)] if weight == "hampered" && text.contains("cell0"));
    ensure!(hampered, "{document:#}");
    let command = commands(&document, "reverse-path filter").swap_remove(0);
    ensure!(command == "sudo sysctl -w net.ipv4.conf.all.rp_filter=2", "{command}");

    sysctl(&stage.world, "net.ipv4.conf.all.rp_filter", "2")?;
    until("the link is ready", || Ok(state_of(&stage, "cell0")? == "warm"))?;
    let (well, document) = examine(&stage.world)?;
    ensure!(well, "{document:#}");
    Ok(())
}

pub(crate) fn ipv6_that_is_switched_off_is_named_and_the_command_mends_it() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    // Before the TUN is there, so that it is made without IPv6; the links have theirs.
    sysctl(&world, "net.ipv6.conf.default.disable_ipv6", "1")?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    until("the spare link is ready", || Ok(state_of(&stage, "cell0")? == "warm"))?;
    stage.pair(ORIGIN[0])?.converse()?;
    let (well, document) = examine(&stage.world)?;
    ensure!(!well, "{document:#}");
    let found = findings(&document, "IPv6");
    ensure!(found.len() == 1 && found[0].1.contains("whimbrel0, but"), "{document:#}");
    let command = commands(&document, "IPv6").swap_remove(0);
    ensure!(command == "sudo sysctl -w net.ipv6.conf.default.disable_ipv6=0", "{command}");

    // What it says to do.
    sysctl(&stage.world, "net.ipv6.conf.default.disable_ipv6", "0")?;
    drop(stage.client);
    stage.client = stage.world.start_client("laptop")?;
    stage.pair(ORIGIN[1])?.converse()?;
    until("the spare link is ready", || Ok(state_of(&stage, "cell0")? == "warm"))?;
    let (well, document) = examine(&stage.world)?;
    ensure!(well && findings(&document, "IPv6").is_empty(), "{document:#}");
    Ok(())
}

/// A rule as that of a VPN that sends everything to itself (an exit node of Tailscale has this one).
pub(crate) fn a_vpn_that_comes_first_is_named() -> Result<()> {
    let stage = Stage::raise()?;
    stage.pair(ORIGIN[0])?.converse()?;
    stage.world.host("laptop").run(|wiring| {
        wiring.add_default_route_to("wifi0", Ipv4Addr::new(192, 168, 10, 1), 52)?;
        wiring.add_rule(5270, 52)
    })?;
    ensure!(stage.pair(ORIGIN[0]).is_err(), "it is captured all the same");
    let (well, document) = examine(&stage.world)?;
    let found = findings(&document, "routing rules");
    ensure!(!well && found.len() == 1, "{document:#}");
    ensure!(found[0].0 == "broken" && found[0].1.contains("rule 5270"), "{document:#}");
    ensure!(commands(&document, "routing rules") == ["ip rule show priority 5270"], "{document:#}");
    Ok(())
}

/// Answers every QUIC handshake with versions nobody speaks (RFC 9000 §17.2.1).
fn speak_another_version(socket: &UdpSocket, done: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut buffer = [0; 2048];
    while !done.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let packet = &buffer[..length];
        // A long header: version, then both connection IDs with their lengths.
        let Some((&[first, _, _, _, _], ids)) = packet.split_first_chunk::<5>() else { continue };
        if first & 0x80 == 0 {
            continue;
        }
        let Some((&length, rest)) = ids.split_first() else { continue };
        let Some((destination, rest)) = rest.split_at_checked(length.into()) else { continue };
        let Some((&length, rest)) = rest.split_first() else { continue };
        let Some((source, _)) = rest.split_at_checked(length.into()) else { continue };
        let mut answer = vec![0x80, 0, 0, 0, 0];
        for id in [source, destination] {
            answer.push(u8::try_from(id.len())?);
            answer.extend_from_slice(id);
        }
        answer.extend_from_slice(&[0x0a, 0x1a, 0x2a, 0x3a]);
        socket.send_to(&answer, from)?;
    }
    Ok(())
}

pub(crate) fn four_ways_not_to_be_carried_are_told_apart() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let config = world.client_config("laptop");
    let mut told = Vec::new();
    let mut note = |what: &str, kind: &str| -> Result<()> {
        let (well, document) = examine(&world)?;
        ensure!(!well, "{what}: {document:#}");
        let without = findings(&document, "gateway");
        ensure!(without.len() == 1, "{what}: {document:#}");
        // The same with a daemon that is asked instead.
        let mut client = world.launch_client("laptop")?;
        client.wait_until(&world, "knows what is wrong", |it| it["trouble_kind"] == kind)?;
        let (_, document) = examine(&world)?;
        ensure!(findings(&document, "gateway") == without, "{what}: {document:#} and {without:?}");
        client.command(&world, &["status"])?;
        tell!("{what}: {}", without[0].1);
        told.push(without[0].1.clone());
        drop(client);
        // It was killed: what it left behind is not what this is about.
        world.ask_client("laptop", &["cleanup"])?;
        Ok(())
    };

    let before = fs::read_to_string(&config)?;
    let stranger = SecretKey::from_seed([7; 32]).public().to_string();
    edit(&config, |table| drop(table.insert("gateway_key".into(), stranger.into())))?;
    note("another key", "wrong-key")?;
    fs::write(&config, before)?;

    gateway.command(&world, &["revoke", "laptop"])?;
    note("a revoked client", "revoked")?;

    drop(gateway);
    note("no gateway", "unreachable")?;

    let done = Arc::new(AtomicBool::new(false));
    let socket = world.host("gateway").run(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 443)))?;
    let (ended, thread) = (
        Arc::clone(&done),
        std::thread::spawn({
            let done = Arc::clone(&done);
            move || speak_another_version(&socket, &done)
        }),
    );
    let outcome = note("another service", "not-ours");
    ended.store(true, Ordering::Relaxed);
    join(thread)?;
    outcome?;

    told.sort();
    told.dedup();
    ensure!(told.len() == 4, "{told:?}");
    Ok(())
}

pub(crate) fn rules_left_by_a_killed_daemon_are_named_and_cleaned_up() -> Result<()> {
    let stage = Stage::raise()?;
    let pair = stage.pair(ORIGIN[0])?;
    let Stage { client, gateway: _gateway, world, .. } = stage;
    // Dropping the process kills it without a word.
    drop((client, pair));
    let (_, document) = examine(&world)?;
    ensure!(commands(&document, "routing rules") == ["sudo whimbrel cleanup"], "{document:#}");
    world.ask_client("laptop", &["cleanup"])?;
    let (_, document) = examine(&world)?;
    ensure!(findings(&document, "routing rules").is_empty(), "{document:#}");
    // The gateway answers, so that starting it is all there is to do.
    let broken: Vec<&Value> = document["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|finding| finding["weight"] == "broken")
        .collect();
    ensure!(broken.len() == 1 && broken[0]["subject"] == "daemon", "{document:#}");
    Ok(())
}

/// How many rules of each family and routes the laptop has.
fn rules(world: &World) -> Result<[usize; 3]> {
    world.host("laptop").run(|wiring| {
        let (v4, v6) = (wiring.rules(false)?, wiring.rules(true)?);
        Ok([v4.len(), v6.len(), wiring.routes()?.len()])
    })
}

pub(crate) fn rules_that_another_program_removes_come_back() -> Result<()> {
    let stage = Stage::raise()?;
    let mut old = stage.pair(ORIGIN[0])?;
    let laptop = stage.world.host("laptop");
    let before = rules(&stage.world)?;
    for round in 1..=2 {
        // What this connection sends without its rule goes astray, an acknowledgement too: after
        // this it owes none.
        old.converse()?;
        old.app.write_all(b"over")?;
        expect(&mut old.server, b"over")?;
        let removed = laptop.run(Wiring::flush_rules)?;
        ensure!(removed > 3, "{removed} rules were there in round {round}");
        until("the rules are back", || Ok::<_, anyhow::Error>(rules(&stage.world)? == before))?;
        old.converse()?;
        for origin in ORIGIN {
            let mut pair = stage.pair(origin)?;
            ensure!(pair.captured(), "a new connection to {origin} goes around");
            pair.converse()?;
        }
    }
    let restored =
        || Ok::<_, anyhow::Error>(stage.client.status(&stage.world)?["restored"].as_u64());
    let told = || {
        let events = stage.client.show(&stage.world, "events")?;
        let told = events.as_array().into_iter().flatten();
        Ok::<_, anyhow::Error>(told.filter(|it| it["event"] == "restored").count() as u64)
    };
    // What is taken away bit by bit comes back bit by bit.
    until("every time is told", || Ok(restored()? >= Some(2) && restored()? == Some(told()?)))?;
    let (well, document) = examine(&stage.world)?;
    let found = findings(&document, "routing rules");
    ensure!(well && found.len() == 1 && found[0].1.contains("times"), "{document:#}");
    ensure!(commands(&document, "routing rules")[0].contains("networkd"), "{document:#}");
    // Changing one's own mind is no theft.
    let known = restored()?;
    stage.client.command(&stage.world, &["pause"])?;
    stage.client.command(&stage.world, &["resume"])?;
    until("connections are captured again", || Ok(stage.pair(ORIGIN[0]).is_ok()))?;
    ensure!(restored()? == known, "it robbed itself");
    Ok(())
}

fn is_captive(stage: &Stage, link: &str) -> Result<bool> {
    let status = stage.client.status(&stage.world)?;
    let paths = status["paths"].as_array().into_iter().flatten();
    Ok(paths.into_iter().any(|path| path["link"] == link && path["captive"] == true))
}

pub(crate) fn a_captive_network_is_told_from_one_that_is_out_of_order() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    world.link("cell0").captive(true);
    let client = world.start_client("laptop")?;
    let stage = Stage { client, gateway, origin, world };
    until("the sign-in is noticed", || is_captive(&stage, "cell0"))?;
    ensure!(!is_captive(&stage, "wifi0")?, "the other network wants none");
    let (well, document) = examine(&stage.world)?;
    let found = findings(&document, "captive networks");
    ensure!(!well && found.len() == 1 && found[0].1.contains("cell0"), "{document:#}");
    let events = stage.client.show(&stage.world, "events")?;
    let told = events.as_array().into_iter().flatten().filter(|it| it["event"] == "captive");
    ensure!(told.count() == 1, "{events:#}");

    // Signed in: the gateway answers.
    stage.world.link("cell0").captive(false);
    until("the link is ready", || Ok(state_of(&stage, "cell0")? == "warm"))?;
    ensure!(!is_captive(&stage, "cell0")?, "it was signed in");

    // Nothing answers at all: that is another thing.
    stage.world.link("cell0").down()?;
    stage.world.link("cell0").black_hole(&BOTH);
    stage.world.link("cell0").up()?;
    until("the link is given up", || {
        Ok(["suspect", "cooldown"].contains(&state_of(&stage, "cell0")?.as_str()))
    })?;
    ensure!(!is_captive(&stage, "cell0")?, "nobody answered");
    let (_, document) = examine(&stage.world)?;
    ensure!(findings(&document, "captive networks").is_empty(), "{document:#}");
    ensure!(findings(&document, "gateway").len() == 1, "{document:#}");
    Ok(())
}
