//! The ports of one client's UDP: which of its source endpoints has which, who may answer there,
//! and for how long (RFC 4787). And the identifiers of its ICMP echo, which are of the same kind
//! (RFC 5508 §3): the port of whoever is asked is zero there, which no datagram of UDP goes to.
//!
//! Promises:
//! - an association keeps its port while it is in use, whatever it sends to (§4.1, *endpoint
//!   independent mapping*);
//! - an answer comes in only from an address the association has sent to (§5, *address dependent
//!   filtering*): what the policy denies can neither be reached nor answer;
//! - what the client sends keeps a port, what comes in does not (§4.3, REQ-6);
//! - the table is bounded: a new association takes the place of the one whose time is up first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use whimbrel_common::wire::Association;

/// A port lives so long without a word of the client (RFC 4787 §4.3, REQ-5: five minutes or more is
/// recommended).
pub const LIFETIME: Duration = Duration::from_secs(300);

/// The same for an association that has asked name servers only (REQ-5a allows less for well-known
/// ports). Resolvers use a new port for each question and give up within this time: 5 s, three times.
pub const QUESTION: Duration = Duration::from_secs(20);

/// The same for ICMP echo (RFC 5508 §3.2, REQ-2: 60 seconds or more).
pub const ECHO: Duration = Duration::from_secs(60);

/// The port of name servers.
const DNS: u16 = 53;

/// Ports one session may have.
pub const MOST: usize = 1024;

/// Addresses that may answer one association; the oldest is forgotten for another.
pub const MOST_REMOTES: usize = 256;

/// How precisely the last use is known, which keeps the order of the table from changing with every
/// datagram.
const GRAIN: Duration = Duration::from_secs(1);

/// Names a socket of the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutletNumber(pub u64);

/// See the [module](self).
#[derive(Debug)]
pub struct Associations {
    entries: BTreeMap<Association, Entry>,
    by_end: BTreeSet<(Instant, Association)>,
    most: usize,
}

#[derive(Debug)]
struct Entry {
    outlet: OutletNumber,
    v4: bool,
    echoes: bool,
    used: Instant,
    end: Instant,
    asks_only: bool,
    remotes: BTreeMap<IpAddr, Instant>,
}

/// Where a datagram of the client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the port it has.
    Open(OutletNumber),
    /// It needs a port first, see [`Associations::open`].
    New,
    /// Nowhere: an association is of one family of addresses and of one protocol.
    Impossible,
}

impl Default for Associations {
    fn default() -> Self {
        Self::with_room_for(MOST)
    }
}

impl Associations {
    /// An empty table for so many ports, at least one.
    #[must_use]
    pub fn with_room_for(most: usize) -> Self {
        Self { entries: BTreeMap::new(), by_end: BTreeSet::new(), most: most.max(1) }
    }

    /// The way of a datagram from an association to `remote`, which may answer from now on.
    pub fn send(&mut self, association: Association, remote: SocketAddr, now: Instant) -> Way {
        let Some(entry) = self.entries.get_mut(&association) else { return Way::New };
        if (entry.v4, entry.echoes) != (remote.is_ipv4(), remote.port() == 0) {
            return Way::Impossible;
        }
        let stale = now.saturating_duration_since(entry.used) >= GRAIN;
        let first_word = entry.asks_only && remote.port() != DNS;
        entry.asks_only &= remote.port() == DNS;
        entry.hear(remote.ip(), now);
        if stale || first_word {
            self.by_end.remove(&(entry.end, association));
            entry.used = now;
            entry.end = now + entry.lifetime();
            self.by_end.insert((entry.end, association));
        }
        Way::Open(entry.outlet)
    }

    /// Gives an association a port, with the first address that may answer. The port that has to go
    /// for it.
    #[must_use]
    pub fn open(
        &mut self,
        association: Association,
        outlet: OutletNumber,
        remote: SocketAddr,
        now: Instant,
    ) -> Option<OutletNumber> {
        let replaced = self.remove(association);
        let full = self.entries.len() >= self.most;
        let evicted = if full { self.evict() } else { None };
        let mut entry = Entry {
            outlet,
            v4: remote.is_ipv4(),
            echoes: remote.port() == 0,
            used: now,
            end: now,
            asks_only: remote.port() == DNS,
            remotes: BTreeMap::from([(remote.ip(), now)]),
        };
        entry.end = now + entry.lifetime();
        self.by_end.insert((entry.end, association));
        self.entries.insert(association, entry);
        debug_assert!(replaced.is_none(), "only an association without a port gets one");
        replaced.or(evicted)
    }

    /// Whether a datagram from `remote` may come in for an association.
    #[must_use]
    pub fn admits(&self, association: Association, remote: IpAddr) -> bool {
        self.entries.get(&association).is_some_and(|entry| entry.remotes.contains_key(&remote))
    }

    /// Takes the port of an association that has asked name servers only, and cannot ask this one: it
    /// needs a port of the other family.
    pub fn change_family(
        &mut self,
        association: Association,
        server: SocketAddr,
    ) -> Option<OutletNumber> {
        let entry = self.entries.get(&association)?;
        if !entry.asks_only || entry.v4 == server.is_ipv4() {
            return None;
        }
        self.remove(association)
    }

    /// Takes the port whose time is up first.
    pub fn evict(&mut self) -> Option<OutletNumber> {
        let (_, first) = self.by_end.first().copied()?;
        self.remove(first)
    }

    /// Only addresses of which this is true may answer from now on.
    pub fn retain_remotes(&mut self, may: impl Fn(IpAddr) -> bool) {
        self.entries.values_mut().for_each(|entry| entry.remotes.retain(|remote, _| may(*remote)));
    }

    /// The ports whose time is up.
    pub fn expire(&mut self, now: Instant) -> Vec<OutletNumber> {
        let mut over = Vec::new();
        while let Some((end, association)) = self.by_end.first().copied()
            && end <= now
        {
            over.extend(self.remove(association));
        }
        over
    }

    /// When the time of the first is up.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.by_end.first().map(|(end, _)| *end)
    }

    /// Every port.
    pub fn outlets(&self) -> impl Iterator<Item = OutletNumber> {
        self.entries.values().map(|entry| entry.outlet)
    }

    /// How many ports there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes an association's port away.
    pub fn remove(&mut self, association: Association) -> Option<OutletNumber> {
        let entry = self.entries.remove(&association)?;
        self.by_end.remove(&(entry.end, association));
        Some(entry.outlet)
    }
}

impl Entry {
    fn lifetime(&self) -> Duration {
        match (self.echoes, self.asks_only) {
            (true, _) => ECHO,
            (false, true) => QUESTION,
            (false, false) => LIFETIME,
        }
    }

    fn hear(&mut self, remote: IpAddr, now: Instant) {
        if self.remotes.len() >= MOST_REMOTES && !self.remotes.contains_key(&remote) {
            let oldest = self.remotes.iter().min_by_key(|(_, used)| **used).map(|(ip, _)| *ip);
            oldest.and_then(|oldest| self.remotes.remove(&oldest));
        }
        self.remotes.insert(remote, now);
    }
}

#[cfg(test)]
mod tests;
