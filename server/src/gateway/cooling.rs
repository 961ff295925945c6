//! Memory that flows give back when they have come to rest.
//!
//! A flow that outlives the process keeps bytes in a ring of its own. The memory behind it is used
//! again as long as bytes come, which is cheaper than to give it back each time; a flow that says
//! nothing any more needs none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A flow that has read nothing for this long has come to rest: longer than the pauses of somebody
/// who types, so that a pause costs no system call.
const REST: Duration = Duration::from_secs(2);

/// Flows looked at in one turn: a system call of some microseconds for each.
const BATCH: usize = 32;

/// Flows that may come to rest, the next one first.
#[derive(Debug, Default)]
pub(super) struct Cooling {
    flows: VecDeque<Warm>,
}

/// A flow with memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Warm {
    pub(super) flow: u64,
    /// What it had read when it was looked at last, in bytes.
    read: u64,
    look_at: Instant,
}

impl Cooling {
    /// `flow`, which is not among these, has memory and has read this many bytes.
    pub(super) fn add(&mut self, flow: u64, read: u64, now: Instant) {
        self.flows.push_back(Warm { flow, read, look_at: now + REST });
    }

    /// When a flow is to be looked at next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flows.front().map(|warm| warm.look_at)
    }

    /// Flows to look at, no more than a turn has time for.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Warm> {
        let due = self.flows.iter().take(BATCH).take_while(|warm| warm.look_at <= now).count();
        let flows = self.flows.drain(..due).collect();
        if self.flows.is_empty() {
            self.flows = VecDeque::new();
        }
        flows
    }
}

impl Warm {
    /// Whether a flow that has read this many bytes by now has come to rest.
    pub(super) fn is_at_rest(&self, read: u64) -> bool {
        self.read == read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_is_looked_at_when_it_may_have_come_to_rest() {
        let begin = Instant::now();
        let mut cooling = Cooling::default();
        cooling.add(1, 10, begin);
        cooling.add(2, 10, begin + REST / 2);
        assert!(cooling.due(begin + REST / 2).is_empty());
        assert_eq!(cooling.deadline(), Some(begin + REST));
        let due = cooling.due(begin + REST);
        assert_eq!(due.iter().map(|warm| warm.flow).collect::<Vec<_>>(), [1]);
        assert!(due[0].is_at_rest(10) && !due[0].is_at_rest(11));
        assert_eq!(cooling.deadline(), Some(begin + REST / 2 + REST));
    }

    #[test]
    fn many_flows_that_rest_together_take_several_turns() {
        let begin = Instant::now();
        let mut cooling = Cooling::default();
        for flow in 0..100 {
            cooling.add(flow, 0, begin);
        }
        let mut turns = 0;
        while !cooling.due(begin + REST).is_empty() {
            turns += 1;
        }
        assert_eq!(turns, 4);
        assert_eq!(cooling.deadline(), None);
    }
}
