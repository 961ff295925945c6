//! The flow table and the TCP terminator: packets of the applications on one
//! side, bytes of numbered flows on the other. Pure: time, packets, buffers
//! and the way out are given to it.
//!
//! # Life of a flow
//!
//! 1. A SYN is *held*: no socket and no buffer exists. [`FlowEvent::Open`]
//!    offers the flow. Repetitions of the SYN are ignored.
//! 2. [`Engine::accept`] leases buffers and lets a socket answer the held SYN;
//!    [`Engine::refuse`] answers it with a RST, with an ICMP error or not at all.
//! 3. [`FlowEvent::Readable`] and [`FlowEvent::Writable`] say that something
//!    changed; the owner reads and writes as far as it wants. What it does not
//!    read closes the application's window.
//! 4. Each direction ends by itself: the application's with [`Read::fin`],
//!    ours with [`Engine::finish`].
//! 5. Exactly one last event follows an `Open`: [`FlowEvent::Reset`] when the
//!    application (or a fault) broke the flow off, [`FlowEvent::Closed`] when
//!    it ended in any other way, also by [`Engine::refuse`] or
//!    [`Engine::abort`]. After it the flow is unknown: reads and writes of an
//!    unknown flow move nothing.
//!
//! One round is: [`Engine::handle_packet`] for a batch, [`Engine::poll_event`]
//! until None (reading and writing), [`Engine::flush`], and `poll_event` again,
//! because a flush is what ends flows. [`Engine::poll_timeout`] says when
//! [`Engine::handle_timeout`] and another round are due.
//!
//! # What is never kept
//!
//! TIME-WAIT: both ends of this wire are one host, so no old segment can be on
//! its way; a new SYN may reuse the 5-tuple at once. Timers of idle flows:
//! there is no keep-alive and no idle timeout.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant as Tick;
use smoltcp::wire::HardwareAddress;

use crate::packet::{
    Segment, Unreachable, compose_ack, compose_fin, compose_reset, compose_unreachable,
};
use connection::{Change, Connection, Lease, Reminder, Stack};
use device::{Blueprint, Replies};
use inner::Inner;
use shares::{Full, Shares};
use table::{Entry, Key, Stage, Table};
use timers::Timers;

mod connection;
mod device;
mod flow;
mod inner;
mod ledger;
mod own;
mod seams;
mod shares;
mod stats;
mod table;
mod timers;

#[cfg(test)]
mod tests;

pub use flow::{DeviceId, FlowEvent, FlowId, FlowView, Read, Refusal};
pub use seams::{Buffers, EngineConfig, PacketSink};
pub use shares::Tenant;
pub use stats::{Drops, Stats};

/// The flow table and the TCP terminator. See the [module](self).
pub struct Engine {
    config: EngineConfig,
    interface: Interface,
    epoch: Instant,
    // Sockets borrow from `buffers`: they must be dropped before it.
    table: Table,
    buffers: Box<dyn Buffers + Send>,
    timers: Timers,
    dirty: Vec<usize>,
    events: VecDeque<FlowEvent>,
    replies: Replies,
    /// Flows whose SYN is held.
    pending: usize,
    shares: Shares,
    last: FlowId,
    stats: Stats,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("config", &self.config)
            .field("flows", &self.table.len())
            .field("pending", &self.pending)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// smoltcp's clock starts here, because it takes zero for "at once".
const FIRST_TICK: Tick = Tick::from_millis_const(1000);

impl Engine {
    /// An engine without flows. `seed` feeds the initial sequence numbers and
    /// the hash of the flow table; it should be unpredictable.
    pub fn new(
        config: EngineConfig,
        seed: u64,
        buffers: Box<dyn Buffers + Send>,
        now: Instant,
    ) -> Self {
        Self {
            config,
            interface: interface(seed),
            epoch: now,
            table: Table::new(seed),
            buffers,
            timers: Timers::default(),
            dirty: Vec::new(),
            events: VecDeque::new(),
            replies: Replies::default(),
            pending: 0,
            shares: Shares::default(),
            last: FlowId(0),
            stats: Stats::default(),
        }
    }

