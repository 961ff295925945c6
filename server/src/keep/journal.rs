//! A shared memory file with a record of every session and flow, and the kept bytes of flows.
//!
//! One process writes it, each thread the records that are its own, in an order in which it can be killed after any store and leave a file
//! that is true: a record is marked as the last step of its making and unmarked as the first of its
//! end, and a place is not used for other bytes before the record says that nobody needs them.
//!
//! The bytes of a flow lie in a ring of its own, as large as the largest window. Rings are laid out
//! in a sparse file: what was never written takes no memory. They are read into straight from the
//! socket, so they are in the file when the kernel counts them as read.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use tracing::debug;
use whimbrel_common::identity::PublicKey;
use whimbrel_common::session::MAX_WINDOW;
use whimbrel_common::wire::{SessionId, WireFlow};
use whimbrel_gateway_core::seen::{self, Seen};

use super::lot::Ticket;

mod map;

use map::Map;

/// "whimbrel", read as a number.
const MAGIC: u64 = u64::from_le_bytes(*b"whimbrel");

/// Changes with the layout; a journal of another version is not read.
const VERSION: u64 = 2;

/// Sessions there is room for.
const SESSIONS: u32 = 4096;

/// Flows there is room for: as many sockets as one address has ports.
const FLOWS: u32 = 65_536;

/// Bytes of a session's record.
const SESSION: usize = 128;

/// Bytes of a flow's record: ten words, for there are many.
const FLOW: usize = 80;

/// Bytes of a flow's ring: what a sender keeps at most.
const RING: u64 = MAX_WINDOW;

const PAGE: u64 = 4096;
const SESSIONS_AT: usize = 4096;
const FLOWS_AT: usize = SESSIONS_AT + SESSIONS as usize * SESSION;
const RECORDS_END: usize = FLOWS_AT + FLOWS as usize * FLOW;
const RINGS_AT: u64 = 16 << 20;
const SIZE: u64 = RINGS_AT + FLOWS as u64 * RING;
const _: () = assert!(RECORDS_END as u64 <= RINGS_AT);
const _: () =
    assert!((flow::ADDRESS + 2) * 8 <= FLOW && (session::SEEN + 1 + seen::WORDS) * 8 <= SESSION);

/// Bytes of a ring that stay in memory while all rings together have more than [`RESIDENT`].
const KEPT_WARM: u64 = 64 * 1024;

/// Memory is given back in steps of this size: a system call for each.
const STEP: u64 = 256 * 1024;

/// Beyond this many bytes in all rings, memory behind what was taken is given back at once. Below,
/// it is used again, which is cheaper.
const RESIDENT: u64 = 64 << 20;

/// Words of the header.
mod header {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const GENERATION: usize = 2;
    /// Records from here on were never used.
    pub(super) const SESSIONS: usize = 3;
    pub(super) const FLOWS: usize = 4;
}

/// Words of a session's record.
mod session {
    pub(super) const MARK: usize = 0;
    pub(super) const ID: usize = 1;
    pub(super) const KEY: usize = 3;
    pub(super) const EPOCH: usize = 7;
    pub(super) const SEEN: usize = 8;
}

/// Words of a flow's record.
mod flow {
    pub(super) const MARK: usize = 0;
    pub(super) const SESSION: usize = 1;
    pub(super) const FLOW: usize = 2;
    pub(super) const EPOCH: usize = 3;
    pub(super) const TAKEN: usize = 4;
    pub(super) const BASE: usize = 5;
    pub(super) const STAGE: usize = 6;
    pub(super) const PORT: usize = 7;
    pub(super) const ADDRESS: usize = 8;
}

const OPENED: u64 = 1;
const ENDING: u64 = 2;

/// Where the journal has a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place(u32);

/// See the [module](self). All clones are the same journal.
#[derive(Clone)]
pub(super) struct Journal {
    map: Arc<Map>,
    /// Held for a few instructions when a session or a flow begins or ends, never for a byte.
    free: Arc<Mutex<Free>>,
}

