//! What is captured and what is left alone, whatever happens to the daemon.

use crate::stage::{
    NOWHERE, ORIGIN, PATIENCE, Pair, Stage, accept, connect, connect_within, expect_reset, join,
    listen, pair, prepare, until,
};
use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;
use whimbrel_tests::daemon::{Daemon, edit, set};
use whimbrel_tests::lab::{
    HostLayout, Layout, Lease, LinkLayout, REFERENCE_V4, REFERENCE_V6, World,
};

/// The laptop's public address in labs where it can be reached from outside.
const LAPTOP: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 7, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 2)),
];

/// Another host on the same network as the laptop.
const PRINTER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 7, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 9)),
];

/// A laptop with a public address, and a printer beside it.
fn office() -> Layout {
    let router = Ipv4Addr::new(198, 18, 7, 1);
    let router6 = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1);
    let lease = |at: IpAddr| match at {
        IpAddr::V4(at) => (Some(Lease::new(at, 24, router)), None),
        IpAddr::V6(at) => (None, Some(Lease::new(at, 64, router6))),
    };
    let [(v4, _), (_, v6)] = PRINTER.map(lease);
    let (v4, v6) = (v4.expect("it is IPv4"), v6.expect("it is IPv6"));
    let printer = LinkLayout::translated("eth0", v4, v6, 100);
    let printer = HostLayout { name: "printer".into(), links: vec![printer] };
    Layout::standard().with_host(printer).with_link("wifi0", |link| {
        let [(v4, _), (_, v6)] = LAPTOP.map(lease);
        (link.v4, link.v6) = (v4, v6);
        (link.outside_v4, link.outside_v6) = (None, None);
    })
}

/// Traffic that has nothing to do with the daemon.
struct Bystanders {
    pairs: Vec<Pair>,
    listener: TcpListener,
    udp: Vec<(UdpSocket, UdpSocket, SocketAddr)>,
}

impl Bystanders {
    fn begin(world: &World) -> Result<Self> {
        let pairs = ORIGIN.into_iter().map(|origin| pair(world, origin));
        let udp = ORIGIN.into_iter().map(|origin| udp_pair(world, origin));
        Ok(Self {
            pairs: pairs.collect::<Result<_>>()?,
            listener: listen(world.host("laptop"))?,
            udp: udp.collect::<Result<_>>()?,
        })
    }

    /// Everything still works as if there were no daemon.
    fn check(&mut self, world: &World, when: &str) -> Result<()> {
        for pair in &mut self.pairs {
            ensure!(!pair.captured(), "a connection of before is captured");
            pair.converse().with_context(|| format!("{when}: {} is disturbed", pair.peer))?;
        }
        let port = self.listener.local_addr()?.port();
        for laptop in LAPTOP {
            let origin = world.host("origin");
            let app = connect_within(origin, SocketAddr::new(laptop, port), PATIENCE)
                .with_context(|| format!("{when}: the laptop's server is gone"))?;
            let (server, peer) = accept(&self.listener)?;
            ensure!(ORIGIN.contains(&peer.ip()), "{when}: the server sees {peer}");
            Pair { app, server, peer }.converse().with_context(|| format!("{when}: serving"))?;
        }
        for (laptop, origin, to) in &self.udp {
            laptop.send_to(b"?", to)?;
            let mut buffer = [0; 16];
            let (_, from) =
                origin.recv_from(&mut buffer).with_context(|| format!("{when}: UDP"))?;
            ensure!(LAPTOP.contains(&from.ip().to_canonical()), "{when}: UDP comes from {from}");
            origin.send_to(b"!", from)?;
            laptop.recv_from(&mut buffer).with_context(|| format!("{when}: UDP's answer"))?;
        }
        Ok(())
    }
}

fn udp_pair(world: &World, origin: IpAddr) -> Result<(UdpSocket, UdpSocket, SocketAddr)> {
    let bind = |_: &_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0));
    let (laptop, server) = (world.host("laptop").run(bind)?, world.host("origin").run(bind)?);
    for socket in [&laptop, &server] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let port = server.local_addr()?.port();
    let origin = match origin {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    Ok((laptop, server, SocketAddr::new(origin.into(), port)))
}

fn kill(client: &mut Daemon) -> Result<()> {
    client.process().signal(Signal::KILL)?;
    client.process().wait(PATIENCE)?;
    Ok(())
}

fn terminate(client: &mut Daemon) -> Result<()> {
    client.process().signal(Signal::TERM)?;
    let status = client.process().wait(PATIENCE)?;
    ensure!(status.success(), "the daemon ended with {status}");
    Ok(())
}

/// Whether new connections of both families go through the gateway.
fn ensure_new(world: &World, captured: bool, when: &str) -> Result<()> {
    for origin in ORIGIN {
        let mut pair = pair(world, origin).with_context(|| when.to_owned())?;
        let (is, peer) = (pair.captured(), pair.peer);
        ensure!(is == captured, "{when}: captured {is}, the server sees {peer}");
        pair.converse().with_context(|| when.to_owned())?;
    }
    Ok(())
}

