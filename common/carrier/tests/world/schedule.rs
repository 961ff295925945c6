//! What happens in a run, drawn from its seed.

use std::time::Duration;

use whimbrel_common::wire::WireFlow;

use crate::chance::Chance;
use crate::network::Weather;
use crate::stage::{KEYS, Stage, client_endpoint, gateway_endpoint};
use crate::story::Side;
use crate::thief::Thief;

/// Flows of a run.
const MOST_FLOWS: usize = 16;

/// Something that happens.
#[derive(Debug, Clone, Copy)]
enum Act {
    Open,
    Say,
    Hear,
    End,
    Break,
    Wait,
    Foul,
    Die,
    Rebind,
    Replay,
    Leave,
    Restart,
    Forget,
    SleepClient,
    SleepGateway,
    Jump,
    Steal,
}

/// How often each is drawn.
const WEIGHTS: [(u64, Act); 17] = [
    (60, Act::Open),
    (300, Act::Say),
    (250, Act::Hear),
    (35, Act::End),
    (20, Act::Break),
    (100, Act::Wait),
    (30, Act::Foul),
    (30, Act::Die),
    (20, Act::Rebind),
    (40, Act::Replay),
    (30, Act::Leave),
    (20, Act::Restart),
    (2, Act::Forget),
    (8, Act::SleepClient),
    (6, Act::SleepGateway),
    (6, Act::Jump),
    (8, Act::Steal),
];

fn draw(chance: &mut Chance) -> Act {
    let total = WEIGHTS.iter().map(|(weight, _)| weight).sum();
    let mut left = chance.below(total);
    for (weight, act) in WEIGHTS {
        if left < weight {
            return act;
        }
        left -= weight;
    }
    Act::Wait
}

/// A pause as long as it takes to fall silent, to be doubted, or to be forgotten.
fn pause(chance: &mut Chance) -> Duration {
    match chance.below(16) {
        0..=11 => chance.millis(20, 2000),
        12..=14 => chance.millis(2000, 20_000),
        _ => chance.millis(20_000, 300_000),
    }
}

/// Minutes to a night.
fn night(chance: &mut Chance) -> Duration {
    Duration::from_secs(1 << chance.within(6, 15))
}

/// How long sessions are held: longer than any pause, or not.
fn hold(chance: &mut Chance) -> Duration {
    Duration::from_mins(if chance.per_mille(700) { 24 * 60 } else { chance.within(1, 60) })
}

/// What a run was like.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) fingerprint: u64,
    pub(crate) flows: u64,
    pub(crate) bytes: u64,
    pub(crate) whole: u64,
    pub(crate) excused: u64,
    pub(crate) attached: u64,
    pub(crate) resets: u64,
    pub(crate) moves: u64,
    pub(crate) restored: u64,
    pub(crate) thefts: u64,
}

/// A run from its beginning to its end.
pub(crate) fn run(seed: u64) -> Outcome {
    let mut stage = Stage::new(seed, hold(&mut Chance::new(!seed)));
    for _ in 0..stage.chance.within(1, 4) {
        stage.open();
    }
    if stage.chance.per_mille(800) {
        stage.run(Duration::from_millis(300), |_| false);
    }
    for _ in 0..stage.chance.within(20, 220) {
        let act = draw(&mut stage.chance);
        stage.perform(act);
        let gap = stage.chance.spread(60);
        stage.run(Duration::from_millis(gap), |_| false);
    }
    stage.settle();
    stage.outcome()
}

