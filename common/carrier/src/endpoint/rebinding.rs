//! A path that carries gets another address of the peer, as a NAT rebinds it.
//!
//! The engine sends no data to an address that has not answered a challenge (RFC 9000 §9.3), but
//! sends it over any other validated path meanwhile. That takes longer than the round trip of the
//! challenge if the other path is the slower one, and strands the data if that one is dead. So spare
//! paths are held back until the new address has acknowledged something.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Path, Slot};
use crate::observed::Observed;

/// Spare paths are needed after all when the new address is silent for this long: three probe
/// timeouts (RFC 9002 §6.2.1) of a round trip of 60 ms.
const PATIENCE: Duration = Duration::from_millis(500);

/// The path that carries, as the address of its peer goes.
#[derive(Debug)]
pub(super) struct Carries {
    path: Path,
    address: Option<SocketAddr>,
    /// When the address changed, until it is trusted.
    changed: Option<Instant>,
}

impl Default for Carries {
    fn default() -> Self {
        Self { path: Path::FIRST, address: None, changed: None }
    }
}

impl Slot {
    /// Another path carries.
    pub(super) fn carry_on(&mut self, path: Path) {
        self.release_spares();
        self.carries = Carries { path, address: self.address_of(path), changed: None };
    }

    /// Looks whether the path that carries has got another address, or trusts the one it has.
    pub(super) fn watch_address(&mut self, now: Instant) {
        let Some(address) = self.address_of(self.carries.path) else {
            self.release_spares();
            return;
        };
        if self.carries.address.replace(address).is_some_and(|before| before != address) {
            self.carries.changed = Some(now);
            self.hold_spares(true);
        } else if let Some(changed) = self.carries.changed {
            let progress = self.progress(self.carries.path);
            let answered = progress.is_some_and(|it| it.newest_acked_sent >= Some(changed));
            if answered || now >= changed + PATIENCE {
                self.release_spares();
            }
        }
    }

    fn release_spares(&mut self) {
        if self.carries.changed.take().is_some() {
            self.hold_spares(false);
        }
    }

    fn hold_spares(&self, held: bool) {
        for path in self.connection.paths() {
            if path != self.carries.path.id()
                && let Some(controller) = self.connection.congestion_state(path)
            {
                Observed::hold(controller, held);
            }
        }
    }

    fn address_of(&self, path: Path) -> Option<SocketAddr> {
        self.connection.network_path(path.id()).ok().map(|path| path.remote())
    }
}
