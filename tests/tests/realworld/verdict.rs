//! What must hold at every step, and when everything has come to rest.

use std::time::Duration;

use whimbrel::report::CaptureState;
use whimbrel::tunnel::Standing;
use whimbrel_carrier::Tuning;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::session::MAX_WINDOW;

use crate::laptop::{CLIENT_KEY, Told};
use crate::network::{LINKS, Weather};
use crate::office::{Counts, FLOWS};
use crate::stage::Stage;
use crate::story::Story;

/// What flows keep is looked at once in so many steps: it takes longer than a step.
const KEEP_EVERY: u64 = 16;

/// A client finds the gateway in this time on a good network: an attempt that is lost, the longest
/// pause between two, a doubt, and a handshake.
const REACH: Duration = Duration::from_secs(15);

/// What one turn of a flow may read beyond the limit that it was below.
const TURN: u64 = 1 << 20;

impl Stage {
    /// At every step: I1 and I2.
    pub(crate) fn check(&self) {
        self.stories.iter().for_each(Story::check);
        if self.steps.is_multiple_of(KEEP_EVERY) {
            self.check_kept();
        }
    }

    fn check_kept(&self) {
        let flows = self.laptop.client.flows(None, self.laptop_clock.read(self.now));
        for flow in &flows {
            assert!(flow.held_bytes <= MAX_WINDOW, "I2: {flow:?}");
        }
        let held = self.office.report(self.office_clock.read(self.now)).held;
        assert!(held.bytes <= held.limit + TURN, "I2: {held:?}");
    }

    /// What either end may have lost since the last look, and whether it had a right to.
    pub(crate) fn watch_sessions(&mut self) {
        let session = self.laptop.client.tunnel.session();
        let ended = std::mem::take(&mut self.office.ended);
        let known = [self.session, session];
        let gone = ended.iter().any(|session| known.contains(&Some(*session)));
        if gone || self.session.is_some() && session != self.session {
            let counts = self.counts();
            let held_long = self.now - self.since >= self.hold;
            let unused = counts.dialled == self.dialled;
            let may = held_long || counts.evicted > 0 || unused;
            assert!(may, "the session was lost: {:#?}", self.laptop.client.tunnel);
            self.lost += 1;
            self.stories.iter_mut().for_each(|story| story.excuse("the session was lost"));
        }
        if session != self.session {
            self.dialled = self.counts().dialled;
        }
        self.session = session;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.office.counts(self.office_clock.read(self.now))
    }

    /// New connections are refused while the gateway is out of reach.
    pub(crate) fn watch_capture(&mut self) {
        if self.laptop.client.capture_state() != CaptureState::On {
            self.stories.iter_mut().for_each(Story::allow_refusal);
        }
    }

    /// The network is good again, and everybody goes on: nothing may be left (I5).
    pub(crate) fn settle(&mut self) {
        self.network.heal();
        self.gather();
        for link in 0..LINKS {
            let fair = Weather::fair(&mut self.chance);
            self.network.turn(link, fair);
            self.laptop.choked[link] = false;
            if !self.network.is_up(link) {
                self.link_up(link);
            }
        }
        self.laptop.tell(Told::Prefer(None));
        self.lively = true;
        self.run(REACH, Self::is_attached);
        assert!(self.is_attached(), "out of reach: {:#?}", self.laptop.client.tunnel);
        // Long enough to find out that a connection is dead.
        self.run(Duration::from_secs(10), |_| false);
        self.run(Duration::from_mins(20), |stage| stage.lost > 0 || stage.is_quiet());
        self.run(Duration::from_mins(2), Self::is_quiet);
        self.run(Duration::from_secs(2), |_| false);
        if self.lost > 0 {
            // A session its client has given up is parked when its connection has been silent for
            // long, and then waits for its time to be over.
            let silent = Tuning::default().idle_timeout;
            self.run(silent + self.hold.min(Duration::from_hours(2)), |_| false);
            self.run(Duration::from_mins(1), |_| false);
        }
        self.stories.iter().for_each(Story::check_end);
        assert!(self.laptop.client.is_bare(), "I5: {:#?} is left", self.laptop.client);
        assert!(self.office.gateway.is_bare(), "I5: {:#?} is left", self.office.gateway);
        let flows = self.office.usage.lock().flows(&SecretKey::from_seed(CLIENT_KEY).public());
        assert_eq!(flows, 0, "I5: flows are counted");
        self.check_rest();
        self.check_credit();
    }

    fn is_attached(&self) -> bool {
        let now = self.laptop_clock.read(self.now);
        self.laptop.client.tunnel.standing(now) == Standing::Attached
    }

    fn is_quiet(&self) -> bool {
        let report = self.office.report(self.office_clock.read(self.now));
        let open = report.activities.values().any(|activity| activity.flows > 0);
        let rest = self.stories.iter().all(Story::is_at_rest);
        rest && self.laptop.client.is_bare() && !open
    }

    /// Ends that have nothing to do do nothing.
    fn check_rest(&mut self) {
        let before = self.steps;
        self.run(Duration::from_mins(1), |_| false);
        // Two paths kept alive every 20 s, with what the engine does beside, and news every second.
        let steps = self.steps - before;
        assert!(steps < 1000, "I5: {steps} steps in a quiet minute");
    }

    /// Streams that are over count against the client no more.
    fn check_credit(&mut self) {
        let tunnel = &mut self.laptop.client.tunnel;
        let connection = tunnel.connection().expect("the network is good");
        let opened = std::iter::from_fn(|| tunnel.endpoint.open(connection)).count() as u64;
        // More credit is announced once an eighth of it is used.
        let least = u64::from(FLOWS - FLOWS / 8);
        assert!(opened >= least, "I5: {opened} streams of {FLOWS} may be opened: some are left");
    }
}