/// Places that were used before.
struct Free {
    sessions: Vec<u32>,
    flows: Vec<u32>,
}

/// A session as the journal has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SessionRecord {
    pub(super) place: Place,
    pub(super) id: SessionId,
    pub(super) key: PublicKey,
    pub(super) epoch: u64,
    pub(super) seen: Seen,
}

/// A flow as the journal has it.
#[derive(Debug)]
pub(super) struct FlowRecord {
    pub(super) session: Place,
    pub(super) flow: WireFlow,
    pub(super) epoch: u64,
    pub(super) destination: Option<SocketAddr>,
    pub(super) opened: bool,
    pub(super) ending: bool,
    pub(super) taken: u64,
    pub(super) shelf: Shelf,
}

/// The record and the ring of one flow.
pub(crate) struct Shelf {
    map: Arc<Map>,
    slot: u32,
    generation: u64,
    /// The offset at the beginning of the ring.
    base: u64,
    taken: u64,
    /// The highest offset written so far.
    end: u64,
    /// Bytes at the beginning of the ring that may have memory.
    warm: u64,
    /// Offsets of this lap below this one have none.
    cold: u64,
}

impl Journal {
    /// An empty journal.
    pub(super) fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("whimbrel-journal", flags)?;
        rustix::fs::ftruncate(&file, SIZE)?;
        // A file that shrinks under a mapping kills whoever reads it.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let map = Map::new(file)?;
        map.word(0, header::VERSION).store(VERSION, Ordering::Relaxed);
        map.word(0, header::MAGIC).store(MAGIC, Ordering::Release);
        Ok(Self::over(map))
    }

    /// The journal of a process before.
    ///
    /// # Errors
    /// A sentence about why it is none, or not one of this version.
    pub(super) fn open(file: OwnedFd) -> Result<Self, String> {
        let text = |error: rustix::io::Errno| error.to_string();
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(text)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err("it is not sealed".to_owned());
        }
        let size = rustix::fs::fstat(&file).map_err(text)?.st_size;
        if u64::try_from(size) != Ok(SIZE) {
            return Err(format!("it has {size} bytes instead of {SIZE}"));
        }
        let map = Map::new(file).map_err(|error| error.to_string())?;
        let [magic, version] =
            [header::MAGIC, header::VERSION].map(|word| map.word(0, word).load(Ordering::Acquire));
        if magic != MAGIC {
            return Err("it is no journal".to_owned());
        }
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}"));
        }
        Ok(Self::over(map))
    }

    fn over(map: Map) -> Self {
        let live = |at: usize| map.word(at, 0).load(Ordering::Acquire) != 0;
        let sessions = (0..used(&map, header::SESSIONS, SESSIONS)).rev();
        let sessions = sessions.filter(|slot| !live(session_at(*slot))).collect();
        let flows = (0..used(&map, header::FLOWS, FLOWS)).rev();
        let flows = flows.filter(|slot| !live(flow_at(*slot))).collect();
        Self { map: Arc::new(map), free: Arc::new(Mutex::new(Free { sessions, flows })) }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // Whoever panicked with it had pushed or popped a number, or not.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the journal has. To be asked once, before anything is written.
    pub(super) fn records(&self) -> (Vec<SessionRecord>, Vec<FlowRecord>) {
        let (sessions, flows) =
            (used(&self.map, header::SESSIONS, SESSIONS), used(&self.map, header::FLOWS, FLOWS));
        let sessions = (0..sessions).filter_map(|slot| self.session(slot)).collect();
        let flows = (0..flows).filter_map(|slot| self.flow(slot)).collect();
        (sessions, flows)
    }

    fn session(&self, slot: u32) -> Option<SessionRecord> {
        let at = session_at(slot);
        let word = |word| self.map.word(at, word).load(Ordering::Acquire);
        if word(session::MARK) == 0 {
            return None;
        }
        let mut id = [0; 16];
        let mut key = [0; 32];
        for (chunk, number) in id.chunks_exact_mut(8).zip(session::ID..) {
            chunk.copy_from_slice(&word(number).to_le_bytes());
        }
        for (chunk, number) in key.chunks_exact_mut(8).zip(session::KEY..) {
            chunk.copy_from_slice(&word(number).to_le_bytes());
        }
        Some(SessionRecord {
            place: Place(slot),
            id: SessionId(id),
            key: PublicKey::from_bytes(key),
            epoch: word(session::EPOCH),
            seen: Seen::from_words(
                word(session::SEEN),
                std::array::from_fn(|at| word(session::SEEN + 1 + at)),
            ),
        })
    }

    fn flow(&self, slot: u32) -> Option<FlowRecord> {
        let at = flow_at(slot);
        let word = |word| self.map.word(at, word).load(Ordering::Acquire);
        let generation = word(flow::MARK);
        if generation == 0 {
            return None;
        }
        let (base, taken) = (word(flow::BASE), word(flow::TAKEN));
        let shelf = Shelf {
            map: Arc::clone(&self.map),
            slot,
            generation,
            base,
            taken,
            end: taken,
            warm: 0,
            cold: base,
        };
        Some(FlowRecord {
            session: Place(u32::try_from(word(flow::SESSION)).unwrap_or(u32::MAX)),
            flow: WireFlow(word(flow::FLOW)),
            epoch: word(flow::EPOCH),
            destination: address(word(flow::PORT), [word(flow::ADDRESS), word(flow::ADDRESS + 1)]),
            opened: word(flow::STAGE) & OPENED != 0,
            ending: word(flow::STAGE) & ENDING != 0,
            taken,
            shelf,
        })
    }

    pub(super) fn open_session(&mut self, id: SessionId, key: PublicKey) -> Option<Place> {
        let slot = {
            let mut free = self.free();
            free.sessions.pop().or_else(|| unused(&self.map, header::SESSIONS, SESSIONS))?
        };
        let at = session_at(slot);
        let store = |word, value| self.map.word(at, word).store(value, Ordering::Relaxed);
        for (number, value) in (session::ID..).zip(words(&id.0)) {
            store(number, value);
        }
        for (number, value) in (session::KEY..).zip(words(key.as_bytes())) {
            store(number, value);
        }
        store(session::EPOCH, 0);
        (0..=seen::WORDS).for_each(|at| store(session::SEEN + at, 0));
        self.map.word(at, session::MARK).store(1, Ordering::Release);
        Some(Place(slot))
    }

    pub(super) fn note_session(&mut self, place: Place, epoch: u64, seen: &Seen) {
        let store = |word, value| {
            self.map.word(session_at(place.0), word).store(value, Ordering::Release);
        };
        let (next, window) = seen.words();
        store(session::EPOCH, epoch);
        store(session::SEEN, next);
        for (word, value) in (session::SEEN + 1..).zip(window) {
            store(word, value);
        }
    }

    pub(super) fn close_session(&mut self, place: Place) {
        self.map.word(session_at(place.0), session::MARK).store(0, Ordering::Release);
        self.free().sessions.push(place.0);
    }

    pub(super) fn open_flow(
        &mut self,
        session: Place,
        number: WireFlow,
        destination: SocketAddr,
    ) -> Option<Shelf> {
        let slot = {
            let mut free = self.free();
            free.flows.pop().or_else(|| unused(&self.map, header::FLOWS, FLOWS))?
        };
        let generation = self.map.word(0, header::GENERATION).fetch_add(1, Ordering::AcqRel) + 1;
        let at = flow_at(slot);
        let store = |word, value| self.map.word(at, word).store(value, Ordering::Relaxed);
        let (port, address) = address_words(destination);
        for word in [flow::EPOCH, flow::TAKEN, flow::BASE, flow::STAGE] {
            store(word, 0);
        }
        store(flow::SESSION, session.0.into());
        store(flow::FLOW, number.0);
        store(flow::PORT, port);
        store(flow::ADDRESS, address[0]);
        store(flow::ADDRESS + 1, address[1]);
        self.map.word(at, flow::MARK).store(generation, Ordering::Release);
        let map = Arc::clone(&self.map);
        Some(Shelf { map, slot, generation, base: 0, taken: 0, end: 0, warm: 0, cold: 0 })
    }

    /// The flow is over.
    pub(super) fn remove(&mut self, shelf: Shelf) {
        self.map.word(flow_at(shelf.slot), flow::MARK).store(0, Ordering::Release);
        let slot = shelf.slot;
        // What is left of its bytes goes with it, before the place is anybody else's.
        drop(shelf);
        self.free().flows.push(slot);
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.file.as_fd()
    }
}