pub(crate) fn what_ran_before_is_undisturbed_by_start_stop_kill_and_restart() -> Result<()> {
    let (world, _origin) = prepare(office(), |_| {})?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let mut bystanders = Bystanders::begin(&world)?;
    bystanders.check(&world, "before")?;
    let mut client = world.start_client("laptop")?;
    ensure_new(&world, true, "once up")?;
    bystanders.check(&world, "once up")?;
    terminate(&mut client)?;
    ensure_new(&world, false, "after an orderly stop")?;
    bystanders.check(&world, "after an orderly stop")?;
    let mut client = world.start_client("laptop")?;
    let mut carried = pair(&world, ORIGIN[0])?;
    carried.converse()?;
    kill(&mut client)?;
    ensure_new(&world, false, "after a kill")?;
    bystanders.check(&world, "after a kill")?;
    let mut client = world.start_client("laptop")?;
    ensure_new(&world, true, "after a new start")?;
    bystanders.check(&world, "after a new start")?;
    // What was carried then is told at the next segment, not left hanging.
    let spoken = std::io::Write::write_all(&mut carried.app, b"still there?");
    ensure!(spoken.is_err() || expect_reset(&mut carried.app)? == 0, "bytes out of nowhere");
    terminate(&mut client)?;
    bystanders.check(&world, "at the end")
}

pub(crate) fn nothing_stale_is_left_after_a_kill() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let before = marks(&world)?;
    let mut client = world.start_client("laptop")?;
    until("the rules are in place", || Ok(marks(&world)? != before))?;
    let up = settled(&world)?;
    for round in 0..3 {
        kill(&mut client)?;
        client = world.start_client("laptop")?;
        until(&format!("the rules of start {round} are those of the first"), || {
            Ok(marks(&world)? == up)
        })?;
    }
    kill(&mut client)?;
    let config = world.client_config("laptop").display().to_string();
    world.ask_client("laptop", &["cleanup", "--config", &config])?;
    ensure!(marks(&world)? == before, "`cleanup` left {:?}", marks(&world)?);
    let mut client = world.start_client("laptop")?;
    terminate(&mut client)?;
    let after = marks(&world)?;
    ensure!(after == before, "an orderly stop left {after:?}");
    Ok(())
}

/// The rules and the routes outside the tables every host has.
#[derive(Debug, PartialEq)]
struct Marks {
    rules: Vec<RuleMessage>,
    routes: usize,
}

fn marks(world: &World) -> Result<Marks> {
    world.host("laptop").run(|wiring| {
        let mut rules = wiring.rules(false)?;
        rules.extend(wiring.rules(true)?);
        let ours = |table: u8| table == 0 || table == 252;
        let routes = wiring.routes()?;
        Ok(Marks { rules, routes: routes.iter().filter(|it| ours(it.header.table)).count() })
    })
}

/// The rules once they do not change any more.
fn settled(world: &World) -> Result<Marks> {
    let mut last = marks(world)?;
    let mut same = 0;
    until("the rules come to rest", || {
        let now = marks(world)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok(same > 20)
    })?;
    marks(world)
}

pub(crate) fn the_local_network_stays_direct() -> Result<()> {
    let mut stage = Stage::raise_with(office(), |_| {}, |_| {})?;
    let listener = listen(stage.world.host("printer"))?;
    let port = listener.local_addr()?.port();
    for (printer, laptop) in PRINTER.into_iter().zip(LAPTOP) {
        let app = connect(&stage.world, SocketAddr::new(printer, port))?;
        let (server, peer) = accept(&listener)?;
        ensure!(peer.ip() == laptop, "the printer sees {peer}");
        Pair { app, server, peer }.converse()?;
    }
    ensure_new(&stage.world, true, "beyond the local network")?;
    stage.quiet()
}

pub(crate) fn the_longest_prefix_decides_what_is_captured() -> Result<()> {
    let reference = [IpAddr::from(REFERENCE_V4), REFERENCE_V6.into()];
    let inverted = |table: &mut toml::Table| {
        set(table, "capture", "include", &["198.18.1.0/24", "2001:db8:181::/64"]);
        set(table, "capture", "exclude", &["198.18.0.0/15", "2001:db8::/32"]);
    };
    let mut stage = Stage::raise()?;
    for address in reference {
        ensure!(!pair(&stage.world, address)?.captured(), "{address} is excluded");
    }
    ensure_new(&stage.world, true, "what is not excluded")?;
    terminate(&mut stage.client)?;
    edit(&stage.world.client_config("laptop"), inverted)?;
    stage.client = stage.world.start_client("laptop")?;
    for address in reference {
        ensure!(pair(&stage.world, address)?.captured(), "{address} is included");
    }
    ensure_new(&stage.world, false, "what a shorter prefix excludes")?;
    // Neither included nor excluded: it goes out by itself, and nobody lives there.
    let attempt = connect_within(
        stage.world.host("laptop"),
        SocketAddr::new(NOWHERE.into(), 80),
        Duration::from_millis(300),
    );
    ensure!(attempt.is_err_and(|error| error.kind() == ErrorKind::TimedOut), "somebody answered");
    ensure!(stage.world.stray(NOWHERE.into()).packets > 0, "it did not go direct");
    stage.quiet()
}

