//! Rates, from what was counted a moment ago.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::report::{FlowReport, Status};

/// As many rates as a sparkline shows: half a minute.
pub(super) const KEPT: usize = 30;

/// Two answers closer than this make no rate: a terminal that is resized asks for none.
const SHORTEST: Duration = Duration::from_millis(100);

/// What was counted, and the rates it came to.
#[derive(Debug, Default)]
pub(super) struct History {
    last: Option<Instant>,
    links: BTreeMap<String, Traffic>,
    flows: BTreeMap<u64, Traffic>,
}

#[derive(Debug, Default)]
struct Traffic {
    /// Bytes both ways.
    counted: u64,
    /// Bytes per second, oldest first.
    rates: VecDeque<u64>,
}

impl History {
    /// The daemon was asked.
    pub(super) fn note(&mut self, status: &Status, flows: &[FlowReport], now: Instant) {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since < SHORTEST) {
            return;
        }
        self.last = Some(now);
        let links = status.paths.iter().map(|it| (it.link.clone(), it.tx_bytes + it.rx_bytes));
        follow(&mut self.links, links, since, KEPT);
        let flows = flows.iter().map(|it| (it.id, it.tx_bytes + it.rx_bytes));
        follow(&mut self.flows, flows, since, 1);
    }

    /// The daemon was away: it counts from zero again.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Bytes per second on a link, oldest first; at most [`KEPT`].
    pub(super) fn link(&self, name: &str) -> Vec<u64> {
        let rates = self.links.get(name).map(|traffic| &traffic.rates);
        rates.into_iter().flatten().copied().collect()
    }

    /// Bytes per second of a flow, at last.
    pub(super) fn flow(&self, id: u64) -> u64 {
        self.flows.get(&id).and_then(|it| it.rates.back().copied()).unwrap_or(0)
    }
}

/// Takes in new counts. What is not counted any more is forgotten.
fn follow<K: Ord>(
    known: &mut BTreeMap<K, Traffic>,
    counts: impl Iterator<Item = (K, u64)>,
    since: Option<Duration>,
    kept: usize,
) {
    let mut before = std::mem::take(known);
    for (key, counted) in counts {
        let mut traffic = before.remove(&key);
        if let (Some(traffic), Some(since)) = (&mut traffic, since) {
            let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1);
            let bytes = counted.saturating_sub(traffic.counted);
            traffic.rates.push_back(bytes.saturating_mul(1000) / millis);
            if traffic.rates.len() > kept {
                traffic.rates.pop_front();
            }
        }
        let mut traffic = traffic.unwrap_or_default();
        traffic.counted = counted;
        known.insert(key, traffic);
    }
}

/// Rates as a row of bars, the highest as tall as a letter; blank where nothing moved.
pub(super) fn sparkline(rates: &[u64], columns: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &rates[rates.len().saturating_sub(columns)..];
    let highest = shown.iter().copied().max().unwrap_or(0);
    let bar = |rate: u64| {
        if rate == 0 {
            return ' ';
        }
        // The highest is the eighth, and whatever moved at all is the first.
        let step = u128::from(rate) * 8 / (u128::from(highest) + 1);
        BARS[usize::try_from(step).unwrap_or(0).min(7)]
    };
    let bars: String = shown.iter().map(|rate| bar(*rate)).collect();
    format!("{bars:>columns$}")
}
