//! The engine behind our own types, without IO or clock.
//!
//! The owner feeds datagrams and time, takes datagrams to send from
//! [`Endpoint::poll_transmit`] and what happened from [`Endpoint::poll_event`], and calls
//! [`Endpoint::handle_timeout`] when [`Endpoint::poll_timeout`] says so. Connections come, are
//! driven, and go here; what is done with their paths and streams stands in `path` and `stream`, with
//! what need not arrive in `datagram` and `outbox`, and how the engine's events are told in `event`.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use noq_proto::{ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, FourTuple, VarInt};
use tracing::debug;

use outbox::Outbox;
use rebinding::Addresses;

use crate::transport::{self, Identity, IdentityError, Role, Tuning};

mod datagram;
mod event;
mod outbox;
mod path;
mod rebinding;
mod stream;

pub use datagram::NotSent;
pub use event::{Event, Lost};
pub use path::{Frames, OpenPathError, Path, PathView};
pub use stream::{Read, Stream, StreamEnd, Urgency};

/// Names a connection of an [`Endpoint`]. Numbers are used again after [`Event::Lost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(usize);

impl Connection {
    /// None: every call on it finds nothing.
    pub const NONE: Self = Self(usize::MAX);

    /// A dense index, for the owner's own tables.
    pub fn index(self) -> usize {
        self.0
    }

    /// The connection whose [index](Self::index) this is, if there is one.
    pub fn at(index: usize) -> Self {
        Self(index)
    }
}

/// A connection could not even be attempted.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {remote}: {reason}")]
pub struct ConnectFailed {
    remote: SocketAddr,
    reason: String,
}

/// One send call: one datagram, or several of the same size to the same place.
#[derive(Debug, Clone, Copy)]
pub struct Transmit {
    /// Whose datagrams they are; `None` for those of the endpoint itself.
    pub connection: Option<Connection>,
    /// Where to.
    pub destination: SocketAddr,
    /// Which local address to send from; `None` leaves it to the owner.
    pub source: Option<IpAddr>,
    /// Bytes of the caller's buffer that are to be sent.
    pub size: usize,
    /// Size of each datagram when there are several.
    pub segment: Option<usize>,
    /// ECN bits.
    pub ecn: Option<u8>,
}

/// All connections of one process, or of one of its threads.
pub struct Endpoint {
    engine: noq_proto::Endpoint,
    client: Option<noq_proto::ClientConfig>,
    slots: Vec<Option<Slot>>,
    events: VecDeque<(Connection, Event)>,
    /// Connections that may have something to send or to tell.
    dirty: VecDeque<usize>,
    timers: BTreeSet<(Instant, usize)>,
    /// Datagrams of the endpoint itself: version negotiation, retry, stateless reset.
    responses: VecDeque<(noq_proto::Transmit, Vec<u8>)>,
    segments: NonZeroUsize,
    /// See [`Tuning::mtu_limit`].
    mtu_limit: u16,
    /// See [`Tuning::half_open`].
    half_open: usize,
    /// Handshakes under way, by when they must be over.
    handshakes: VecDeque<(Instant, usize)>,
    drained: Vec<usize>,
    /// What connections that are gone moved.
    past: Totals,
    /// Handshakes that had to prove their address first.
    retries: u64,
    /// The engine has asked whether a path's window has room: it has something to send.
    asked: Arc<AtomicBool>,
    /// Handshakes that were not answered, for want of room.
    ignored: u64,
}

/// What all connections moved since the start of the process, in bytes of UDP payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sent.
    pub tx_bytes: u64,
    /// Received.
    pub rx_bytes: u64,
    /// Deemed lost, and sent again where they still mattered.
    pub lost_bytes: u64,
    /// Datagrams that were dropped before they were sent: there was no room for too long.
    pub dropped_datagrams: u64,
}

struct Slot {
    connection: noq_proto::Connection,
    /// When its handshake must be over.
    handshake_by: Instant,
    dirty: bool,
    timer: Option<Instant>,
    connected: bool,
    /// The network a peer came from that is not admitted yet.
    stranger: Option<IpAddr>,
    lost: bool,
    addresses: Addresses,
    /// Datagrams that wait.
    outbox: Outbox,
    /// Since when the engine has datagrams and sends none of them.
    stuck_since: Option<Instant>,
    /// Datagrams that a path with smaller packets has overtaken.
    datagrams_outgrown: u64,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("connections", &self.slots.len()).finish_non_exhaustive()
    }
}

/// A handshake takes a few round trips; one that is still under way after this was never meant to
/// end, or its network is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where there are too many strangers, those of one network that have proved their addresses may be
/// this share of them: sixteen networks of attackers leave room for nobody else, one does.
const NETWORKS: usize = 16;

