//! Everything there is in a run, and how time passes.

use std::time::{Duration, Instant};

use tracing::trace;
use whimbrel_common::config::Offline;
use whimbrel_common::path::DownReason;
use whimbrel_common::wire::SessionId;

use crate::chance::Chance;
use crate::laptop::{Laptop, Told};
use crate::network::{Datagram, LINKS, Network, Way};
use crate::office::{Office, config};
use crate::story::{Side, Story};

/// Time is looked at this often.
const TICK: Duration = Duration::from_millis(1);

/// Steps a run may take: far more than any needs.
const STEPS: u64 = 400_000;

/// How an end is not there for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Its process stands still: its clock goes on and its sockets fill.
    Stopped,
    /// Its machine sleeps: its clock stands still and what arrives is lost.
    Asleep,
}

/// An end's own clock, and whether anybody looks at it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Clock {
    /// How much it is behind.
    behind: Duration,
    absent: Option<(Absence, Instant)>,
}

impl Clock {
    pub(crate) fn read(&self, now: Instant) -> Instant {
        now - self.behind
    }

    fn is_asleep(&self) -> bool {
        matches!(self.absent, Some((Absence::Asleep, _)))
    }
}

/// See the [module](self).
pub(crate) struct Stage {
    pub(crate) chance: Chance,
    pub(crate) now: Instant,
    pub(crate) network: Network,
    pub(crate) laptop: Laptop,
    pub(crate) office: Office,
    pub(crate) laptop_clock: Clock,
    pub(crate) office_clock: Clock,
    pub(crate) stories: Vec<Story>,
    /// How long sessions are held.
    pub(crate) hold: Duration,
    /// Since when the run goes on.
    pub(crate) since: Instant,
    /// The session, as the client knows it.
    pub(crate) session: Option<SessionId>,
    /// What had been dialled when it began.
    pub(crate) dialled: u64,
    /// Sessions that were lost.
    pub(crate) lost: u64,
    /// Programs do all they can at once.
    pub(crate) lively: bool,
    pub(crate) steps: u64,
}

impl Stage {
    pub(crate) fn new(seed: u64, hold: Duration, memory: u64) -> Self {
        let mut chance = Chance::new(seed);
        // Far enough from the origin of clocks that one may be behind.
        let now = crate::start() + Duration::from_hours(1000);
        let network = Network::new(Chance::new(chance.next()));
        let offline = if chance.per_mille(500) { Offline::Direct } else { Offline::Block };
        let laptop = Laptop::new(&mut chance, offline, hold, now);
        let office = Office::new(Chance::new(chance.next()), config(hold, memory), now);
        let mut stage = Self {
            chance,
            now,
            network,
            laptop,
            office,
            laptop_clock: Clock::default(),
            office_clock: Clock::default(),
            stories: Vec::new(),
            hold,
            since: now,
            session: None,
            dialled: 0,
            lost: 0,
            lively: false,
            steps: 0,
        };
        stage.link_up(0);
        if stage.chance.per_mille(800) {
            stage.link_up(1);
        }
        stage
    }

    pub(crate) fn open(&mut self) {
        let number = u16::try_from(self.stories.len()).expect("a few");
        let chance = Chance::new(self.chance.next());
        let now = self.laptop_clock.read(self.now);
        self.stories.push(Story::new(&mut self.laptop.kernel, number, chance, now));
    }

    pub(crate) fn link_up(&mut self, link: usize) {
        self.network.switch(link, true);
        let metered = link == 1 && self.chance.per_mille(200);
        self.laptop.tell(Told::Up { link, metered });
    }

    pub(crate) fn link_down(&mut self, link: usize) {
        self.network.switch(link, false);
        let reasons = [DownReason::Carrier, DownReason::AddressRemoved, DownReason::Gone];
        let reason = reasons[usize::try_from(self.chance.below(3)).expect("small")];
        self.laptop.tell(Told::Down { link, reason });
    }

    /// The laptop's process stands still, or its machine sleeps.
    pub(crate) fn leave_laptop(&mut self, how: Absence, span: Duration) {
        self.laptop_clock.absent = Some((how, self.now + span));
    }

    /// The gateway's process stands still.
    pub(crate) fn leave_office(&mut self, span: Duration) {
        self.office_clock.absent = Some((Absence::Stopped, self.now + span));
    }

    /// Everybody is there.
    pub(crate) fn gather(&mut self) {
        for clock in [&mut self.laptop_clock, &mut self.office_clock] {
            if let Some((_, until)) = &mut clock.absent {
                *until = self.now;
            }
        }
    }

