//! Which slot has which session, and in which order sessions move between slots.
//!
//! Every slot owns its sessions alone. One directory hears of all of them, and every attach passes
//! through it: where the session is elsewhere, its owner is asked to yield it, and whoever asks for
//! it meanwhile waits. So a session is in one slot or under way to one, and each attach is answered
//! by exactly one.
//!
//! It relies on the order of messages: what a slot says of a session arrives in the order in which
//! it was said, and a slot does what it is told in the order in which it is told.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use whimbrel_common::identity::PublicKey;
use whimbrel_common::wire::SessionId;

/// A data thread of the gateway, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNumber(pub u8);

impl fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// See the [module](self). An attach is whatever the owner of the directory takes it for.
#[derive(Debug)]
pub struct Directory<A> {
    sessions: BTreeMap<SessionId, Entry<A>>,
}

#[derive(Debug)]
struct Entry<A> {
    key: PublicKey,
    slot: SlotNumber,
    moving: Option<Moving<A>>,
}

/// Its owner was asked to yield the session.
#[derive(Debug)]
struct Moving<A> {
    to: Waiter<A>,
    /// The owner ended it before it could yield it.
    closed: bool,
    waiting: VecDeque<Waiter<A>>,
}

#[derive(Debug)]
struct Waiter<A> {
    slot: SlotNumber,
    attach: A,
}

/// What is to be done about an attach.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<A> {
    /// The slot that asks decides: the session is there, or nowhere.
    Attach(SlotNumber, A),
    /// This slot must yield the session, for [`yielded`](Directory::yielded) to follow.
    Claim {
        /// Whose session it is now.
        from: SlotNumber,
        /// What it shall be yielded for, to be kept until then.
        attach: A,
    },
}

impl<A> Default for Directory<A> {
    fn default() -> Self {
        Self { sessions: BTreeMap::new() }
    }
}

impl<A: Clone> Directory<A> {
    /// A slot has a new session.
    pub fn opened(&mut self, session: SessionId, key: PublicKey, slot: SlotNumber) {
        self.sessions.insert(session, Entry { key, slot, moving: None });
    }

    /// A slot has ended a session.
    pub fn closed(&mut self, session: SessionId, slot: SlotNumber) {
        let Some(entry) = self.sessions.get_mut(&session).filter(|entry| entry.slot == slot) else {
            return;
        };
        match &mut entry.moving {
            Some(moving) => moving.closed = true,
            None => drop(self.sessions.remove(&session)),
        }
    }

    /// A client of `slot` asks for a session; what to do now, if anything.
    pub fn attach(&mut self, session: SessionId, slot: SlotNumber, attach: A) -> Option<Step<A>> {
        let Some(entry) = self.sessions.get_mut(&session) else {
            return Some(Step::Attach(slot, attach));
        };
        match &mut entry.moving {
            Some(moving) => {
                moving.waiting.push_back(Waiter { slot, attach });
                None
            }
            None if entry.slot == slot => Some(Step::Attach(slot, attach)),
            None => {
                let to = Waiter { slot, attach: attach.clone() };
                entry.moving = Some(Moving { to, closed: false, waiting: VecDeque::new() });
                Some(Step::Claim { from: entry.slot, attach })
            }
        }
    }

    /// A slot has answered a claim: whether it gave the session away. Whose attach it was for, and
    /// what to do after that one, in this order.
    pub fn yielded(
        &mut self,
        session: SessionId,
        given: bool,
    ) -> Option<(SlotNumber, A, Vec<Step<A>>)> {
        let entry = self.sessions.get_mut(&session)?;
        let Moving { to, closed, waiting } = entry.moving.take()?;
        if given {
            entry.slot = to.slot;
        } else if closed {
            self.sessions.remove(&session);
        }
        // Once one of them needs the session from elsewhere, the others wait for that.
        let next = waiting.into_iter().filter_map(|one| self.attach(session, one.slot, one.attach));
        let next = next.collect();
        Some((to.slot, to.attach, next))
    }

    /// The keys that sessions belong to, each once.
    #[must_use]
    pub fn keys(&self) -> Vec<PublicKey> {
        let mut keys: Vec<PublicKey> = self.sessions.values().map(|entry| entry.key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests;
