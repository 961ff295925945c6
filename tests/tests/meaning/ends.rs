//! How connections begin and end.

use crate::stage::{
    Footprint, NOWHERE, ORIGIN, PATIENCE, Pair, Stage, connect, connect_within, expect, expect_end,
    expect_reset, join, listen, put, receive, reset, send, tell,
};
use anyhow::{Context, Result, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use whimbrel_tests::lab::{
    GATEWAY_V4, GATEWAY_V6, Layout, ORIGIN_V4, SILENT_V4, UNREACHABLE_V4, UNREACHABLE_V6,
};
use whimbrel_tests::traffic::{Event, port, service};

/// More than fits anywhere on the way.
const BULK: u64 = 64 << 20;

fn failure(stage: &Stage, to: SocketAddr) -> Result<ErrorKind> {
    match connect(&stage.world, to) {
        Ok(_) => anyhow::bail!("{to} answered"),
        Err(error) => Ok(error.kind()),
    }
}

pub(crate) fn a_refusal_is_a_refusal() -> Result<()> {
    let mut stage = Stage::raise()?;
    for origin in ORIGIN {
        let kind = failure(&stage, service(origin, port::REFUSED))?;
        ensure!(kind == ErrorKind::ConnectionRefused, "{origin}: {kind:?}");
    }
    ensure!(stage.gateway.status(&stage.world)?["dials"]["failed"] == 2, "the gateway dialled");
    stage.quiet()
}

pub(crate) fn what_is_unreachable_from_the_gateway_is_unreachable() -> Result<()> {
    let mut stage = Stage::raise()?;
    for address in [IpAddr::from(UNREACHABLE_V4), UNREACHABLE_V6.into()] {
        let kind = failure(&stage, service(address, 80))?;
        let right = matches!(kind, ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable);
        ensure!(right, "{address}: {kind:?}");
    }
    stage.quiet()
}

pub(crate) fn what_the_policy_denies_is_told_at_once() -> Result<()> {
    let mut stage = Stage::raise()?;
    // A network for documentation, the gateway itself, mail, and a private address in disguise.
    let disguised = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0x0a00, 1);
    let denied = [
        service(NOWHERE, 80),
        service(GATEWAY_V4, 22),
        service(GATEWAY_V6, 22),
        service(ORIGIN_V4, 25),
        service(disguised, 80),
    ];
    for to in denied {
        let kind = failure(&stage, to)?;
        let right = matches!(
            kind,
            ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::PermissionDenied
        );
        ensure!(right, "{to}: {kind:?}");
    }
    let dials = stage.gateway.status(&stage.world)?["dials"].clone();
    ensure!(dials["denied"] == denied.len(), "{dials}");
    ensure!(stage.world.stray(NOWHERE.into()).packets == 0, "the gateway dialled");
    stage.quiet()
}

pub(crate) fn silence_is_a_timeout_and_leaves_nothing() -> Result<()> {
    let quick = |table: &mut toml::Table| put(table, "limits", "dial_timeout", "3s");
    let mut stage = Stage::raise_with(Layout::standard(), quick, |_| {})?;
    let before = Footprint::of(stage.gateway.process())?;
    for _ in 0..5 {
        let laptop = stage.world.host("laptop");
        let outcome = connect_within(laptop, service(SILENT_V4, 80), Duration::from_millis(500));
        let kind = outcome.err().context("silence answered")?.kind();
        ensure!(kind == ErrorKind::TimedOut, "{kind:?}");
    }
    let held = stage.client.status(&stage.world)?["flows"]["open"].clone();
    ensure!(held == 5, "{held} flows are opened");
    stage.quiet()?;
    Footprint::settled(stage.gateway.process(), before.descriptors)?;
    Ok(())
}

pub(crate) fn half_closes_carry_data_after_the_end_both_ways() -> Result<()> {
    let mut stage = Stage::raise()?;
    for origin in ORIGIN {
        let Pair { mut app, mut server, .. } = stage.pair(origin)?;
        half_close(&mut app, &mut server).context("the application ends first")?;
        let Pair { mut app, mut server, .. } = stage.pair(origin)?;
        half_close(&mut server, &mut app).context("the server ends first")?;
    }
    stage.quiet()
}

/// One side says its word and ends; the other hears all of it and then goes on for long.
fn half_close(first: &mut TcpStream, second: &mut TcpStream) -> Result<()> {
    const AFTER: u64 = 3_000_001;
    first.write_all(b"that is all")?;
    first.shutdown(Shutdown::Write)?;
    expect(second, b"that is all")?;
    expect_end(second)?;
    let mut writer = second.try_clone()?;
    let sending = std::thread::spawn(move || send(&mut writer, 7, 0, AFTER));
    receive(first, 7, 0, AFTER)?;
    join(sending)?;
    second.shutdown(Shutdown::Write)?;
    expect_end(first)
}

