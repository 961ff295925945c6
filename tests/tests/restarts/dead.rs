//! What happens while the gateway's process is not there, and what must not survive it.

use crate::stage::{
    ORIGIN, PATIENCE, Stage, connect, expect_end, expect_reset, receive_to_end, reset, send, until,
};
use anyhow::{Context, Result, ensure};
use std::net::{Shutdown, SocketAddr};

pub(crate) fn an_end_said_while_the_gateway_was_dead_arrives() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    for origin in ORIGIN {
        let mut pair = stage.pair(origin)?;
        send(&mut pair.server, 1, 0, 50_000)?;
        pair.server.shutdown(Shutdown::Write)?;
        send(&mut pair.app, 2, 0, 50_000)?;
        pair.app.shutdown(Shutdown::Write)?;
        stage.gateway.kill()?;
        ensure!(receive_to_end(&mut pair.app, 1, 0)? == 50_000);
        ensure!(receive_to_end(&mut pair.server, 2, 0)? == 50_000);
    }
    stage.quiet()
}

pub(crate) fn a_reset_while_the_gateway_was_dead_arrives() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    for origin in ORIGIN {
        let (mut one, mut other) = (stage.pair(origin)?, stage.pair(origin)?);
        stage.gateway.begin_kill()?;
        reset(one.server)?;
        reset(other.app)?;
        stage.gateway.until_started()?;
        expect_reset(&mut one.app).context("by the destination")?;
        expect_reset(&mut other.server).context("by the application")?;
    }
    stage.quiet()
}

pub(crate) fn a_reset_is_a_reset_although_duplicates_are_kept() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    for origin in ORIGIN {
        let (mut one, mut other) = (stage.pair(origin)?, stage.pair(origin)?);
        reset(one.app)?;
        expect_reset(&mut one.server).context("at the destination")?;
        reset(other.server)?;
        expect_reset(&mut other.app).context("at the application")?;
    }
    stage.quiet()
}

pub(crate) fn a_client_revoked_meanwhile_finds_nothing() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    let mut pair = stage.pair(ORIGIN[0])?;
    pair.converse()?;
    // The client's process rests: it cannot come back before the word is said.
    stage.client.process().signal(rustix::process::Signal::STOP)?;
    stage.gateway.kill()?;
    let config = stage.world.gateway_config();
    let config = config.to_str().context("a path")?;
    stage.world.ask_gateway(&["revoke", "laptop", "--config", config])?;
    expect_reset(&mut pair.server).context("the destination hears of it")?;
    stage.client.process().signal(rustix::process::Signal::CONT)?;
    let ended = expect_reset(&mut pair.app).map(drop).or_else(|_| expect_end(&mut pair.app));
    ended.context("the application hears of it")?;
    Ok(())
}

pub(crate) fn what_was_stored_by_others_is_refused_and_harms_nothing() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    let mut pair = stage.pair(ORIGIN[0])?;
    stage.gateway.process().say("litter")?;
    stage.gateway.kill()?;
    pair.converse().context("one from before")?;
    stage.pair(ORIGIN[1])?.converse().context("a new one")?;
    stage.gateway.process().say("forget")?;
    stage.gateway.kill()?;
    // Nothing was kept: it says so by ending what it does not know, and starts all the same.
    expect_reset(&mut pair.app)?;
    until("new connections are carried", || {
        let listener = crate::stage::listen(stage.world.host("origin"))?;
        let to = SocketAddr::new(ORIGIN[0], listener.local_addr()?.port());
        Ok(connect(&stage.world, to).is_ok())
    })?;
    ensure!(stage.gateway.process().is_running(), "{PATIENCE:?}");
    Ok(())
}
