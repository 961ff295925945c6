//! Connecting, and connecting anew beside a connection that shows no life: attempts are started,
//! given up, and won.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::{debug, info};
use whimbrel_carrier::{Connection, Event, Lost};
use whimbrel_client_core::trouble::Trouble;
use whimbrel_common::path::{Input, PathKey};
use whimbrel_common::wire::DETACH;

use super::Tunnel;
use super::live::Live;
use super::loss::{Failure, denied};
use super::search::Attempt;

/// Parked for so long, the old connection may be one that the gateway has forgotten: its reset is
/// recognised on the first path only. A new connection is tried beside it.
const DOUBT: Duration = Duration::from_secs(3);

/// The gateway answers a new connection: the old one gets this long to answer too, five probes.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// A new connection, made while the old one shows no life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) connection: Connection,
    link: PathKey,
    since: Instant,
}

impl Tunnel {
    /// When something about connecting is due.
    pub(super) fn poll_connecting(&self) -> Option<Instant> {
        let attempts = self.search.deadline();
        let doubt = self.live.as_ref().and_then(Live::silent_since).map(|since| since + DOUBT);
        let next = match &self.live {
            None => self.search.next(),
            Some(_) => self.search.next().zip(doubt).map(|(next, doubt)| next.max(doubt)),
        };
        let next = next.filter(|_| self.can_connect() && self.candidate.is_none());
        let last_chance = self.candidate.map(|candidate| candidate.since + LAST_CHANCE);
        [attempts, next, last_chance].into_iter().flatten().min()
    }

    /// Whether a connection that is being made leaves by this link.
    pub(super) fn connects_over(&self, link: PathKey) -> bool {
        self.search.uses(link) || self.candidate.is_some_and(|candidate| candidate.link == link)
    }

    /// Something happened on a connection other than the one that carries.
    pub(super) fn handle_attempt(&mut self, connection: Connection, event: &Event, now: Instant) {
        match event {
            Event::Connected { remote, .. } => {
                let Some(winner) = self.search.remove(connection) else { return };
                debug!(gateway = %remote, "Connected");
                if let Some(live) = self.live.as_mut() {
                    let Attempt { link, .. } = winner;
                    // Some link reaches the gateway: every one of them is worth a try.
                    live.paths.handle(Input::Woke, now);
                    self.candidate = Some(Candidate { connection, link, since: now });
                    return;
                }
                info!(link = self.uplinks.name(winner.link), "Connected");
                for loser in self.search.remove_all() {
                    self.endpoint.close(loser.connection, 0, "another link was faster", now);
                }
                self.greet(connection, winner.link, now);
            }
            Event::Lost(reason) => {
                self.candidate.take_if(|candidate| candidate.connection == connection);
                let Some(lost) = self.search.remove(connection) else { return };
                self.fail(reason.into(), self.uplinks.name(lost.link).map(str::to_owned));
                if denied(reason) {
                    self.search.rest(now);
                }
            }
            Event::Opened
            | Event::StreamsAvailable
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Stopped(..)
            | Event::PathOpened(_)
            | Event::PathClosed(_)
            | Event::Datagrams
            | Event::PathStatus { .. } => {}
        }
    }

    /// Ends the attempts that took too long.
    pub(super) fn give_up_attempts(&mut self, now: Instant) {
        for attempt in self.search.remove_expired(now) {
            let link = self.uplinks.name(attempt.link).map(str::to_owned);
            self.endpoint.close(attempt.connection, 0, "no answer", now);
            self.portals.doubt(attempt.link, now);
            let failure = if attempt.forbidden {
                let text = "a firewall of this machine forbids UDP to the gateway";
                Failure::new(Trouble::Forbidden, text)
            } else {
                Failure::new(Trouble::Unreachable, "the gateway does not answer")
            };
            self.fail(failure, link);
        }
    }

    /// Starts the next attempts, if it is time.
    pub(super) fn try_next(&mut self, now: Instant) {
        if !self.is_searching(now) {
            return;
        }
        let candidates = self.candidates();
        if candidates.is_empty() {
            let text = "no link reaches the gateway's address family";
            self.fail(Failure::new(Trouble::NoFamily, text), None);
        }
        while let Some((link, remote)) = self.search.choose(&candidates, now) {
            match self.endpoint.connect(remote, now) {
                Ok(connection) => {
                    debug!(link = self.uplinks.name(link), %remote, "Connecting");
                    self.search.add(connection, link, now);
                }
                Err(error) => self.fail(Failure::new(Trouble::Other, error.to_string()), None),
            }
        }
    }

    /// Replaces a connection without life by one that has it, unless the old one wakes up.
    pub(super) fn weigh_candidate(&mut self, now: Instant) {
        let silent_since = self.live.as_ref().and_then(Live::silent_since);
        if self.live.is_some() && silent_since.is_none() {
            let rivals = self.search.remove_all().into_iter().map(|rival| rival.connection);
            let rivals: Vec<Connection> =
                rivals.chain(self.candidate.take().map(|candidate| candidate.connection)).collect();
            for rival in rivals {
                self.endpoint.close(rival, 0, "the old connection lives", now);
            }
        }
        if let Some(candidate) = self.candidate.take_if(|it| now >= it.since + LAST_CHANCE) {
            if let Some(old) = self.live.as_ref().map(|live| live.connection) {
                self.lose(&Lost::Reset, now);
                self.endpoint.close(old, DETACH, "replaced", now);
            }
            info!(link = self.uplinks.name(candidate.link), "Connected anew");
            self.greet(candidate.connection, candidate.link, now);
        }
    }

    /// Whether a new connection is wanted: there is none, or the one there is shows no life.
    fn is_searching(&self, now: Instant) -> bool {
        let doubted = |live: &Live| live.silent_since().is_some_and(|since| now >= since + DOUBT);
        self.can_connect() && self.candidate.is_none() && self.live.as_ref().is_none_or(doubted)
    }

    fn can_connect(&self) -> bool {
        !self.resting && !self.links.is_empty() && !self.gateway.is_empty()
    }

    /// What can be tried, the best first.
    fn candidates(&self) -> Vec<(PathKey, SocketAddr)> {
        let reaches = |link: PathKey| {
            self.gateway.iter().filter(move |remote| self.uplinks.reaches(link, remote.ip()))
        };
        let links = self.links.by_preference().into_iter();
        links.flat_map(|link| reaches(link).map(move |remote| (link, *remote))).collect()
    }
}
