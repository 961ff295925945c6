//! What is carried, and what is left alone.

use crate::pair::{UdpPair, anywhere, bound, expect, is_gateway};
use crate::stage::{ORIGIN, Stage, no_panics, numbered, until};
use anyhow::{Context, Result, ensure};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use whimbrel_tests::lab::{GATEWAY_V4, GATEWAY_V6, REFERENCE_V4, REFERENCE_V6};

pub(crate) fn a_socket_has_one_port_at_the_gateway_whomever_it_talks_to() -> Result<()> {
    let stage = Stage::raise_for_all()?;
    for origin in ORIGIN {
        let mut first = UdpPair::new(&stage.world, origin)?;
        let seen = first.converse()?;
        ensure!(is_gateway(seen), "the server sees {seen}");
        // Another server hears the same socket from the same port.
        let mut second = UdpPair::new(&stage.world, origin)?;
        std::mem::swap(&mut first.app, &mut second.app);
        ensure!(second.converse()? == seen, "another port for another destination");
        ensure!(first.converse()? != seen, "one port for two sockets");
    }
    let status = stage.client.status(&stage.world)?;
    ensure!(status["datagrams"]["open"].as_u64() >= Some(4), "{status}");
    let moved = |metrics: &str, family: &str| {
        let line = metrics.lines().find(|line| line.starts_with(family));
        line.is_some_and(|line| !line.ends_with(" 0"))
    };
    let metrics = stage.client.command(&stage.world, &["metrics"])?;
    let family = "whimbrel_udp_datagrams_total{direction=\"receive\"}";
    ensure!(moved(&metrics, family), "{metrics}");
    let metrics = stage.gateway.command(&stage.world, &["metrics"])?;
    let family = "whimbrel_gateway_udp_datagrams_total{direction=\"receive\"}";
    ensure!(moved(&metrics, family), "{metrics}");
    let flows = stage.client.show(&stage.world, "flows")?;
    let udp = |row: &serde_json::Value| row["protocol"] == "udp" && row["rx_bytes"] != 0;
    ensure!(flows.as_array().is_some_and(|rows| rows.iter().any(udp)), "not shown: {flows}");
    no_panics(&stage.world)
}

/// Payloads around every limit there is: nothing, what fits a datagram of the carrier, what only
/// fits its stream, what the kernel cuts into fragments, and what just fits an IPv4 packet.
const SIZES: [usize; 10] = [0, 1, 1000, 1200, 1232, 1400, 1472, 1473, 9000, 65_507];

pub(crate) fn datagrams_of_every_size_arrive_as_they_were() -> Result<()> {
    let stage = Stage::raise_for_all()?;
    for origin in ORIGIN {
        let mut pair = UdpPair::new(&stage.world, origin)?;
        let seen = pair.converse()?;
        for size in SIZES {
            let words = numbered(size as u64, 0, size);
            until(&format!("{size} bytes arrive at {origin}"), || {
                // Larger ones may first be told what fits, and are cut up by the kernel then.
                let _too_big = pair.app.send_to(&words, pair.to);
                Ok(expect(&pair.server, &words)?.is_some())
            })?;
            until(&format!("{size} bytes arrive from {origin}"), || {
                pair.server.send_to(&words, seen).context("answering")?;
                Ok(expect(&pair.app, &words)?.is_some())
            })?;
        }
    }
    no_panics(&stage.world)
}

pub(crate) fn servers_and_the_local_network_are_left_alone() -> Result<()> {
    let stage = Stage::raise_for_all()?;
    let [v4, v6] = ORIGIN;
    for (origin, reference) in [(v4, REFERENCE_V4.into()), (v6, IpAddr::from(REFERENCE_V6))] {
        // A server answers from a port of its own, from whichever address the kernel takes.
        let mut server = UdpPair::new(&stage.world, origin)?;
        let any = if origin.is_ipv4() { "0.0.0.0:5000" } else { "[::]:5000" };
        server.app = bound(&stage.world, "laptop", any.parse()?)?;
        let seen = server.converse()?;
        ensure!(!is_gateway(seen), "a server's datagram was captured");
        let mut excluded = UdpPair::new(&stage.world, origin)?;
        excluded.server = bound(&stage.world, "origin", (reference, 0).into())?;
        excluded.to = excluded.server.local_addr()?;
        let seen = excluded.converse()?;
        ensure!(!is_gateway(seen), "an excluded destination was captured");
        let mut carried = UdpPair::new(&stage.world, origin)?;
        ensure!(is_gateway(carried.converse()?), "what is not excluded is carried");
    }
    // Somebody on the local network may answer this; no gateway can.
    let search: SocketAddr = (Ipv4Addr::new(239, 255, 255, 250), 1900).into();
    let before = stage.client.status(&stage.world)?["datagrams"].clone();
    anywhere(&stage.world, "laptop", v4)?.send_to(b"M-SEARCH", search)?;
    let mut pair = UdpPair::new(&stage.world, v4)?;
    pair.converse()?;
    let after = stage.client.status(&stage.world)?["datagrams"].clone();
    ensure!(after["dropped"] == before["dropped"], "multicast was captured: {before} {after}");
    Ok(())
}

pub(crate) fn without_being_asked_udp_is_left_alone() -> Result<()> {
    let stage = Stage::raise()?;
    for origin in ORIGIN {
        let seen = UdpPair::new(&stage.world, origin)?.converse()?;
        ensure!(!is_gateway(seen), "captured: the server sees {seen}");
    }
    let status = stage.client.status(&stage.world)?;
    ensure!(status["datagrams"]["state"] == "off", "{status}");
    Ok(())
}

pub(crate) fn a_stranger_does_not_reach_a_port_of_a_client() -> Result<()> {
    let stage = Stage::raise_for_all()?;
    for (origin, gateway) in ORIGIN.into_iter().zip([GATEWAY_V4.into(), GATEWAY_V6.into()]) {
        let mut pair = UdpPair::new(&stage.world, origin)?;
        let seen = pair.converse()?;
        let port = SocketAddr::new(gateway, seen.port());
        // The origin has another address, from which nobody was asked.
        let other = match origin {
            IpAddr::V4(_) => IpAddr::from(REFERENCE_V4),
            IpAddr::V6(_) => REFERENCE_V6.into(),
        };
        let stranger =
            stage.world.host("origin").run(move |_| std::net::UdpSocket::bind((other, 0)))?;
        stranger.send_to(b"let me in", port)?;
        pair.converse()?;
        stage_heard_nothing(&pair)?;
    }
    Ok(())
}

fn stage_heard_nothing(pair: &UdpPair) -> Result<()> {
    pair.app.set_nonblocking(true)?;
    let heard = pair.app.recv_from(&mut [0; 100]);
    pair.app.set_nonblocking(false)?;
    ensure!(heard.is_err(), "a stranger came in: {heard:?}");
    Ok(())
}
