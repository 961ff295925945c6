//! Sessions that outlive their connections, and those who would like to have them.

use crate::rogue::Rogue;
use crate::stage::{PATIENCE, Stage};
use anyhow::{Result, ensure};
use std::time::Instant;
use whimbrel_common::wire::{DETACH, Denial, FlowAnswer, FlowHeader, WireFlow};
use whimbrel_gateway_core::limits::MOST_SESSIONS;
use whimbrel_tests::lab::ORIGIN_V4;
use whimbrel_tests::traffic::{port, service};

/// Credit for everything said here.
const PLENTY: u64 = 1 << 20;

/// What was said over the first connection.
const BEFORE: &[u8] = b"before";

fn begin(stage: &Stage) -> Result<Rogue> {
    let mut rogue = Rogue::admitted(&stage.world, "traveller", 1)?;
    let stream = rogue.dial(1, service(ORIGIN_V4, port::ECHO), PLENTY)?;
    ensure!(matches!(rogue.answer(stream)?, Some(FlowAnswer::Opened { .. })));
    rogue.converse(stream, BEFORE)?;
    Ok(rogue)
}

fn resume(epoch: u64) -> FlowHeader {
    let said = BEFORE.len() as u64;
    FlowHeader::Resume {
        flow: WireFlow(1),
        epoch,
        taken: said,
        fin_taken: false,
        offset: said,
        limit: PLENTY,
    }
}

pub(crate) fn sessions_of_one_client_are_bounded() -> Result<()> {
    let stage = Stage::raise()?;
    let mut rogues = vec![Rogue::admitted(&stage.world, "greedy", 7)?];
    for _ in 1..MOST_SESSIONS {
        rogues.push(Rogue::again(&stage.world, 7)?);
    }
    let mut beyond = Rogue::asking(&stage.world, 7, None, 1)?;
    ensure!(beyond.code_of_the_end()? == Denial::Busy.code());
    // Others are none the worse for it, nor are those that there are.
    drop(Rogue::admitted(&stage.world, "modest", 8)?);
    ensure!(rogues.iter().all(|rogue| rogue.lost.is_none()));
    Ok(())
}

/// Goes on with the flow where the first connection left it.
fn go_on(rogue: &mut Rogue, epoch: u64) -> Result<()> {
    let stream = rogue.send_header(&resume(epoch))?;
    let answer = rogue.answer(stream)?;
    let (said, Some(FlowAnswer::Resumed { taken, offset, .. })) = (BEFORE.len() as u64, answer)
    else {
        anyhow::bail!("{answer:?}");
    };
    ensure!((taken, offset) == (said, said), "{answer:?}");
    rogue.converse(stream, b"after")
}

pub(crate) fn a_session_goes_on_over_another_connection_of_its_key_and_of_no_other() -> Result<()> {
    let stage = Stage::raise()?;
    let mut first = begin(&stage)?;
    let own = first.session;

    // Knowing the name of a session is worth nothing without its key.
    drop(Rogue::admitted(&stage.world, "thief", 2)?);
    let mut thief = Rogue::back(&stage.world, 2, own, 9)?;
    ensure!(thief.session != own, "another key has the session");
    let stream = thief.send_header(&resume(1))?;
    ensure!(thief.answer(stream)? == Some(FlowAnswer::NeverSeen));

    // An attach that was overtaken by a later one is inert.
    let late = Rogue::back(&stage.world, 1, own, 1)?;
    ensure!(late.session != own, "an old epoch took the session");
    ensure!(first.lost.is_none());

    let mut second = Rogue::back(&stage.world, 1, own, 2)?;
    ensure!(second.session == own, "the session was not resumed");
    ensure!(first.code_of_the_end()? == DETACH);
    go_on(&mut second, 1)
}

pub(crate) fn flows_wait_for_a_client_that_lost_its_connection() -> Result<()> {
    let stage = Stage::raise()?;
    let mut first = begin(&stage)?;
    let own = first.session;
    first.endpoint.close(first.connection, DETACH, "gone", Instant::now());
    first.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
    let mut second = Rogue::back(&stage.world, 1, own, 2)?;
    ensure!(second.session == own, "the session was not kept");
    go_on(&mut second, 1)?;
    // Who says goodbye does not come back.
    second.endpoint.close(second.connection, 0, "done", Instant::now());
    second.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
    let deadline = Instant::now() + PATIENCE;
    let mut epoch = 3;
    loop {
        let mut third = Rogue::back(&stage.world, 1, own, epoch)?;
        if third.session != own {
            let stream = third.send_header(&resume(2))?;
            ensure!(third.answer(stream)? == Some(FlowAnswer::NeverSeen));
            return Ok(());
        }
        // The goodbye is still under way.
        ensure!(Instant::now() < deadline, "a session outlives its end");
        third.endpoint.close(third.connection, 0, "done", Instant::now());
        third.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
        epoch += 1;
    }
}

pub(crate) fn a_revoked_client_cannot_go_on() -> Result<()> {
    let stage = Stage::raise()?;
    let mut first = begin(&stage)?;
    let own = first.session;
    first.endpoint.close(first.connection, DETACH, "gone", Instant::now());
    first.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
    let config = stage.world.gateway_config().display().to_string();
    stage.world.ask_gateway(&["revoke", "traveller", "--config", &config])?;
    let mut second = Rogue::connect(&stage.world, crate::rogue::key(1))?;
    second.open();
    second.say(&whimbrel_common::wire::Control::Hello {
        version: whimbrel_common::wire::VERSION,
        capabilities: 0,
    })?;
    second.say(&whimbrel_common::wire::Control::Attach { session: own, epoch: 2 })?;
    let code = second.code_of_the_end()?;
    ensure!(code == Denial::UnknownKey.code() || code == Denial::Revoked.code(), "code {code}");
    Ok(())
}
