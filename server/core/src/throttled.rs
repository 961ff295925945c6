//! Flows that wait until their client has bandwidth again, in the order in which they came to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// See the [module](self). `F` names a flow.
#[derive(Debug)]
pub struct Throttled<F> {
    /// When each goes on; of those that go on together the first to come goes first.
    queue: BTreeMap<(Instant, u64), F>,
    members: BTreeSet<F>,
    arrivals: u64,
}

impl<F: Copy + Ord> Throttled<F> {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> Self {
        Self { queue: BTreeMap::new(), members: BTreeSet::new(), arrivals: 0 }
    }

    /// A flow waits until `at`. One that waits already keeps its place.
    pub fn add(&mut self, flow: F, at: Instant) {
        if self.members.insert(flow) {
            self.arrivals += 1;
            self.queue.insert((at, self.arrivals), flow);
        }
    }

    /// The next one whose time has come; it waits no longer.
    pub fn next_due(&mut self, now: Instant) -> Option<F> {
        let entry = self.queue.first_entry().filter(|entry| entry.key().0 <= now)?;
        let flow = entry.remove();
        self.members.remove(&flow);
        Some(flow)
    }

    /// When the next one goes on.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(at, _)| *at)
    }
}

impl<F: Copy + Ord> Default for Throttled<F> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn of_those_that_go_on_together_who_waits_longest_is_first() {
        let (mut throttled, at) = (Throttled::new(), Instant::now());
        [3, 1, 2].into_iter().for_each(|flow| throttled.add(flow, at));
        assert_eq!(throttled.next_due(at), Some(3));
        // It found nothing left, and comes behind the others.
        throttled.add(3, at);
        let due: Vec<i32> = std::iter::from_fn(|| throttled.next_due(at)).collect();
        assert_eq!(due, [1, 2, 3]);
    }

    #[test]
    fn nobody_waits_twice_nor_goes_on_too_early() {
        let (mut throttled, at) = (Throttled::new(), Instant::now());
        let later = at + Duration::from_millis(5);
        throttled.add(1, later);
        throttled.add(1, at);
        assert_eq!(throttled.deadline(), Some(later));
        assert_eq!(throttled.next_due(at), None);
        assert_eq!(throttled.next_due(later), Some(1));
        assert_eq!((throttled.next_due(later), throttled.deadline()), (None, None));
    }
}
