//! What the client tells of itself.

use std::time::Instant;

use tracing::info;
use whimbrel_client_core::engine::Stats;
use whimbrel_common::wire::Limit;

use super::Client;
use crate::counts::Bytes;
use crate::ferry::Ferry;
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

    /// Every flow, by number; or of each protocol those `most` that moved something last.
    #[must_use]
    pub fn flows(&self, most: Option<usize>, now: Instant) -> Vec<FlowReport> {
        let mut ferries: Vec<&Ferry> = self.ferries.values().collect();
        let mut datagrams: Vec<FlowReport> = Vec::new();
        match most {
            Some(most) => {
                keep_greatest(&mut ferries, most, Ferry::last_byte);
                ferries.sort_unstable_by_key(|ferry| ferry.flow);
                let latest = self.datagrams.latest(most);
                let all = self.datagrams.describe(self.parked, now);
                datagrams.extend(all.filter(|row| latest.contains(&row.id)));
            }
            None => datagrams.extend(self.datagrams.describe(self.parked, now)),
        }
        let flows = ferries.into_iter().map(|ferry| ferry.describe(self.parked, now));
        flows.chain(datagrams).collect()
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

/// Leaves the `most` with the greatest keys, in any order.
fn keep_greatest<T, K: Ord>(all: &mut Vec<&T>, most: usize, key: impl Fn(&T) -> K) {
    if most < all.len() {
        all.select_nth_unstable_by(most, |one, other| key(other).cmp(&key(one)));
        all.truncate(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_are_kept() {
        let numbers = [3, 9, 1, 7, 5];
        for (most, kept) in
            [(0, &[][..]), (2, &[7, 9]), (5, &[1, 3, 5, 7, 9]), (9, &[1, 3, 5, 7, 9])]
        {
            let mut all: Vec<&i32> = numbers.iter().collect();
            keep_greatest(&mut all, most, |number| *number);
            all.sort();
            assert_eq!(all, kept.iter().collect::<Vec<_>>());
        }
    }
}
