//! Datagrams across what happens to networks and gateways.

use crate::pair::{UdpPair, all, expect, is_gateway};
use crate::stage::{ORIGIN, Stage, no_panics, until};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;

/// Pairs of both families, and whom their servers see.
fn begin(stage: &Stage) -> Result<Vec<(UdpPair, SocketAddr)>> {
    let begin = |origin| {
        let mut pair = UdpPair::new(&stage.world, origin)?;
        let seen = pair.converse()?;
        ensure!(is_gateway(seen), "the server sees {seen}");
        Ok((pair, seen))
    };
    ORIGIN.into_iter().map(begin).collect()
}

/// A server pushes until the program hears it, although that says nothing itself.
fn pushes(pair: &UdpPair, seen: SocketAddr, what: &str) -> Result<()> {
    until("what a server pushes arrives", || {
        pair.server.send_to(what.as_bytes(), seen).context("pushing")?;
        Ok(expect(&pair.app, what.as_bytes())?.is_some())
    })
}

pub(crate) fn datagrams_go_on_across_a_move() -> Result<()> {
    let mut stage = Stage::raise_for_all()?;
    let mut pairs = begin(&stage)?;
    stage.client.wait_until(&stage.world, "has a spare link", |status| {
        let paths = status["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
        ["active", "warm"].iter().all(|state| paths.iter().any(|path| path["state"] == *state))
    })?;
    for (link, back) in [("wifi0", false), ("wifi0", true)] {
        let link = stage.world.link(link);
        if back {
            link.up()?
        } else {
            link.down()?
        }
        for (pair, seen) in &mut pairs {
            pushes(pair, *seen, "a server speaks first")?;
            let now = pair.converse()?;
            ensure!(now == *seen, "another port after a move: {now}, not {seen}");
        }
    }
    let moves = stage.client.status(&stage.world)?["moves"].as_u64();
    ensure!(moves >= Some(1), "nothing moved");
    no_panics(&stage.world)
}

pub(crate) fn datagrams_go_on_across_a_restart_from_the_same_port() -> Result<()> {
    let mut stage = Stage::raise_kept_for(|_| {}, all)?;
    stage.await_udp()?;
    let mut pairs = begin(&stage)?;
    for round in 0..3 {
        if round == 0 {
            stage.gateway.restart()?
        } else {
            stage.gateway.kill()?
        }
        for (pair, seen) in &mut pairs {
            pushes(pair, *seen, "a server speaks first")?;
            let now = pair.converse()?;
            ensure!(now == *seen, "another port after a restart: {now}, not {seen}");
        }
    }
    no_panics(&stage.world)
}
