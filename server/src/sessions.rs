//! Sessions: what a client has at this gateway, whichever connection carries it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::wire::{SessionId, WireFlow};
use whimbrel_gateway_core::associations::Associations;
use whimbrel_gateway_core::seen::Seen;

use crate::keep::Place;
use crate::usage::SharedBandwidth;

/// Sessions of one client that may wait for it: a daemon and a few wrapped commands. A client that
/// was killed never comes back for its own.
const MOST_PARKED: usize = 8;

/// Bytes that may be moved now, or when some may be.
pub(crate) type Room = Result<u64, Instant>;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) key: PublicKey,
    /// The client's name when it attached last.
    pub(crate) name: ClientName,
    /// Rises with every attach.
    pub(crate) epoch: u64,
    /// The gateway's numbers of its flows.
    pub(crate) flows: BTreeMap<WireFlow, u64>,
    /// The ports of its datagrams.
    pub(crate) associations: Associations,
    /// The flow ids it has used.
    pub(crate) seen: Seen,
    /// Where the session outlives the process, if it does.
    pub(crate) place: Option<Place>,
    /// Bytes of all its flows in this process.
    pub(crate) held: u64,
    pub(crate) up_bytes: u64,
    pub(crate) down_bytes: u64,
    pub(crate) moves: u64,
    /// When its client was heard last, while no connection carries it.
    pub(crate) away_since: Option<Instant>,
    /// The bandwidth of its client to and from destinations.
    bandwidth: SharedBandwidth,
}

impl Session {
    pub(crate) fn new(
        id: SessionId,
        key: PublicKey,
        name: ClientName,
        epoch: u64,
        bandwidth: SharedBandwidth,
    ) -> Self {
        Self {
            id,
            key,
            name,
            epoch,
            flows: BTreeMap::new(),
            associations: Associations::default(),
            seen: Seen::default(),
            place: None,
            held: 0,
            up_bytes: 0,
            down_bytes: 0,
            moves: 0,
            away_since: None,
            bandwidth,
        }
    }

    /// Bytes the streams of its client may move to and from destinations at `rate` per second each; zero is no
    /// limit.
    pub(crate) fn room(&mut self, rate: u64, now: Instant) -> (Room, Room) {
        let (up, down) = &mut *self.bandwidth.lock();
        (up.room(rate, now), down.room(rate, now))
    }

    /// The same of its datagrams to destinations.
    pub(crate) fn datagram_room_up(&mut self, rate: u64, now: Instant) -> Room {
        self.bandwidth.lock().0.datagram_room(rate, now)
    }

    /// The same of its datagrams from destinations.
    pub(crate) fn datagram_room_down(&mut self, rate: u64, now: Instant) -> Room {
        self.bandwidth.lock().1.datagram_room(rate, now)
    }

    /// Streams moved bytes to and from destinations.
    pub(crate) fn count(&mut self, up: u64, down: u64) {
        self.up_bytes += up;
        self.down_bytes += down;
        let bandwidth = &mut *self.bandwidth.lock();
        bandwidth.0.count(up);
        bandwidth.1.count(down);
    }

    /// Datagrams did.
    pub(crate) fn count_datagrams(&mut self, up: u64, down: u64) {
        self.up_bytes += up;
        self.down_bytes += down;
        let bandwidth = &mut *self.bandwidth.lock();
        bandwidth.0.count_datagrams(up);
        bandwidth.1.count_datagrams(down);
    }

    /// Whether a client with this key and this epoch may go on with it: it must be its own, and an
    /// old epoch is inert.
    pub(crate) fn is_rightful(&self, id: SessionId, key: &PublicKey, epoch: u64) -> bool {
        self.id == id && self.key == *key && epoch > self.epoch
    }
}

/// Sessions whose connection is lost: their flows wait for their clients.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    sessions: BTreeMap<SessionId, (Instant, Session)>,
}

