//! The machine sleeps and wakes up: what is decided about it is carried out here, and told.

use std::time::{Duration, Instant};

use whimbrel_client_core::rest::{Action, Input};

use super::Client;
use crate::report::EventKind;

/// Without an answer for so long after waking up, what is known so far is told: a link that comes
/// back by itself takes Wi-Fi about that long.
const UNTOLD: Duration = Duration::from_secs(5);

/// A wake-up whose cost is not known yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct WokenUp {
    at: Instant,
    held: usize,
}

impl Client {
    /// The machine is about to sleep, and waits until [`may_sleep`](Self::may_sleep).
    pub fn sleep(&mut self, now: Instant) {
        let attached = self.tunnel.connection().is_some();
        self.rest(Input::Sleep { attached }, now);
    }

    /// The machine is awake, or does not go to sleep after all.
    pub fn awake(&mut self, now: Instant) {
        self.rest(Input::Awake, now);
    }

    /// The clocks show that the machine was asleep.
    pub fn slept(&mut self, asleep: Duration, now: Instant) {
        if let Some(pause) = &mut self.paused {
            pause.slept(asleep, now);
        }
        self.rest(Input::Jumped { asleep }, now);
    }

    /// Whether the machine may sleep: true once each time.
    pub fn may_sleep(&mut self) -> bool {
        std::mem::take(&mut self.may_sleep)
    }

    /// Tells the decisions about sleep what happened.
    pub(super) fn rest(&mut self, input: Input, now: Instant) {
        self.rest.handle(input, now);
        self.carry_out_rest(now);
    }

    /// When [`advance_rest`](Self::advance_rest) wants to be called.
    pub(super) fn rest_deadline(&self) -> Option<Instant> {
        let untold = self.woken_up.map(|woken_up| woken_up.at + UNTOLD);
        [self.rest.poll_timeout(), untold].into_iter().flatten().min()
    }

    pub(super) fn advance_rest(&mut self, now: Instant) {
        self.rest.handle_timeout(now);
        self.carry_out_rest(now);
        self.tell_wake_up(now);
    }

    fn carry_out_rest(&mut self, now: Instant) {
        while let Some(action) = self.rest.poll_action() {
            match action {
                Action::Park => self.tunnel.park(now),
                Action::Leave => self.tunnel.leave(now),
                Action::Release { took, parked } => {
                    self.may_sleep = true;
                    self.tell_sleep(took, parked);
                }
                Action::Slept(asleep) => self.asleep += asleep,
                Action::Wake { anew } => {
                    if anew {
                        self.tunnel.wake_anew(now);
                    } else {
                        self.tunnel.wake(now);
                    }
                    self.woken_up = Some(WokenUp { at: now, held: self.ferries.len() });
                }
            }
        }
    }

    fn tell_sleep(&mut self, took: Duration, parked: bool) {
        let (flows, took) = (self.ferries.len(), took.as_millis());
        let text = match (parked, self.tunnel.session()) {
            (true, Some(_)) => {
                format!("the machine goes to sleep: {flows} flows are parked, after {took} ms")
            }
            (true, None) => "the machine goes to sleep".to_owned(),
            (false, _) => format!(
                "the machine goes to sleep: {flows} flows are held, but the gateway did not \
                 confirm it within {took} ms"
            ),
        };
        self.journal.tell(EventKind::Sleep, text);
    }

    /// Tells of a wake-up once the gateway has answered, or as late as is bearable.
    fn tell_wake_up(&mut self, now: Instant) {
        let Some(WokenUp { at, held }) = self.woken_up else { return };
        let answered = self.tunnel.is_answered_since(at);
        if !answered && now < at + UNTOLD {
            return;
        }
        self.woken_up = None;
        let asleep = std::mem::take(&mut self.asleep).as_secs();
        let slept = if asleep == 0 { String::new() } else { format!(" after {asleep} s of sleep") };
        let text = if answered {
            let took = now.saturating_duration_since(at).as_millis();
            format!("awake{slept}: the gateway answers after {took} ms, {held} flows go on")
        } else {
            format!("awake{slept}: no link reaches the gateway yet, {held} flows are held")
        };
        self.journal.tell(EventKind::Wake, text);
    }
}