impl Shelf {
    /// Names this use of the place.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket { slot: self.slot, generation: self.generation }
    }

    /// Where up to `room` bytes from `offset` on belong; at least one, and fewer where the ring
    /// ends. Nothing that was not [taken](Self::take) is overwritten if `room` respects the
    /// largest window.
    pub(crate) fn space(&mut self, offset: u64, room: usize) -> &mut [u8] {
        let at = (offset - self.base) % RING;
        let length = u64::try_from(room).unwrap_or(u64::MAX).min(RING - at);
        self.map.ring(self.slot, at, length)
    }

    /// Bytes up to `end` were put where they belong.
    pub(crate) fn fill(&mut self, end: u64) {
        self.end = end;
        self.warm_up((end - self.base).min(RING));
    }

    /// The bytes from `taken` to `end`, if the ring can hold them.
    pub(super) fn bytes(&mut self, taken: u64, end: u64) -> Option<Vec<u8>> {
        let length = end.checked_sub(taken).filter(|length| *length <= RING)?;
        let at = taken.checked_sub(self.base)?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
        let first = length.min(RING - at % RING);
        bytes.extend_from_slice(self.map.ring(self.slot, at % RING, first));
        bytes.extend_from_slice(self.map.ring(self.slot, 0, length - first));
        self.fill(end);
        if length == 0 {
            // The process before may have left some.
            self.punch(0, RING);
            self.cooled(0);
        }
        Some(bytes)
    }

    /// The client needs nothing below `taken` any more.
    pub(crate) fn take(&mut self, taken: u64) {
        if taken == self.taken {
            return;
        }
        self.taken = taken;
        self.store(flow::TAKEN, taken);
        if taken == self.end {
            // Nothing is kept: begin at the front again, where there is memory already.
            self.base = taken;
            self.store(flow::BASE, taken);
            self.cold = taken;
        }
        if self.map.resident.load(Ordering::Relaxed) > RESIDENT {
            self.cool_down();
        }
    }

    /// Whether the ring has memory, and nothing is kept in it.
    pub(crate) fn can_cool(&self) -> bool {
        self.warm > 0 && self.taken == self.end
    }

    /// Gives all memory back, unless something is kept in it.
    pub(crate) fn cool(&mut self) {
        if self.can_cool() {
            self.punch(0, RING);
            self.cooled(0);
        }
    }

    /// The client was told that the destination answered.
    pub(crate) fn open(&self) {
        self.stage(OPENED);
    }

    /// The end of the client's direction is about to be said.
    pub(crate) fn end(&self) {
        self.stage(ENDING);
    }

    /// The flow was resumed.
    pub(crate) fn resume(&self, epoch: u64) {
        self.store(flow::EPOCH, epoch);
    }

    fn stage(&self, bit: u64) {
        self.map.word(flow_at(self.slot), flow::STAGE).fetch_or(bit, Ordering::AcqRel);
    }

    fn store(&self, word: usize, value: u64) {
        self.map.word(flow_at(self.slot), word).store(value, Ordering::Release);
    }

    fn warm_up(&mut self, bytes: u64) {
        let gained = bytes.saturating_sub(self.warm);
        self.warm += gained;
        self.map.resident.fetch_add(gained, Ordering::Relaxed);
    }

    /// Gives memory back: all but the front if nothing is kept, else what was taken.
    fn cool_down(&mut self) {
        if self.taken == self.end {
            if self.warm > KEPT_WARM {
                self.punch(KEPT_WARM, RING - KEPT_WARM);
                self.cooled(KEPT_WARM);
            }
            return;
        }
        // The next lap may have come to where this one began.
        let free = self.cold.max(self.end.saturating_sub(RING)) - self.base;
        let (from, to) = (free.next_multiple_of(PAGE), (self.taken - self.base) / PAGE * PAGE);
        if to < from + STEP {
            return;
        }
        self.cold = self.base + to;
        let (from, length) = (from % RING, (to - from).min(RING));
        self.punch(from, length.min(RING - from));
        self.punch(0, length.saturating_sub(RING - from));
        self.cooled(self.end - self.taken + STEP);
    }

    fn cooled(&mut self, left: u64) {
        let lost = self.warm.saturating_sub(left);
        self.warm -= lost;
        self.map.resident.fetch_sub(lost, Ordering::Relaxed);
    }

    fn punch(&self, at: u64, length: u64) {
        if length == 0 {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let at = ring_at(self.slot) + at;
        if let Err(error) = rustix::fs::fallocate(&self.map.file, flags, at, length) {
            debug!(%error, "Memory is not given back");
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let live = self.map.word(flow_at(self.slot), flow::MARK).load(Ordering::Acquire);
        // Dropped without being removed, it stays for the next process.
        if live == 0 && self.warm > 0 {
            self.punch(0, RING);
        }
        self.map.resident.fetch_sub(self.warm, Ordering::Relaxed);
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("slot", &self.slot).field("taken", &self.taken).finish()
    }
}

/// How many records were ever used. Those beyond have no memory, and need none to be known free.
fn used(map: &Map, counter: usize, most: u32) -> u32 {
    let used = map.word(0, counter).load(Ordering::Acquire);
    u32::try_from(used).unwrap_or(u32::MAX).min(most)
}

/// A record that was never used. To be asked with the free places held.
fn unused(map: &Map, counter: usize, most: u32) -> Option<u32> {
    let slot = used(map, counter, most);
    (slot < most).then(|| {
        map.word(0, counter).store(u64::from(slot) + 1, Ordering::Release);
        slot
    })
}

fn session_at(slot: u32) -> usize {
    SESSIONS_AT + slot as usize * SESSION
}

fn flow_at(slot: u32) -> usize {
    FLOWS_AT + slot as usize * FLOW
}

fn ring_at(slot: u32) -> u64 {
    RINGS_AT + u64::from(slot) * RING
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk))
}

/// Port and address as words; IPv4 has an address word that no IPv6 destination has with a port.
fn address_words(address: SocketAddr) -> (u64, [u64; 2]) {
    let family = match address {
        SocketAddr::V4(_) => 4,
        SocketAddr::V6(_) => 6,
    };
    let port = u64::from(address.port()) | family << 16;
    let octets = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = words(&octets);
    (port, [words.next().unwrap_or(0), words.next().unwrap_or(0)])
}

fn address(port: u64, words: [u64; 2]) -> Option<SocketAddr> {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&words[0].to_le_bytes());
    octets[8..].copy_from_slice(&words[1].to_le_bytes());
    let v6 = Ipv6Addr::from(octets);
    let number = u16::try_from(port & 0xffff).ok()?;
    match port >> 16 {
        4 => v6.to_ipv4_mapped().map(|v4: Ipv4Addr| SocketAddr::new(v4.into(), number)),
        6 => Some(SocketAddr::new(v6.into(), number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