impl Stage {
    fn perform(&mut self, act: Act) {
        match act {
            Act::Open if self.stories.len() < MOST_FLOWS => self.open(),
            Act::Open | Act::Say => {
                self.program(|socket, chance| socket.say(chance.spread(100_000)));
            }
            Act::Hear => self.program(|socket, chance| socket.hear(chance.spread(200_000))),
            Act::End => self.program(|socket, _| socket.end()),
            Act::Break => self.program(|socket, _| socket.break_off()),
            Act::Wait => self.wait(),
            Act::Foul => {
                let chance = &mut self.chance;
                let weather = if chance.per_mille(500) {
                    Weather::foul(chance)
                } else {
                    Weather::usual(chance)
                };
                self.network.turn(weather);
            }
            Act::Die => {
                let until = self.now + pause(&mut self.chance);
                self.network.die_until(until);
            }
            Act::Rebind => {
                let port = u16::try_from(self.chance.within(1024, 65_535)).expect("a port");
                self.address.set_port(port);
            }
            Act::Replay => self.replay(),
            Act::Leave => {
                let at_once = self.chance.per_mille(500);
                self.client.leave(at_once, self.now + self.client_clock.ahead);
            }
            Act::Restart => self.restart(),
            Act::Forget => self.forget(),
            Act::SleepClient => {
                let long = self.chance.per_mille(500);
                let span = if long { night(&mut self.chance) } else { pause(&mut self.chance) };
                self.client_clock.asleep = Some(self.now + span);
                if long {
                    self.run(span, |_| false);
                }
            }
            Act::SleepGateway => {
                self.gateway_clock.asleep = Some(self.now + pause(&mut self.chance));
            }
            Act::Jump => {
                let span = night(&mut self.chance);
                let client = self.chance.per_mille(500);
                let clock = if client { &mut self.client_clock } else { &mut self.gateway_clock };
                clock.ahead += span;
            }
            Act::Steal => self.steal(),
        }
    }

    /// Flows are moved, and moved again before the gateway has heard of it.
    fn replay(&mut self) {
        for _ in 0..self.chance.within(1, 3) {
            let chance = &mut self.chance;
            let share = chance.within(100, 1000);
            self.client.replay(|| chance.per_mille(share));
            let gap = self.chance.spread(20);
            self.run(Duration::from_millis(gap), |_| false);
        }
    }

    /// One of the programs does something.
    fn program(&mut self, what: impl FnOnce(&mut crate::story::Socket, &mut Chance)) {
        let flow = WireFlow(self.chance.below(self.stories.len() as u64));
        let application = self.chance.per_mille(500);
        let side = if application { Side::Application } else { Side::Destination };
        self.with_program(flow, side, what);
    }

    /// Time passes, with or without the programs.
    fn wait(&mut self) {
        self.lively = self.chance.per_mille(200);
        let span = pause(&mut self.chance);
        if span > Duration::from_secs(20) {
            // Weather that is foul for hours shows nothing new.
            let weather = Weather::usual(&mut self.chance);
            self.network.turn(weather);
        }
        self.run(span, |_| false);
        self.lively = false;
    }

    /// The gateway's process ends without warning; another goes on where it was.
    fn restart(&mut self) {
        let endpoint = gateway_endpoint(&mut self.chance);
        let now = self.now + self.gateway_clock.ahead;
        let (stories, chance) = (&mut self.stories, &mut self.chance);
        let unparked = chance.per_mille(300);
        self.gateway.restart(endpoint, stories, || unparked && chance.per_mille(500), now);
    }

    /// The gateway's host is restarted: nothing outlives that.
    fn forget(&mut self) {
        let endpoint = gateway_endpoint(&mut self.chance);
        self.gateway.forget(endpoint, &mut self.stories);
    }

    fn steal(&mut self) {
        let Some(session) = self.client.session.filter(|_| self.thieves.len() < 2) else { return };
        let own_key = self.chance.per_mille(500);
        let (key, epoch) = if own_key {
            (KEYS[0], self.chance.within(0, self.client.confirmed))
        } else {
            (KEYS[1], self.client.confirmed + self.chance.below(10))
        };
        let endpoint = client_endpoint(key, &mut self.chance);
        let port = 6000 + u16::try_from(self.thieves.len()).expect("two");
        let address = ([10, 0, 2, 2], port).into();
        let flows = self.stories.keys().copied().collect();
        self.thieves.push(Thief::new(endpoint, address, (session, epoch), flows, self.now));
    }

    fn outcome(&self) -> Outcome {
        let whole = |story: &&crate::story::Story| {
            story.application.ends > 0
                && story.destination.as_ref().is_some_and(|destination| destination.ends > 0)
        };
        let given = self.stories.values().map(|story| {
            story.application.given
                + story.destination.as_ref().map_or(0, |destination| destination.given)
        });
        Outcome {
            fingerprint: self.network.fingerprint,
            flows: self.stories.len() as u64,
            bytes: given.sum(),
            whole: self.stories.values().filter(whole).count() as u64,
            excused: self.stories.values().filter(|story| story.excuse.is_some()).count() as u64,
            attached: self.client.counts.attached,
            resets: self.client.counts.resets,
            moves: self.client.counts.moves,
            restored: self.gateway.restored,
            thefts: self.thieves.iter().map(|thief| thief.refused).sum(),
        }
    }
}