pub(crate) fn a_reset_of_an_idle_connection_reaches_the_other_end() -> Result<()> {
    let mut stage = Stage::raise()?;
    for origin in ORIGIN {
        let mut pair = stage.pair(origin)?;
        pair.converse()?;
        reset(pair.app)?;
        let bytes = expect_reset(&mut pair.server).context("the application resets")?;
        ensure!(bytes == 0, "{bytes} bytes nobody sent");
        let mut pair = stage.pair(origin)?;
        pair.converse()?;
        reset(pair.server)?;
        expect_reset(&mut pair.app).context("the server resets")?;
    }
    stage.quiet()
}

pub(crate) fn a_reset_in_the_middle_of_bulk_reaches_the_other_end() -> Result<()> {
    let mut stage = Stage::raise()?;
    for origin in ORIGIN {
        // Each side once resets while it reads, once while it writes.
        for app_resets in [true, false] {
            for resetter_writes in [true, false] {
                let Pair { app, server, .. } = stage.pair(origin)?;
                let (resetter, other) = if app_resets { (app, server) } else { (server, app) };
                break_off(resetter, other, resetter_writes).with_context(|| {
                    format!("{origin}, app resets: {app_resets}, writing: {resetter_writes}")
                })?;
            }
        }
    }
    stage.quiet()
}

fn break_off(mut resetter: TcpStream, mut other: TcpStream, resetter_writes: bool) -> Result<()> {
    if resetter_writes {
        let mut writer = resetter.try_clone()?;
        let sending = std::thread::spawn(move || send(&mut writer, 1, 0, BULK));
        receive(&mut other, 1, 0, 2 << 20)?;
        reset_shared(&resetter)?;
        let outcome = join(sending);
        ensure!(outcome.is_err(), "the resetting side could go on");
        let more = expect_reset(&mut other)?;
        ensure!(more < BULK, "everything arrived in spite of the reset");
        return Ok(());
    }
    let sending = std::thread::spawn(move || send(&mut other, 1, 0, BULK));
    receive(&mut resetter, 1, 0, 2 << 20)?;
    reset(resetter)?;
    let error = join(sending).err();
    let kind = error.context("the writer was never told")?.kind();
    ensure!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind:?}");
    Ok(())
}

/// Resets a connection another thread is still writing to: disconnecting sends RST whoever else
/// holds the socket (connect(2), AF_UNSPEC).
fn reset_shared(stream: &TcpStream) -> Result<()> {
    rustix::net::connect_unspec(stream).context("disconnecting")
}

pub(crate) fn both_ends_can_close_at_once() -> Result<()> {
    let mut stage = Stage::raise()?;
    for round in 0..40 {
        let Pair { mut app, mut server, .. } = stage.pair(ORIGIN[round % 2])?;
        let barrier = Arc::new(Barrier::new(2));
        let other = std::thread::spawn({
            let barrier = Arc::clone(&barrier);
            move || -> Result<()> {
                barrier.wait();
                server.write_all(b"bye")?;
                server.shutdown(Shutdown::Write)?;
                expect(&mut server, b"bye")?;
                expect_end(&mut server)
            }
        });
        barrier.wait();
        app.write_all(b"bye")?;
        app.shutdown(Shutdown::Write)?;
        expect(&mut app, b"bye")?;
        expect_end(&mut app)?;
        join(other).context("the server's end")?;
    }
    stage.quiet()
}

/// The stream of such a connection has ended both ways, so it cannot tell of the reset.
pub(crate) fn a_reset_after_both_ends_were_said_leaves_nothing() -> Result<()> {
    let mut stage = Stage::raise()?;
    for round in 0..40 {
        let Pair { mut app, mut server, .. } = stage.pair(ORIGIN[round % 2])?;
        server.write_all(b"all I say")?;
        // Nobody reads any more: what comes is answered by a reset.
        drop(server);
        expect(&mut app, b"all I say")?;
        expect_end(&mut app)?;
        app.write_all(b"nobody hears this")?;
        app.shutdown(Shutdown::Write)?;
    }
    stage.quiet()
}

pub(crate) fn single_bytes_go_there_and_back() -> Result<()> {
    let mut stage = Stage::raise()?;
    for origin in ORIGIN {
        let Pair { mut app, mut server, .. } = stage.pair(origin)?;
        let echo = std::thread::spawn(move || -> std::io::Result<()> {
            let mut byte = [0];
            while server.read(&mut byte)? == 1 {
                server.write_all(&byte)?;
            }
            server.shutdown(Shutdown::Write)
        });
        for round in 0..2000_u32 {
            let byte = round.to_le_bytes()[0] ^ 0x5a;
            app.write_all(&[byte])?;
            expect(&mut app, &[byte]).with_context(|| format!("round {round}"))?;
        }
        app.shutdown(Shutdown::Write)?;
        expect_end(&mut app)?;
        join(echo)?;
    }
    stage.quiet()
}

