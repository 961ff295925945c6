use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const SLOTS: u8 = 3;
const SESSIONS: u8 = 2;

fn id(byte: u8) -> SessionId {
    SessionId([byte; 16])
}

fn key() -> PublicKey {
    PublicKey::from_bytes([7; 32])
}

/// An attach: its number is its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attach {
    session: SessionId,
    epoch: u64,
}

/// A session on its way, with its epoch.
type Package = (SessionId, u64);

#[derive(Debug)]
enum ToSlot {
    Attach(Attach, Option<Package>),
    Yield(Attach),
}

#[derive(Debug)]
enum ToHead {
    Attach(Attach),
    Closed(SessionId),
    Yielded(SessionId, Option<Package>),
}

/// What a slot does: it has sessions, and yields them to whoever has a higher epoch.
#[derive(Debug, Default)]
struct Slot {
    sessions: BTreeMap<SessionId, u64>,
    inbox: VecDeque<ToSlot>,
    outbox: VecDeque<ToHead>,
}

#[derive(Debug, Default)]
struct World {
    directory: Directory<Attach>,
    slots: [Slot; SLOTS as usize],
    asked: u64,
    answered: BTreeSet<u64>,
    /// What became of each session: the highest epoch that got it.
    highest: BTreeMap<SessionId, u64>,
    over: BTreeSet<SessionId>,
}

impl World {
    fn new() -> Self {
        let mut world = Self::default();
        for session in 0..SESSIONS {
            world.slots[0].sessions.insert(id(session), 0);
            world.directory.opened(id(session), key(), SlotNumber(0));
        }
        world
    }

    fn ask(&mut self, slot: u8, session: u8) {
        self.asked += 1;
        let attach = Attach { session: id(session), epoch: self.asked };
        self.slots[usize::from(slot)].outbox.push_back(ToHead::Attach(attach));
    }

    fn end(&mut self, session: u8) {
        for slot in &mut self.slots {
            if slot.sessions.remove(&id(session)).is_some() {
                slot.outbox.push_back(ToHead::Closed(id(session)));
                self.over.insert(id(session));
            }
        }
    }

    /// The head hears one word of a slot. Whether there was one.
    fn hear(&mut self, at: u8) -> bool {
        let Some(word) = self.slots[usize::from(at)].outbox.pop_front() else { return false };
        let slot = SlotNumber(at);
        match word {
            ToHead::Attach(attach) => {
                if let Some(step) = self.directory.attach(attach.session, slot, attach) {
                    self.take(step);
                }
            }
            ToHead::Closed(session) => self.directory.closed(session, slot),
            ToHead::Yielded(session, package) => {
                let given = package.is_some();
                let (to, attach, next) = self.directory.yielded(session, given).unwrap();
                self.tell(to, ToSlot::Attach(attach, package));
                next.into_iter().for_each(|step| self.take(step));
            }
        }
        true
    }

    fn take(&mut self, step: Step<Attach>) {
        match step {
            Step::Attach(slot, attach) => self.tell(slot, ToSlot::Attach(attach, None)),
            Step::Claim { from, attach } => self.tell(from, ToSlot::Yield(attach)),
        }
    }

    fn tell(&mut self, slot: SlotNumber, what: ToSlot) {
        self.slots[usize::from(slot.0)].inbox.push_back(what);
    }

    /// A slot does one thing it was told. Whether there was one.
    fn act(&mut self, at: u8) -> bool {
        let slot = &mut self.slots[usize::from(at)];
        let Some(told) = slot.inbox.pop_front() else { return false };
        match told {
            ToSlot::Attach(attach, package) => {
                if let Some((session, epoch)) = package {
                    assert!(slot.sessions.insert(session, epoch).is_none());
                }
                if let Some(epoch) = slot.sessions.get_mut(&attach.session)
                    && *epoch < attach.epoch
                {
                    *epoch = attach.epoch;
                    let highest = self.highest.entry(attach.session).or_default();
                    assert!(*highest < attach.epoch);
                    *highest = attach.epoch;
                }
                assert!(self.answered.insert(attach.epoch), "answered twice");
            }
            ToSlot::Yield(attach) => {
                let epoch = slot.sessions.get(&attach.session).copied();
                let package = epoch.filter(|epoch| *epoch < attach.epoch);
                if package.is_some() {
                    slot.sessions.remove(&attach.session);
                }
                let package = package.map(|epoch| (attach.session, epoch));
                slot.outbox.push_back(ToHead::Yielded(attach.session, package));
            }
        }
        true
    }

