//! What a daemon and its service manager tell each other (sd_notify(3)); silence where there is
//! none.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::debug;

/// The daemon does what it is there for.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The daemon ends.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// One line for a person who asks the service manager.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// The daemon reads its configuration again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => debug!(%error, "No clock for the service manager"),
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "Cannot notify the service manager");
    }
}

/// Tells the service manager that the daemon's loop goes round (`WatchdogSec=`). It is fed from
/// that loop and nowhere else: a loop that hangs is killed and started again.
#[derive(Debug)]
pub struct Watchdog {
    /// Half of what the manager waits for, as sd_watchdog_enabled(3) recommends.
    every: Option<Duration>,
    due: Instant,
}

impl Watchdog {
    /// What the service manager asked for, if anything.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { every: sd_notify::watchdog_enabled().map(|period| period / 2), due: now }
    }

    /// To be called in every round of the loop.
    pub fn feed(&mut self, now: Instant) {
        if let Some(every) = self.every
            && now >= self.due
        {
            self.due = now + every;
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// When the loop must go round again at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.every.map(|_| self.due)
    }
}
