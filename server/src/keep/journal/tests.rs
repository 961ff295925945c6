use super::*;
use rustix::io::dup;

fn id(byte: u8) -> SessionId {
    SessionId([byte; 16])
}

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn destination() -> SocketAddr {
    "192.0.2.7:443".parse().unwrap()
}

/// What the next process finds.
fn reopened(journal: &Journal) -> Journal {
    Journal::open(dup(journal.as_fd()).unwrap()).unwrap()
}

#[test]
fn what_is_written_is_found_by_the_next_process() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let mut seen = Seen::default();
    seen.insert(WireFlow(4));
    journal.note_session(place, 3, &seen);
    let v6 = "[2001:db8::9]:22".parse().unwrap();
    for (number, address) in [(0, destination()), (4, v6)] {
        let mut shelf = journal.open_flow(place, WireFlow(number), address).unwrap();
        shelf.space(0, 5).copy_from_slice(b"hello");
        shelf.fill(5);
        shelf.take(2);
        shelf.open();
        shelf.resume(number);
        std::mem::forget(shelf);
    }

    let (sessions, flows) = reopened(&journal).records();
    assert_eq!(sessions, [SessionRecord { place, id: id(1), key: key(2), epoch: 3, seen }]);
    assert_eq!(flows.len(), 2);
    for (mut flow, (number, address)) in flows.into_iter().zip([(0, destination()), (4, v6)]) {
        assert_eq!((flow.session, flow.flow, flow.epoch), (place, WireFlow(number), number));
        assert_eq!(flow.destination, Some(address));
        assert!(flow.opened && !flow.ending);
        assert_eq!(flow.shelf.bytes(flow.taken, 5).unwrap(), b"llo");
    }
}

#[test]
fn what_is_over_is_not_found() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
    journal.remove(shelf);
    journal.close_session(place);
    let mut again = reopened(&journal);
    assert_eq!(again.records().0, []);
    assert!(again.records().1.is_empty());
    // Its places are used again, by other tickets.
    let place = again.open_session(id(3), key(4)).unwrap();
    let ticket = again.open_flow(place, WireFlow(1), destination()).unwrap().ticket();
    assert_eq!((ticket.slot, ticket.generation), (0, 2));
}

#[test]
fn a_ring_keeps_what_was_not_taken_round_its_end_and_round_again() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let mut shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
    let byte = |offset: u64| u8::try_from(offset % 251).unwrap();
    let (mut end, mut taken) = (0, 0);
    while end < 3 * RING {
        let room = usize::try_from(700_000.min(RING - (end - taken))).unwrap();
        let space = shelf.space(end, room);
        space.iter_mut().zip(end..).for_each(|(at, offset)| *at = byte(offset));
        end += space.len() as u64;
        shelf.fill(end);
        // Something is always kept, so the ring never begins anew.
        taken = end.saturating_sub(900_000).max(taken);
        shelf.take(taken);
    }
    let (_, mut flows) = reopened(&journal).records();
    let mut found = flows.pop().unwrap();
    let bytes = found.shelf.bytes(found.taken, end).unwrap();
    assert_eq!(bytes.len(), 900_000);
    assert!(bytes.iter().zip(taken..).all(|(found, offset)| *found == byte(offset)));
    std::mem::forget(shelf);
}

#[test]
fn an_emptied_ring_begins_at_its_front_again() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let mut shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
    for end in (100..100_000_u64).step_by(100) {
        shelf.space(end - 100, 100).fill(u8::try_from(end % 251).unwrap());
        shelf.fill(end);
        shelf.take(end);
    }
    assert_eq!(shelf.warm, 100, "small talk needs a page");
}

#[test]
fn memory_behind_what_was_taken_is_given_back_when_there_is_much() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let mut shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
    journal.map.resident.store(RESIDENT + 1, Ordering::Relaxed);
    let mut end = 0;
    while end < 4 * RING {
        let count = shelf.space(end, 128 * 1024).len() as u64;
        shelf.space(end, 128 * 1024).fill(7);
        end += count;
        shelf.fill(end);
        shelf.take(end - 1000);
    }
    let blocks = rustix::fs::fstat(&journal.map.file).unwrap().st_blocks;
    assert!(blocks * 512 < 2 << 20, "{blocks} blocks of half a KiB");
    assert_eq!(shelf.bytes(end - 1000, end).unwrap(), [7; 1000]);
}

