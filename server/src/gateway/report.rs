//! What a slot tells of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use whimbrel_common::identity::PublicKey;

use crate::control::Report;
use crate::metrics::{Figures, limit};
use crate::peer::Peer;
use crate::status::{Activity, Datagrams, Dials, Held, SlotStatus, Waiting};

use super::Gateway;

impl Gateway {
    /// Whether nothing of any flow is left: no destination, no stream, no byte, attached or parked.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        let attached = self.peers.values();
        let streams = attached.clone().all(|peer| peer.streams.is_empty());
        let sessions = attached.filter_map(|peer| peer.session.as_ref());
        let mut sessions = sessions.chain(self.parked.iter().map(|(_, session)| session));
        let none = sessions.all(|session| session.flows.is_empty() && session.held == 0);
        let ports = self.outlets.is_empty();
        streams && none && ports && self.flows.is_empty() && self.memory.held() == 0
    }

    /// How many clients are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.peers.values().filter(|peer| peer.session.is_some()).count()
    }

    /// What it does and has done. What came by datagram is the owner's to add, as are the figures.
    #[must_use]
    pub fn report(&self, now: Instant) -> Report {
        let stats = self.stats;
        let count = |number: usize| number as u64;
        let mut activities: BTreeMap<PublicKey, Activity> = BTreeMap::new();
        for peer in self.peers.values() {
            let Some(session) = &peer.session else { continue };
            activities.entry(peer.key).or_default().add(Activity {
                flows: count(session.flows.len()),
                addresses: self.addresses(peer),
                tx_bytes: session.down_bytes,
                rx_bytes: session.up_bytes,
                connected_s: now.saturating_duration_since(peer.since).as_secs(),
                silent_s: Some(peer.silence(now).as_secs()),
            });
        }
        Report {
            slot: SlotStatus {
                slot: self.number.0,
                connections: count(self.connected()),
                flows: count(self.flows.len()),
                moved_in: stats.moved_in,
                readdressed: stats.readdressed,
                ..SlotStatus::default()
            },
            parked: Waiting {
                sessions: count(self.parked.iter().count()),
                flows: self.parked.iter().map(|(_, session)| count(session.flows.len())).sum(),
            },
            held: Held { bytes: self.memory.held(), limit: self.memory.limit() },
            evicted: stats.evicted,
            restored: stats.restored,
            unkept: stats.unkept,
            dials: Dials {
                connected: stats.connected,
                failed: stats.failed,
                denied: stats.denied,
                limited: stats.limited,
            },
            datagrams: Datagrams {
                ports: count(self.outlets.len()),
                dropped: self.datagrams.dropped + self.endpoint.dropped_datagrams(),
                ..self.datagrams
            },
            tx_bytes: stats.down_bytes,
            rx_bytes: stats.up_bytes,
            activities,
            figures: Figures::default(),
        }
    }

    /// What is counted for a monitoring system alone.
    pub(crate) fn figures(&mut self) -> Figures {
        let mut figures = self.figures.clone();
        figures.carrier = self.endpoint.totals();
        figures
            .limits
            .count_many(limit::HALF_OPEN, self.endpoint.retries() + self.endpoint.ignored());
        let attached = self.peers.values().filter_map(|peer| Some((peer, peer.session.as_ref()?)));
        figures.rtts = attached.map(|(peer, session)| (session.name.clone(), peer.rtt())).collect();
        figures
    }

    /// The paths of a connected client, the active one first.
    fn addresses(&self, peer: &Peer) -> Vec<SocketAddr> {
        let active = peer.paths.active();
        let mut paths = self.endpoint.paths(peer.connection);
        paths.sort_by_key(|path| Some(path.0) != active.map(|active| active.0));
        paths.into_iter().filter_map(|path| self.endpoint.remote(peer.connection, path)).collect()
    }
}