pub(crate) fn a_pause_lets_new_connections_go_direct() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut carried = stage.pair(ORIGIN[0])?;
    stage.client.command(&stage.world, &["pause"])?;
    let paused = stage.client.status(&stage.world)?;
    ensure!(paused["capture"] == "paused", "{paused}");
    until("new connections go direct", || {
        Ok(ORIGIN.iter().all(|origin| pair(&stage.world, *origin).is_ok_and(|it| !it.captured())))
    })?;
    carried.converse().context("a pause ended a connection that was carried")?;
    stage.client.command(&stage.world, &["resume"])?;
    until("new connections are captured again", || {
        Ok(ORIGIN.iter().all(|origin| pair(&stage.world, *origin).is_ok_and(|it| it.captured())))
    })?;
    stage.client.command(&stage.world, &["pause", "1s"])?;
    stage.client.wait_until(&stage.world, "resumed by itself", |it| it["capture"] == "on")?;
    until("new connections are captured after a while", || {
        Ok(pair(&stage.world, ORIGIN[0])?.captured())
    })?;
    carried.converse()?;
    drop(carried);
    stage.quiet()
}

/// A bridge of the laptop and a container behind it.
const BRIDGE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 18, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 1)),
];
const CONTAINER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 18, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, 2)),
];

pub(crate) fn containers_on_a_bridge_go_direct() -> Result<()> {
    let layout = Layout::standard().with_host(HostLayout { name: "box".into(), links: vec![] });
    let mut stage = Stage::raise_with(layout, |_| {}, |_| {})?;
    build_bridge(&stage.world)?;
    for origin in ORIGIN {
        let listener = listen(stage.world.host("origin"))?;
        let to = SocketAddr::new(origin, listener.local_addr()?.port());
        let app = connect_within(stage.world.host("box"), to, PATIENCE)
            .with_context(|| format!("from the container to {to}"))?;
        let (server, peer) = accept(&listener)?;
        let mut pair = Pair { app, server, peer };
        ensure!(!pair.captured(), "a container's connection was captured");
        pair.converse()?;
    }
    ensure_new(&stage.world, true, "the laptop's own connections")?;
    stage.quiet()
}

/// Joins the container to a bridge of the laptop, which forwards.
fn build_bridge(world: &World) -> Result<()> {
    let inside = world.host("box").run(|_| File::open("/proc/thread-self/ns/net"))?;
    let laptop = world.host("laptop").thread(move || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        with_netlink(async |handle| {
            handle.link().add(LinkBridge::new("br0").build()).execute().await?;
            handle.link().add(LinkVeth::new("veth0", "eth0").build()).execute().await?;
            let moved = LinkUnspec::new_with_name("eth0")
                .append_extra_attribute(LinkAttribute::NetNsFd(inside.as_raw_fd()))
                .build();
            handle.link().set(moved).execute().await?;
            let bridge = index(&handle, "br0").await?;
            let port = LinkUnspec::new_with_name("veth0").controller(bridge).up().build();
            handle.link().set(port).execute().await?;
            begin(&handle, "br0", BRIDGE).await
        })
    });
    join(laptop).context("building the bridge")?;
    let container = world.host("box").thread(|| {
        with_netlink(async |handle| {
            begin(&handle, "eth0", CONTAINER).await?;
            let index = index(&handle, "eth0").await?;
            for router in BRIDGE {
                let route = match router {
                    IpAddr::V4(router) => RouteMessageBuilder::<Ipv4Addr>::new()
                        .gateway(router)
                        .output_interface(index)
                        .build(),
                    IpAddr::V6(router) => RouteMessageBuilder::<Ipv6Addr>::new()
                        .gateway(router)
                        .output_interface(index)
                        .build(),
                };
                handle.route().add(route).execute().await?;
            }
            Ok(())
        })
    });
    join(container).context("starting the container")
}

fn with_netlink(work: impl AsyncFnOnce(Handle) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await
    })
}

async fn index(handle: &Handle, name: &str) -> Result<u32> {
    let found = handle.link().get().match_name(name.to_owned()).execute();
    let found = std::pin::pin!(found).try_next().await?;
    Ok(found.with_context(|| format!("there is no {name}"))?.header.index)
}

/// Brings an interface up with its addresses, which are good at once.
async fn begin(handle: &Handle, name: &str, addresses: [IpAddr; 2]) -> Result<()> {
    let index = index(handle, name).await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    for address in addresses {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        let mut request = handle.address().add(index, address, prefix);
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
        request.execute().await?;
    }
    Ok(())
}
