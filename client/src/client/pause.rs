//! What new connections get: captured, or direct because somebody asked for it or the gateway is out
//! of reach.

use std::time::{Duration, Instant};

use tracing::info;
use whimbrel_common::config::Offline;

use super::Client;
use crate::report::{CaptureState, EventKind};

/// New connections go direct on request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    pub(super) until: Option<Instant>,
}

impl Pause {
    /// The machine slept: its clock stood still, but a person's did not.
    pub(super) fn slept(&mut self, asleep: Duration, now: Instant) {
        // A moment before the clock began is long past.
        self.until = self.until.map(|until| until.checked_sub(asleep).unwrap_or(now));
    }
}

impl Client {
    pub(super) fn check_pause(&mut self, now: Instant) {
        if self.paused.and_then(|pause| pause.until).is_some_and(|until| until <= now) {
            self.resume();
        }
    }

    /// New connections go direct, until a moment or until further notice.
    pub(crate) fn pause(&mut self, until: Option<Instant>) {
        self.paused = Some(Pause { until });
        info!("New connections go direct, as asked");
        self.journal.tell(EventKind::Paused, "new connections go direct");
    }

    /// New connections are captured again.
    pub(crate) fn resume(&mut self) {
        if self.paused.take().is_some() {
            info!("New connections are captured again");
            self.journal.tell(EventKind::Resumed, "new connections are captured again");
        }
    }

    /// How long the pause goes on, if it ends by itself.
    pub(crate) fn pause_left(&self, now: Instant) -> Option<Duration> {
        self.paused?.until.map(|until| until.saturating_duration_since(now))
    }

    /// What new connections get.
    #[must_use]
    pub fn capture_state(&self) -> CaptureState {
        match (self.paused, self.given_up, &self.offline) {
            (Some(_), _, _) => CaptureState::Paused,
            (None, true, Offline::Direct) => CaptureState::Direct,
            (None, true, Offline::Block) => CaptureState::Blocked,
            (None, false, _) => CaptureState::On,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_counts_as_pause() {
        let now = Instant::now();
        let minutes = |minutes| Duration::from_mins(minutes);
        let mut pause = Pause { until: Some(now + minutes(10)) };
        pause.slept(minutes(4), now);
        assert_eq!(pause.until, Some(now + minutes(6)));
        pause.slept(Duration::MAX, now);
        assert_eq!(pause.until, Some(now));
        let mut endless = Pause { until: None };
        endless.slept(minutes(4), now);
        assert_eq!(endless.until, None);
    }
}