    fn owners(&self, session: SessionId) -> usize {
        let owned = self.slots.iter().filter(|slot| slot.sessions.contains_key(&session)).count();
        let carried =
            |word: &&ToHead| matches!(word, ToHead::Yielded(id, Some(_)) if *id == session);
        let to_head = self.slots.iter().flat_map(|slot| &slot.outbox).filter(carried).count();
        let carried =
            |told: &&ToSlot| matches!(told, ToSlot::Attach(_, Some((id, _))) if *id == session);
        let to_slot = self.slots.iter().flat_map(|slot| &slot.inbox).filter(carried).count();
        owned + to_head + to_slot
    }

    fn check(&self) {
        for session in 0..SESSIONS {
            let expected = usize::from(!self.over.contains(&id(session)));
            assert_eq!(self.owners(id(session)), expected, "{self:?}");
        }
    }
}

proptest! {
    #[test]
    fn every_session_has_one_owner_and_every_attach_one_answer(
        steps in prop::collection::vec((0_u8..12, 0..SLOTS, 0..SESSIONS), 1..200)
    ) {
        let mut world = World::new();
        for (kind, slot, session) in steps {
            match kind {
                0..4 => world.ask(slot, session),
                4..8 => drop(world.hear(slot)),
                8..11 => drop(world.act(slot)),
                // Rarely, or nothing would be left to be asked for.
                _ if world.asked % 5 == 4 => world.end(session),
                _ => {}
            }
            world.check();
        }
        while (0..SLOTS).any(|slot| world.hear(slot) || world.act(slot)) {
            world.check();
        }
        prop_assert_eq!(world.answered.len() as u64, world.asked);
        // Nobody waits any more, and the directory is right.
        for (session, entry) in &world.directory.sessions {
            prop_assert!(entry.moving.is_none());
            prop_assert!(world.slots[usize::from(entry.slot.0)].sessions.contains_key(session));
        }
        for slot in &world.slots {
            for session in slot.sessions.keys() {
                prop_assert!(world.directory.sessions.contains_key(session));
            }
        }
    }
}

#[test]
fn whoever_asks_while_a_session_moves_gets_it_afterwards() {
    let mut directory = Directory::default();
    directory.opened(id(1), key(), SlotNumber(0));
    let claim = directory.attach(id(1), SlotNumber(1), 'a');
    assert_eq!(claim, Some(Step::Claim { from: SlotNumber(0), attach: 'a' }));
    assert_eq!(directory.attach(id(1), SlotNumber(2), 'b'), None);
    assert_eq!(directory.attach(id(1), SlotNumber(2), 'c'), None);
    let (to, attach, next) = directory.yielded(id(1), true).unwrap();
    assert_eq!((to, attach), (SlotNumber(1), 'a'));
    assert_eq!(next, [Step::Claim { from: SlotNumber(1), attach: 'b' }]);
    let (to, attach, next) = directory.yielded(id(1), true).unwrap();
    assert_eq!((to, attach), (SlotNumber(2), 'b'));
    assert_eq!(next, [Step::Attach(SlotNumber(2), 'c')]);
}

#[test]
fn a_session_that_ended_meanwhile_is_nowhere() {
    let mut directory = Directory::default();
    directory.opened(id(1), key(), SlotNumber(0));
    assert!(directory.attach(id(1), SlotNumber(1), 'a').is_some());
    assert_eq!(directory.attach(id(1), SlotNumber(2), 'b'), None);
    directory.closed(id(1), SlotNumber(0));
    assert_eq!(directory.keys(), [key()]);
    let (_, _, next) = directory.yielded(id(1), false).unwrap();
    assert_eq!(next, [Step::Attach(SlotNumber(2), 'b')]);
    assert_eq!(directory.keys(), []);
}

#[test]
fn a_word_of_a_slot_that_has_it_no_more_is_not_heard() {
    let mut directory: Directory<char> = Directory::default();
    directory.opened(id(1), key(), SlotNumber(2));
    directory.closed(id(1), SlotNumber(0));
    assert_eq!(directory.keys(), [key()]);
    assert_eq!(directory.yielded(id(1), true), None);
    assert_eq!(directory.yielded(id(9), true), None);
}
