//! The demo itself: what happens when, and to whom.

use super::Interrupted;
use super::act::{ACTS, Act};
use super::runner::{Kind, Runner};
use super::screen::{Screen, Tone, span};
use super::stage::{self, LAPTOP, Stage, called};
use super::summary::{self, Row};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use whimbrel_tests::lab::{Process, World};
use whimbrel_tests::role;
use whimbrel_tests::traffic::Moment;

/// How often everybody is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Ordinary traffic before the first act.
const PRELUDE: Duration = Duration::from_secs(2);

/// Longest wait for the return to Wi-Fi: ten seconds on cellular and five clean answers over
/// three have to pass first, or every flicker would mean a move.
const RETURN_PATIENCE: Duration = Duration::from_secs(16);

/// Longest wait for traffic after the outage.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(8);

/// A plain connection silent for this long at the end of an act is given up.
const HOPELESS: Duration = Duration::from_secs(1);

/// A download and a ping-pong.
struct Pair {
    download: Runner,
    ping_pong: Runner,
}

struct Play<'a> {
    stage: Stage,
    screen: &'a mut Screen,
    interrupted: &'a Interrupted,
    begin: Moment,
    events: Process,
    carrier: String,
    carried: Pair,
    plain: Pair,
    rate: Rate,
}

/// Bits per second of both downloads, over the last half second or so.
#[derive(Default)]
struct Rate {
    since: Option<Instant>,
    bytes: (u64, u64),
    mbit: (f64, f64),
}

/// Performs all acts and prints the table; success if every carried connection survived whole.
pub(super) fn perform(screen: &mut Screen, interrupted: &Interrupted) -> Result<ExitCode> {
    let heading = "Whimbrel: TCP connections that outlive their network";
    let heading = screen.paint(Tone::Strong, heading);
    screen.line(&heading);
    screen
        .line("A laptop with Wi-Fi and cellular, a gateway and an origin, all on this machine.\n");
    screen.status("building the networks and starting the daemons …");
    let begin = Moment::now();
    let stage = stage::build()?;
    let mut play = Play::open(stage, screen, interrupted, begin)?;
    play.introduce();
    play.wait(PRELUDE, |_| false)?;
    let mut rows = Vec::new();
    for act in ACTS {
        rows.push(play.perform(act)?);
    }
    play.finish(rows)
}

impl Pair {
    fn start(world: &World, carried: bool) -> Result<Self> {
        let download = Runner::start(world, Kind::Download, carried)?;
        let ping_pong = Runner::start(world, Kind::PingPong, carried)?;
        Ok(Self { download, ping_pong })
    }

    fn both(&self) -> [&Runner; 2] {
        [&self.download, &self.ping_pong]
    }

    fn both_mut(&mut self) -> [&mut Runner; 2] {
        [&mut self.download, &mut self.ping_pong]
    }

    fn listen(&mut self) {
        self.both_mut().into_iter().for_each(Runner::listen);
    }

    fn is_open(&self) -> bool {
        self.both().iter().all(|runner| runner.is_open() && runner.bytes() > 0)
    }

    fn has_ended(&self) -> bool {
        self.both().iter().any(|runner| runner.ending().is_some())
    }

    fn silence(&self) -> Duration {
        self.both().iter().map(|runner| runner.silence()).max().unwrap_or_default()
    }
}

impl<'a> Play<'a> {
    fn open(
        stage: Stage,
        screen: &'a mut Screen,
        interrupted: &'a Interrupted,
        begin: Moment,
    ) -> Result<Self> {
        let world = &stage.world;
        let config = stage.client.config().display().to_string();
        let follow = ["events", "--follow", "--json", "--config", &config];
        let log = world.log("events");
        let events = world.host(LAPTOP).start_role(role::CLIENT, &follow, &log)?;
        let status = stage.client.status(world)?;
        let carrier = carrier_of(&status).unwrap_or_else(|| "wifi0".to_owned());
        let (carried, plain) = (Pair::start(world, true)?, Pair::start(world, false)?);
        let rate = Rate::default();
        let mut play =
            Self { stage, screen, interrupted, begin, events, carrier, carried, plain, rate };
        let patience = Duration::from_secs(10);
        if !play.wait(patience, |play| play.carried.is_open() && play.plain.is_open())? {
            bail!("the connections did not open: {}", play.stage.client.process().log());
        }
        Ok(play)
    }

