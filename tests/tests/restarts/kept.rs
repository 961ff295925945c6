//! What goes on after the gateway's process has ended.

use crate::stage::{
    ORIGIN, PATIENCE, Pair, Stage, expect_end, join, no_panics, receive, receive_to_end, send,
    send_until_blocked, tell,
};
use crate::traffic::Traffic;
use anyhow::{Context, Result, ensure};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use whimbrel_tests::dice::{self, Dice};

/// Bytes of a direction that is carried across several ends of the process.
const BULK: u64 = 24 << 20;

/// How often the gateway is killed at random moments; `WHIMBREL_KILLS` makes it as often as wanted.
const KILLS: u64 = 25;

/// Kills count, not bytes: about 4 MB/s in each direction of each connection.
pub(crate) const PACE: Duration = Duration::from_millis(4);

/// Connections beside each other, each with an end of its own: enough for their sockets to be
/// parked anew meanwhile. With `WHIMBREL_FULL` there are four times as many.
const MANY: usize = 1500;

fn both_ways(mut end: impl FnMut(&mut Stage) -> Result<()>) -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    let session = stage.session()?;
    let mut idle = ORIGIN.map(|origin| stage.pair(origin));
    let mut traffic = Vec::new();
    for (number, origin) in (10..).step_by(10).zip(ORIGIN) {
        let pair = stage.pair(origin)?;
        traffic.push(Traffic::begin(&pair, number, Duration::ZERO)?);
    }
    for _ in 0..4 {
        let carried = stage.carried()?;
        stage.until_carried(carried + BULK / 4)?;
        end(&mut stage)?;
    }
    for one in traffic {
        tell!("{} bytes, both directions", one.end()?);
    }
    for pair in &mut idle {
        let pair = pair.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        pair.converse().context("one that was idle all the time")?;
    }
    ensure!(stage.session()? == session, "another session");
    drop(idle);
    stage.quiet()?;
    no_panics(&stage.world)
}

pub(crate) fn an_orderly_restart_loses_nothing() -> Result<()> {
    both_ways(|stage| stage.gateway.restart())
}

pub(crate) fn a_killed_gateway_loses_nothing() -> Result<()> {
    both_ways(|stage| stage.gateway.kill())
}

pub(crate) fn half_closed_connections_outlive_the_gateway() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    for origin in ORIGIN {
        let (mut one, mut other) = (stage.pair(origin)?, stage.pair(origin)?);
        one.app.shutdown(Shutdown::Write)?;
        expect_end(&mut one.server)?;
        other.server.shutdown(Shutdown::Write)?;
        expect_end(&mut other.app)?;
        for round in 0..2 {
            stage.gateway.kill()?;
            // The open direction goes on, the closed one stays closed.
            let (from, to) = (round * 100_000, (round + 1) * 100_000);
            send(&mut one.server, 1, from, to)?;
            receive(&mut one.app, 1, from, to)?;
            send(&mut other.app, 2, from, to)?;
            receive(&mut other.server, 2, from, to)?;
        }
        one.server.shutdown(Shutdown::Write)?;
        expect_end(&mut one.app)?;
        other.app.shutdown(Shutdown::Write)?;
        expect_end(&mut other.server)?;
    }
    stage.quiet()
}

pub(crate) fn what_nobody_read_yet_outlives_the_gateway() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    for origin in ORIGIN {
        let (mut down, mut up) = (stage.pair(origin)?, stage.pair(origin)?);
        let (mut down_sent, mut up_sent) = (0, 0);
        for _ in 0..3 {
            down_sent = send_until_blocked(&mut down.server, 3, down_sent)?;
            up_sent = send_until_blocked(&mut up.app, 4, up_sent)?;
            stage.gateway.kill()?;
        }
        // Ends that wait behind all of that.
        down.server.shutdown(Shutdown::Write)?;
        up.app.shutdown(Shutdown::Write)?;
        stage.gateway.kill()?;
        let received = receive_to_end(&mut down.app, 3, 0)?;
        ensure!(received == down_sent, "down: {received} of {down_sent}");
        let received = receive_to_end(&mut up.server, 4, 0)?;
        ensure!(received == up_sent, "up: {received} of {up_sent}");
        down.app.shutdown(Shutdown::Write)?;
        up.server.shutdown(Shutdown::Write)?;
        expect_end(&mut down.server)?;
        expect_end(&mut up.app)?;
    }
    stage.quiet()
}

