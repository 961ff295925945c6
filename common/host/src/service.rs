//! What a daemon and its service manager tell each other (sd_notify(3)); silence where there is
//! none.

use std::io;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
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

/// What a person or the service manager can say by signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// SIGTERM or SIGINT: end in good order.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals that are orders, caught from now on.
#[derive(Debug)]
pub struct Orders {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Orders {
    /// Catches them. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The system lets nobody catch signals.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next order. Dropping the future loses none.
    pub async fn next(&mut self) -> Order {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hang_up.recv() => Order::Reload,
        }
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

    /// Whether [`feed`](Self::feed) would tell the service manager something.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.every.is_some() && now >= self.due
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
