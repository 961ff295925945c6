//! A client that proves its key and then breaks every rule, beside an honest one.

use crate::rogue::{Rogue, key};
use crate::stage::{Footprint, PATIENCE, Stage, no_panics, put, tell};
use anyhow::{Context, Result, ensure};
use bytes::{BufMut, BytesMut};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use whimbrel_carrier::{Read, Stream};
use whimbrel_common::wire::{
    self, Control, DETACH, Denial, FlowAnswer, FlowHeader, Taken, VERSION, WireFlow,
};
use whimbrel_tests::lab::{Layout, ORIGIN_V4};
use whimbrel_tests::traffic::{Event, Program, port, service};

/// More credit than any flow needs.
const PLENTY: u64 = 1 << 40;

/// What a flow whose destination reads nothing may take, in bytes: the engine's window of one
/// stream, and the buffers of two kernels.
const FLOOD: usize = 32 << 20;

/// An honest client's traffic while somebody misbehaves.
pub(crate) struct Honest {
    programs: Vec<Program>,
}

impl Honest {
    pub(crate) fn begin(stage: &Stage) -> Result<Self> {
        let start = |program, port, more: &[&str]| -> Result<Program> {
            let to = service(ORIGIN_V4, port);
            let program = stage.world.start_program("laptop", program, to, more)?;
            program.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
            Ok(program)
        };
        Ok(Self {
            programs: vec![
                start("ping-pong", port::ECHO, &["--every", "10"])?,
                start("download", port::SOURCE, &["--rate", "8000000"])?,
            ],
        })
    }

    /// Both flows lived and brought every byte, and so does a new one.
    pub(crate) fn prove(mut self, stage: &mut Stage) -> Result<()> {
        for program in &mut self.programs {
            program.stop();
            program.succeed(PATIENCE).context("an honest flow was harmed")?;
        }
        let to = service(ORIGIN_V4, port::SINK);
        let mut upload = stage.world.start_program(
            "laptop",
            "upload",
            to,
            &["--bytes", "1000000", "--patience", "60"],
        )?;
        upload.succeed(2 * PATIENCE).context("an honest client cannot open a flow")?;
        ensure!(stage.gateway.process().is_running(), "the gateway ended");
        no_panics(&stage.world)
    }
}

fn echo() -> SocketAddr {
    service(ORIGIN_V4, port::ECHO)
}

/// Bytes without meaning, always the same ones.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(step).take(length).collect()
}

pub(crate) fn noise_on_the_control_stream_ends_only_its_own_session() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    drop(Rogue::admitted(&stage.world, "rogue", 1)?);
    for seed in 0..30 {
        let mut rogue = Rogue::again(&stage.world, 1)?;
        let flow = rogue.dial(1, echo(), PLENTY)?;
        ensure!(matches!(rogue.answer(flow)?, Some(FlowAnswer::Opened { .. })));
        // Noise may be the beginning of an honest frame: an absurd length ends that.
        let mut bytes = noise(seed, 300);
        bytes.extend_from_slice(&[0xff; 70_000]);
        // The gateway may hang up while we still speak.
        if rogue.write_all(Stream::CONTROL, &bytes).is_ok() {
            let code = rogue.code_of_the_end()?;
            // Some noise is a greeting in another version.
            let right = [Denial::Protocol.code(), Denial::Version.code()].contains(&code);
            ensure!(right, "code {code}");
        }
    }
    honest.prove(&mut stage)?;
    stage.quiet()
}

pub(crate) fn frames_of_the_future_are_skipped_or_refused() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 1)?;
    // Type, length, body: an odd type is optional.
    rogue.write_all(Stream::CONTROL, &[0x3f, 3, 1, 2, 3])?;
    let flow = rogue.dial(1, echo(), PLENTY)?;
    ensure!(matches!(rogue.answer(flow)?, Some(FlowAnswer::Opened { .. })));
    rogue.write_all(Stream::CONTROL, &[0x3e, 3, 1, 2, 3])?;
    ensure!(rogue.code_of_the_end()? == Denial::Protocol.code());
    for out_of_place in [
        Control::Attached { session: wire::SessionId([7; 16]), epoch: 1, hold: 1, flows: 1 },
        Control::Enrolled { name: "somebody".into() },
        Control::Denied { reason: Denial::Busy },
    ] {
        let mut rogue = Rogue::again(&stage.world, 1)?;
        rogue.say(&out_of_place)?;
        ensure!(rogue.code_of_the_end()? == Denial::Protocol.code(), "{out_of_place:?}");
    }
    let mut rogue = Rogue::connect(&stage.world, key(1))?;
    rogue.open().context("no control stream")?;
    rogue.say(&Control::Hello { version: VERSION + 1, capabilities: 0 })?;
    ensure!(rogue.code_of_the_end()? == Denial::Version.code());
    stage.quiet()
}

