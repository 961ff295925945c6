//! The engine behind our own types, without IO or clock.
//!
//! The owner feeds datagrams and time, takes datagrams to send from
//! [`Endpoint::poll_transmit`] and what happened from [`Endpoint::poll_event`], and calls
//! [`Endpoint::handle_timeout`] when [`Endpoint::poll_timeout`] says so.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use noq_proto::{
    ApplicationClose, ConnectionError, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint,
    FinishError, FourTuple, PathError, PathEvent, PathId, PathStatus, ReadError, Side, StreamEvent,
    StreamId, VarInt, WriteError,
};
use rustls::pki_types::CertificateDer;
use tracing::debug;
use whimbrel_common::identity::PublicKey;

use crate::observed::{Observed, Progress};
use crate::transport::{self, Identity, IdentityError, Role, Tuning};

/// Names a connection of an [`Endpoint`]. Numbers are used again after [`Event::Lost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(usize);

impl Connection {
    /// A dense index, for the owner's own tables.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Names a bidirectional stream of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream(u64);

impl Stream {
    /// The client's first stream, which carries control frames.
    pub const CONTROL: Self = Self(0);

    /// The number of the stream among those its initiator opened.
    pub fn index(self) -> u64 {
        self.0
    }

    fn id(self) -> StreamId {
        StreamId::new(Side::Client, Dir::Bi, self.0)
    }
}

/// Names a path of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub u32);

impl Path {
    /// The path of the handshake.
    pub const FIRST: Self = Self(0);

    fn id(self) -> PathId {
        PathId::from(self.0)
    }

