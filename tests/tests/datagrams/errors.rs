//! What does not arrive is told.

use crate::pair::{UdpPair, all, anywhere, expect, is_gateway};
use crate::stage::{ORIGIN, PATIENCE, Stage, connect, no_panics, prepare, put, until};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{Layout, ORIGIN_V6};

/// A connected socket hears of an error at its next call.
fn hears(stage: &Stage, to: SocketAddr, wanted: ErrorKind) -> Result<()> {
    let socket = anywhere(&stage.world, "laptop", to.ip())?;
    connect_udp(stage, &socket, to)?;
    let mut heard = None;
    until(&format!("{wanted:?} is told of {to}"), || {
        heard = socket.send(b"anybody there?").err().or_else(|| receive_now(&socket).err());
        Ok(heard.as_ref().is_some_and(|error| error.kind() == wanted))
    })
    .map_err(|error| error.context(format!("heard {heard:?}")))
}

fn connect_udp(stage: &Stage, socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    let socket = socket.try_clone()?;
    Ok(stage.world.host("laptop").run(move |_| socket.connect(to))?)
}

fn receive_now(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let received = socket.recv(&mut [0; 100]);
    socket.set_nonblocking(false)?;
    match received {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        other => other.map(drop),
    }
}

pub(crate) fn what_nobody_listens_to_is_refused() -> Result<()> {
    let stage = Stage::raise_for_all()?;
    for origin in ORIGIN {
        let gone = anywhere(&stage.world, "origin", origin)?;
        let to = SocketAddr::new(origin, gone.local_addr()?.port());
        drop(gone);
        hears(&stage, to, ErrorKind::ConnectionRefused)?;
    }
    Ok(())
}

pub(crate) fn what_the_policy_denies_is_told_about_udp_too() -> Result<()> {
    let stage = Stage::raise_for_all()?;
    // Reserved ranges, which no gateway sends to.
    let v4 = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));
    hears(&stage, (v4, 53).into(), ErrorKind::HostUnreachable)?;
    let v6 = IpAddr::V6(Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1));
    hears(&stage, (v6, 53).into(), ErrorKind::PermissionDenied)?;
    Ok(())
}

pub(crate) fn a_gateway_without_ipv6_says_so_at_once() -> Result<()> {
    let layout = Layout::standard().with_link("gateway/eth0", |link| link.v6 = None);
    let mut stage = Stage::raise_with(layout, |_| {}, all)?;
    stage.await_udp()?;
    let to = SocketAddr::new(ORIGIN_V6.into(), 443);
    let begin = Instant::now();
    let refused = connect(&stage.world, to);
    ensure!(
        refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::NetworkUnreachable),
        "TCP: {refused:?}"
    );
    ensure!(begin.elapsed() < PATIENCE, "a timeout, not an answer");
    // ICMPv6 has no word for it that Linux would tell as "network unreachable".
    hears(&stage, to, ErrorKind::PermissionDenied)?;
    // What programs fall back to works.
    let [v4, _] = ORIGIN;
    UdpPair::new(&stage.world, v4)?.converse()?;
    stage.pair(v4)?.converse()
}

pub(crate) fn nothing_goes_around_a_gateway_that_was_never_reached_if_it_must_not() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let mut gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    gateway.process().signal(Signal::TERM)?;
    gateway.process().wait(PATIENCE)?;
    edit(&world.client_config("laptop"), |table| {
        all(table);
        put(table, "capture", "offline", "block");
    })?;
    let client = world.launch_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    stage.await_capture()?;
    for origin in ORIGIN {
        let pair = UdpPair::new(&stage.world, origin)?;
        let sent = pair.app.send_to(b"secret", pair.to);
        ensure!(expect(&pair.server, b"secret")?.is_none(), "it went around: {sent:?}");
    }
    stage.gateway = stage.world.start_gateway()?;
    stage.await_udp()?;
    for origin in ORIGIN {
        let seen = UdpPair::new(&stage.world, origin)?.converse()?;
        ensure!(is_gateway(seen), "the server sees {seen}");
    }
    no_panics(&stage.world)
}