pub(crate) fn lies_about_offsets_end_only_the_flow_they_are_about() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 1)?;
    let open = |rogue: &mut Rogue, flow| -> Result<Stream> {
        let stream = rogue.dial(flow, echo(), PLENTY)?;
        ensure!(matches!(rogue.answer(stream)?, Some(FlowAnswer::Opened { .. })), "flow {flow}");
        Ok(stream)
    };
    let witness = open(&mut rogue, 1)?;
    let taken = |flow, offset, limit, fin| {
        Control::Taken(vec![Taken { flow: WireFlow(flow), offset, limit, fin }])
    };
    let liar = open(&mut rogue, 2)?;
    rogue.say(&taken(2, 1_000_000, PLENTY, false))?;
    rogue.reset_of(liar).context("taken beyond what was sent")?;
    let liar = open(&mut rogue, 3)?;
    rogue.say(&taken(3, 0, PLENTY, true))?;
    rogue.reset_of(liar).context("an end that never was")?;
    // Flows nobody knows concern nobody.
    rogue.say(&taken(77, 5, 6, false))?;
    // A flow that goes on with a hole, or from beyond what was sent.
    for (flow, taken, offset) in [(4, 0, 1_000_000), (5, 1_000_000, 0)] {
        let liar = open(&mut rogue, flow)?;
        let header = FlowHeader::Resume {
            flow: WireFlow(flow),
            epoch: 1,
            taken,
            fin_taken: false,
            offset,
            limit: PLENTY,
        };
        let resumed = rogue.send_header(&header)?;
        rogue.reset_of(liar).context("an impossible resume")?;
        let answer = rogue.answer(resumed)?;
        ensure!(!matches!(answer, Some(FlowAnswer::Resumed { .. })), "flow {flow}: {answer:?}");
    }
    // Data beyond any credit, to a destination that reads nothing: it ends somewhere.
    let flood = rogue.dial(6, service(ORIGIN_V4, port::DEAF), PLENTY)?;
    let answer = rogue.answer(flood)?;
    ensure!(matches!(answer, Some(FlowAnswer::Opened { .. })), "{answer:?}");
    let (mut flooded, mut since) = (0, Instant::now());
    rogue.until("the flood is stopped", |rogue| {
        // A reset is a way to stop it, too.
        let count = rogue.write(flood, &[0x55; 16 << 10]).unwrap_or(0);
        if count > 0 {
            (flooded, since) = (flooded + count, Instant::now());
        }
        ensure!(flooded < FLOOD, "{flooded} bytes were taken");
        Ok(since.elapsed() > Duration::from_secs(1))
    })?;
    tell!("a flood of {flooded} bytes was taken");
    // Another flow of the same client never noticed.
    rogue.write_all(witness, b"still there?")?;
    let mut heard = Vec::new();
    rogue.until("the witness answers", |rogue| {
        if let Read::Data(bytes) = rogue.endpoint.read(rogue.connection, witness, 64) {
            heard.extend_from_slice(&bytes);
        }
        Ok(heard == b"still there?")
    })?;
    drop(rogue);
    honest.prove(&mut stage)
}

