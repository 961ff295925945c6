//! The Internet between the ends lies, listens and repeats.

use crate::frames::Honest;
use crate::stage::{ORIGIN, PATIENCE, Stage, held, log_of, no_panics, tell, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use whimbrel_common::cid::{CLIENT_CID, GATEWAY_CID};
use whimbrel_tests::internet::packet::{self, Headers};
use whimbrel_tests::internet::{Direction, Hook, Shape, Verdict};
use whimbrel_tests::lab::{BOTH, GATEWAY_V4};
use whimbrel_tests::traffic::{Event, port, service};

const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY_V4), 443);

/// Where the spoofer pretends to be. Nobody lives there.
const SPOOFER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 66)), 6666);

/// A probe of an address, padded as RFC 9000 §8.2.1 wants it, with its headers of IP and UDP, in
/// bytes. Nothing else is padded.
const PROBE: u64 = 1228;

/// How long an attack lasts.
const ATTACK: Duration = Duration::from_secs(3);

/// Which packets the spoofer copies. Its copy always arrives before the original, which is then a
/// duplicate.
#[derive(Clone, Copy, Debug)]
enum Copied {
    All,
    OneInTen,
}

pub(crate) fn replays_from_another_address_neither_steal_nor_kill() -> Result<()> {
    for copied in [Copied::All, Copied::OneInTen] {
        attack(copied).with_context(|| format!("{copied:?}"))?;
    }
    Ok(())
}

fn attack(copied: Copied) -> Result<()> {
    let mut stage = Stage::raise()?;
    let delay = Duration::from_millis(10);
    stage.world.link("wifi0").shape_both(Shape { delay, ..Shape::default() });
    let honest = Honest::begin(&stage)?;
    let session = stage.session()?;
    let (sent, copies) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let other = Arc::new(AtomicU64::new(0));
    stage.world.link("gateway/eth0").set_hook(Some(weigh(&other)));
    stage.world.link("wifi0").set_hook(Some(replay(copied, &sent, &copies)));
    std::thread::sleep(ATTACK);
    stage.world.link("wifi0").set_hook(None);
    let copies = copies.load(Ordering::Relaxed);
    let (sent, got) = (sent.load(Ordering::Relaxed), stage.world.stray(SPOOFER.ip()));
    tell!("{copied:?}: the spoofer sent {copies} packets, {sent} bytes, and got {got:?}");
    ensure!(sent > 1_000, "there was no attack: {sent} bytes");
    let other = other.load(Ordering::Relaxed);
    ensure!(other <= 3 * sent, "{other} bytes beside probes, {got:?}, for {sent} bytes");
    honest.prove(&mut stage)?;
    ensure!(stage.session()? == session, "the connection was killed");
    // Nothing goes there any more but a last probe.
    let settled = stage.world.stray(SPOOFER.ip()).bytes;
    Honest::begin(&stage)?.prove(&mut stage)?;
    let later = stage.world.stray(SPOOFER.ip()).bytes - settled;
    ensure!(later <= 3 * PROBE, "{later} bytes were stolen after the attack");
    Ok(())
}