/// A timer this late means that the process stood still: what it did not live to see counts before
/// what arrives. A packet would let a connection that is long dead go on, and the engine then makes
/// up for every probe it has not sent, which takes it minutes after a night. Less is a busy owner,
/// whose acknowledgements may have arrived in time.
const OVERSLEPT: Duration = Duration::from_secs(10);

impl Endpoint {
    /// An endpoint with this identity.
    ///
    /// # Errors
    /// [`IdentityError`] when the key cannot be used.
    pub fn new(identity: &Identity, tuning: &Tuning) -> Result<Self, IdentityError> {
        let asked = Arc::default();
        let transport = transport::transport(tuning, &identity.role, Arc::clone(&asked));
        let transport = Arc::new(transport);
        let config = Arc::new(transport::endpoint_config(identity, tuning));
        let (client, server) = match identity.role {
            Role::Client { gateway } => {
                (Some(transport::client_config(&identity.key, gateway, transport)?), None)
            }
            Role::Gateway { .. } => {
                (None, Some(Arc::new(transport::server_config(&identity.key, transport)?)))
            }
        };
        Ok(Self {
            engine: noq_proto::Endpoint::new(config, server, true),
            client,
            slots: Vec::new(),
            events: VecDeque::new(),
            dirty: VecDeque::new(),
            timers: BTreeSet::new(),
            responses: VecDeque::new(),
            segments: NonZeroUsize::new(tuning.segments).unwrap_or(NonZeroUsize::MIN),
            mtu_limit: tuning.mtu_limit,
            half_open: tuning.half_open,
            handshakes: VecDeque::new(),
            drained: Vec::new(),
            past: Totals::default(),
            retries: 0,
            asked,
            ignored: 0,
        })
    }

