//! A flood of strangers who begin and never go on.

use crate::rogue::{gateway_key, key};
use crate::stage::{Stage, put, tell};
use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;
use whimbrel_carrier::{Endpoint, Identity, Role, Tuning};
use whimbrel_tests::lab::{GATEWAY_V4, Layout, ORIGIN_V4};
use whimbrel_tests::traffic::{port, service};

/// Peers that the gateway may have before it knows them.
const STRANGERS: i64 = 20;

/// First packets: what they would cost, 70 KiB each, stands out from everything else.
const FLOOD: usize = 1000;

/// Memory that is none of theirs, in KiB: what allocators keep, and a client that attaches.
const ROOM: u64 = 24 << 10;

fn resident(stage: &mut Stage) -> Result<u64> {
    let status = format!("/proc/{}/status", stage.gateway.process().id());
    let status = std::fs::read_to_string(status)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no value")?.parse()?)
}

pub(crate) fn a_flood_of_first_packets_takes_no_memory_and_keeps_nobody_out() -> Result<()> {
    let limit = |table: &mut toml::Table| put(table, "limits", "half_open", STRANGERS);
    let mut stage = Stage::raise_with(Layout::standard(), limit, |_| {})?;
    stage.pair(ORIGIN_V4.into())?.converse()?;
    let identity = Identity {
        key: key(7),
        role: Role::Client { gateway: gateway_key(&stage.world)?.public() },
    };
    let tuning = Tuning { segments: 1, ..Tuning::default() };
    let mut endpoint = Endpoint::new(&identity, &tuning)?;
    let gateway = SocketAddr::new(GATEWAY_V4.into(), 443);
    let before = resident(&mut stage)?;
    for _ in 0..FLOOD {
        let connection = endpoint.connect(gateway, Instant::now())?;
        let mut datagram = Vec::new();
        let first = endpoint.poll_transmit(Instant::now(), &mut datagram).context("no Initial")?;
        endpoint.close(connection, 0, "never meant", Instant::now());
        // From a port of its own, where nobody hears the answer.
        let socket =
            stage.world.host("origin").run(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.send_to(&datagram[..first.size], gateway)?;
        while endpoint.poll_transmit(Instant::now(), &mut Vec::new()).is_some() {}
    }
    // While they are there, somebody comes who means it: it has to prove its address, and may.
    stage.client.process().signal(rustix::process::Signal::TERM)?;
    stage.client.process().wait(crate::stage::PATIENCE)?;
    stage.client = stage.world.start_client("laptop")?;
    let mut load = stage.world.start_program(
        "laptop",
        "download",
        service(ORIGIN_V4, port::SOURCE),
        &["--bytes", "100000"],
    )?;
    load.succeed(crate::stage::PATIENCE)?;
    let after = resident(&mut stage)?;
    let figures = stage.gateway.command(&stage.world, &["metrics"])?;
    let sample = "whimbrel_gateway_limits_reached_total{limit=\"half_open\"} ";
    let held_back = figures.lines().find_map(|line| line.strip_prefix(sample)).context("none")?;
    let held_back: usize = held_back.parse()?;
    tell!("{FLOOD} first packets, {held_back} held back: {before} KiB, then {after}");
    ensure!(held_back >= FLOOD / 2, "{held_back} of {FLOOD}");
    ensure!(after < before + ROOM, "{before} KiB, then {after}");
    Ok(())
}