/// Counts what goes to the spoofer and is no probe.
fn weigh(other: &Arc<AtomicU64>) -> Hook {
    let other = Arc::clone(other);
    Box::new(move |direction, bytes| {
        let to = Headers::read(bytes).map(|headers| headers.destination);
        let probe = bytes.len() as u64 == PROBE;
        if direction == Direction::Up && to == Some(SPOOFER.ip()) && !probe {
            other.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Verdict::Pass
    })
}

fn replay(copied: Copied, sent: &Arc<AtomicU64>, copies: &Arc<AtomicU64>) -> Hook {
    let (sent, copies) = (Arc::clone(sent), Arc::clone(copies));
    let mut number = 0_u64;
    Box::new(move |direction, bytes| {
        let payload = Headers::read(bytes).and_then(|headers| headers.udp_payload(bytes));
        let (Direction::Up, Some(payload)) = (direction, payload) else { return Verdict::Pass };
        number += 1;
        match copied {
            Copied::OneInTen if !number.is_multiple_of(10) => Verdict::Pass,
            Copied::All | Copied::OneInTen => {
                let forged = packet::build_udp(SPOOFER, GATEWAY, payload);
                sent.fetch_add(forged.len() as u64, Ordering::Relaxed);
                copies.fetch_add(1, Ordering::Relaxed);
                Verdict::PassAfter(vec![forged])
            }
        }
    })
}

pub(crate) fn no_more_than_three_times_goes_to_an_address_that_was_not_validated() -> Result<()> {
    let mut stage = Stage::raise()?;
    // First packets of connections, taken from a client that starts, from a forged address.
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let tap = Arc::clone(&seen);
    stage.world.link("wifi0").set_hook(Some(Box::new(move |direction, bytes| {
        let payload = Headers::read(bytes).and_then(|headers| headers.udp_payload(bytes));
        if let (Direction::Up, Some(payload)) = (direction, payload)
            && payload.len() >= 1200
            && payload[0] & 0xf0 == 0xc0
        {
            held(&tap).push(payload.to_vec());
        }
        Verdict::Pass
    })));
    stage.client.process().signal(rustix::process::Signal::TERM)?;
    stage.client.process().wait(PATIENCE)?;
    stage.client = stage.world.start_client("laptop")?;
    stage.world.link("wifi0").set_hook(None);
    let initials = std::mem::take(&mut *held(&seen));
    ensure!(!initials.is_empty(), "no first packet was seen");
    let honest = Honest::begin(&stage)?;
    let mut sent = 0;
    for number in 0..200_u16 {
        let mut payload = initials[0].clone();
        // Other connection IDs make other connections, whose packets do not decrypt; the same
        // ones are a repetition.
        if number % 2 == 0 {
            payload[6..10].copy_from_slice(&u32::from(number).to_be_bytes());
        }
        let source = SocketAddr::new(SPOOFER.ip(), 1024 + number);
        let forged = packet::build_udp(source, GATEWAY, &payload);
        sent += forged.len() as u64;
        stage.world.inject(forged);
        // Versions nobody speaks are answered with those we speak (RFC 9000 §6).
        let mut payload = initials[0].clone();
        payload[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
        let forged = packet::build_udp(source, GATEWAY, &payload);
        sent += forged.len() as u64;
        stage.world.inject(forged);
    }
    honest.prove(&mut stage)?;
    let got = stage.world.stray(SPOOFER.ip()).bytes;
    tell!("an address that sent {sent} bytes got {got}");
    ensure!(got <= 3 * sent, "{got} bytes went to an address that sent {sent}");
    Ok(())
}

/// The connection IDs an observer of one link sees: those towards the gateway and those towards
/// the client.
#[derive(Debug, Default, Clone)]
struct Seen {
    up: BTreeSet<Vec<u8>>,
    down: BTreeSet<Vec<u8>>,
}

impl Seen {
    fn note(&mut self, direction: Direction, payload: &[u8]) {
        let Some(first) = payload.first() else { return };
        if first & 0x80 != 0 {
            // A long header carries both, with their lengths (RFC 9000 §17.2).
            let Some(length) = payload.get(5).map(|length| usize::from(*length)) else { return };
            let Some(to) = payload.get(6..6 + length) else { return };
            self.of(direction).insert(to.to_vec());
            return;
        }
        let length = match direction {
            Direction::Up => GATEWAY_CID,
            Direction::Down => CLIENT_CID,
        };
        if let Some(id) = payload.get(1..=length) {
            self.of(direction).insert(id.to_vec());
        }
    }

    fn of(&mut self, direction: Direction) -> &mut BTreeSet<Vec<u8>> {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    fn common(&self, other: &Self) -> usize {
        self.up.intersection(&other.up).count() + self.down.intersection(&other.down).count()
    }
}

/// Somebody who listens on one uplink.
struct Tap {
    seen: Arc<Mutex<Seen>>,
}

impl Tap {
    fn on(stage: &Stage, link: &str) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let shared = Arc::clone(&seen);
        stage.world.link(link).set_hook(Some(Box::new(move |direction, bytes| {
            if let Some(payload) = Headers::read(bytes).and_then(|it| it.udp_payload(bytes)) {
                held(&shared).note(direction, payload);
            }
            Verdict::Pass
        })));
        Self { seen }
    }

    fn seen(&self) -> Seen {
        held(&self.seen).clone()
    }
}

fn taps(stage: &Stage) -> [Tap; 2] {
    for (link, delay) in [("wifi0", 10), ("cell0", 30)] {
        let delay = Duration::from_millis(delay);
        stage.world.link(link).shape_both(Shape { delay, ..Shape::default() });
    }
    [Tap::on(stage, "wifi0"), Tap::on(stage, "cell0")]
}

fn path(stage: &Stage, link: &str) -> Result<Value> {
    let paths = stage.client.show(&stage.world, "paths")?;
    // While a device is replaced there may be two of a name; the newer one counts.
    let found = paths.as_array().and_then(|all| all.iter().rfind(|it| it["link"] == link));
    found.cloned().with_context(|| format!("there is no path over {link}: {paths}"))
}

fn reach(stage: &Stage, link: &str, state: &str) -> Result<()> {
    until(&format!("{link} is {state}"), || {
        Ok(path(stage, link).is_ok_and(|path| path["state"] == state))
    })
}

/// Pulls a device out, waits until the daemon knows, and plugs another in.
fn replug(stage: &Stage, link: &str, between: impl FnOnce()) -> Result<()> {
    // The device may be gone before its interface can be deleted.
    drop(stage.world.link(link).unplug());
    until(&format!("{link} is gone"), || {
        let gone = path(stage, link).map_or(true, |path| path["remote"].is_null());
        Ok(gone || path(stage, link)?["state"] == "draining")
    })?;
    between();
    stage.world.link(link).plug()
}

pub(crate) fn an_observer_of_both_uplinks_sees_no_common_id() -> Result<()> {
    let mut stage = Stage::raise()?;
    reach(&stage, "cell0", "warm")?;
    let [wifi, cell] = taps(&stage);
    let honest = Honest::begin(&stage)?;
    // There and back again, with a new path in between.
    stage.client.command(&stage.world, &["move", "cell0"])?;
    reach(&stage, "cell0", "active")?;
    stage.pair(ORIGIN[0])?.converse()?;
    stage.client.command(&stage.world, &["move", "wifi0"])?;
    reach(&stage, "wifi0", "active")?;
    replug(&stage, "cell0", || {})?;
    reach(&stage, "cell0", "warm")?;
    stage.client.command(&stage.world, &["move", "cell0"])?;
    reach(&stage, "cell0", "active")?;
    stage.pair(ORIGIN[1])?.converse()?;
    honest.prove(&mut stage)?;
    let (wifi, cell) = (wifi.seen(), cell.seen());
    tell!(
        "wifi0 saw {} + {}, cell0 {} + {} IDs",
        wifi.up.len(),
        wifi.down.len(),
        cell.up.len(),
        cell.down.len()
    );
    ensure!(!wifi.up.is_empty() && !wifi.down.is_empty() && !cell.up.is_empty());
    let common = wifi.common(&cell);
    ensure!(common == 0, "{common} IDs were seen on both uplinks");
    Ok(())
}

/// A path that is dead can only be steered: its packets go over another link as they are. How
/// much that tells an observer of both is measured here, not promised.
pub(crate) fn a_steered_path_is_measured() -> Result<()> {
    let mut stage = Stage::raise()?;
    reach(&stage, "cell0", "warm")?;
    let [wifi, cell] = taps(&stage);
    let honest = Honest::begin(&stage)?;
    until("there is traffic", || Ok(wifi.seen().down.len() + wifi.seen().up.len() > 1))?;
    stage.world.link("wifi0").black_hole(&BOTH);
    reach(&stage, "cell0", "active")?;
    stage.pair(ORIGIN[0])?.converse()?;
    honest.prove(&mut stage)?;
    let (wifi, cell) = (wifi.seen(), cell.seen());
    tell!(
        "after a forced move {} of {} IDs of wifi0 were seen on cell0 too (to the gateway {}, to the client {})",
        wifi.common(&cell),
        wifi.up.len() + wifi.down.len(),
        wifi.up.intersection(&cell.up).count(),
        wifi.down.intersection(&cell.down).count(),
    );
    Ok(())
}

/// The window a path starts with, in bytes (RFC 9002 §7.2).
const FIRST_WINDOW: f64 = 14_720.0;

pub(crate) fn what_was_measured_on_one_path_says_nothing_about_the_next() -> Result<()> {
    let stage = Stage::raise()?;
    let line = |delay, mtu| Shape { delay: Duration::from_millis(delay), mtu, ..Shape::default() };
    // At 40 Mbit/s and 20 ms of round trip the window holds 100 kB, and more in the queue.
    stage.world.link("wifi0").shape_both(Shape::line(Duration::from_millis(10), 40));
    let to = service(ORIGIN[0], port::SOURCE);
    let mut bulk =
        stage.world.start_program("laptop", "upload", service(ORIGIN[0], port::SINK), &[])?;
    bulk.wait_for(
        PATIENCE,
        |event| matches!(event, Event::Progress { bytes, .. } if *bytes > 300_000),
    )?;
    let number = |path: &Value, key: &str| path[key].as_f64().unwrap_or_default();
    let mut wifi = Value::Null;
    let mut grown = || {
        until("the window of wifi0 has grown", || {
            wifi = path(&stage, "wifi0")?;
            Ok(number(&wifi, "cwnd") > 3.0 * FIRST_WINDOW)
        })
    };
    // BBR takes a machine that stands still at its start for a narrow network, and needs a minute
    // to learn better.
    grown().or_else(|_| grown()).or_else(|_| grown())?;
    // Cellular comes later, is slower and narrower.
    let cell0 = stage.world.link("cell0");
    replug(&stage, "cell0", || cell0.shape_both(line(300, Some(1320))))?;
    reach(&stage, "cell0", "warm")?;
    let cell = path(&stage, "cell0")?;
    tell!("wifi0 {wifi}\ncell0 {cell}");
    ensure!(number(&cell, "cwnd") < 1.5 * FIRST_WINDOW, "the window was inherited");
    // Its packets take 300 ms; what acknowledges them may come back over wifi0 in 10 ms.
    ensure!(number(&cell, "rtt_ms") > 300.0, "the round trip was inherited");
    ensure!(number(&wifi, "mtu") > 1400.0, "wifi0 carries whole packets");
    // 1,320 bytes less the headers of IPv4 and UDP.
    ensure!(number(&cell, "mtu") <= 1292.0, "the packet size was inherited");
    stage.client.command(&stage.world, &["move", "cell0"])?;
    reach(&stage, "cell0", "active")?;
    bulk.stop();
    bulk.succeed(2 * PATIENCE)?;
    // A link that comes back as another network starts afresh, too.
    stage.client.command(&stage.world, &["move", "wifi0"])?;
    reach(&stage, "wifi0", "active")?;
    replug(&stage, "cell0", || cell0.shape_both(line(20, None)))?;
    reach(&stage, "cell0", "warm")?;
    let mut rest = stage.world.start_program("laptop", "download", to, &["--bytes", "100000"])?;
    rest.succeed(PATIENCE)?;
    let fresh = path(&stage, "cell0")?;
    // 40 ms, and whatever a busy machine adds; the old one was 600.
    ensure!(number(&fresh, "rtt_ms") < 450.0, "the old round trip was kept: {fresh}");
    until("whole packets pass again", || Ok(number(&path(&stage, "cell0")?, "mtu") > 1400.0))?;
    no_panics(&stage.world)
}

pub(crate) fn garbage_on_both_udp_ports_harms_nobody() -> Result<()> {
    let mut stage = Stage::raise()?;
    let session = stage.session()?;
    // Where the client's translator listens, as the gateway sees it.
    let from: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let tap = Arc::clone(&from);
    stage.world.link("wifi0").set_hook(Some(Box::new(move |direction, bytes| {
        if let (Direction::Up, Some(headers)) = (direction, Headers::read(bytes))
            && headers.destination_port == Some(443)
            && let Some(port) = headers.source_port
        {
            *held(&tap) = Some(SocketAddr::new(headers.source, port));
        }
        Verdict::Pass
    })));
    let honest = Honest::begin(&stage)?;
    let client = *held(&from);
    stage.world.link("wifi0").set_hook(None);
    let client = client.context("the client was not seen")?;
    for number in 0..4_000_u64 {
        let length = usize::try_from(number % 1400).unwrap_or(0);
        let mut garbage = crate::frames::noise(number, length);
        // Half of it looks like QUIC, some of that like our own version.
        if number % 2 == 0
            && let Some(first) = garbage.first_mut()
        {
            *first |= 0xc0;
        }
        if number % 4 == 0 && length > 5 {
            garbage[1..5].copy_from_slice(&1_u32.to_be_bytes());
        }
        stage.world.inject(packet::build_udp(SPOOFER, GATEWAY, &garbage));
        // To the client it comes from the one address its translator lets in.
        stage.world.inject(packet::build_udp(GATEWAY, client, &garbage));
    }
    honest.prove(&mut stage)?;
    ensure!(stage.session()? == session, "the connection was lost");
    ensure!(stage.client.process().is_running(), "the client ended");
    let log = log_of(&stage.world, "gateway");
    ensure!(log.lines().count() < 100, "garbage fills the gateway's log:\n{log}");
    Ok(())
}