/// Why a parked session is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The client parked too many others since.
    Evicted,
    /// What all clients keep leaves no room for it.
    Crowded,
    /// The client did not come back in time.
    Expired,
    /// The client is not admitted any more.
    Revoked,
}

impl GivenUp {
    /// What [`name`](Self::name) may be.
    pub(crate) const NAMES: [&str; 4] = ["evicted", "crowded", "expired", "revoked"];

    /// Why, in a word.
    pub(crate) fn name(self) -> &'static str {
        let [evicted, crowded, expired, revoked] = Self::NAMES;
        match self {
            Self::Evicted => evicted,
            Self::Crowded => crowded,
            Self::Expired => expired,
            Self::Revoked => revoked,
        }
    }
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evicted => "the client parks too many sessions",
            Self::Crowded => "memory is short",
            Self::Expired => "the client did not come back",
            Self::Revoked => "revoked",
        })
    }
}

impl Parked {
    /// Parks a session; those the same client has to give up for it.
    pub(crate) fn insert(&mut self, session: Session, now: Instant) -> Vec<Session> {
        let key = session.key;
        self.sessions.insert(session.id, (now, session));
        let own = self.sessions.iter().filter(|(_, (_, session))| session.key == key);
        let mut own: Vec<(Instant, SessionId)> = own.map(|(id, (at, _))| (*at, *id)).collect();
        own.sort_unstable();
        let given_up = own.iter().rev().skip(MOST_PARKED);
        given_up
            .filter_map(|(_, id)| self.sessions.remove(id))
            .map(|(_, session)| session)
            .collect()
    }

    /// Takes a session for a client that may go on with it.
    pub(crate) fn claim(&mut self, id: SessionId, key: &PublicKey, epoch: u64) -> Option<Session> {
        let (_, session) = self.sessions.get(&id)?;
        if !session.is_rightful(id, key, epoch) {
            return None;
        }
        self.sessions.remove(&id).map(|(_, session)| session)
    }

    /// Takes the session that has waited longest of those that keep something.
    pub(crate) fn evict(&mut self) -> Option<Session> {
        let keeping = self.sessions.iter().filter(|(_, (_, session))| session.held > 0);
        let (id, _) = keeping.min_by_key(|(_, (since, _))| *since)?;
        let id = *id;
        self.sessions.remove(&id).map(|(_, session)| session)
    }

    /// Takes the session of a client that has waited longest.
    pub(crate) fn evict_own(&mut self, key: &PublicKey) -> Option<Session> {
        let own = self.sessions.iter().filter(|(_, (_, session))| session.key == *key);
        let (id, _) = own.min_by_key(|(_, (since, _))| *since)?;
        let id = *id;
        self.sessions.remove(&id).map(|(_, session)| session)
    }

    /// Takes the sessions that have waited for `hold`.
    pub(crate) fn expire(&mut self, now: Instant, hold: Duration) -> Vec<Session> {
        let over = self
            .sessions
            .extract_if(.., |_, (since, _)| now.saturating_duration_since(*since) >= hold);
        over.map(|(_, (_, session))| session).collect()
    }

    /// Takes all sessions of a client.
    pub(crate) fn remove_all(&mut self, key: &PublicKey) -> Vec<Session> {
        let own = self.sessions.extract_if(.., |_, (_, session)| session.key == *key);
        own.map(|(_, (_, session))| session).collect()
    }

    /// When the first session has waited for `hold`.
    pub(crate) fn deadline(&self, hold: Duration) -> Option<Instant> {
        self.sessions.values().map(|(since, _)| *since).min()?.checked_add(hold)
    }

    /// The parked sessions, and since when they are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Instant, &Session)> {
        self.sessions.values().map(|(since, session)| (*since, session))
    }

    /// The parked sessions.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.sessions.values_mut().map(|(_, session)| session)
    }
}

#[cfg(test)]
mod tests;
