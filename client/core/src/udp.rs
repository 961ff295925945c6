//! Which program a datagram or the reply to an echo is for: an [`Association`] for every source
//! endpoint that sends.
//!
//! Promises:
//! - one source endpoint of one device has one association while it is in use, whatever it sends
//!   to, so that the gateway gives it one port (RFC 4787 §4.1);
//! - nothing comes in for an endpoint that has not sent for [`LIFETIME`]: a gateway cannot reach
//!   the listening servers of this host;
//! - the table is bounded: a new endpoint takes the place of the one that has been silent longest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use whimbrel_common::wire::Association;

use crate::engine::DeviceId;

/// An endpoint that has not sent for so long may have to wait for its next word to be heard again.
/// Longer than the gateway keeps a port (RFC 4787 §4.3 says five minutes), so that the gateway
/// gives the same one again.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// Endpoints at most, half of what Linux gives to programs that ask for any port.
pub const MOST: usize = 16 * 1024;

/// How precisely the last use is known, which keeps the order of the table from changing with
/// every datagram.
const GRAIN: Duration = Duration::from_secs(1);

/// What is sent from an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// ICMP echo requests: the endpoint's port is their identifier.
    Echo,
}

/// A source endpoint of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The device it sends through.
    pub device: DeviceId,
    /// What it sends.
    pub protocol: Protocol,
    /// Where it sends from.
    pub address: SocketAddr,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Associations {
    entries: BTreeMap<Association, Entry>,
    by_source: BTreeMap<Source, Association>,
    by_use: BTreeSet<(Instant, Association)>,
    last: Association,
    most: usize,
}

/// One source endpoint of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The endpoint.
    pub source: Source,
    /// Where it sent to last; of echoes the port is zero.
    pub destination: SocketAddr,
    /// When it sent first.
    pub since: Instant,
    /// When it sent last, to the second.
    pub used: Instant,
    /// Datagrams or requests sent.
    pub sent: u64,
    /// Datagrams or replies received.
    pub received: u64,
    /// Bytes of payload sent.
    pub sent_bytes: u64,
    /// Bytes of payload received.
    pub received_bytes: u64,
}

impl Associations {
    /// An empty table. `seed` should be unpredictable: a gateway gives the same port to the same
    /// number, and two tables of one client must not share them.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Numbers stay below 2^30, so that they travel in four bytes.
        Self { last: Association(seed >> 36), ..Self::with_room_for(MOST) }
    }

    /// An empty table for so many endpoints, at least one.
    #[must_use]
    pub fn with_room_for(most: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_source: BTreeMap::new(),
            by_use: BTreeSet::new(),
            last: Association(0),
            most: most.max(1),
        }
    }

    /// The association of an endpoint that sends so many bytes to `destination`.
    pub fn send(
        &mut self,
        source: Source,
        destination: SocketAddr,
        bytes: usize,
        now: Instant,
    ) -> Association {
        let known = self.by_source.get(&source).copied();
        let association = known.unwrap_or_else(|| self.begin(source, destination, now));
        if let Some(entry) = self.entries.get_mut(&association) {
            entry.destination = destination;
            entry.sent += 1;
            entry.sent_bytes += bytes as u64;
            if now.saturating_duration_since(entry.used) >= GRAIN {
                self.by_use.remove(&(entry.used, association));
                self.by_use.insert((now, association));
                entry.used = now;
            }
        }
        association
    }

    fn begin(&mut self, source: Source, destination: SocketAddr, now: Instant) -> Association {
        if self.entries.len() >= self.most
            && let Some((_, oldest)) = self.by_use.first().copied()
        {
            self.remove(oldest);
        }
        let association = Association(self.last.0 + 1);
        self.last = association;
        let entry = Entry {
            source,
            destination,
            since: now,
            used: now,
            sent: 0,
            received: 0,
            sent_bytes: 0,
            received_bytes: 0,
        };
        self.entries.insert(association, entry);
        self.by_source.insert(source, association);
        self.by_use.insert((now, association));
        association
    }

    /// Whom so many bytes for an association are for; `None` if nobody expects any.
    pub fn receive(&mut self, association: Association, bytes: usize) -> Option<Entry> {
        let entry = self.entries.get_mut(&association)?;
        entry.received += 1;
        entry.received_bytes += bytes as u64;
        Some(*entry)
    }

    /// Whose an association is.
    #[must_use]
    pub fn find(&self, association: Association) -> Option<&Entry> {
        self.entries.get(&association)
    }

    /// Forgets the endpoints that have been silent for [`LIFETIME`].
    pub fn expire(&mut self, now: Instant) {
        while let Some((used, association)) = self.by_use.first().copied()
            && now.saturating_duration_since(used) >= LIFETIME
        {
            self.remove(association);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.by_use.first().map(|(used, _)| *used + LIFETIME)
    }

    /// Forgets every endpoint of a device.
    pub fn remove_device(&mut self, device: DeviceId) {
        let gone: Vec<Association> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.source.device == device)
            .map(|(association, _)| *association)
            .collect();
        gone.into_iter().for_each(|association| self.remove(association));
    }

    /// Every endpoint, in the order of their first words.
    pub fn iter(&self) -> impl Iterator<Item = (Association, &Entry)> {
        self.entries.iter().map(|(association, entry)| (*association, entry))
    }

    /// The endpoints that have sent since then, the last one at the end.
    pub fn used_since(
        &self,
        moment: Instant,
    ) -> impl DoubleEndedIterator<Item = (Association, &Entry)> {
        let recent = self.by_use.range((moment, Association(0))..);
        recent.filter_map(|(_, association)| Some((*association, self.entries.get(association)?)))
    }

    /// The endpoints, the one that has sent last first.
    pub fn latest(&self) -> impl Iterator<Item = (Association, &Entry)> {
        let latest = self.by_use.iter().rev();
        latest.filter_map(|(_, association)| Some((*association, self.entries.get(association)?)))
    }

    /// How many endpoints there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn remove(&mut self, association: Association) {
        if let Some(entry) = self.entries.remove(&association) {
            self.by_source.remove(&entry.source);
            self.by_use.remove(&(entry.used, association));
        }
    }
}

#[cfg(test)]
mod tests;