    /// Takes one IP packet of an application: a segment, or a super-segment of
    /// up to 64 KiB. Checksums are not verified. Whatever is not a TCP segment
    /// is dropped and counted.
    pub fn handle_packet(&mut self, device: DeviceId, packet: &[u8], now: Instant) {
        self.stats.packets_in += 1;
        self.stats.bytes_in += packet.len() as u64;
        let segment = match Segment::parse(packet) {
            Ok(segment) => segment,
            Err(reason) => return self.stats.dropped.count(reason),
        };
        let key = Key::new(device, &segment);
        let Some(slot) = self.table.find(&key) else {
            return self.receive_stranger(key, &segment);
        };
        match self.table.at(slot).map(|entry| &entry.stage) {
            Some(Stage::Held(_)) => self.receive_while_held(slot, &segment),
            Some(Stage::Open(connection)) if connection.is_spent() && segment.opens() => {
                self.table.detach(slot);
                self.touch(slot);
                self.receive_stranger(key, &segment);
            }
            Some(Stage::Open(_)) => self.receive(slot, &segment, now),
            Some(Stage::Inner(_)) | None => {}
        }
    }

    /// Answers the held SYN of a flow with a socket. Without buffers the flow
    /// is reset. Does nothing for a flow that is not pending.
    pub fn accept(&mut self, flow: FlowId, now: Instant) {
        let Some((slot, device, syn)) = self.held(flow) else {
            return self.accept_inner(flow);
        };
        let Ok(segment) = Segment::parse(&syn) else {
            return self.lose(slot);
        };
        let Some(connection) = self.terminate(device, &segment, now) else {
            self.reply_reset(device, &segment);
            return self.lose(slot);
        };
        let Some(entry) = self.table.at(slot) else { return };
        entry.stage = Stage::Open(connection);
        self.table.answered(device);
        self.pending -= 1;
        self.stats.accepted += 1;
        self.touch(slot);
    }

    /// Refuses a pending flow; aborts one that was accepted.
    pub fn refuse(&mut self, flow: FlowId, refusal: Refusal, _now: Instant) {
        let Some((slot, device, syn)) = self.held(flow) else {
            return self.abort(flow);
        };
        if let Ok(segment) = Segment::parse(&syn) {
            let mut unreachable = |reason| {
                self.replies.push(device, compose_unreachable(&segment, reason));
            };
            match refusal {
                Refusal::Refused => self.reply_reset(device, &segment),
                Refusal::HostUnreachable => unreachable(Unreachable::Host),
                Refusal::NetworkUnreachable => unreachable(Unreachable::Network),
                Refusal::Prohibited => unreachable(Unreachable::Prohibited),
                Refusal::TimedOut => {}
            }
        }
        self.stats.refused += 1;
        self.remove(slot, |flow| FlowEvent::Closed { flow });
    }

    /// Bytes that can be read.
    pub fn readable(&self, flow: FlowId) -> usize {
        self.connection(flow)
            .map_or_else(|| self.inner(flow).map_or(0, Inner::readable), Connection::readable)
    }

    /// Appends at most `max` bytes of the application to `into`.
    pub fn read(&mut self, flow: FlowId, max: usize, into: &mut BytesMut) -> Read {
        let Some((slot, connection)) = self.connection_mut(flow) else {
            return self.read_inner(flow, max, into);
        };
        let read = connection.read(max, into);
        self.touch(slot);
        read
    }

    /// Bytes that can be written.
    pub fn writable(&self, flow: FlowId) -> usize {
        self.connection(flow)
            .map_or_else(|| self.inner(flow).map_or(0, Inner::writable), Connection::writable)
    }

    /// Queues bytes for the application; returns how many there was room for.
    pub fn write(&mut self, flow: FlowId, bytes: &[u8]) -> usize {
        let Some((slot, connection)) = self.connection_mut(flow) else {
            return self.inner_mut(flow).map_or(0, |inner| inner.write(bytes));
        };
        let written = connection.write(bytes);
        self.touch(slot);
        written
    }

    /// Ends our direction after what is queued. Reading goes on.
    pub fn finish(&mut self, flow: FlowId) {
        if let Some((slot, connection)) = self.connection_mut(flow) {
            connection.finish();
            self.touch(slot);
        } else {
            self.finish_inner(flow);
        }
    }

