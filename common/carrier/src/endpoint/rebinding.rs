//! The peer's address on the path that carries changes, as a NAT rebinds it.
//!
//! The engine sends no data to an address that has not answered a challenge (RFC 9000 §9.3), but
//! sends it over any other validated path meanwhile. That takes longer than the round trip of the
//! challenge if the other path is the slower one, and strands the data if that one is dead. So spare
//! paths are held back until the new address has acknowledged something.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Path, Slot};
use crate::observed::Observed;

/// Spare paths are needed after all when the new address is silent for this long: three probe
/// timeouts (RFC 9002 §6.2.1) of a round trip of 60 ms.
const PATIENCE: Duration = Duration::from_millis(500);

/// The peer's addresses, and whether the one that carries is trusted.
#[derive(Debug)]
pub(super) struct Addresses {
    carries: Path,
    known: BTreeMap<Path, Address>,
    /// Until when spare paths are held back at the latest.
    held_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Address {
    remote: SocketAddr,
    /// When it took the place of another.
    changed: Option<Instant>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { carries: Path::FIRST, known: BTreeMap::new(), held_until: None }
    }
}

impl Slot {
    /// Another path carries. Its address may be as new as that of the one before: after an outage
    /// a NAT has forgotten every path.
    pub(super) fn carry_on(&mut self, path: Path, now: Instant) {
        self.release_spares();
        self.note_addresses(now);
        self.addresses.carries = path;
        self.hold_spares_unless_trusted(now);
    }

    /// A datagram came from `remote`: looks whether a path has got another address, or the one that
    /// carries is trusted now.
    pub(super) fn watch_address(&mut self, remote: SocketAddr, now: Instant) {
        let carries = self.addresses.known.get(&self.addresses.carries);
        if carries.is_none_or(|known| known.remote != remote) {
            self.note_addresses(now);
            if self.addresses.held_until.is_none() {
                self.hold_spares_unless_trusted(now);
            }
        }
        if self.addresses.held_until.is_some_and(|until| now >= until || self.is_trusted()) {
            self.release_spares();
        }
    }

    fn note_addresses(&mut self, now: Instant) {
        let mut known = BTreeMap::new();
        for id in self.connection.paths() {
            let Ok(network) = self.connection.network_path(id) else { continue };
            let path = Path::from_id(id);
            let before = self.addresses.known.get(&path);
            let remote = network.remote();
            let changed = match before {
                Some(before) if before.remote == remote => before.changed,
                Some(_) => Some(now),
                None => None,
            };
            known.insert(path, Address { remote, changed });
        }
        self.addresses.known = known;
    }

    /// Whether something sent to the address of the path that carries was acknowledged.
    fn is_trusted(&self) -> bool {
        let carries = self.addresses.carries;
        let changed = self.addresses.known.get(&carries).and_then(|known| known.changed);
        changed.is_none_or(|changed| {
            self.progress(carries).is_some_and(|it| it.newest_acked_sent >= Some(changed))
        })
    }

    fn hold_spares_unless_trusted(&mut self, now: Instant) {
        if !self.is_trusted() {
            self.addresses.held_until = Some(now + PATIENCE);
            self.hold_spares(true);
        }
    }

    fn release_spares(&mut self) {
        if self.addresses.held_until.take().is_some() {
            self.hold_spares(false);
        }
    }

    fn hold_spares(&self, held: bool) {
        for path in self.connection.paths() {
            if path != self.addresses.carries.id()
                && let Some(controller) = self.connection.congestion_state(path)
            {
                Observed::hold(controller, held);
            }
        }
    }
}
