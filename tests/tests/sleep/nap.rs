//! What must be true while the machine sleeps, and after it.

use crate::stage::{
    ORIGIN, PATIENCE, Stage, expect_end, log_of, no_panics, prepare, receive, send, tell, until,
};
use crate::traffic::Traffic;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};
use whimbrel_tests::dice;
use whimbrel_tests::internet::{Direction, Shape};
use whimbrel_tests::lab::{BOTH, Layout, Process};

const LINKS: [&str; 2] = ["wifi0", "cell0"];

/// What passes there and back on either link takes this long.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// logind lets the machine sleep after 5 s, whoever still has something to do
/// (`InhibitDelayMaxSec=`); we promise far less.
const LONGEST_DELAY: Duration = Duration::from_secs(3);

/// How often the machine sleeps and wakes up to be measured: `WHIMBREL_NAPS`.
const NAPS: u64 = 3;

/// Both daemons, and a login manager the client has asked to be told of sleep.
struct Night {
    login: Process,
    stage: Stage,
}

impl Night {
    fn fall() -> Result<Self> {
        Self::fall_over(Shape::line(ROUND_TRIP / 2, 50))
    }

    /// The same, over lines of one's own.
    fn fall_over(line: Shape) -> Result<Self> {
        let layout = LINKS.into_iter().fold(Layout::standard(), |layout, link| {
            layout.with_link(link, |link| (link.up, link.down) = (line, line))
        });
        let (world, origin) = prepare(layout, |_| {})?;
        let gateway = world.start_gateway()?;
        world.join_client("laptop")?;
        let login = world.start_login()?;
        let client = world.start_client("laptop")?;
        let night = Self { login, stage: Stage { client, gateway, origin, world } };
        night.hear("delayed")?;
        Ok(night)
    }

    /// Waits for a word of the login manager.
    fn hear(&self, word: &str) -> Result<()> {
        match self.login.next_line(PATIENCE)?.as_deref() {
            Some(said) if said == word => Ok(()),
            other => bail!("the login manager said {other:?}, not {word}:\n{}", self.account()),
        }
    }

    /// The machine wants to sleep, and may.
    fn sleep(&mut self) -> Result<Duration> {
        let asked = Instant::now();
        self.login.say("sleep")?;
        self.hear("released")?;
        Ok(asked.elapsed())
    }

    /// The machine wakes up, and the client is ready for the next sleep.
    fn wake(&mut self) -> Result<()> {
        self.login.say("awake")?;
        self.hear("delayed")
    }

    /// How many flows of parked sessions the gateway has.
    fn parked(&self) -> Result<u64> {
        let status = self.stage.gateway.status(&self.stage.world)?;
        status["parked"]["flows"].as_u64().with_context(|| format!("no such number: {status}"))
    }

    fn state(&self) -> Result<Value> {
        Ok(self.stage.client.status(&self.stage.world)?["state"].clone())
    }

    fn attached(&mut self) -> Result<()> {
        let world = &self.stage.world;
        self.stage.client.wait_until(world, "is attached", |it| it["state"] == "attached")?;
        Ok(())
    }

    /// What the client tells of its sleeps and wake-ups.
    fn told(&self, kind: &str) -> Result<Vec<String>> {
        let events = self.stage.client.show(&self.stage.world, "events")?;
        let events = events.as_array().context("events are no list")?;
        let of_kind = events.iter().filter(|event| event["event"] == kind);
        Ok(of_kind.map(|event| event["text"].as_str().unwrap_or_default().to_owned()).collect())
    }

    fn account(&self) -> String {
        let (client, gateway) =
            (log_of(&self.stage.world, "laptop"), log_of(&self.stage.world, "gateway"));
        format!("client:\n{client}\ngateway:\n{gateway}")
    }

    /// Bytes of any kind that passed the networks, either way.
    fn passed(&self) -> u64 {
        let of = |link: &str| {
            let link = self.stage.world.link(link);
            BOTH.iter().map(|direction: &Direction| link.count_one(*direction).bytes).sum::<u64>()
        };
        LINKS.into_iter().map(of).sum()
    }
}

