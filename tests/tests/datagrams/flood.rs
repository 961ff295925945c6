//! Whoever floods pays for it, and nobody else.

use crate::pair::{UdpPair, all};
use crate::stage::{ORIGIN, Stage, no_panics, put, tell, until};
use anyhow::{Result, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use whimbrel_tests::internet::Shape;
use whimbrel_tests::lab::Layout;

/// Each line of the laptop: 10 ms each way, 10 Mbit/s.
const LINE: (Duration, u64) = (Duration::from_millis(10), 10);

/// What is sent every millisecond: four times what the line takes.
const BURST: usize = 4;

/// Bytes of bulk that are waited for: a few seconds of the line.
const BULK: u64 = 2_000_000;

/// What several threads share until the end.
#[derive(Default)]
struct Tally {
    over: AtomicBool,
    bulk: AtomicU64,
    flood: AtomicU64,
}

impl Tally {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn count(&self) -> (u64, u64) {
        (self.bulk.load(Ordering::Relaxed), self.flood.load(Ordering::Relaxed))
    }
}

/// Sends more than the line takes.
fn flood(socket: UdpSocket, to: SocketAddr, tally: Arc<Tally>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while tally.goes_on() {
            for _ in 0..BURST {
                // The kernel may lose them as well.
                let _lost = socket.send_to(&[7; 1200], to);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
}

fn count_flood(socket: UdpSocket, tally: Arc<Tally>) -> Result<JoinHandle<()>> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(std::thread::spawn(move || {
        while tally.goes_on() {
            if let Ok(length) = socket.recv(&mut [0; 2000]) {
                tally.flood.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
    }))
}

/// Moves as much as there is room for.
fn bulk(mut from: TcpStream, mut to: TcpStream, tally: Arc<Tally>) -> Result<[JoinHandle<()>; 2]> {
    from.set_write_timeout(Some(Duration::from_millis(50)))?;
    to.set_read_timeout(Some(Duration::from_millis(50)))?;
    let late = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let other = Arc::clone(&tally);
    let sender = std::thread::spawn(move || {
        while other.goes_on() && !from.write(&[9; 64 << 10]).is_err_and(|e| !late(e.kind())) {}
    });
    let receiver = std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while tally.goes_on() {
            if let Ok(length) = to.read(&mut buffer) {
                tally.bulk.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
    });
    Ok([sender, receiver])
}

fn share(up: bool) -> Result<()> {
    let (delay, mbit) = LINE;
    let line = || Shape::line(delay, mbit);
    let layout = Layout::standard()
        .with_link("wifi0", |link| (link.up, link.down) = (line(), line()))
        .with_link("cell0", |link| (link.up, link.down) = (line(), line()));
    let mut stage = Stage::raise_with(layout, |_| {}, all)?;
    stage.await_udp()?;
    let [v4, _] = ORIGIN;
    let mut pair = UdpPair::new(&stage.world, v4)?;
    let seen = pair.converse()?;
    let (connection, mut talk) = (stage.pair(v4)?, stage.pair(v4)?);
    let tally = Arc::new(Tally::default());
    let (far, near) = (pair.server.try_clone()?, pair.app.try_clone()?);
    let mut threads = Vec::new();
    if up {
        threads.push(flood(near, pair.to, Arc::clone(&tally)));
        threads.push(count_flood(far, Arc::clone(&tally))?);
        threads.extend(bulk(connection.app, connection.server, Arc::clone(&tally))?);
    } else {
        threads.push(flood(far, seen, Arc::clone(&tally)));
        threads.push(count_flood(near, Arc::clone(&tally))?);
        threads.extend(bulk(connection.server, connection.app, Arc::clone(&tally))?);
    }
    // The first moments belong to whoever began first.
    until("both are under way", || Ok(tally.count().0 > BULK / 8 && tally.count().1 > BULK / 8))?;
    let (begin, before) = (Instant::now(), tally.count());
    let mut slowest = Duration::ZERO;
    until("bulk goes on beside a flood", || {
        let asked = Instant::now();
        talk.converse()?;
        slowest = slowest.max(asked.elapsed());
        Ok(tally.count().0 - before.0 >= BULK)
    })?;
    let after = tally.count();
    tally.over.store(true, Ordering::Relaxed);
    for thread in threads {
        ensure!(thread.join().is_ok(), "a thread panicked");
    }
    let (bulk, flood) = (after.0 - before.0, after.1 - before.1);
    let rate = |bytes: u64| bytes as f64 * 8.0 / 1e6 / begin.elapsed().as_secs_f64();
    let way = if up { "up" } else { "down" };
    tell!(
        "{way}: bulk {:.1} and flood {:.1} Mbit/s of {mbit}; slowest question {slowest:?}",
        rate(bulk),
        rate(flood)
    );
    ensure!(bulk >= flood / 3, "{way}: the flood took {flood} bytes, bulk {bulk}");
    ensure!(flood >= bulk / 3, "{way}: bulk took {bulk} bytes, datagrams {flood}");
    no_panics(&stage.world)
}

pub(crate) fn a_flood_to_the_gateway_leaves_streams_their_share() -> Result<()> {
    share(true)
}

pub(crate) fn a_flood_from_the_gateway_leaves_streams_their_share() -> Result<()> {
    share(false)
}

/// What the client of the next test may move, in bytes per second.
const BANDWIDTH: u64 = 256 << 10;

pub(crate) fn udp_counts_in_the_bandwidth_of_a_client() -> Result<()> {
    let limit = |table: &mut toml::Table| {
        put(table, "limits", "bandwidth_per_client", "256KiB");
    };
    let mut stage = Stage::raise_with(Layout::standard(), limit, all)?;
    stage.await_udp()?;
    let [v4, _] = ORIGIN;
    for up in [true, false] {
        let mut pair = UdpPair::new(&stage.world, v4)?;
        let seen = pair.converse()?;
        let mut talk = stage.pair(v4)?;
        let tally = Arc::new(Tally::default());
        let (far, near) = (pair.server.try_clone()?, pair.app.try_clone()?);
        let begin = Instant::now();
        let threads = if up {
            [flood(near, pair.to, Arc::clone(&tally)), count_flood(far, Arc::clone(&tally))?]
        } else {
            [flood(far, seen, Arc::clone(&tally)), count_flood(near, Arc::clone(&tally))?]
        };
        until("a few seconds' worth has come", || {
            talk.converse()?;
            Ok(tally.count().1 > 2 * BANDWIDTH)
        })?;
        let came = tally.count().1;
        tally.over.store(true, Ordering::Relaxed);
        let allowed = BANDWIDTH as f64 * begin.elapsed().as_secs_f64() + 2.0 * 64e3;
        for thread in threads {
            ensure!(thread.join().is_ok(), "a thread panicked");
        }
        ensure!((came as f64) < allowed * 1.1, "{came} bytes, not {allowed}");
    }
    let metrics = stage.gateway.command(&stage.world, &["metrics"])?;
    let family = "whimbrel_gateway_limits_reached_total{limit=\"bandwidth_per_client\"} ";
    let reached = metrics.lines().find_map(|line| line.strip_prefix(family));
    ensure!(reached.is_some_and(|times| times != "0"), "{metrics}");
    no_panics(&stage.world)
}