    /// Resets the flow. Its `Closed` follows with the next flush.
    pub fn abort(&mut self, flow: FlowId) {
        if let Some((slot, device, syn)) = self.held(flow) {
            if let Ok(segment) = Segment::parse(&syn) {
                self.reply_reset(device, &segment);
            }
            self.stats.refused += 1;
            return self.remove(slot, |flow| FlowEvent::Closed { flow });
        }
        let Some((slot, connection)) = self.connection_mut(flow) else {
            return self.reset_inner(flow);
        };
        if !connection.is_aborted() {
            connection.abort();
            self.stats.aborted += 1;
            self.touch(slot);
        }
    }

    /// Resets every flow.
    pub fn abort_all(&mut self) {
        self.abort_where(|_| true);
    }

    /// Resets every flow of one device.
    pub fn abort_device(&mut self, device: DeviceId) {
        self.abort_where(|entry| entry.key.device == device);
    }

    /// The next event, oldest first.
    pub fn poll_event(&mut self) -> Option<FlowEvent> {
        let event = self.events.pop_front()?;
        match event {
            FlowEvent::Readable { flow } => {
                if let Some(entry) = self.table.flow_mut(flow) {
                    entry.readable_told = false;
                }
            }
            FlowEvent::Writable { flow } => {
                if let Some(entry) = self.table.flow_mut(flow) {
                    entry.writable_told = false;
                }
            }
            FlowEvent::Open { .. } | FlowEvent::Reset { .. } | FlowEvent::Closed { .. } => {}
        }
        Some(event)
    }