    /// Starts connecting. Only for a client.
    ///
    /// # Errors
    /// [`ConnectFailed`] when the attempt cannot be made.
    pub fn connect(
        &mut self,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<Connection, ConnectFailed> {
        let failed = |reason: String| ConnectFailed { remote, reason };
        let config = self.client.clone().ok_or_else(|| failed("not a client".into()))?;
        let (handle, connection) = self
            .engine
            .connect(now, config, remote, "whimbrel")
            .map_err(|error| failed(error.to_string()))?;
        Ok(self.insert(handle, connection, now))
    }

    /// Changes [`Tuning::half_open`].
    pub fn set_half_open(&mut self, half_open: usize) {
        self.half_open = half_open;
    }

    /// A datagram arrived from `remote` at the local address `local`.
    pub fn handle_datagram(
        &mut self,
        remote: SocketAddr,
        local: Option<IpAddr>,
        ecn: Option<u8>,
        data: BytesMut,
        now: Instant,
    ) {
        if self.timers.first().is_some_and(|(at, _)| now.duration_since(*at) >= OVERSLEPT) {
            self.handle_timeout(now);
        }
        let mut response = Vec::new();
        let ecn = ecn.and_then(EcnCodepoint::from_bits);
        let path = FourTuple::new(remote, local);
        match self.engine.handle(now, path, ecn, data, &mut response) {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(slot) = self.slots.get_mut(handle.0).and_then(Option::as_mut) {
                    slot.connection.handle_event(event);
                    slot.watch_address(remote, now);
                    self.touch(handle.0);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(incoming, now),
            Some(DatagramEvent::Response(transmit)) => {
                self.responses.push_back((transmit, response));
            }
        }
    }

    fn admit(&mut self, incoming: noq_proto::Incoming, now: Instant) {
        let mut response = Vec::new();
        let network = network(incoming.remote_address().ip());
        let (strangers, neighbours) = self.strangers(network);
        let crowded = strangers >= self.half_open;
        let share = self.half_open / NETWORKS;
        if strangers >= 2 * self.half_open
            || (crowded && !incoming.may_retry() && neighbours > share)
        {
            self.ignored += 1;
            // Without a word: whoever means it asks again, and the others are soon gone.
            self.engine.ignore(incoming);
            return;
        }
        if crowded && incoming.may_retry() {
            match self.engine.retry(incoming, &mut response) {
                Ok(transmit) => {
                    self.retries += 1;
                    self.responses.push_back((transmit, response));
                }
                Err(error) => debug!(%error, "cannot ask for a retry"),
            }
            return;
        }
        match self.engine.accept(incoming, now, &mut response, None) {
            Ok((handle, connection)) => {
                let Connection(index) = self.insert(handle, connection, now);
                if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) {
                    slot.stranger = Some(network);
                }
            }
            Err(error) => {
                debug!(error = %error.cause, "refused a handshake");
                if let Some(transmit) = error.response {
                    self.responses.push_back((transmit, response));
                }
            }
        }
    }

    /// Who has come lately and is not admitted yet: how many, and how many of them from `network`.
    fn strangers(&self, network: IpAddr) -> (usize, usize) {
        let recent = self.handshakes.iter().filter_map(|(by, index)| {
            let slot = self.slots.get(*index)?.as_ref()?;
            slot.stranger.filter(|_| slot.handshake_by == *by && !slot.lost)
        });
        recent.fold((0, 0), |(all, own), from| (all + 1, own + usize::from(from == network)))
    }

    fn insert(
        &mut self,
        handle: ConnectionHandle,
        connection: noq_proto::Connection,
        now: Instant,
    ) -> Connection {
        let handshake_by = now + HANDSHAKE;
        self.handshakes.push_back((handshake_by, handle.0));
        if self.slots.len() <= handle.0 {
            self.slots.resize_with(handle.0 + 1, || None);
        }
        // The engine uses a number again as soon as it has drained, which may be before we have.
        self.drained.retain(|drained| *drained != handle.0);
        let mut before = self.slots[handle.0].take();
        self.past += before.as_mut().map(Slot::totals).unwrap_or_default();
        if let Some(at) = before.as_ref().and_then(|before| before.timer) {
            self.timers.remove(&(at, handle.0));
        }
        self.slots[handle.0] = Some(Slot {
            connection,
            handshake_by,
            dirty: before.is_some_and(|before| before.dirty),
            timer: None,
            connected: false,
            stranger: None,
            lost: false,
            addresses: Addresses::default(),
            outbox: Outbox::default(),
            stuck_since: None,
            datagrams_outgrown: 0,
        });
        self.touch(handle.0);
        Connection(handle.0)
    }

    fn touch(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut)
            && !slot.dirty
        {
            slot.dirty = true;
            self.dirty.push_back(index);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let handshake = self.handshakes.front().map(|(by, _)| *by);
        let timer = self.timers.first().map(|(at, _)| *at);
        [handshake, timer].into_iter().flatten().min()
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((by, index)) = self.handshakes.front().copied()
            && by <= now
        {
            self.handshakes.pop_front();
            let slot = self.slots.get(index).and_then(Option::as_ref);
            if slot.is_some_and(|slot| !slot.connected && slot.handshake_by == by) {
                self.close(Connection(index), 0, "the handshake takes too long", now);
            }
        }
        while let Some((at, index)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) {
                slot.timer = None;
                slot.connection.handle_timeout(now);
                self.touch(index);
            }
        }
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<(Connection, Event)> {
        self.events.pop_front()
    }

    /// Lets every connection that was touched react, so that [`poll_event`](Self::poll_event) is
    /// complete.
    pub fn advance(&mut self) {
        for at in 0..self.dirty.len() {
            let index = self.dirty[at];
            self.pump(index);
        }
    }

    /// The next datagrams to send, written to the front of `buffer`, which must be empty.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Transmit> {
        if let Some((transmit, bytes)) = self.responses.pop_front() {
            buffer.extend_from_slice(&bytes);
            return Some(translate(None, &transmit));
        }
        while let Some(index) = self.dirty.front().copied() {
            self.pump(index);
            let (segments, asked) = (self.segments, &self.asked);
            let transmit = self
                .slots
                .get_mut(index)
                .and_then(Option::as_mut)
                .and_then(|slot| slot.poll_transmit(now, segments, asked, buffer));
            if let Some(transmit) = transmit {
                // One send call per turn keeps connections fair to each other.
                self.dirty.rotate_left(1);
                return Some(translate(Some(Connection(index)), &transmit));
            }
            self.dirty.pop_front();
            self.settle(index);
        }
        None
    }

    /// Re-arms the timer of a connection that has nothing more to send, or forgets it.
    fn settle(&mut self, index: usize) {
        self.pump(index);
        if self.drained.contains(&index) {
            self.drained.retain(|drained| *drained != index);
            if let Some(mut slot) = self.slots.get_mut(index).and_then(Option::take) {
                self.past += slot.totals();
                if let Some(at) = slot.timer {
                    self.timers.remove(&(at, index));
                }
            }
            return;
        }
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        slot.dirty = false;
        let due = [slot.connection.poll_timeout(), slot.stuck_until()].into_iter().flatten().min();
        if due != slot.timer {
            if let Some(old) = slot.timer.take() {
                self.timers.remove(&(old, index));
            }
            if let Some(new) = due {
                self.timers.insert((new, index));
            }
            slot.timer = due;
        }
    }

