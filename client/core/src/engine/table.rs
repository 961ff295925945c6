//! Flows by slot, by key and by id.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};

use super::connection::{self, Connection};
use super::inner::Inner;
use super::timers::Deadline;
use super::{DeviceId, FlowId, FlowView};
use crate::packet::Segment;

/// What tells one flow from another: the device and the 5-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) device: DeviceId,
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
}

impl Key {
    pub(super) fn new(device: DeviceId, segment: &Segment<'_>) -> Self {
        Self {
            device,
            source: Endpoint::from(segment.source()),
            destination: Endpoint::from(segment.destination()),
        }
    }
}

/// A socket address in a form that hashes in few steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    high: u64,
    low: u64,
    /// The port, and above it the IP version.
    port: u32,
}

const SIX: u32 = 1 << 16;

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let port = u32::from(address.port());
        match address.ip() {
            IpAddr::V4(ip) => Self { high: 0, low: u64::from(ip.to_bits()), port },
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h] = ip.segments().map(u64::from);
                let join = |a, b, c, d| a << 48 | b << 32 | c << 16 | d;
                Self { high: join(a, b, c, d), low: join(e, f, g, h), port: port | SIX }
            }
        }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        let [_, _, high, low] = endpoint.port.to_be_bytes();
        let port = u16::from_be_bytes([high, low]);
        let bits = u128::from(endpoint.high) << 64 | u128::from(endpoint.low);
        if endpoint.port & SIX != 0 {
            Self::new(IpAddr::V6(bits.into()), port)
        } else {
            let [.., a, b, c, d] = endpoint.low.to_be_bytes();
            Self::new(IpAddr::from([a, b, c, d]), port)
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: FlowId,
    pub(super) key: Key,
    pub(super) stage: Stage,
    pub(super) deadline: Deadline,
    /// Waits for the next flush.
    pub(super) dirty: bool,
    /// A Readable or Writable event waits to be polled.
    pub(super) readable_told: bool,
    pub(super) writable_told: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The SYN, until the far end is connected.
    Held(Box<[u8]>),
    Open(Connection),
    /// Begun here.
    Inner(Inner),
}

impl Entry {
    pub(super) fn new(id: FlowId, key: Key, stage: Stage) -> Self {
        Self {
            id,
            key,
            stage,
            deadline: Deadline::default(),
            dirty: false,
            readable_told: false,
            writable_told: false,
        }
    }

    fn is_held(&self) -> bool {
        match self.stage {
            Stage::Held(_) => true,
            Stage::Open(_) | Stage::Inner(_) => false,
        }
    }

    pub(super) fn view(&self) -> FlowView {
        let (state, receive_queue, send_queue) = match &self.stage {
            Stage::Held(_) => ("pending", 0, 0),
            Stage::Inner(inner) => ("inner", inner.readable(), 0),
            Stage::Open(connection) => {
                let state = connection::name(connection.state());
                (state, connection.readable(), connection.send_queue())
            }
        };
        FlowView {
            flow: self.id,
            device: self.key.device,
            source: self.key.source.into(),
            destination: self.key.destination.into(),
            state,
            receive_queue,
            send_queue,
        }
    }
}

/// Flows, and those among them whose SYN is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) flows: usize,
    pub(super) held: usize,
}

impl Used {
    pub(super) fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.held += other.held;
    }
}

#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Box<Entry>>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize, Seed>,
    by_id: HashMap<FlowId, usize, Seed>,
    by_device: BTreeMap<DeviceId, Used>,
}

impl Table {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::with_hasher(Seed(seed)),
            by_id: HashMap::with_hasher(Seed(seed)),
            by_device: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The number of flows of one device.
    pub(super) fn count(&self, device: DeviceId) -> usize {
        self.used(device).flows
    }

    /// What a device has of the table.
    pub(super) fn used(&self, device: DeviceId) -> Used {
        self.by_device.get(&device).copied().unwrap_or_default()
    }

    /// A flow of a device is not held any more.
    pub(super) fn answered(&mut self, device: DeviceId) {
        if let Some(used) = self.by_device.get_mut(&device) {
            used.held -= 1;
        }
    }

    pub(super) fn insert(&mut self, entry: Entry) -> usize {
        let (id, key) = (entry.id, entry.key);
        let held = entry.is_held();
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot] = Some(Box::new(entry));
            slot
        } else {
            self.slots.push(Some(Box::new(entry)));
            self.slots.len() - 1
        };
        self.by_key.insert(key, slot);
        self.by_id.insert(id, slot);
        let used = self.by_device.entry(key.device).or_default();
        used.flows += 1;
        used.held += usize::from(held);
        slot
    }

    pub(super) fn find(&self, key: &Key) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    pub(super) fn slot(&self, id: FlowId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn at(&mut self, slot: usize) -> Option<&mut Entry> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    pub(super) fn flow(&self, id: FlowId) -> Option<&Entry> {
        self.slots.get(self.slot(id)?)?.as_deref()
    }

    pub(super) fn flow_mut(&mut self, id: FlowId) -> Option<&mut Entry> {
        let slot = self.slot(id)?;
        self.at(slot)
    }

    /// Frees the key for a new connection while the flow is read to its end.
    pub(super) fn detach(&mut self, slot: usize) {
        if let Some(entry) = self.slots.get(slot).and_then(|entry| entry.as_deref())
            && self.by_key.get(&entry.key) == Some(&slot)
        {
            self.by_key.remove(&entry.key);
        }
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Box<Entry>> {
        self.detach(slot);
        let entry = self.slots.get_mut(slot)?.take()?;
        self.by_id.remove(&entry.id);
        if let Some(used) = self.by_device.get_mut(&entry.key.device) {
            used.flows -= 1;
            used.held -= usize::from(entry.is_held());
            if used.flows == 0 {
                self.by_device.remove(&entry.key.device);
            }
        }
        self.free.push(slot);
        Some(entry)
    }

    /// Every flow, in the order of slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|entry| entry.as_deref())
    }
}

/// A multiplicative hash (the one of rustc), seeded: a local program chooses
/// its ports, and must not be able to aim at one bucket.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

impl BuildHasher for Seed {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

#[derive(Debug)]
struct Mix(u64);

/// 2^64 divided by the golden ratio, odd.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(MULTIPLIER);
    }

    fn finish(&self) -> u64 {
        // The table takes its bucket from the low bits, the multiplication
        // leaves its best bits on top.
        self.0 ^ (self.0 >> 32)
    }
}
