//! How the machine's sleep is slept: what a client does when it is told of it, and when it is not.
//!
//! [`Rest`] promises:
//! - whoever waits before the machine may sleep waits for the gateway's word that it holds the
//!   flows, and never longer than [`PARKING`];
//! - from then on nothing is tried until the machine is awake again, whoever says so first: the one
//!   who announced the sleep, or the clocks;
//! - one sleep is one wake-up, although both may speak of it;
//! - a sleep that never comes ends by itself after [`NEVER`].
//!
//! Time here is that of a clock that stands still while the machine sleeps.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The machine waits this long for the gateway: several round trips and a lost packet or two, and
/// well below the 5 s logind gives everybody (`InhibitDelayMaxSec=` of logind.conf(5)).
pub const PARKING: Duration = Duration::from_secs(1);

/// An announced sleep that has not come by then is none: everybody together may delay it by 5 s,
/// and scripts that run before it (systemd-suspend.service(8)) take seconds.
pub const NEVER: Duration = Duration::from_secs(30);

/// The clocks tell of a sleep as soon as this process runs again; by then the machine may have said
/// itself that it is awake.
const SAME: Duration = Duration::from_secs(5);

/// What happens to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It is about to sleep, and waits until [`Action::Release`].
    Sleep {
        /// There is a connection with a session that can be parked.
        attached: bool,
    },
    /// There is no connection any more.
    Parked,
    /// It is awake, or does not go to sleep after all.
    Awake,
    /// The clocks show that it was asleep.
    Jumped {
        /// For how long.
        asleep: Duration,
    },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the gateway to hold everything, and try nothing new.
    Park,
    /// Give up the connection without waiting for the gateway, and try nothing new.
    Leave,
    /// The machine may sleep.
    Release {
        /// How long it was kept waiting.
        took: Duration,
        /// Nothing is left that the gateway could not know of.
        parked: bool,
    },
    /// The machine slept for so long. Precedes [`Wake`](Self::Wake), or follows soon.
    Slept(Duration),
    /// Try every link at once.
    Wake {
        /// Whatever connection there is, the gateway has forgotten it.
        anew: bool,
    },
}

/// See the [module](self).
#[derive(Debug)]
pub struct Rest {
    state: State,
    /// The gateway forgets a connection after this long without a word.
    forgotten: Duration,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// `since` the machine said that an announced sleep is over; the clocks have not told of it.
    Awake { since: Option<Instant> },
    /// The gateway was asked to hold everything.
    Parking { since: Instant },
    /// The machine may sleep at any moment, or does.
    Asleep { since: Instant },
}

impl Rest {
    /// An awake machine, whose gateway forgets connections that were silent for `forgotten`.
    #[must_use]
    pub fn new(forgotten: Duration) -> Self {
        Self { state: State::Awake { since: None }, forgotten, actions: VecDeque::new() }
    }

    /// Whether the machine sleeps or is about to: nothing is tried.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        match self.state {
            State::Awake { .. } => false,
            State::Parking { .. } | State::Asleep { .. } => true,
        }
    }

    /// Something happened.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match (input, self.state) {
            (Input::Sleep { attached: true }, State::Awake { .. }) => {
                self.state = State::Parking { since: now };
                self.actions.push_back(Action::Park);
            }
            (Input::Sleep { attached: false }, State::Awake { .. }) => {
                self.actions.push_back(Action::Leave);
                self.release(now, true, now);
            }
            // Whoever asks again waits again.
            (Input::Sleep { .. }, State::Asleep { .. }) => self.release(now, true, now),
            (Input::Parked, State::Parking { since }) => self.release(since, true, now),
            (Input::Awake, State::Parking { .. } | State::Asleep { .. }) => {
                self.state = State::Awake { since: Some(now) };
                self.actions.push_back(Action::Wake { anew: false });
            }
            (Input::Jumped { asleep }, state) => self.jumped(asleep, state, now),
            (Input::Sleep { .. }, State::Parking { .. })
            | (Input::Parked, State::Awake { .. } | State::Asleep { .. })
            | (Input::Awake, State::Awake { .. }) => {}
        }
    }

    fn jumped(&mut self, asleep: Duration, state: State, now: Instant) {
        self.state = State::Awake { since: None };
        self.actions.push_back(Action::Slept(asleep));
        let known = match state {
            State::Awake { since } => since.is_some_and(|since| now < since + SAME),
            State::Parking { .. } | State::Asleep { .. } => false,
        };
        if !known {
            self.actions.push_back(Action::Wake { anew: asleep >= self.forgotten });
        }
    }

    fn release(&mut self, since: Instant, parked: bool, now: Instant) {
        self.state = State::Asleep { since: now };
        let took = now.saturating_duration_since(since);
        self.actions.push_back(Action::Release { took, parked });
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Awake { .. } => None,
            State::Parking { since } => Some(since + PARKING),
            State::Asleep { since } => Some(since + NEVER),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        match self.state {
            State::Awake { .. } => {}
            State::Parking { since } => {
                self.actions.push_back(Action::Leave);
                self.release(since, false, now);
            }
            State::Asleep { .. } => {
                self.state = State::Awake { since: None };
                self.actions.push_back(Action::Wake { anew: false });
            }
        }
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }
}

#[cfg(test)]
mod tests;
