//! Clients that let the gateway keep what they never take.

use crate::frames::Honest;
use crate::rogue::Rogue;
use crate::stage::{Stage, put, tell, until};
use anyhow::{Context as _, Result, ensure};
use std::time::Instant;
use whimbrel_common::wire::DETACH;
use whimbrel_tests::lab::{Layout, ORIGIN_V4};
use whimbrel_tests::traffic::{port, service};

/// More credit than any flow needs.
const PLENTY: u64 = 1 << 40;

/// What the gateway may keep, in bytes.
const LIMIT: u64 = 16 << 20;

/// Bytes the gateway says it keeps, and clients it gave up.
fn held(stage: &Stage) -> Result<(u64, u64)> {
    let status = stage.gateway.status(&stage.world)?;
    let number = |value: &serde_json::Value| value.as_u64().with_context(|| status.to_string());
    let bytes = number(&status["held"]["bytes"])?;
    ensure!(bytes <= LIMIT && status["held"]["limit"] == LIMIT, "{status}");
    Ok((bytes, number(&status["evicted"])?))
}

/// Asks for all there is on many flows, and takes nothing.
fn hoard(rogue: &mut Rogue) -> Result<()> {
    let mut request = [0; 16];
    request[..8].fill(0x7f);
    for flow in 0..150 {
        let stream = rogue.dial(flow, service(ORIGIN_V4, port::SOURCE), PLENTY)?;
        rogue.write_all(stream, &request)?;
    }
    Ok(())
}

pub(crate) fn what_all_clients_keep_has_a_limit() -> Result<()> {
    let limit = |table: &mut toml::Table| put(table, "limits", "memory", "16MiB");
    let mut stage = Stage::raise_with(Layout::standard(), limit, |_| {})?;
    let honest = Honest::begin(&stage)?;
    let mut first = Rogue::admitted(&stage.world, "first", 1)?;
    hoard(&mut first)?;
    first.until("half of it is taken", |_| Ok(held(&stage)?.0 > LIMIT / 2))?;
    // It is away, and what it has not taken waits for it.
    first.endpoint.close(first.connection, DETACH, "asleep", Instant::now());
    until("the first is parked", || {
        first.linger(std::time::Duration::from_millis(20))?;
        Ok(stage.gateway.status(&stage.world)?["parked"]["sessions"] == 1)
    })?;
    tell!("parked with {} bytes", held(&stage)?.0);
    let mut second = Rogue::admitted(&stage.world, "second", 2)?;
    hoard(&mut second)?;
    second.until("the first is given up", |_| Ok(held(&stage)?.1 == 1))?;
    // Now there is room again, and the second takes it.
    second.until("half of it is taken again", |_| Ok(held(&stage)?.0 > LIMIT / 2))?;
    let figures = stage.gateway.command(&stage.world, &["metrics"])?;
    for sample in
        ["limits_reached_total{limit=\"memory\"}", "sessions_given_up_total{reason=\"crowded\"}"]
    {
        let never = format!("whimbrel_gateway_{sample} 0\n");
        ensure!(figures.contains(sample) && !figures.contains(&never), "{never}");
    }
    honest.prove(&mut stage)
}
