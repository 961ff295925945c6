//! What outlives a gateway's process, beside the sockets in the kernel.

use std::collections::BTreeMap;

use whimbrel_common::identity::PublicKey;
use whimbrel_common::wire::{SessionId, WireFlow};
use whimbrel_gateway_core::seen::{Seen, WORDS};

use crate::chance::Chance;

/// A flow.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) epoch: u64,
    /// The client was told that the destination answered.
    pub(crate) opened: bool,
    /// What the client has taken, or less.
    pub(crate) taken: u64,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) key: PublicKey,
    pub(crate) epoch: u64,
    seen: (u64, [u64; WORDS]),
}

impl Kept {
    pub(crate) fn seen(&self) -> Seen {
        let (next, window) = self.seen;
        Seen::from_words(next, window)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Journal {
    chance: Chance,
    pub(crate) sessions: BTreeMap<SessionId, Kept>,
    pub(crate) flows: BTreeMap<(SessionId, WireFlow), Record>,
}

impl Journal {
    pub(crate) fn new(chance: Chance) -> Self {
        Self { chance, sessions: BTreeMap::new(), flows: BTreeMap::new() }
    }

    pub(crate) fn note_session(&mut self, id: SessionId, key: PublicKey, epoch: u64, seen: &Seen) {
        self.sessions.insert(id, Kept { key, epoch, seen: seen.words() });
    }

    pub(crate) fn close_session(&mut self, id: SessionId) {
        self.sessions.remove(&id);
    }

    pub(crate) fn begin(&mut self, session: SessionId, flow: WireFlow) {
        self.flows.insert((session, flow), Record::default());
    }

    pub(crate) fn open(&mut self, session: SessionId, flow: WireFlow) {
        self.change(session, flow, |record| record.opened = true);
    }

    pub(crate) fn resume(&mut self, session: SessionId, flow: WireFlow, epoch: u64) {
        self.change(session, flow, |record| record.epoch = epoch);
    }

    /// The client has taken this much. It is not always written down before the process ends.
    pub(crate) fn take(&mut self, session: SessionId, flow: WireFlow, taken: u64) {
        if self.chance.per_mille(500) {
            self.change(session, flow, |record| record.taken = taken);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.sessions.clear();
        self.flows.clear();
    }

    pub(crate) fn remove(&mut self, session: SessionId, flow: WireFlow) {
        self.flows.remove(&(session, flow));
    }

    fn change(&mut self, session: SessionId, flow: WireFlow, how: impl FnOnce(&mut Record)) {
        if let Some(record) = self.flows.get_mut(&(session, flow)) {
            how(record);
        }
    }
}