    /// Marks the flows whose time has come; the next flush serves them.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, flow)) = self.timers.pop(now) {
            let Some(slot) = self.table.slot(flow) else { continue };
            let Some(entry) = self.table.at(slot) else { continue };
            if self.timers.fire(flow, &mut entry.deadline, at, now) {
                self.touch(slot);
            }
        }
    }

    /// When [`Self::handle_timeout`] is due. May be earlier than necessary.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Sends everything that is due: replies, then the packets of every flow
    /// that changed since the last flush.
    pub fn flush(&mut self, now: Instant, sink: &mut dyn PacketSink) {
        self.stats.dropped.replies = self.replies.dropped;
        self.replies.drain_to(sink);
        let mut dirty = std::mem::take(&mut self.dirty);
        for slot in dirty.drain(..) {
            self.settle(slot, now, sink);
        }
        // Settling may have marked flows anew; otherwise keep the allocation.
        if self.dirty.is_empty() {
            self.dirty = dirty;
        }
        self.replies.drain_to(sink);
    }

    /// One flow, if it is known.
    pub fn flow(&self, flow: FlowId) -> Option<FlowView> {
        self.table.flow(flow).map(Entry::view)
    }

    /// Every flow, in no particular but a stable order.
    pub fn flows(&self) -> impl Iterator<Item = FlowView> {
        self.table.iter().map(Entry::view)
    }

    /// The number of flows, pending ones included.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// The number of flows of one device, pending ones included.
    pub fn count(&self, device: DeviceId) -> usize {
        self.table.count(device)
    }

    /// What was counted.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    fn receive_stranger(&mut self, key: Key, segment: &Segment<'_>) {
        if segment.resets() {
            self.stats.dropped.stray_reset += 1;
        } else if !segment.opens() {
            self.stats.strays_reset += 1;
            self.reply_reset(key.device, segment);
        } else if let Err(reason) = segment.check_options() {
            self.stats.dropped.count(reason);
        } else if self.pending >= self.config.pending_limit {
            self.stats.dropped.pending_full += 1;
        } else if self.table.len() >= self.config.flow_limit {
            self.stats.dropped.flows_full += 1;
        } else if let Some(full) = self.shares.check(key.device, &self.table, &self.config) {
            match full {
                Full::Held => self.stats.dropped.pending_full += 1,
                Full::Flows => self.stats.dropped.flows_full += 1,
            }
        } else {
            self.last = FlowId(self.last.0 + 1);
            self.table.insert(Entry::new(self.last, key, Stage::Held(segment.headers())));
            self.pending += 1;
            self.stats.opened += 1;
            self.events.push_back(FlowEvent::Open {
                flow: self.last,
                device: key.device,
                source: segment.source(),
                destination: segment.destination(),
            });
        }
    }

    fn receive_while_held(&mut self, slot: usize, segment: &Segment<'_>) {
        let Some(Entry { stage: Stage::Held(syn), .. }) = self.table.at(slot) else { return };
        let isn = Segment::parse(syn).map_or(0, |syn| syn.sequence());
        if segment.resets() {
            if segment.sequence().wrapping_sub(isn) <= 1 {
                self.stats.reset_by_application += 1;
                self.remove(slot, |flow| FlowEvent::Reset { flow });
            } else {
                self.stats.dropped.stray_reset += 1;
            }
        } else if segment.opens() {
            // A new socket may have taken the port of one that gave up: the
            // answer must fit the latest SYN.
            if segment.sequence() != isn && segment.check_options().is_ok() {
                *syn = segment.headers();
            }
            self.stats.dropped.duplicate_syn += 1;
        } else {
            self.stats.dropped.premature += 1;
        }
    }

    fn receive(&mut self, slot: usize, segment: &Segment<'_>, now: Instant) {
        let Some(Entry { stage: Stage::Open(connection), .. }) = self.table.at(slot) else {
            return;
        };
        let mut stack = Stack { interface: &mut self.interface, tick: tick(self.epoch, now) };
        match connection.receive(segment, &mut stack, &mut self.replies) {
            Ok(Change { reset: true, .. }) => {
                self.stats.reset_by_application += 1;
                self.remove(slot, |flow| FlowEvent::Reset { flow });
            }
            Ok(change) => {
                self.stats.dropped.excess += u64::from(change.excess);
                self.announce(slot, change);
                self.touch(slot);
            }
            Err(_) => self.lose_to_panic(slot),
        }
    }

    fn announce(&mut self, slot: usize, change: Change) {
        let Some(entry) = self.table.at(slot) else { return };
        let flow = entry.id;
        if change.readable && !std::mem::replace(&mut entry.readable_told, true) {
            self.events.push_back(FlowEvent::Readable { flow });
        }
        if change.writable && !std::mem::replace(&mut entry.writable_told, true) {
            self.events.push_back(FlowEvent::Writable { flow });
        }
    }

    /// Sends what one flow has to send, and finds out what it waits for.
    fn settle(&mut self, slot: usize, now: Instant, sink: &mut dyn PacketSink) {
        let Some(entry) = self.table.at(slot) else { return };
        if !std::mem::replace(&mut entry.dirty, false) {
            return;
        }
        let Stage::Open(connection) = &mut entry.stage else { return };
        let expired = connection.handshake_limit().is_some_and(|limit| limit <= now);
        if expired {
            self.stats.handshakes_expired += 1;
            connection.abort();
        }
        let mut stack = Stack { interface: &mut self.interface, tick: tick(self.epoch, now) };
        let Ok(more) = connection.emit(&mut stack, sink) else {
            return self.lose_to_panic(slot);
        };
        if expired {
            return self.lose(slot);
        }
        if connection.is_done() {
            self.stats.closed += u64::from(!connection.is_aborted());
            return self.remove(slot, |flow| FlowEvent::Closed { flow });
        }
        let Ok(retransmit) = connection.poll_at(&mut stack) else {
            return self.lose_to_panic(slot);
        };
        // What is due and was not sent just now cannot be sent yet.
        let retransmit = retransmit
            .map(|at| instant(self.epoch, at))
            .map(|at| if at <= now { now + STALL } else { at });
        let (remind_at, reminder) = connection.forgotten(retransmit, now);
        if let Some(reminder) = reminder {
            let (from, to) = (entry.key.destination.into(), entry.key.source.into());
            let packet = match reminder {
                Reminder::Fin(numbers, window) => compose_fin(from, to, numbers, window),
                Reminder::Window(numbers, window) => compose_ack(from, to, numbers, window),
            };
            self.replies.push(entry.key.device, packet);
        }
        let mut trim = connection.trim_at(now);
        if trim.is_some_and(|at| at <= now) {
            connection.trimmed();
            self.buffers.trim(connection.lease);
            trim = None;
        }
        let due = [retransmit, connection.handshake_limit(), remind_at, trim, more.then_some(now)];
        self.timers.set(entry.id, &mut entry.deadline, due.into_iter().flatten().min());
    }

    fn terminate(
        &mut self,
        device: DeviceId,
        syn: &Segment<'_>,
        now: Instant,
    ) -> Option<Connection> {
        let Some((id, receive, send)) = self.buffers.lease(self.config.buffer) else {
            self.stats.without_buffers += 1;
            return None;
        };
        let lease = Lease { id, receive, send };
        let mut stack = Stack { interface: &mut self.interface, tick: tick(self.epoch, now) };
        Connection::open(syn, device, lease, &mut stack, &mut self.replies, now)
            .map_err(|lease| self.buffers.give_back(lease))
            .ok()
    }

    /// The slot, the device and the SYN of a pending flow.
    fn held(&self, flow: FlowId) -> Option<(usize, DeviceId, Box<[u8]>)> {
        let entry = self.table.flow(flow)?;
        match &entry.stage {
            Stage::Held(syn) => Some((self.table.slot(flow)?, entry.key.device, syn.clone())),
            Stage::Open(_) | Stage::Inner(_) => None,
        }
    }

    fn connection(&self, flow: FlowId) -> Option<&Connection> {
        match &self.table.flow(flow)?.stage {
            Stage::Held(_) | Stage::Inner(_) => None,
            Stage::Open(connection) => Some(connection),
        }
    }

    fn connection_mut(&mut self, flow: FlowId) -> Option<(usize, &mut Connection)> {
        let slot = self.table.slot(flow)?;
        match &mut self.table.at(slot)?.stage {
            Stage::Held(_) | Stage::Inner(_) => None,
            Stage::Open(connection) => Some((slot, connection)),
        }
    }

    fn touch(&mut self, slot: usize) {
        if let Some(entry) = self.table.at(slot)
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push(slot);
        }
    }

    fn abort_where(&mut self, condition: impl Fn(&Entry) -> bool) {
        let flows: Vec<FlowId> =
            self.table.iter().filter(|entry| condition(entry)).map(|entry| entry.id).collect();
        for flow in flows {
            self.abort(flow);
        }
    }

    fn reply_reset(&mut self, device: DeviceId, segment: &Segment<'_>) {
        if let Some(packet) = segment.reset() {
            self.replies.push(device, packet);
        }
    }

    /// Ends a flow that cannot go on.
    fn lose(&mut self, slot: usize) {
        self.remove(slot, |flow| FlowEvent::Reset { flow });
    }

    /// Ends a flow whose socket can no longer be asked for anything.
    fn lose_to_panic(&mut self, slot: usize) {
        self.stats.panics += 1;
        if let Some(Entry { key, stage: Stage::Open(connection), .. }) = self.table.at(slot) {
            let packet =
                compose_reset(key.destination.into(), key.source.into(), connection.numbers());
            self.replies.push(key.device, packet);
        }
        self.lose(slot);
    }

    fn remove(&mut self, slot: usize, last: impl FnOnce(FlowId) -> FlowEvent) {
        let Some(entry) = self.table.remove(slot) else { return };
        self.events.push_back(last(entry.id));
        match entry.stage {
            Stage::Inner(_) => {}
            Stage::Held(_) => self.pending -= 1,
            Stage::Open(connection) => {
                let lease = connection.lease;
                drop(connection);
                self.buffers.give_back(lease);
            }
        }
    }
}

/// How long to wait for something that is due but could not be sent: a guard
/// against spinning, an order below the shortest retransmission (1 s).
const STALL: Duration = Duration::from_millis(100);

fn interface(seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut Blueprint, FIRST_TICK);
    interface.set_any_ip(true);
    interface
}

fn tick(epoch: Instant, now: Instant) -> Tick {
    let elapsed = now.saturating_duration_since(epoch).as_micros();
    Tick::from_micros(i64::try_from(elapsed).unwrap_or(i64::MAX / 2)) + (FIRST_TICK - Tick::ZERO)
}

fn instant(epoch: Instant, at: Tick) -> Instant {
    epoch + Duration::from(at - FIRST_TICK.min(at))
}
