//! What the client tells of itself.

use std::time::Instant;

use tracing::info;
use whimbrel_client_core::engine::Stats;
use whimbrel_common::wire::Limit;

use super::Client;
use crate::counts::Bytes;
use crate::report::{EventKind, FlowCounts, FlowReport};

impl Client {
    /// Whether nothing of any flow is left: no connection of an application, no stream, no byte.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        let none = self.ferries.is_empty() && self.waiting.is_empty() && self.streams.is_empty();
        none && self.engine.is_empty()
    }

    /// How many flows there are, and how many of them wait.
    #[must_use]
    pub fn flow_counts(&self) -> FlowCounts {
        let held = if self.parked { self.ferries.len() } else { self.waiting.len() };
        FlowCounts { open: self.ferries.len() as u64, held: held as u64 }
    }

    /// Every flow.
    #[must_use]
    pub fn flows(&self, now: Instant) -> Vec<FlowReport> {
        let flows = self.ferries.values().map(|ferry| ferry.describe(self.parked, now));
        flows.chain(self.datagrams.describe(self.parked, now)).collect()
    }

    /// Bytes of all flows since the start.
    pub(crate) fn flow_bytes(&self) -> Bytes {
        self.counts.bytes(self.ferries.values())
    }

    /// Bytes kept until the gateway has taken them.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.ferries
            .values()
            .filter_map(|ferry| ferry.pipe.as_ref())
            .map(|it| it.sender.held())
            .sum()
    }

    /// What the engine counts.
    pub(crate) fn engine_stats(&self) -> &Stats {
        self.engine.stats()
    }

    /// A limit of the gateway holds this client back, which a person should know.
    pub(super) fn limited(&mut self, limit: Limit) {
        self.counts.limits.count(&limit.to_string());
        let what = match limit {
            Limit::Flows => "new connections are refused: this client has as many as it may",
            Limit::Dials => "new connections are refused: this client begins too many at once",
            Limit::Bandwidth => "connections are slowed down: this client moves as much as it may",
            Limit::Buffered => {
                "connections wait: programs here read too little of what the gateway holds for them"
            }
            Limit::Memory => {
                "connections wait: the gateway holds as much as it may for all clients"
            }
        };
        let text = format!("{what} (limits.{limit} at the gateway)");
        info!("{text}");
        self.journal.tell(EventKind::Limited, text);
    }

    /// Whoever traces hears how the paths are.
    pub(super) fn trace_paths(&mut self, now: Instant) {
        if self.journal.trace.is_due(now) {
            let (links, held) = (self.tunnel.links(), self.held_bytes());
            self.journal.trace.sample(&links, held, now);
        }
    }
}