pub(crate) fn the_machine_sleeps_once_the_gateway_holds_everything() -> Result<()> {
    let mut night = Night::fall()?;
    let session = night.stage.session()?;
    let mut idle = night.stage.pair(ORIGIN[0])?;
    let (mut ended_here, mut ended_there) =
        (night.stage.pair(ORIGIN[0])?, night.stage.pair(ORIGIN[1])?);
    ended_here.app.shutdown(Shutdown::Write)?;
    expect_end(&mut ended_here.server)?;
    ended_there.server.shutdown(Shutdown::Write)?;
    expect_end(&mut ended_there.app)?;
    let busy = [night.stage.pair(ORIGIN[0])?, night.stage.pair(ORIGIN[1])?];
    let traffic: Vec<Traffic> = [20, 30]
        .into_iter()
        .zip(&busy)
        .map(|(number, pair)| Traffic::begin(pair, number, Duration::ZERO))
        .collect::<Result<_>>()?;
    for round in 0..3 {
        let took = night.sleep()?;
        // Asked as soon as the machine may sleep, and without waiting for it to become true.
        ensure!(night.parked()? == 5, "the gateway does not hold all five: {}", night.account());
        ensure!(night.state()? == "parked", "{}", night.account());
        ensure!(took < LONGEST_DELAY, "the machine had to wait for {took:?}");
        until("the networks are silent", || {
            let before = night.passed();
            std::thread::sleep(Duration::from_millis(300));
            Ok(night.passed() == before)
        })?;
        night.wake()?;
        idle.converse().with_context(|| format!("the idle one, round {round}"))?;
        send(&mut ended_here.server, 1, round * 50_000, (round + 1) * 50_000)?;
        receive(&mut ended_here.app, 1, round * 50_000, (round + 1) * 50_000)?;
        send(&mut ended_there.app, 2, round * 50_000, (round + 1) * 50_000)?;
        receive(&mut ended_there.server, 2, round * 50_000, (round + 1) * 50_000)?;
    }
    for one in traffic {
        tell!("{} bytes, both directions", one.end()?);
    }
    ended_here.server.shutdown(Shutdown::Write)?;
    expect_end(&mut ended_here.app)?;
    ended_there.app.shutdown(Shutdown::Write)?;
    expect_end(&mut ended_there.server)?;
    ensure!(night.stage.session()? == session, "another session");
    let (sleeps, wakes) = (night.told("sleep")?, night.told("wake")?);
    tell!("{sleeps:#?}\n{wakes:#?}");
    ensure!((sleeps.len(), wakes.len()) == (3, 3), "{sleeps:?} {wakes:?}");
    ensure!(sleeps.iter().all(|it| it.contains("5 flows are parked")), "{sleeps:?}");
    ensure!(wakes.iter().all(|it| it.contains("the gateway answers after")), "{wakes:?}");
    drop((idle, busy));
    night.stage.quiet()?;
    no_panics(&night.stage.world)
}

pub(crate) fn a_sleep_that_is_aborted_costs_nothing() -> Result<()> {
    let mut night = Night::fall()?;
    let pair = night.stage.pair(ORIGIN[0])?;
    let traffic = Traffic::begin(&pair, 1, Duration::ZERO)?;
    for _ in 0..5 {
        // At once, so that the gateway has not answered yet.
        night.login.say("sleep")?;
        night.login.say("awake")?;
        while let Some(word) = night.login.next_line(PATIENCE)?.filter(|word| word != "delayed") {
            // It may have parked before it heard the second word.
            ensure!(word == "released", "{word}");
        }
        night.attached()?;
    }
    ensure!(traffic.end()? > 0);
    night.stage.pair(ORIGIN[1])?.converse().context("a new one")?;
    no_panics(&night.stage.world)
}

pub(crate) fn a_gateway_out_of_reach_delays_no_sleep_for_long() -> Result<()> {
    let mut night = Night::fall()?;
    let mut pair = night.stage.pair(ORIGIN[0])?;
    pair.converse()?;
    for link in LINKS {
        night.stage.world.link(link).black_hole(&BOTH);
    }
    let took = night.sleep()?;
    ensure!(took < LONGEST_DELAY, "the machine had to wait for {took:?}");
    ensure!(night.parked()? == 0, "the gateway heard of it all the same");
    // It reads on until it has nothing left to store it in, and not a byte more.
    let mut said = 0;
    pair.server.set_write_timeout(Some(Duration::from_secs(2)))?;
    while let Ok(count) = pair.server.write(&[7; 65_536]) {
        said += count;
    }
    tell!("read without a client, and kept by kernels: {said} bytes");
    ensure!(said < 64 << 20, "the destination was read without bound");
    for link in LINKS {
        night.stage.world.link(link).heal();
    }
    night.wake()?;
    let mut received = 0;
    let mut buffer = vec![0; 65_536];
    while received < said {
        let count = pair.app.read(&mut buffer)?;
        ensure!(count > 0 && buffer[..count].iter().all(|byte| *byte == 7), "{count}");
        received += count;
    }
    ensure!(received == said, "{received} of {said}");
    let sleeps = night.told("sleep")?;
    ensure!(sleeps.iter().all(|it| it.contains("did not confirm")), "{sleeps:?}");
    no_panics(&night.stage.world)
}