    /// Lets `span` pass, or less if `until` says so.
    pub(crate) fn run(&mut self, span: Duration, until: impl Fn(&Self) -> bool) {
        let end = self.now + span;
        while self.now < end && !until(self) {
            let before = self.now;
            self.now = self.next().clamp(before + TICK, end.max(before + TICK));
            if self.laptop_clock.is_asleep() {
                self.laptop_clock.behind += self.now - before;
            }
            self.step();
        }
    }

    /// When something happens next, on a whole tick.
    fn next(&mut self) -> Instant {
        let of = |clock: Clock, deadline: Option<Instant>| match clock.absent {
            Some((_, until)) => Some(until),
            None => deadline.map(|at| at + clock.behind),
        };
        let kernel = &mut self.laptop.kernel;
        let impatient =
            self.stories.iter_mut().filter_map(|story| story.poll_timeout(kernel)).min();
        let told = self.laptop.is_told().then(|| self.laptop_clock.read(self.now));
        let laptop = [self.laptop.poll_timeout(), impatient, told].into_iter().flatten().min();
        let laptop = of(self.laptop_clock, laptop);
        let office = of(self.office_clock, self.office.poll_timeout());
        let next = [self.network.next(), laptop, office].into_iter().flatten().min();
        let next = next.unwrap_or(self.now + Duration::from_secs(1));
        let since = next.saturating_duration_since(self.now).as_micros().div_ceil(1000);
        self.now + TICK * u32::try_from(since).unwrap_or(u32::MAX)
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < STEPS, "the ends never rest: {:#?}", self.laptop.client);
        for clock in [&mut self.laptop_clock, &mut self.office_clock] {
            clock.absent.take_if(|(_, until)| *until <= self.now);
        }
        trace!(at = ?(self.now - self.since), "Step");
        self.deliver();
        let mut busy = true;
        while busy {
            self.notice();
            self.watch_capture();
            busy = self.exchange();
            self.watch_capture();
        }
        self.watch_sessions();
        self.check();
    }

    fn deliver(&mut self) {
        while let Some(Datagram { way, address, bytes }) = self.network.arrive(self.now) {
            match way {
                Way::Up => self.office.receive(address, bytes),
                Way::Down if self.laptop_clock.is_asleep() => {}
                Way::Down => {
                    if let Some(link) = self.network.link_at(address) {
                        self.laptop.receive(link, bytes);
                    }
                }
            }
        }
    }

    /// The programs see what happened, and act if they are lively.
    pub(crate) fn notice(&mut self) {
        let now = self.laptop_clock.read(self.now);
        let kernel = &mut self.laptop.kernel;
        for story in &mut self.stories {
            if !self.laptop_clock.is_asleep() {
                story.notice(kernel, now);
            }
            if self.lively && !self.laptop_clock.is_asleep() {
                story.go_on(kernel);
            }
        }
    }

    /// Whether anybody had something to send.
    fn exchange(&mut self) -> bool {
        let mut any = false;
        if self.laptop_clock.absent.is_none() {
            for (link, bytes) in self.laptop.turn(self.laptop_clock.read(self.now)) {
                any = true;
                self.network.send_up(link, bytes, self.now);
            }
        }
        if self.office_clock.absent.is_none() {
            for (to, bytes) in self.office.turn(self.office_clock.read(self.now)) {
                any = true;
                self.network.send_down(to, bytes, self.now);
            }
        }
        any
    }

    /// The gateway's process ends, and another begins.
    pub(crate) fn restart(&mut self) {
        let killed = self.chance.per_mille(700);
        // A process that stands still can only be killed.
        let killed = killed || self.office_clock.absent.take().is_some();
        for (to, bytes) in self.office.restart(killed, self.office_clock.read(self.now)) {
            self.network.send_down(to, bytes, self.now);
        }
    }

    /// One of the programs does something.
    pub(crate) fn program(
        &mut self,
        what: impl FnOnce(&mut crate::story::Program, &mut dyn crate::story::Line, &mut Chance),
    ) {
        let at = usize::try_from(self.chance.below(self.stories.len() as u64)).expect("a few");
        let side = if self.chance.per_mille(500) { Side::Application } else { Side::Destination };
        let (kernel, chance) = (&mut self.laptop.kernel, &mut self.chance);
        if let Some(story) = self.stories.get_mut(at)
            && !self.laptop_clock.is_asleep()
        {
            story.with(kernel, side, |program, line| what(program, line, chance));
        }
    }

    /// How many links are up.
    pub(crate) fn links_up(&self) -> usize {
        (0..LINKS).filter(|link| self.network.is_up(*link)).count()
    }
}