    fn from_id(id: PathId) -> Self {
        // The engine keeps the number to itself and only displays it.
        Self(id.to_string().parse().unwrap_or(u32::MAX))
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What happened on a connection.
#[derive(Debug)]
pub enum Event {
    /// The peer proved this key.
    Connected {
        /// The peer's key.
        key: PublicKey,
        /// Its address.
        remote: SocketAddr,
    },
    /// The connection is over; its number may be used again.
    Lost(Lost),
    /// The peer opened streams: [`Endpoint::accept`] yields them.
    Opened,
    /// More streams may be opened.
    StreamsAvailable,
    /// A stream may have bytes, its end, or a reset.
    Readable(Stream),
    /// A stream that was blocked may take bytes.
    Writable(Stream),
    /// The peer stopped reading a stream.
    Stopped(Stream, u64),
    /// A path was validated and may carry data.
    PathOpened(Path),
    /// A path is gone, or never came to be.
    PathClosed(Path),
    /// The peer wants a path to carry data, or to be kept as backup.
    PathStatus {
        /// The path.
        path: Path,
        /// Whether it should carry data.
        carry: bool,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The peer closed it with this application code.
    ClosedByPeer(u64),
    /// The peer does not know the connection any more: it was restarted.
    Reset,
    /// Nothing arrived for too long.
    TimedOut,
    /// This end closed it.
    Closed,
    /// The peer's key is not the one expected, or it refused ours.
    Authentication(String),
    /// The peer is not speaking our protocol.
    NotOurs(String),
    /// Anything else, in the engine's words.
    Failed(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClosedByPeer(code) => write!(f, "closed by the peer (code {code})"),
            Self::Reset => f.write_str("the peer was restarted"),
            Self::TimedOut => f.write_str("no answer"),
            Self::Closed => f.write_str("closed"),
            Self::Authentication(what) => write!(f, "wrong key: {what}"),
            Self::NotOurs(what) => write!(f, "not a Whimbrel peer: {what}"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

/// A connection could not even be attempted.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {remote}: {reason}")]
pub struct ConnectFailed {
    remote: SocketAddr,
    reason: String,
}

/// A path cannot be opened now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenPathError {
    /// The peer has not granted another path yet; it does so after older ones are gone.
    #[error("the peer grants no further path yet")]
    NotYet,
    /// The connection cannot have more than one path.
    #[error("{0}")]
    Impossible(String),
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes, in order.
    Data(Bytes),
    /// Nothing yet.
    Blocked,
    /// The end of the stream. The stream's receiving half is gone.
    End,
    /// The peer reset the stream with this code, or it is gone.
    Reset(u64),
}

/// Why a write or finish was not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer stopped reading with this code.
    Stopped(u64),
    /// The stream is gone.
    Gone,
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

/// What is known of a path.
#[derive(Debug, Clone, Copy)]
pub struct PathView {
    /// The engine's round trip estimate.
    pub rtt: Duration,
    /// Congestion window, in bytes.
    pub cwnd: u64,
    /// Largest UDP payload, in bytes.
    pub mtu: u16,
    /// UDP payload sent, in bytes.
    pub tx_bytes: u64,
    /// UDP payload received, in bytes.
    pub rx_bytes: u64,
    /// UDP payload deemed lost, in bytes.
    pub lost_bytes: u64,
    /// The peer's address.
    pub remote: SocketAddr,
    /// The local address it was last seen on.
    pub local: Option<IpAddr>,
    /// What its acknowledgements show.
    pub progress: Option<Progress>,
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
    /// See [`Tuning::half_open`].
    half_open: usize,
    /// Handshakes under way, by when they must be over.
    handshakes: VecDeque<(Instant, usize)>,
    drained: Vec<usize>,
}

struct Slot {
    connection: noq_proto::Connection,
    /// When its handshake must be over.
    handshake_by: Instant,
    dirty: bool,
    timer: Option<Instant>,
    connected: bool,
    lost: bool,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("connections", &self.slots.len()).finish_non_exhaustive()
    }
}

/// A handshake takes a few round trips; one that is still under way after this was never meant to
/// end, or its network is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);

impl Endpoint {
    /// An endpoint with this identity.
    ///
    /// # Errors
    /// [`IdentityError`] when the key cannot be used.
    pub fn new(identity: &Identity, tuning: &Tuning) -> Result<Self, IdentityError> {
        let transport = Arc::new(transport::transport(tuning, &identity.role));
        let config = Arc::new(transport::endpoint_config(identity));
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
            half_open: tuning.half_open,
            handshakes: VecDeque::new(),
            drained: Vec::new(),
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

    /// A datagram arrived from `remote` at the local address `local`.
    pub fn handle_datagram(
        &mut self,
        remote: SocketAddr,
        local: Option<IpAddr>,
        ecn: Option<u8>,
        data: BytesMut,
        now: Instant,
    ) {
        let mut response = Vec::new();
        let ecn = ecn.and_then(EcnCodepoint::from_bits);
        let path = FourTuple::new(remote, local);
        match self.engine.handle(now, path, ecn, data, &mut response) {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(slot) = self.slots.get_mut(handle.0).and_then(Option::as_mut) {
                    slot.connection.handle_event(event);
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
        let half_open =
            self.slots.iter().flatten().filter(|slot| !slot.connected && !slot.lost).count();
        if half_open >= self.half_open && incoming.may_retry() {
            match self.engine.retry(incoming, &mut response) {
                Ok(transmit) => self.responses.push_back((transmit, response)),
                Err(error) => debug!(%error, "cannot ask for a retry"),
            }
            return;
        }
        match self.engine.accept(incoming, now, &mut response, None) {
            Ok((handle, connection)) => {
                self.insert(handle, connection, now);
            }
            Err(error) => {
                debug!(error = %error.cause, "refused a handshake");
                if let Some(transmit) = error.response {
                    self.responses.push_back((transmit, response));
                }
            }
        }
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
        self.slots[handle.0] = Some(Slot {
            connection,
            handshake_by,
            dirty: false,
            timer: None,
            connected: false,
            lost: false,
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
            let segments = self.segments;
            let transmit = self
                .slots
                .get_mut(index)
                .and_then(Option::as_mut)
                .and_then(|slot| slot.connection.poll_transmit(now, segments, buffer));
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
            if let Some(slot) = self.slots.get_mut(index).and_then(Option::take)
                && let Some(at) = slot.timer
            {
                self.timers.remove(&(at, index));
            }
            return;
        }
        let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        slot.dirty = false;
        let due = slot.connection.poll_timeout();
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

    /// Grants an admitted client `streams` concurrent flows and lifts the stranger's limits.
    pub fn grant(&mut self, connection: Connection, streams: u64) {
        if let Some(slot) = self.slot(connection) {
            slot.connection.set_receive_window(transport::CLIENT_WINDOW.into());
            slot.connection.set_max_concurrent_streams(Dir::Bi, varint(streams));
        }
    }

    /// Opens a stream; `None` when the peer's limit is reached.
    pub fn open(&mut self, connection: Connection) -> Option<Stream> {
        self.slot(connection)?.connection.streams().open(Dir::Bi).map(|id| Stream(id.index()))
    }

    /// The next stream the peer opened.
    pub fn accept(&mut self, connection: Connection) -> Option<Stream> {
        self.slot(connection)?.connection.streams().accept(Dir::Bi).map(|id| Stream(id.index()))
    }

    /// Reads at most `max` bytes.
    pub fn read(&mut self, connection: Connection, stream: Stream, max: usize) -> Read {
        let Some(slot) = self.slot(connection) else { return Read::Reset(0) };
        let mut stream = slot.connection.recv_stream(stream.id());
        let Ok(mut chunks) = stream.read(true) else { return Read::Reset(0) };
        let read = match chunks.next(max) {
            Ok(Some(chunk)) => Read::Data(chunk.bytes),
            Ok(None) => Read::End,
            Err(ReadError::Blocked) => Read::Blocked,
            Err(ReadError::Reset(code)) => Read::Reset(code.into_inner()),
        };
        let _transmitted_anyway = chunks.finalize();
        read
    }

    /// Writes as much of `chunk` as the stream takes; zero means that it is blocked and
    /// [`Event::Writable`] will follow.
    ///
    /// # Errors
    /// [`StreamEnd`] when the stream takes nothing any more.
    pub fn write(
        &mut self,
        connection: Connection,
        stream: Stream,
        chunk: Bytes,
    ) -> Result<usize, StreamEnd> {
        let slot = self.slot(connection).ok_or(StreamEnd::Gone)?;
        match slot.connection.send_stream(stream.id()).write_chunks(&mut &mut [chunk][..]) {
            Ok(count) => Ok(count),
            Err(WriteError::Blocked) => Ok(0),
            Err(WriteError::Stopped(code)) => Err(StreamEnd::Stopped(code.into_inner())),
            Err(WriteError::ClosedStream) => Err(StreamEnd::Gone),
        }
    }

    /// Ends the sending half of a stream after what was written.
    ///
    /// # Errors
    /// [`StreamEnd`] when the stream takes nothing any more.
    pub fn finish(&mut self, connection: Connection, stream: Stream) -> Result<(), StreamEnd> {
        let slot = self.slot(connection).ok_or(StreamEnd::Gone)?;
        match slot.connection.send_stream(stream.id()).finish() {
            Ok(()) => Ok(()),
            Err(FinishError::Stopped(code)) => Err(StreamEnd::Stopped(code.into_inner())),
            Err(FinishError::ClosedStream) => Err(StreamEnd::Gone),
        }
    }

    /// Abandons both halves of a stream.
    pub fn abort(&mut self, connection: Connection, stream: Stream, code: u64) {
        if let Some(slot) = self.slot(connection) {
            // Either half may be gone already, which is what was asked for.
            let _ = slot.connection.send_stream(stream.id()).reset(varint(code));
            let _ = slot.connection.recv_stream(stream.id()).stop(varint(code));
        }
    }

    /// Opens a path to `remote` from `local`, kept as backup until told to carry.
    /// [`Event::PathOpened`] or [`Event::PathClosed`] follows.
    ///
    /// # Errors
    /// [`OpenPathError`] when no path can be opened now.
    pub fn open_path(
        &mut self,
        connection: Connection,
        remote: SocketAddr,
        local: IpAddr,
        now: Instant,
    ) -> Result<Path, OpenPathError> {
        let slot = self.slot(connection).ok_or_else(lost_connection)?;
        let path = FourTuple::new(remote, Some(local));
        // The engine announces only changes of status: a path opened as backup would count as
        // available at the peer.
        let opened = slot.connection.open_path(path, PathStatus::Available, now);
        let id = opened.map_err(|error| {
            if matches!(error, PathError::MaxPathIdReached | PathError::RemoteCidsExhausted) {
                OpenPathError::NotYet
            } else {
                OpenPathError::Impossible(error.to_string())
            }
        })?;
        let _ = slot.connection.set_path_status(id, PathStatus::Backup);
        Ok(Path::from_id(id))
    }

    /// Makes `path` carry the data and every other path a backup.
    pub fn carry(&mut self, connection: Connection, path: Path) {
        let Some(slot) = self.slot(connection) else { return };
        // The new one first: without any available path all backups would carry.
        let before = slot.connection.set_path_status(path.id(), PathStatus::Available);
        if matches!(before, Ok(PathStatus::Backup))
            && let Some(controller) = slot.connection.congestion_state(path.id())
        {
            Observed::restart(controller);
        }
        for other in slot.connection.paths() {
            if other != path.id() {
                let _ = slot.connection.set_path_status(other, PathStatus::Backup);
            }
        }
    }

    /// Keeps `path` as a backup.
    pub fn back_up(&mut self, connection: Connection, path: Path) {
        if let Some(slot) = self.slot(connection) {
            let _ = slot.connection.set_path_status(path.id(), PathStatus::Backup);
        }
    }

    /// Sends something on `path` that the peer must acknowledge.
    pub fn ping(&mut self, connection: Connection, path: Path) {
        if let Some(slot) = self.slot(connection) {
            if let Some(controller) = slot.connection.congestion_state(path.id()) {
                Observed::admit_probe(controller);
            }
            let _ = slot.connection.ping_path(path.id());
        }
    }

    /// Closes a path. The last one is never closed.
    pub fn close_path(&mut self, connection: Connection, path: Path, now: Instant) {
        if let Some(slot) = self.slot(connection)
            && let Err(error) = slot.connection.close_path(now, path.id(), VarInt::from_u32(0))
        {
            debug!(%path, %error, "path stays");
        }
    }

    /// The paths of a connection, those being closed included.
    pub fn paths(&self, connection: Connection) -> Vec<Path> {
        self.slots
            .get(connection.0)
            .and_then(Option::as_ref)
            .map(|slot| slot.connection.paths().into_iter().map(Path::from_id).collect())
            .unwrap_or_default()
    }

    /// What is known of a path.
    pub fn path(&mut self, connection: Connection, path: Path) -> Option<PathView> {
        let slot = self.slots.get_mut(connection.0)?.as_mut()?;
        let stats = slot.connection.path_stats(path.id())?;
        let addresses = slot.connection.network_path(path.id()).ok()?;
        Some(PathView {
            rtt: stats.rtt,
            cwnd: stats.cwnd,
            mtu: stats.current_mtu,
            tx_bytes: stats.udp_tx.bytes,
            rx_bytes: stats.udp_rx.bytes,
            lost_bytes: stats.lost_bytes,
            remote: addresses.remote(),
            local: addresses.local_ip(),
            progress: slot.progress(path),
        })
    }

    /// The peer's address on a path.
    pub fn remote(&self, connection: Connection, path: Path) -> Option<SocketAddr> {
        let slot = self.slots.get(connection.0)?.as_ref()?;
        slot.connection.network_path(path.id()).ok().map(|path| path.remote())
    }

    /// The local address the engine uses for a path, once it knows one.
    pub fn local(&self, connection: Connection, path: Path) -> Option<IpAddr> {
        let slot = self.slots.get(connection.0)?.as_ref()?;
        slot.connection.network_path(path.id()).ok().and_then(|path| path.local_ip())
    }

    /// How many frames that show life were received on a path. Unlike bytes they were authenticated:
    /// anybody can send bytes, and a restarted peer answers with packets that mean nothing here.
    pub fn heard(&mut self, connection: Connection, path: Path) -> Option<u64> {
        let slot = self.slots.get_mut(connection.0)?.as_mut()?;
        let frames = slot.connection.path_stats(path.id())?.frame_rx;
        Some(
            frames.ping
                + frames.path_acks
                + frames.stream
                + frames.path_challenge
                + frames.path_response
                + frames.path_status_available
                + frames.path_status_backup,
        )
    }

    /// What the acknowledgements of a path show.
    pub fn progress(&self, connection: Connection, path: Path) -> Option<Progress> {
        self.slots.get(connection.0)?.as_ref()?.progress(path)
    }
}

impl Slot {
    fn progress(&self, path: Path) -> Option<Progress> {
        self.connection.congestion_state(path.id()).and_then(Observed::progress_of)
    }

    fn translate(&mut self, event: noq_proto::Event) -> Option<Event> {
        match event {
            noq_proto::Event::Connected => {
                self.connected = true;
                let key = self.peer_key()?;
                let path = self.connection.network_path(PathId::ZERO).ok()?;
                Some(Event::Connected { key, remote: path.remote() })
            }
            noq_proto::Event::ConnectionLost { reason } => {
                let first = !std::mem::replace(&mut self.lost, true);
                first.then(|| Event::Lost(lost(&reason)))
            }
            noq_proto::Event::Stream(event) => translate_stream(&event),
            noq_proto::Event::Path(event) => translate_path(event),
            noq_proto::Event::HandshakeDataReady
            | noq_proto::Event::HandshakeConfirmed
            | noq_proto::Event::DatagramReceived
            | noq_proto::Event::DatagramsUnblocked
            | noq_proto::Event::NatTraversal(_) => None,
        }
    }

    fn peer_key(&self) -> Option<PublicKey> {
        let identity = self.connection.crypto_session().peer_identity()?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        PublicKey::from_spki(chain.first()?)
    }
}

fn translate_stream(event: &StreamEvent) -> Option<Event> {
    match event {
        StreamEvent::Opened { dir: Dir::Bi } => Some(Event::Opened),
        StreamEvent::Available { dir: Dir::Bi } => Some(Event::StreamsAvailable),
        StreamEvent::Readable { id } => Some(Event::Readable(Stream(id.index()))),
        StreamEvent::Writable { id } => Some(Event::Writable(Stream(id.index()))),
        StreamEvent::Stopped { id, error_code } => {
            Some(Event::Stopped(Stream(id.index()), error_code.into_inner()))
        }
        StreamEvent::Opened { dir: Dir::Uni }
        | StreamEvent::Available { dir: Dir::Uni }
        | StreamEvent::Finished { .. } => None,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the engine may gain events")]
fn translate_path(event: PathEvent) -> Option<Event> {
    match event {
        PathEvent::Established { id, .. } => Some(Event::PathOpened(Path::from_id(id))),
        PathEvent::Abandoned { id, .. } => Some(Event::PathClosed(Path::from_id(id))),
        PathEvent::RemoteStatus { id, status, .. } => Some(Event::PathStatus {
            path: Path::from_id(id),
            carry: status == PathStatus::Available,
        }),
        _ => None,
    }
}

fn lost(reason: &ConnectionError) -> Lost {
    match reason {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            Lost::ClosedByPeer(error_code.into_inner())
        }
        ConnectionError::Reset => Lost::Reset,
        ConnectionError::TimedOut => Lost::TimedOut,
        ConnectionError::LocallyClosed => Lost::Closed,
        ConnectionError::TransportError(error) => tls_failure(&error.to_string()),
        ConnectionError::ConnectionClosed(close) => tls_failure(&close.to_string()),
        ConnectionError::VersionMismatch => {
            Lost::NotOurs("it speaks another version of QUIC".into())
        }
        ConnectionError::CidsExhausted => Lost::Failed(reason.to_string()),
    }
}

/// A failed handshake ends in a TLS alert, which the engine tells in words only: RFC 8446 §6.
fn tls_failure(text: &str) -> Lost {
    let lower = text.to_lowercase();
    if ["certificate", "application verification", "access denied", "decrypt"]
        .iter()
        .any(|word| lower.contains(word))
    {
        Lost::Authentication(text.to_owned())
    } else if lower.contains("application protocol") || lower.contains("alpn") {
        Lost::NotOurs(text.to_owned())
    } else {
        Lost::Failed(text.to_owned())
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

fn lost_connection() -> OpenPathError {
    OpenPathError::Impossible("the connection is gone".into())
}

fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}