pub(crate) fn what_is_said_before_a_sleep_may_be_lost() -> Result<()> {
    let mut night = Night::fall_over(Shape::line(ROUND_TRIP / 2, 50).with_loss(0.3))?;
    let mut pair = night.stage.pair(ORIGIN[0])?;
    let mut confirmed = 0;
    for round in 1..=10 {
        pair.converse()?;
        let took = night.sleep()?;
        ensure!(took < LONGEST_DELAY, "the machine had to wait for {took:?}");
        let parked = night.parked()?;
        let sleeps = night.told("sleep")?;
        ensure!(sleeps.len() == round, "{sleeps:?}");
        // What the client tells of it is true.
        let told = sleeps.last().is_some_and(|told| told.contains("are parked"));
        ensure!(parked == 1 || !told, "{sleeps:?} {}", night.account());
        confirmed += u32::from(told);
        night.wake()?;
    }
    pair.converse().context("after all of them")?;
    tell!("{confirmed} of 10 were confirmed");
    ensure!(confirmed > 0, "not once: {}", night.account());
    let lost = LINKS.map(|link| night.stage.world.link(link).count_one(Direction::Up).lost);
    ensure!(lost.iter().sum::<u64>() > 0, "nothing was lost");
    no_panics(&night.stage.world)
}

pub(crate) fn a_bus_that_is_restarted_is_found_again() -> Result<()> {
    let mut night = Night::fall()?;
    let mut pair = night.stage.pair(ORIGIN[0])?;
    for _ in 0..2 {
        night.login.say("break")?;
        night.hear("released")?;
        pair.converse().context("without a bus")?;
        night.login.say("mend")?;
        night.hear("bus")?;
        night.hear("delayed")?;
        night.sleep()?;
        ensure!(night.parked()? == 1, "{}", night.account());
        night.wake()?;
        pair.converse().context("after a sleep that the next bus announced")?;
    }
    let log = log_of(&night.stage.world, "laptop");
    let lost = log.matches("Nobody announces when the machine sleeps").count();
    ensure!(lost == 2, "told {lost} times, not once for each loss:\n{log}");
    no_panics(&night.stage.world)
}

pub(crate) fn a_machine_without_a_login_manager_says_so_once() -> Result<()> {
    let stage = Stage::raise()?;
    let told = "Nobody announces when the machine sleeps";
    until("it is told", || Ok(log_of(&stage.world, "laptop").contains(told)))?;
    // By then a second attempt has failed as well.
    std::thread::sleep(Duration::from_secs(2));
    let log = log_of(&stage.world, "laptop");
    ensure!(log.matches(told).count() == 1, "{log}");
    stage.pair(ORIGIN[0])?.converse()?;
    let _login = stage.world.start_login()?;
    let announced = "Sleep of the machine is announced";
    until("it is found", || Ok(log_of(&stage.world, "laptop").contains(announced)))?;
    no_panics(&stage.world)
}

pub(crate) fn wake_ups_one_after_the_other() -> Result<()> {
    let mut night = Night::fall()?;
    let mut pair = night.stage.pair(ORIGIN[0])?;
    pair.converse()?;
    let mut measured: Vec<[Duration; 3]> = Vec::new();
    for _ in 0..dice::number("WHIMBREL_NAPS").unwrap_or(NAPS) {
        let parking = night.sleep()?;
        // It waits in the gateway's kernel: what comes first after the wake-up.
        pair.server.write_all(b"down")?;
        let woken = Instant::now();
        night.login.say("awake")?;
        let mut word = [0; 4];
        pair.app.read_exact(&mut word)?;
        let down = woken.elapsed();
        ensure!(&word == b"down", "{word:?}");
        pair.app.write_all(b"up")?;
        let mut word = [0; 2];
        pair.server.read_exact(&mut word)?;
        let up = woken.elapsed();
        night.hear("delayed")?;
        // The gateway's word that it is parked cannot be here sooner.
        ensure!(parking >= ROUND_TRIP, "the networks are not as slow as they should be");
        measured.push([parking, down, up]);
    }
    for (at, what) in ["parking", "first byte", "first byte and one back"].into_iter().enumerate() {
        let mut times: Vec<Duration> = measured.iter().map(|all| all[at]).collect();
        times.sort();
        let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
        tell!("{what}: median {median:.1?}, longest {longest:.1?} of {}", times.len());
    }
    no_panics(&night.stage.world)
}