    fn introduce(&mut self) {
        let carrier = called(&self.carrier).to_owned();
        let open =
            "a download and a ping-pong run through Whimbrel, the same beside it over plain TCP";
        self.tell(open);
        let by = format!("{carrier} carries them; cellular waits, already proved to work");
        let by = self.screen.paint(Tone::Good, by);
        self.tell(&by);
    }

    fn perform(&mut self, act: Act) -> Result<Row> {
        if act != Act::Return {
            self.replace_dead_plain()?;
        }
        let begin = Moment::now();
        let story = self.screen.paint(Tone::Blow, act.story());
        self.tell(&story);
        act.begin(&self.stage.world)?;
        if act == Act::Return {
            // Plain TCP cannot connect before its network works again.
            self.replace_dead_plain()?;
        }
        self.wait(act.lasts(), |_| false)?;
        let mut recovery = None;
        match act {
            Act::Return => {
                self.wait(RETURN_PATIENCE, |play| play.carrier == "wifi0")?;
                self.wait(Duration::from_secs(2), |_| false)?;
            }
            Act::Outage => recovery = self.recover()?,
            Act::BlackHole | Act::Rebinding | Act::LinkDown => {}
        }
        let row = self.judge(act, begin, recovery);
        let text = summary::gist(self.screen, &row);
        self.tell(&text);
        Ok(row)
    }

    /// Brings the networks back after the outage; how long it took until bytes moved again.
    fn recover(&mut self) -> Result<Option<Duration>> {
        let world = &self.stage.world;
        world.link("wifi0").up()?;
        world.link("cell0").up()?;
        let back = Moment::now();
        let text = self.screen.paint(Tone::Blow, "both networks are back");
        self.tell(&text);
        let moving = |play: &Self| {
            play.carried.both().iter().all(|runner| runner.moving_again(back).is_some())
        };
        self.wait(RECOVERY_PATIENCE, moving)?;
        self.wait(Duration::from_secs(2), |_| false)?;
        let again = self.carried.both().map(|runner| runner.moving_again(back));
        Ok(again.into_iter().flatten().max().map(|moment| moment.since(back)))
    }

    fn judge(&self, act: Act, begin: Moment, recovery: Option<Duration>) -> Row {
        let now = Moment::now();
        let gap = |runner: &Runner| runner.longest_gap(begin, now);
        let endings = self.plain.both().map(|runner| {
            runner.ending().filter(|ending| ending.at >= begin).and_then(|it| it.error.clone())
        });
        Row {
            act,
            download: gap(&self.carried.download),
            ping_pong: gap(&self.carried.ping_pong),
            recovery,
            plain: summary::Fate {
                died: endings.into_iter().flatten().next(),
                silent: Some(self.plain.silence()).filter(|silence| *silence >= HOPELESS),
                gap: gap(&self.plain.download).max(gap(&self.plain.ping_pong)),
            },
        }
    }

    /// Plain connections that are dead or silent make room for new ones, so that each act finds
    /// living ones.
    fn replace_dead_plain(&mut self) -> Result<()> {
        if self.plain.has_ended() || self.plain.silence() >= HOPELESS {
            self.plain = Pair::start(&self.stage.world, false)?;
            self.wait(Duration::from_secs(3), |play| play.plain.is_open())?;
            let text = "plain TCP had to connect anew";
            let text = self.screen.paint(Tone::Quiet, text);
            self.tell(&text);
        }
        Ok(())
    }

