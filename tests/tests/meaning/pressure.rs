//! A reader that stops reading stops its writer, and nothing else.

use crate::stage::{
    Footprint, ORIGIN, PATIENCE, Pair, Stage, expect_end, join, no_panics, receive, receive_to_end,
    send, send_until_blocked, tell,
};
use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use whimbrel_tests::traffic::{Event, longest_gap, port, service};

/// Readers that pause at the same time.
const PAUSED: usize = 100;

/// What the one flow among them carries, in bytes, and how long it may take: a debug build on a
/// busy machine with two cores moves it in a few seconds.
const BULK: u64 = 30_000_000;
const BULK_PATIENCE: Duration = Duration::from_secs(60);

/// What one paused flow can have on its way, in bytes: buffers of four sockets and two daemons.
const ON_THE_WAY: u64 = 24 << 20;

/// Send buffer of the writers, in bytes.
const KERNEL_BUFFER: usize = 128 << 10;

/// What may still seep away while readers pause, per flow and in bytes: kernels grow their
/// buffers with the time.
const SEEPAGE: u64 = 256 << 10;

/// A writer that took nothing for this long is stopped.
const STILL: Duration = Duration::from_millis(500);

pub(crate) fn paused_downloads_stop_their_writers_and_nothing_else() -> Result<()> {
    paused_readers(|pair| (pair.server, pair.app), "download", port::SOURCE)
}

pub(crate) fn paused_uploads_stop_their_writers_and_nothing_else() -> Result<()> {
    paused_readers(|pair| (pair.app, pair.server), "upload", port::SINK)
}

/// `sides` names the writer and the reader of a pair.
fn paused_readers(
    sides: impl Fn(Pair) -> (TcpStream, TcpStream),
    program: &str,
    service_port: u16,
) -> Result<()> {
    let mut stage = Stage::raise()?;
    let alone = bulk(&stage, program, service_port)?;
    let session = stage.session()?;
    let mut flows = Vec::new();
    for number in 0..PAUSED {
        let (writer, reader) = sides(stage.pair(ORIGIN[number % 2])?);
        // What the writer's kernel holds is not what is tested.
        SockRef::from(&writer).set_send_buffer_size(KERNEL_BUFFER)?;
        flows.push(Paused { writer, reader, number: number as u64, sent: 0 });
    }
    stop_writers(&mut flows)?;
    let among = bulk(&stage, program, service_port)?;
    tell!("{program}: {alone:?} alone, {among:?} among {PAUSED} paused readers");
    let held: u64 = flows.iter().map(|flow| flow.sent).sum();
    let footprints =
        [Footprint::of(stage.client.process())?, Footprint::of(stage.gateway.process())?];
    tell!("{held} bytes on their way, {footprints:?}");
    let more = stop_writers(&mut flows)?;
    ensure!(more < SEEPAGE * PAUSED as u64, "the writers went on for {more} bytes");
    for mut flow in flows {
        flow.writer.shutdown(Shutdown::Write)?;
        receive(&mut flow.reader, flow.number, 0, flow.sent)
            .with_context(|| format!("reader {}", flow.number))?;
        expect_end(&mut flow.reader)?;
    }
    ensure!(stage.session()? == session, "the connection to the gateway was lost");
    no_panics(&stage.world)?;
    stage.quiet()
}

fn bulk(stage: &Stage, program: &str, service_port: u16) -> Result<Duration> {
    let bytes = BULK.to_string();
    let to = service(ORIGIN[0], service_port);
    let begin = Instant::now();
    let mut flow = stage.world.start_program("laptop", program, to, &["--bytes", &bytes])?;
    flow.succeed(BULK_PATIENCE)?;
    Ok(begin.elapsed())
}

/// One connection whose reader does not read.
struct Paused {
    writer: TcpStream,
    reader: TcpStream,
    number: u64,
    sent: u64,
}