pub(crate) fn resumes_of_nothing_and_in_storms_harm_nobody() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 1)?;
    let resume = |flow, epoch| FlowHeader::Resume {
        flow: WireFlow(flow),
        epoch,
        taken: 0,
        fin_taken: false,
        offset: 0,
        limit: PLENTY,
    };
    let stream = rogue.send_header(&resume(9, 1))?;
    let answer = rogue.answer(stream)?;
    ensure!(answer == Some(FlowAnswer::NeverSeen), "{answer:?}");
    let stream = rogue.dial(10, echo(), PLENTY)?;
    ensure!(matches!(rogue.answer(stream)?, Some(FlowAnswer::Opened { .. })));
    // Dials may overtake each other, so a lower id may still be unused; but not one that is lower
    // by so much that nobody remembers.
    let stream = rogue.send_header(&resume(9, 2))?;
    let answer = rogue.answer(stream)?;
    ensure!(answer == Some(FlowAnswer::NeverSeen), "{answer:?}");
    let stream = rogue.dial(1000, echo(), PLENTY)?;
    ensure!(matches!(rogue.answer(stream)?, Some(FlowAnswer::Opened { .. })));
    let stream = rogue.send_header(&resume(9, 3))?;
    let answer = rogue.answer(stream)?;
    ensure!(answer == Some(FlowAnswer::Gone), "{answer:?}");
    let mut last = stream;
    for epoch in 1..=5_000 {
        last = rogue.send_header(&resume(10, epoch))?;
    }
    let answer = rogue.answer(last)?;
    ensure!(matches!(answer, Some(FlowAnswer::Resumed { taken: 0, .. })), "{answer:?}");
    // Older epochs are inert, and the flow goes on where it was resumed last.
    rogue.send_header(&resume(10, 3))?;
    rogue.write_all(last, b"after the storm")?;
    let mut heard = Vec::new();
    rogue.until("the flow goes on", |rogue| {
        if let Read::Data(bytes) = rogue.endpoint.read(rogue.connection, last, 64) {
            heard.extend_from_slice(&bytes);
        }
        Ok(heard == b"after the storm")
    })?;
    drop(rogue);
    honest.prove(&mut stage)
}

pub(crate) fn streams_without_a_header_are_reset_or_wait() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 1)?;
    let before = Footprint::of(stage.gateway.process())?;
    for seed in 0..200 {
        let stream = rogue.open().context("no stream")?;
        let mut bytes = BytesMut::from(&noise(seed, 40)[..]);
        // Not by chance the beginning of a header: a whole frame of an even type nobody knows.
        bytes[0] = 0x3e;
        bytes[1] = 8;
        bytes.put_slice(&[0xff; 16]);
        rogue.write_all(stream, &bytes)?;
        rogue.reset_of(stream).with_context(|| format!("noise {seed}"))?;
    }
    // Half a header each, on as many streams as a client may have at once.
    let mut streams = 0;
    while streams < 10_000 {
        let Some(stream) = rogue.open() else { break };
        rogue.write_all(stream, &[0x20])?;
        streams += 1;
    }
    rogue.linger(Duration::from_millis(200))?;
    let after = Footprint::of(stage.gateway.process())?;
    tell!("{streams} streams with half a header: {before:?}, then {after:?}");
    ensure!(after.resident < before.resident + (100 << 10), "{before:?}, then {after:?}");
    ensure!(after.descriptors <= before.descriptors, "{before:?}, then {after:?}");
    drop(rogue);
    honest.prove(&mut stage)
}

