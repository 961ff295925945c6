//! The machine sleeps: the session is left with the gateway, and found again.

use std::time::Instant;

use tracing::info;
use whimbrel_carrier::{Connection, Lost};
use whimbrel_client_core::trouble::Trouble;
use whimbrel_common::path::Input;
use whimbrel_common::wire::{Control, DETACH};

use super::loss::{Failure, ends_session};
use super::{News, Tunnel};

/// Why there is no connection while the machine sleeps.
const ASLEEP: &str = "the machine sleeps, or is about to";

impl Tunnel {
    /// Asks the gateway to hold everything, and tries nothing new. Its answer is the end of the
    /// connection.
    pub(crate) fn park(&mut self, now: Instant) {
        self.rest(now);
        self.send(&[Control::Park]);
        self.flush(now);
    }

    /// Gives the connection up without the gateway's answer, and tries nothing new.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.rest(now);
        self.drop_connection("asleep", &Lost::TimedOut, now);
    }

    /// The machine is awake: every link is tried at once.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.resting = false;
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(Input::Woke, now);
        } else {
            self.search.rush(now);
        }
    }

    /// The machine is awake, and the gateway has forgotten the connection there was.
    pub(crate) fn wake_anew(&mut self, now: Instant) {
        self.resting = false;
        self.end_attempts(now);
        self.drop_connection("forgotten", &Lost::TimedOut, now);
        self.search.rush(now);
    }

    /// Whether the gateway has answered since a moment.
    pub(crate) fn is_answered_since(&self, moment: Instant) -> bool {
        let Some(live) = self.live.as_ref().filter(|live| live.attached) else { return false };
        let active = live.paths.active();
        let mut views = live.paths.paths();
        views.any(|view| {
            active == Some(view.path) && view.evidence.last_ack.is_some_and(|ack| ack > moment)
        })
    }

    fn rest(&mut self, now: Instant) {
        self.resting = true;
        self.end_attempts(now);
    }

    fn end_attempts(&mut self, now: Instant) {
        let attempts = self.search.remove_all().into_iter().map(|attempt| attempt.connection);
        let attempts: Vec<Connection> =
            attempts.chain(self.candidate.take().map(|candidate| candidate.connection)).collect();
        for attempt in attempts {
            self.endpoint.close(attempt, 0, "the machine sleeps", now);
        }
    }

    fn drop_connection(&mut self, why: &'static str, reason: &Lost, now: Instant) {
        if let Some(connection) = self.live.as_ref().map(|live| live.connection) {
            self.lose(reason, now);
            self.endpoint.close(connection, DETACH, why, now);
        }
    }

    /// The connection ended while the machine goes to sleep, as it should.
    pub(super) fn leave_quietly(&mut self, attached: bool, heard: Option<Instant>, reason: &Lost) {
        info!(%reason, "Rests");
        if attached {
            self.news.push_back(News::Detached { reason: ASLEEP.to_owned(), heard });
        }
        if ends_session(reason) {
            self.session.end();
            self.news.push_back(News::Ended);
        }
        self.last_failure = Some(Failure::new(Trouble::Other, ASLEEP));
    }
}
