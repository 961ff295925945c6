//! Deadlines of flows in one heap, changed lazily: a flow has one armed entry,
//! which is moved when it fires and found to be early, not before.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::FlowId;

#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

/// The deadline of one flow.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Deadline {
    /// When the flow must be looked at.
    due: Option<Instant>,
    /// The heap entry that stands for it, at or before `due`.
    armed: Option<Instant>,
}

impl Timers {
    pub(super) fn set(&mut self, flow: FlowId, deadline: &mut Deadline, due: Option<Instant>) {
        deadline.due = due;
        if let Some(due) = due
            && deadline.armed.is_none_or(|armed| due < armed)
        {
            deadline.armed = Some(due);
            self.heap.push(Reverse((due, flow)));
        }
    }

    /// The entry that fires next; it may turn out to be stale.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes an entry whose time has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Whether the entry taken at `at` means that the flow is due; re-arms it
    /// when it was early.
    pub(super) fn fire(
        &mut self,
        flow: FlowId,
        deadline: &mut Deadline,
        at: Instant,
        now: Instant,
    ) -> bool {
        if deadline.armed != Some(at) {
            return false;
        }
        deadline.armed = None;
        let due = deadline.due.is_some_and(|due| due <= now);
        if !due {
            self.set(flow, deadline, deadline.due);
        }
        due
    }
}