/// Writes to all until none takes any more; how many bytes that were.
fn stop_writers(flows: &mut [Paused]) -> Result<u64> {
    let deadline = Instant::now() + 2 * PATIENCE;
    let (mut total, mut last) = (0, Instant::now());
    while last.elapsed() < STILL {
        for flow in &mut *flows {
            let sent = send_until_blocked(&mut flow.writer, flow.number, flow.sent)?;
            if sent > flow.sent {
                total += sent - flow.sent;
                flow.sent = sent;
                last = Instant::now();
            }
            ensure!(sent < ON_THE_WAY, "a writer was never stopped");
        }
        ensure!(Instant::now() < deadline, "the writers never came to rest");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(total)
}

/// How long a reader of small writes pauses, and a reader of bulk: what once broke carriers.
const SMALL_PAUSE: Duration = Duration::from_secs(5);
const BULK_PAUSE: Duration = Duration::from_secs(2);

/// A busy machine may keep a process from running for this long; a stalled neighbour would stall
/// it for as long as the pause.
const HICCUP: Duration = Duration::from_millis(1500);

pub(crate) fn a_slow_reader_of_small_writes_stalls_alone() -> Result<()> {
    let mut stage = Stage::raise()?;
    for (round, origin) in ORIGIN.into_iter().enumerate() {
        let pair = stage.pair(origin)?;
        // Both directions, one family each.
        let (mut writer, mut reader) =
            if round == 0 { (pair.server, pair.app) } else { (pair.app, pair.server) };
        beside_a_ping_pong(&mut stage, move || {
            let sending = std::thread::spawn(move || -> std::io::Result<u64> {
                let (begin, mut sent) = (Instant::now(), 0);
                while begin.elapsed() < SMALL_PAUSE {
                    send(&mut writer, 3, sent, sent + 200)?;
                    sent += 200;
                    std::thread::sleep(Duration::from_micros(200));
                }
                writer.shutdown(Shutdown::Write)?;
                Ok(sent)
            });
            std::thread::sleep(SMALL_PAUSE);
            // The writer is likely to be blocked by now: it ends only because it is read again.
            let received = receive_to_end(&mut reader, 3, 0)?;
            let sent = join(sending)?;
            ensure!(received == sent, "{received} bytes arrived of {sent}");
            Ok(())
        })?;
    }
    stage.quiet()
}

pub(crate) fn a_slow_reader_of_bulk_stalls_alone() -> Result<()> {
    let mut stage = Stage::raise()?;
    for (round, origin) in ORIGIN.into_iter().enumerate() {
        let pair = stage.pair(origin)?;
        let (mut writer, mut reader) =
            if round == 0 { (pair.server, pair.app) } else { (pair.app, pair.server) };
        beside_a_ping_pong(&mut stage, move || {
            let sending = std::thread::spawn(move || -> std::io::Result<()> {
                send(&mut writer, 4, 0, BULK)?;
                writer.shutdown(Shutdown::Write)
            });
            receive(&mut reader, 4, 0, BULK / 4)?;
            std::thread::sleep(BULK_PAUSE);
            receive(&mut reader, 4, BULK / 4, BULK)?;
            join(sending)?;
            expect_end(&mut reader)
        })?;
    }
    stage.quiet()
}

/// Runs something beside a ping-pong, which must not notice; the session must be the same.
fn beside_a_ping_pong(stage: &mut Stage, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let session = stage.session()?;
    let to = service(ORIGIN[0], port::ECHO);
    let mut other = stage.world.start_program("laptop", "ping-pong", to, &["--every", "10"])?;
    other.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    work()?;
    other.stop();
    let gap = longest_gap(&other.succeed(PATIENCE)?).context("no gap was measured")?;
    ensure!(gap < HICCUP, "another flow stalled for {gap:?}");
    ensure!(stage.session()? == session, "the connection to the gateway was lost");
    no_panics(&stage.world)
}