pub(crate) fn a_client_that_never_reads_holds_no_more_than_its_share() -> Result<()> {
    let share = |table: &mut toml::Table| {
        put(table, "limits", "buffered_per_client", "32MiB");
        put(table, "limits", "flows_per_client", 400);
    };
    let mut stage = Stage::raise_with(Layout::standard(), share, |_| {})?;
    let honest = Honest::begin(&stage)?;
    let before = Footprint::of(stage.gateway.process())?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 1)?;
    let mut request = [0; 16];
    // All there is, as fast as it goes.
    request[..8].fill(0x7f);
    for flow in 0..60 {
        let stream = rogue.dial(flow, service(ORIGIN_V4, port::SOURCE), PLENTY)?;
        rogue.write_all(stream, &request)?;
    }
    // Nothing of it is ever read or reported as taken, until it comes to rest.
    let (mut last, mut since) = (0, Instant::now());
    rogue.until("the gateway stops", |_| {
        let now = Footprint::of(stage.gateway.process())?.resident;
        if now > last + 1024 {
            (last, since) = (now, Instant::now());
        }
        Ok(since.elapsed() > Duration::from_secs(1))
    })?;
    let after = Footprint::of(stage.gateway.process())?;
    tell!("60 flows nobody reads: {before:?}, then {after:?}");
    let figures = stage.gateway.command(&stage.world, &["metrics"])?;
    let sample = "whimbrel_gateway_limits_reached_total{limit=\"buffered_per_client\"}";
    ensure!(figures.contains(sample) && !figures.contains(&format!("{sample} 0\n")), "{figures}");
    // Its share, what the engine buffers to send (16 MiB), and what an allocator keeps.
    ensure!(after.resident < before.resident + (160 << 10), "{before:?}, then {after:?}");
    // Beyond the limit of flows nothing is dialled.
    let mut refused = 0;
    for flow in 100..520 {
        let Some(stream) = rogue.open() else { break };
        let header = FlowHeader::Open { flow: WireFlow(flow), destination: echo(), limit: PLENTY };
        let mut bytes = BytesMut::new();
        wire::encode_header(&header, &mut bytes);
        rogue.write_all(stream, &bytes)?;
        refused += 1;
    }
    let status = stage.gateway.status(&stage.world)?;
    tell!("{refused} more were asked for: {status}");
    ensure!(status["flows"].as_u64().is_some_and(|flows| flows <= 403), "{status}");
    drop(rogue);
    honest.prove(&mut stage)
}

pub(crate) fn ten_thousand_streams_at_once_harm_nobody() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 1)?;
    let mut opened = 0;
    for flow in 0..10_000 {
        // Refused at once by the policy: this is about streams, not about dials.
        rogue.dial(flow, service(crate::stage::NOWHERE, 80), PLENTY)?;
        opened += 1;
    }
    crate::stage::until("every stream is answered", || {
        rogue.linger(Duration::from_millis(50))?;
        Ok(stage.gateway.status(&stage.world)?["dials"]["denied"] == opened)
    })?;
    tell!("{opened} streams: {}", stage.gateway.status(&stage.world)?);
    ensure!(rogue.lost.is_none(), "{:?}", rogue.lost);
    drop(rogue);
    honest.prove(&mut stage)?;
    ensure!(stage.world.stray(crate::stage::NOWHERE.into()).packets == 0, "it was dialled");
    Ok(())
}

/// What a stranger may send, in bytes (as much again may be under way when it is told), and how
/// long it may stay.
const STRANGER_BYTES: usize = 4096;
const STRANGER_TIME: Duration = Duration::from_secs(5);

pub(crate) fn a_stranger_gets_four_kilobytes_and_five_seconds() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let begin = Instant::now();
    let mut silent = Rogue::connect(&stage.world, key(9))?;
    let mut stranger = Rogue::connect(&stage.world, key(10))?;
    let control = stranger.open().context("no control stream")?;
    ensure!(stranger.open().is_none(), "a stranger was given a second stream");
    stranger.say(&Control::Hello { version: VERSION, capabilities: 0 })?;
    // An optional frame without end: skipped by a gateway that reads it.
    let mut sent = stranger.write(control, &[0x3f, 0x80, 0, 0xff, 0xff])?;
    stranger.until("the stranger is sent away", |stranger| {
        if stranger.lost.is_none() {
            sent += stranger.write(control, &[0; 512])?;
        }
        Ok(stranger.lost.is_some())
    })?;
    tell!("a stranger sent {sent} bytes");
    ensure!(sent <= 3 * STRANGER_BYTES, "{sent} bytes were taken");
    // It may be a client whose words are lost: its session goes on.
    ensure!(silent.code_of_the_end().context("the silent stranger")? == DETACH);
    let stayed = begin.elapsed();
    ensure!(stayed + Duration::from_millis(500) > STRANGER_TIME, "only {stayed:?}");
    ensure!(stayed < 2 * STRANGER_TIME, "{stayed:?}");
    let mut unknown = Rogue::connect(&stage.world, key(11))?;
    unknown.open().context("no control stream")?;
    unknown.say(&Control::Hello { version: VERSION, capabilities: 0 })?;
    unknown.say(&Control::Attach { session: None, epoch: 1 })?;
    ensure!(unknown.code_of_the_end()? == Denial::UnknownKey.code());
    honest.prove(&mut stage)
}