#[test]
fn a_full_window_is_kept_while_memory_behind_it_is_given_back() {
    for step in [16_000, 100_000, 1_000_000] {
        let mut journal = Journal::create().unwrap();
        let place = journal.open_session(id(1), key(2)).unwrap();
        let mut shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
        journal.map.resident.store(RESIDENT + 1, Ordering::Relaxed);
        let byte = |offset: u64| u8::try_from(offset % 251 + 1).unwrap();
        let (mut end, mut taken) = (0, 0);
        while taken < RING * 5 / 4 {
            taken += step;
            shelf.take(taken.min(end));
            while end < taken + RING {
                let room = usize::try_from(taken + RING - end).unwrap();
                let space = shelf.space(end, room);
                space.iter_mut().zip(end..).for_each(|(place, offset)| *place = byte(offset));
                end += u64::try_from(space.len()).unwrap();
                shelf.fill(end);
            }
        }
        let (_, mut flows) = reopened(&journal).records();
        let mut found = flows.pop().unwrap();
        let bytes = found.shelf.bytes(found.taken, end).unwrap();
        assert_eq!(u64::try_from(bytes.len()).unwrap(), RING);
        let lost = bytes.iter().zip(taken..).filter(|(kept, offset)| **kept != byte(*offset));
        assert_eq!(lost.count(), 0, "{step} bytes taken at a time");
    }
}

#[test]
fn a_flow_at_rest_takes_a_record_and_no_more() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let mut shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
    let before = rustix::fs::fstat(&journal.map.file).unwrap().st_blocks;
    shelf.space(0, 100_000).fill(7);
    shelf.fill(100_000);
    shelf.take(60_000);
    shelf.cool();
    assert!(!shelf.can_cool(), "something is kept");
    assert_eq!(shelf.bytes(60_000, 100_000).unwrap(), [7; 40_000]);
    shelf.take(100_000);
    assert!(shelf.can_cool());
    shelf.cool();
    assert!(!shelf.can_cool());
    assert_eq!(rustix::fs::fstat(&journal.map.file).unwrap().st_blocks, before);
    assert_eq!(journal.map.resident.load(Ordering::Relaxed), 0);

    shelf.space(100_000, 10).fill(8);
    shelf.fill(100_010);
    assert_eq!(shelf.bytes(100_000, 100_010).unwrap(), [8; 10]);
}

#[test]
fn offsets_that_contradict_each_other_are_refused() {
    let mut journal = Journal::create().unwrap();
    let place = journal.open_session(id(1), key(2)).unwrap();
    let mut shelf = journal.open_flow(place, WireFlow(0), destination()).unwrap();
    assert!(shelf.bytes(10, 9).is_none());
    assert!(shelf.bytes(0, RING + 1).is_none());
    shelf.fill(50);
    shelf.take(50);
    assert!(shelf.bytes(49, 60).is_none(), "that place was given up");
}

#[test]
fn what_is_no_journal_is_refused_with_a_reason() {
    let file = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(Journal::open(file).err().unwrap(), "it is not sealed");

    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let sealed = |size| {
        let file = rustix::fs::memfd_create("other", flags).unwrap();
        rustix::fs::ftruncate(&file, size).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        Journal::open(file).err().unwrap()
    };
    assert!(sealed(4096).starts_with("it has 4096 bytes instead of"));
    assert_eq!(sealed(SIZE), "it is no journal");

    let journal = Journal::create().unwrap();
    journal.map.word(0, header::VERSION).store(VERSION + 1, Ordering::Relaxed);
    let other = Journal::open(dup(journal.as_fd()).unwrap()).err().unwrap();
    assert!(other.starts_with("it has version 3"), "{other}");
}
