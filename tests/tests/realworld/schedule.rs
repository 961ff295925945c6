//! What happens in a run, drawn from its seed.

use std::time::Duration;

use tracing::debug;

use crate::chance::Chance;
use crate::laptop::Told;
use crate::network::{LINKS, Way, Weather};
use crate::stage::{Absence, Stage};
use crate::story::Story;

/// Connections of a run.
const MOST_STORIES: usize = 16;

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
    DieAll,
    Rebind,
    Plug,
    Choke,
    Prefer,
    Deafen,
    Sleep,
    StopLaptop,
    StopOffice,
    Restart,
}

/// How often each is drawn.
const WEIGHTS: [(u64, Act); 18] = [
    (60, Act::Open),
    (300, Act::Say),
    (250, Act::Hear),
    (35, Act::End),
    (20, Act::Break),
    (100, Act::Wait),
    (30, Act::Foul),
    (40, Act::Die),
    (20, Act::DieAll),
    (25, Act::Rebind),
    (50, Act::Plug),
    (10, Act::Choke),
    (20, Act::Prefer),
    (20, Act::Deafen),
    (10, Act::Sleep),
    (10, Act::StopLaptop),
    (10, Act::StopOffice),
    (20, Act::Restart),
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
    match chance.below(32) {
        0..=23 => chance.millis(20, 2000),
        24..=29 => chance.millis(2000, 20_000),
        30 => chance.millis(20_000, 300_000),
        _ => chance.millis(300_000, 1_500_000),
    }
}

/// Seconds to a night.
fn night(chance: &mut Chance) -> Duration {
    Duration::from_secs(1 << chance.within(0, 15))
}

/// How long sessions are held: longer than any run, or not.
fn hold(chance: &mut Chance) -> Duration {
    if chance.per_mille(750) {
        Duration::from_hours(24 * 365)
    } else {
        Duration::from_mins(chance.within(1, 60))
    }
}

/// What the gateway may keep, in bytes: plenty, or hardly anything.
fn memory(chance: &mut Chance) -> u64 {
    if chance.per_mille(800) { 1 << 30 } else { 1 << chance.within(17, 21) }
}

/// What a run was like.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) stories: u64,
    pub(crate) bytes: u64,
    pub(crate) whole: u64,
    pub(crate) excused: u64,
    pub(crate) lost: u64,
    pub(crate) readdressed: u64,
    pub(crate) restarts: u64,
    pub(crate) restored: u64,
    pub(crate) steps: u64,
}

/// A run from its beginning to its end.
pub(crate) fn run(seed: u64) -> Outcome {
    let mut nature = Chance::new(!seed);
    let mut stage = Stage::new(seed, hold(&mut nature), memory(&mut nature));
    for _ in 0..stage.chance.within(1, 4) {
        stage.open();
    }
    if stage.chance.per_mille(800) {
        stage.run(Duration::from_millis(500), |_| false);
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
    fn link(&mut self) -> usize {
        usize::try_from(self.chance.below(LINKS as u64)).expect("a few")
    }

    fn perform(&mut self, act: Act) {
        debug!(?act, "Happens");
        match act {
            Act::Open if self.stories.len() < MOST_STORIES => self.open(),
            Act::Open | Act::Say => {
                self.program(|program, line, chance| program.say(line, chance.spread(100_000)));
            }
            Act::Hear => {
                self.program(|program, line, chance| program.hear(line, chance.spread(200_000)));
            }
            Act::End => self.program(|program, line, _| program.end(line)),
            Act::Break => self.program(|program, line, _| program.break_off(line)),
            Act::Wait => self.wait(),
            Act::Foul => {
                let link = self.link();
                let chance = &mut self.chance;
                let weather = if chance.per_mille(500) {
                    Weather::foul(chance)
                } else {
                    Weather::usual(chance)
                };
                self.network.turn(link, weather);
            }
            Act::Die => {
                let (link, until) = (self.link(), self.now + pause(&mut self.chance));
                let ways: &[Way] = match self.chance.below(4) {
                    0 => &[Way::Up],
                    1 => &[Way::Down],
                    _ => &[Way::Up, Way::Down],
                };
                ways.iter().for_each(|way| self.network.die_until(link, *way, until));
            }
            Act::DieAll => {
                let until = self.now + pause(&mut self.chance);
                for link in 0..LINKS {
                    self.network.die_until(link, Way::Up, until);
                    self.network.die_until(link, Way::Down, until);
                }
            }
            Act::Rebind => {
                let link = self.link();
                self.network.rebind(link);
            }
            Act::Plug => self.plug(),
            Act::Choke => {
                let link = self.link();
                self.laptop.choked[link] = !self.laptop.choked[link];
            }
            Act::Prefer => {
                let link = Some(self.link()).filter(|_| self.chance.per_mille(700));
                self.laptop.tell(Told::Prefer(link));
            }
            Act::Deafen => {
                let span = self.chance.millis(1, 1000);
                self.office.deaf_until = Some(self.office_clock.read(self.now) + span);
            }
            Act::Sleep => self.sleep(),
            Act::StopLaptop => {
                let span = pause(&mut self.chance);
                self.leave_laptop(Absence::Stopped, span);
            }
            Act::StopOffice => {
                let span = pause(&mut self.chance);
                self.leave_office(span);
            }
            Act::Restart => self.restart(),
        }
    }

    /// A link goes down or up.
    fn plug(&mut self) {
        let link = self.link();
        if !self.network.is_up(link) {
            self.link_up(link);
        } else if self.links_up() > 1 || self.chance.per_mille(400) {
            self.link_down(link);
        }
    }

    /// The laptop sleeps, announced or not, and wakes up.
    fn sleep(&mut self) {
        if self.chance.per_mille(600) {
            self.laptop.tell(Told::Sleep);
            let delay = self.chance.millis(0, 1500);
            self.run(delay, |_| false);
        }
        let span = night(&mut self.chance);
        self.leave_laptop(Absence::Asleep, span);
        self.run(span, |_| false);
        self.gather();
        let mut words = vec![Told::Awake, Told::Slept(span)];
        if self.chance.per_mille(500) {
            words.reverse();
        }
        for word in words {
            self.laptop.tell(word);
            let gap = self.chance.spread(200);
            self.run(Duration::from_millis(gap), |_| false);
        }
    }

    /// Time passes, with or without the programs.
    fn wait(&mut self) {
        self.lively = self.chance.per_mille(200);
        let span = pause(&mut self.chance);
        if span > Duration::from_secs(20) {
            // Weather that is foul for hours shows nothing new.
            for link in 0..LINKS {
                let weather = Weather::usual(&mut self.chance);
                self.network.turn(link, weather);
            }
        }
        self.run(span, |_| false);
        self.lively = false;
    }

    fn outcome(&self) -> Outcome {
        let count = |what: fn(&Story) -> bool| {
            self.stories.iter().filter(|story| what(story)).count() as u64
        };
        Outcome {
            stories: self.stories.len() as u64,
            bytes: self.stories.iter().map(Story::bytes).sum(),
            whole: count(Story::is_whole),
            excused: count(Story::is_excused),
            lost: self.lost,
            readdressed: self.counts().readdressed,
            restarts: self.office.restarts,
            restored: self.counts().restored,
            steps: self.steps,
        }
    }
}