/// Connections in a row, from several threads at once.
const WORKERS: u64 = 4;

/// What both daemons may grow over any number of connections, in KiB: allocators keep some of
/// what they had at the busiest moment.
const GROWTH: u64 = 16 << 10;

pub(crate) fn short_connections_in_a_row_leak_nothing() -> Result<()> {
    let full = std::env::var_os("WHIMBREL_FULL").is_some();
    let count = if full { 100_000 } else { 3_000 };
    let mut stage = Stage::raise()?;
    let origin = stage.world.host("origin");
    let listener = listen(origin)?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || answer_all(&listener));
    // What is allocated once and for all is there after these.
    run_short(&stage, port, 500)?;
    stage.quiet()?;
    let before = [Footprint::of(stage.client.process())?, Footprint::of(stage.gateway.process())?];
    run_short(&stage, port, count)?;
    stage.quiet()?;
    let status = stage.gateway.status(&stage.world)?;
    ensure!(status["dials"]["connected"] == count + 500, "{status}");
    let after = [
        Footprint::settled(stage.client.process(), before[0].descriptors)?,
        Footprint::settled(stage.gateway.process(), before[1].descriptors)?,
    ];
    tell!("after {count} connections: {before:?}, then {after:?}");
    for (before, after) in before.iter().zip(&after) {
        ensure!(after.resident < before.resident + GROWTH, "{before:?}, then {after:?}");
    }
    // The streams are whole too: as many as ever can be opened at once.
    let to = service(ORIGIN[0], port::ECHO);
    let mut idle = stage.world.start_program("laptop", "idle", to, &["--count", "500"])?;
    idle.wait_for(PATIENCE, |event| matches!(event, Event::Open { count: 500, .. }))?;
    idle.stop();
    idle.succeed(PATIENCE)?;
    stage.quiet()
}

/// Answers one byte and ends first, so that no port of the laptop has to wait after it.
fn answer_all(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        std::thread::spawn(move || {
            let mut byte = [0];
            // What fails here shows at the other end.
            drop(stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)));
        });
    }
}

fn run_short(stage: &Stage, port: u16, count: u64) -> Result<()> {
    let work = |worker: u64| {
        move || -> Result<()> {
            for round in 0..count / WORKERS {
                let origin = ORIGIN[usize::from((round + worker) % 2 == 1)];
                one_short(SocketAddr::new(origin, port), worker, round)
                    .with_context(|| format!("worker {worker}, round {round}"))?;
            }
            Ok(())
        }
    };
    let laptop = stage.world.host("laptop");
    let workers: Vec<_> = (0..WORKERS).map(|worker| laptop.thread(work(worker))).collect();
    workers.into_iter().try_for_each(join)
}

/// Most end in an orderly way, some with a reset.
fn one_short(to: SocketAddr, worker: u64, round: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let byte = (worker + round).to_le_bytes()[..1].to_vec();
    stream.write_all(&byte)?;
    expect(&mut stream, &byte)?;
    if round % 8 == 7 {
        return reset(stream);
    }
    expect_end(&mut stream)
}

/// More than the streams a client may have open at once in [`streams_come_back_however_they_end`].
const MANY_ENDS: usize = 60;

pub(crate) fn streams_come_back_however_they_end() -> Result<()> {
    let few = |table: &mut toml::Table| put(table, "limits", "flows_per_client", 20);
    let mut stage = Stage::raise_with(Layout::standard(), few, |_| {})?;
    let session = stage.session()?;
    let closed = SocketAddr::new(ORIGIN[0], 9);
    for number in 0..MANY_ENDS {
        let refused = connect(&stage.world, closed).err().context("nobody listens there")?;
        ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{number}: {refused}");
    }
    for number in 0..MANY_ENDS {
        let mut pair = stage.pair(ORIGIN[0]).with_context(|| format!("{number} of the server"))?;
        reset(pair.server)?;
        expect_reset(&mut pair.app)?;
    }
    for number in 0..MANY_ENDS {
        let mut pair = stage.pair(ORIGIN[0]).with_context(|| format!("{number} of the app"))?;
        reset(pair.app)?;
        expect_reset(&mut pair.server)?;
    }
    for number in 0..MANY_ENDS {
        let mut pair = stage.pair(ORIGIN[0]).with_context(|| format!("{number} in good order"))?;
        pair.converse()?;
        pair.app.shutdown(Shutdown::Write)?;
        expect_end(&mut pair.server)?;
        pair.server.shutdown(Shutdown::Write)?;
        expect_end(&mut pair.app)?;
    }
    ensure!(stage.session()? == session, "the connection to the gateway was lost");
    stage.quiet()
}
