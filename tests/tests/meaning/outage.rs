//! The gateway is out of reach, the daemon stops, the gateway's owner changes his mind.

use crate::stage::{
    ORIGIN, PATIENCE, Pair, Stage, connect, expect_reset, join, log_of, pair, prepare, put, tell,
    until,
};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::io::ErrorKind;
use std::net::SocketAddr;
use whimbrel_tests::daemon::{Daemon, edit};
use whimbrel_tests::lab::{Layout, World};
use whimbrel_tests::traffic::{Program, port, service};

/// A client that has joined a gateway which does not run any more.
fn orphan(offline: &'static str) -> Result<(World, Program)> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let mut gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    edit(&world.client_config("laptop"), |table| put(table, "capture", "offline", offline))?;
    gateway.process().signal(Signal::TERM)?;
    gateway.process().wait(PATIENCE)?;
    Ok((world, origin))
}

fn events(client: &Daemon, world: &World) -> Result<Vec<Value>> {
    let events = client.show(world, "events")?;
    events.as_array().cloned().context("events are a list")
}

fn said(events: &[Value], words: &str) -> bool {
    events.iter().any(|event| event["text"].as_str().is_some_and(|text| text.contains(words)))
}

/// What `up` says without a gateway, until it has given up on waiting connections.
fn check_trouble(client: &mut Daemon, world: &World, capture: &str) -> Result<()> {
    let status = client.wait_until(world, "gave up waiting", |it| it["capture"] == capture)?;
    ensure!(status["state"] == "connecting", "{status}");
    let trouble = status["trouble"].as_str().unwrap_or_default();
    ensure!(trouble.contains("does not answer"), "{status}");
    let log = log_of(world, "laptop");
    ensure!(log.contains("Cannot reach the gateway"), "`up` does not say so:\n{log}");
    let events = events(client, world)?;
    ensure!(said(&events, "the gateway is out of reach"), "{events:?}");
    ensure!(client.process().is_running(), "the daemon ended");
    Ok(())
}

pub(crate) fn without_a_gateway_new_connections_go_direct_until_it_is_back() -> Result<()> {
    let (world, _origin) = orphan("direct")?;
    let mut client = world.launch_client("laptop")?;
    check_trouble(&mut client, &world, "direct")?;
    until("new connections go direct", || {
        Ok(ORIGIN.iter().all(|origin| pair(&world, *origin).is_ok_and(|it| !it.captured())))
    })?;
    let mut direct = pair(&world, ORIGIN[0])?;
    let mut gateway = world.start_gateway()?;
    client.wait_until(&world, "attached", |status| status["state"] == "attached")?;
    until("new connections are captured again", || {
        Ok(ORIGIN.iter().all(|origin| pair(&world, *origin).is_ok_and(|it| it.captured())))
    })?;
    direct.converse().context("a direct connection was disturbed")?;
    gateway.wait_until(&world, "serves one client", |status| status["connected"] == 1)?;
    Ok(())
}

pub(crate) fn without_a_gateway_new_connections_fail_if_they_must_not_leak() -> Result<()> {
    let (world, _origin) = orphan("block")?;
    let mut client = world.launch_client("laptop")?;
    check_trouble(&mut client, &world, "blocked")?;
    for origin in ORIGIN {
        let error = connect(&world, service(origin, port::ECHO)).err();
        let kind = error.with_context(|| format!("{origin} was reached"))?.kind();
        let right = matches!(kind, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable);
        ensure!(right, "{origin}: {kind:?}");
    }
    let _gateway = world.start_gateway()?;
    client.wait_until(&world, "attached", |status| status["state"] == "attached")?;
    until("new connections are captured again", || {
        Ok(ORIGIN.iter().all(|origin| pair(&world, *origin).is_ok_and(|it| it.captured())))
    })
}

pub(crate) fn a_connection_waits_for_a_gateway_that_comes_soon() -> Result<()> {
    let (world, _origin) = orphan("block")?;
    let mut client = world.launch_client("laptop")?;
    client.wait_until(&world, "answers", |status| status["state"] == "connecting")?;
    let to: SocketAddr = service(ORIGIN[0], port::ECHO);
    let rules = || {
        let there = world.host("laptop").run(|wiring| wiring.rules(false))?;
        Ok(there.len() > 3)
    };
    until("new connections are captured", rules)?;
    let attempt =
        world.host("laptop").thread(move || std::net::TcpStream::connect_timeout(&to, PATIENCE));
    client.wait_until(&world, "holds it", |status| status["flows"]["held"] == 1)?;
    let _gateway = world.start_gateway()?;
    let stream = join(attempt);
    let mut stream = stream.context("the connection did not wait")?;
    std::io::Write::write_all(&mut stream, b"hello")?;
    crate::stage::expect(&mut stream, b"hello")
}

pub(crate) fn an_orderly_stop_resets_what_was_carried_at_once() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut pairs = Vec::new();
    for origin in ORIGIN {
        let mut pair = stage.pair(origin)?;
        pair.converse()?;
        pairs.push(pair);
    }
    stage.client.process().signal(Signal::TERM)?;
    for Pair { mut app, mut server, .. } in pairs {
        expect_reset(&mut app).context("the application")?;
        expect_reset(&mut server).context("the destination")?;
    }
    let status = stage.client.process().wait(PATIENCE)?;
    ensure!(status.success(), "the daemon ended with {status}");
    stage.gateway.wait_until(&stage.world, "saw it go", |status| status["connected"] == 0)?;
    Ok(())
}

pub(crate) fn a_gateway_that_stops_resets_what_it_carried_at_once() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut pair = stage.pair(ORIGIN[0])?;
    pair.converse()?;
    stage.gateway.process().signal(Signal::TERM)?;
    expect_reset(&mut pair.app).context("the application")?;
    expect_reset(&mut pair.server).context("the destination")?;
    let status = stage.gateway.process().wait(PATIENCE)?;
    ensure!(status.success(), "the gateway ended with {status}");
    stage.gateway = stage.world.start_gateway()?;
    stage.client.wait_until(&stage.world, "attached", |status| status["state"] == "attached")?;
    stage.pair(ORIGIN[0])?.converse()
}

pub(crate) fn a_revoked_client_is_cut_off_at_once() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut pairs = Vec::new();
    for origin in ORIGIN {
        let mut pair = stage.pair(origin)?;
        pair.converse()?;
        pairs.push(pair);
    }
    let said = stage.gateway.command(&stage.world, &["revoke", "laptop"])?;
    tell!("{said}");
    for Pair { mut app, mut server, .. } in pairs {
        expect_reset(&mut app).context("the application")?;
        expect_reset(&mut server).context("the destination")?;
    }
    let status = stage.client.wait_until(&stage.world, "was told", |status| {
        status["state"] == "connecting" && status["trouble"].is_string()
    })?;
    let trouble = status["trouble"].as_str().unwrap_or_default();
    let told = trouble.contains("revoked") || trouble.contains("does not know this client");
    ensure!(told, "{status}");
    ensure!(stage.client.process().is_running(), "the daemon ended");
    let status = stage.gateway.status(&stage.world)?;
    ensure!(status["connected"] == 0 && status["flows"] == 0, "{status}");
    Ok(())
}