    fn finish(mut self, rows: Vec<Row>) -> Result<ExitCode> {
        self.carried.both_mut().into_iter().for_each(Runner::stop);
        for runner in self.carried.both_mut() {
            runner.finish(Duration::from_secs(15)).context("a connection did not end")?;
        }
        let whole = self
            .carried
            .both()
            .iter()
            .all(|runner| runner.ending().is_some_and(|ending| ending.exact));
        summary::print(self.screen, &rows);
        let [download, ping_pong] = self.carried.both();
        let (bytes, messages) = (download.bytes(), ping_pong.bytes() / 16);
        if whole {
            let text = format!(
                "Both connections through Whimbrel survived: {:.1} MB and {messages} round trips, \
                 every byte in its place.",
                bytes as f64 / 1e6
            );
            let text = self.screen.paint(Tone::Good, text);
            self.screen.line(&text);
            Ok(ExitCode::SUCCESS)
        } else {
            let errors = self.carried.both().map(|runner| {
                runner.ending().and_then(|ending| ending.error.clone()).unwrap_or_default()
            });
            let text = format!("Not every connection survived: {}", errors.join(" "));
            let text = self.screen.paint(Tone::Bad, text.trim_end());
            self.screen.line(&text);
            Ok(ExitCode::FAILURE)
        }
    }

    /// Lets time pass until a condition holds; whether it does.
    fn wait(&mut self, patience: Duration, until: impl Fn(&Self) -> bool) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            self.look();
            if self.interrupted.by() != 0 {
                bail!("interrupted");
            }
            if until(self) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }

    fn look(&mut self) {
        self.carried.listen();
        self.plain.listen();
        let lines: Vec<String> = self.events.lines().collect();
        for line in lines {
            if let Ok(event) = serde_json::from_str(&line) {
                self.report(&event);
            }
        }
        self.rate.note(self.carried.download.bytes(), self.plain.download.bytes());
        let status = self.status();
        self.screen.status(&status);
    }

    fn report(&mut self, event: &Value) {
        let moved = &event["move"];
        if event["event"] == "moved"
            && let Some(to) = moved["to"].as_str()
        {
            self.carrier = to.to_owned();
            let from = moved["from"].as_str().map_or("nowhere", called);
            let reason = moved["reason"].as_str().unwrap_or("by itself");
            let text = format!("  Whimbrel moves from {from} to {} ({reason})", called(to));
            let text = self.screen.paint(Tone::Good, text);
            self.screen.event(self.when(event), &text);
        } else if event["event"] == "parked" {
            let text = "  Whimbrel holds every connection and keeps looking for a way";
            self.screen.event(self.when(event), text);
        }
    }

    /// When an event happened, on the clock of the timeline: it is told a little later.
    fn when(&self, event: &Value) -> Duration {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let happened = Duration::from_millis(event["at"].as_u64().unwrap_or(u64::MAX));
        let ago = unix.saturating_sub(happened);
        Moment::now().since(self.begin).saturating_sub(ago)
    }

    fn status(&self) -> String {
        let state = |runner: &Runner, mbit: f64| match runner.ending() {
            Some(_) => "dead".to_owned(),
            None if !runner.silence().is_zero() => format!("silent {}", span(runner.silence())),
            None => format!("{mbit:4.1} Mbit/s"),
        };
        format!(
            "{:5.1} s  over {}   Whimbrel {:<14}   plain TCP {:<14}",
            Moment::now().since(self.begin).as_secs_f64(),
            called(&self.carrier),
            state(&self.carried.download, self.rate.mbit.0),
            state(&self.plain.download, self.rate.mbit.1),
        )
    }

    fn tell(&mut self, text: &str) {
        self.screen.event(Moment::now().since(self.begin), text);
    }
}

impl Rate {
    fn note(&mut self, carried: u64, plain: u64) {
        const WINDOW: Duration = Duration::from_millis(500);
        let now = Instant::now();
        let took = self.since.map(|since| now - since);
        match took {
            Some(took) if took < WINDOW => {}
            Some(took) => {
                let mbit =
                    |new: u64, old: u64| new.saturating_sub(old) as f64 * 8e-6 / took.as_secs_f64();
                self.mbit = (mbit(carried, self.bytes.0), mbit(plain, self.bytes.1));
                (self.since, self.bytes) = (Some(now), (carried, plain));
            }
            None => (self.since, self.bytes) = (Some(now), (carried, plain)),
        }
    }
}

fn carrier_of(status: &Value) -> Option<String> {
    let paths = status["paths"].as_array()?;
    let active = paths.iter().find(|path| path["state"] == "active")?;
    active["link"].as_str().map(str::to_owned)
}