pub(crate) fn a_connection_that_was_being_made_is_made() -> Result<()> {
    let mut stage = Stage::raise_kept()?;
    for round in 0..10 {
        let listener = crate::stage::listen(stage.world.host("origin"))?;
        let to = std::net::SocketAddr::new(ORIGIN[round % 2], listener.local_addr()?.port());
        let connecting = stage
            .world
            .host("laptop")
            .thread(move || TcpStream::connect_timeout(&to, PATIENCE).map_err(anyhow::Error::from));
        std::thread::yield_now();
        stage.gateway.kill()?;
        let app = join(connecting).context(format!("round {round}"))?;
        app.set_read_timeout(Some(PATIENCE))?;
        let mut pair = Pair::meet(app, &listener)?;
        pair.converse()?;
    }
    stage.quiet()
}

pub(crate) fn many_connections_outlive_the_gateway() -> Result<()> {
    let many = if std::env::var_os("WHIMBREL_FULL").is_some() { 4 * MANY } else { MANY };
    let mut stage = Stage::raise_kept()?;
    let mut pairs = Vec::new();
    for number in 0..many {
        pairs.push(stage.pair(ORIGIN[number % 2]).context(format!("connection {number}"))?);
    }
    for _ in 0..2 {
        let began = Instant::now();
        stage.gateway.kill()?;
        for (number, pair) in pairs.iter_mut().enumerate() {
            pair.converse().context(format!("connection {number}"))?;
        }
        tell!("{many} connections went on within {:.1?}", began.elapsed());
        // Some leave, others come.
        pairs.truncate(many / 2);
        for number in pairs.len()..many {
            pairs.push(stage.pair(ORIGIN[number % 2]).context(format!("connection {number}"))?);
        }
    }
    drop(pairs);
    stage.quiet()
}

pub(crate) fn kills_at_random_moments_lose_no_byte() -> Result<()> {
    let seed = dice::seed();
    let kills = dice::number("WHIMBREL_KILLS").unwrap_or(KILLS);
    tell!("seed {seed}, {kills} kills");
    let mut dice = Dice::new(seed);
    let mut stage = Stage::raise_kept()?;
    let (mut bytes, mut connections, mut number) = (0, 0, 0);
    let mut traffic = Vec::new();
    for kill in 0..kills {
        while traffic.len() < 4 {
            let pair = stage.pair(ORIGIN[usize::from(dice.throw(2) == 0)])?;
            traffic.push(Traffic::begin(&pair, number, PACE)?);
            number += 2;
        }
        // Some of them end about when the gateway does.
        if dice.throw(3) == 0 {
            let one = traffic.swap_remove(usize::try_from(dice.throw(4))?);
            one.stop.store(true, Ordering::Relaxed);
            traffic.insert(0, one);
        }
        std::thread::sleep(Duration::from_micros(dice.throw(60_000)));
        stage.gateway.kill().context(format!("kill {kill}"))?;
        let (over, going): (Vec<Traffic>, Vec<Traffic>) =
            traffic.into_iter().partition(|one| one.stop.load(Ordering::Relaxed));
        traffic = going;
        for one in over {
            bytes += one.end().context(format!("after kill {kill}"))?;
            connections += 1;
        }
        if kill % 100 == 99 {
            tell!("{} kills, {bytes} bytes in {connections} connections", kill + 1);
        }
    }
    for one in traffic {
        bytes += one.end().context("after the last kill")?;
        connections += 1;
    }
    tell!("{bytes} bytes in {connections} connections, all of them right");
    stage.quiet()?;
    no_panics(&stage.world)
}

impl Pair {
    fn meet(app: TcpStream, listener: &std::net::TcpListener) -> Result<Self> {
        let (server, peer) = crate::stage::accept(listener)?;
        Ok(Self { app, server, peer })
    }
}

impl Stage {
    /// Bytes the client's flows have carried so far.
    fn carried(&self) -> Result<u64> {
        let flows = self.client.show(&self.world, "flows")?;
        let flows = flows.as_array().context("flows are no list")?;
        let bytes = |key: &str| flows.iter().filter_map(|flow| flow[key].as_u64()).sum::<u64>();
        Ok(bytes("rx_bytes") + bytes("tx_bytes"))
    }

    fn until_carried(&self, bytes: u64) -> Result<()> {
        crate::stage::until(&format!("{bytes} bytes are carried"), || Ok(self.carried()? >= bytes))
    }
}