    /// Passes events between engine and connection, and collects those for the owner.
    fn pump(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        let handle = ConnectionHandle(index);
        while let Some(event) = slot.connection.poll_endpoint_events() {
            if event.is_drained() {
                self.drained.push(index);
            }
            if let Some(event) = self.engine.handle_event(handle, event) {
                slot.connection.handle_event(event);
            }
        }
        while let Some(event) = slot.connection.poll() {
            if let Some(event) = slot.translate(event) {
                self.events.push_back((Connection(index), event));
            }
        }
    }

    fn slot(&mut self, connection: Connection) -> Option<&mut Slot> {
        self.touch(connection.0);
        self.slots.get_mut(connection.0).and_then(Option::as_mut)
    }

    /// Closes a connection with an application code. [`Event::Lost`] follows at once.
    pub fn close(&mut self, connection: Connection, code: u64, reason: &'static str, now: Instant) {
        if let Some(slot) = self.slot(connection) {
            slot.connection.close(now, varint(code), Bytes::from_static(reason.as_bytes()));
            if !slot.lost {
                slot.lost = true;
                self.events.push_back((connection, Event::Lost(Lost::Closed)));
            }
        }
    }

    /// What all connections moved so far.
    pub fn totals(&mut self) -> Totals {
        let mut totals = self.past;
        self.slots.iter_mut().flatten().for_each(|slot| totals += slot.totals());
        totals
    }

    /// What [`totals`](Self::totals) says of datagrams that were dropped.
    pub fn dropped_datagrams(&self) -> u64 {
        let living = self.slots.iter().flatten().map(Slot::datagrams_dropped);
        self.past.dropped_datagrams + living.sum::<u64>()
    }

    /// Handshakes that had to prove their address first, see [`Tuning::half_open`].
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Handshakes that were not answered because too many strangers were there already.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Grants an admitted client `streams` concurrent flows and lifts the stranger's limits.
    pub fn grant(&mut self, connection: Connection, streams: u64) {
        if let Some(slot) = self.slot(connection) {
            slot.stranger = None;
            slot.connection.set_receive_window(transport::CLIENT_WINDOW.into());
            slot.connection.set_max_concurrent_streams(Dir::Bi, varint(streams));
        }
    }
}

impl Slot {
    fn totals(&mut self) -> Totals {
        let stats = self.connection.stats();
        Totals {
            tx_bytes: stats.udp_tx.bytes,
            rx_bytes: stats.udp_rx.bytes,
            lost_bytes: stats.lost_bytes,
            dropped_datagrams: self.datagrams_dropped(),
        }
    }

    /// What the engine sends next. Datagrams that wait take turns with the streams: where it is the
    /// streams' turn, the engine has no datagrams, and whether it asks for room tells if there is
    /// anything else to send.
    fn poll_transmit(
        &mut self,
        now: Instant,
        segments: NonZeroUsize,
        asked: &AtomicBool,
        buffer: &mut Vec<u8>,
    ) -> Option<noq_proto::Transmit> {
        if self.outbox.is_empty() && self.stuck_since.is_none() {
            return self.poll_engine(now, segments, buffer);
        }
        loop {
            let held = self.outbox.is_held() && self.datagrams_handed() == 0;
            self.hand_on(now);
            asked.store(false, Ordering::Relaxed);
            if let Some(transmit) = self.poll_engine(now, segments, buffer) {
                return Some(transmit);
            }
            if !held || asked.load(Ordering::Relaxed) {
                self.outbox.note_blocked();
                return None;
            }
            self.outbox.note_idle_streams();
        }
    }

    fn poll_engine(
        &mut self,
        now: Instant,
        segments: NonZeroUsize,
        buffer: &mut Vec<u8>,
    ) -> Option<noq_proto::Transmit> {
        let before = self.datagrams_handed();
        let transmit = self.connection.poll_transmit(now, segments, buffer);
        let left = before.saturating_sub(self.datagrams_handed());
        self.note_sent(left, transmit.as_ref().map_or(0, |transmit| transmit.size), now);
        transmit
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.tx_bytes += other.tx_bytes;
        self.rx_bytes += other.rx_bytes;
        self.lost_bytes += other.lost_bytes;
        self.dropped_datagrams += other.dropped_datagrams;
    }
}

/// What one owner of addresses has as a rule: an IPv4 address, or 64 bits of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

fn translate(connection: Option<Connection>, transmit: &noq_proto::Transmit) -> Transmit {
    Transmit {
        connection,
        destination: transmit.destination,
        source: transmit.src_ip,
        size: transmit.size,
        segment: transmit.segment_size,
        ecn: transmit.ecn.map(|ecn| ecn as u8),
    }
}

fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}
