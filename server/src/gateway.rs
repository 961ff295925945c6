//! What a slot of the gateway has: clients, their flows and the sockets of their destinations.
//!
//! Everything belongs to one [`Gateway`]. Its owner feeds datagrams, socket news and the time, and
//! takes datagrams to send and news for the head; nothing here waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use bytes::BytesMut;
use tracing::{debug, info, warn};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Path, Pipe, Role, Stream, Transmit,
    Tuning,
};
use whimbrel_common::cid::ServerId;
use whimbrel_common::config::{GatewayConfig, Limits};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::invite::Token;
use whimbrel_common::path::{Input, PathKey, PreferredBy};
use whimbrel_common::wire::{Control, Denial, StreamCode, VERSION};
use whimbrel_gateway_core::associations::OutletNumber;
use whimbrel_gateway_core::directory::SlotNumber;
use whimbrel_gateway_core::egress::Policy;
use whimbrel_gateway_core::memory::Memory;
use whimbrel_gateway_core::resolvers::Resolvers;
use whimbrel_gateway_core::throttled::Throttled;
use whimbrel_gateway_core::turns::Turns;

use crate::dial::{Dialler, Ready};
use crate::flow::{End, Flow};
use crate::keep::Keep;
use crate::machine;
use crate::metrics::Figures;
use crate::outlet::{Outlet, PortChoice, echo};
use crate::peer::{ADMISSION_BYTES, Peer, Use};
use crate::sessions::Parked;
use crate::status::Datagrams;
use crate::talk::{Attach, Caller, News};
use crate::usage::SharedUsage;

mod attach;
mod cooling;
mod echoes;
mod flows;
mod parcels;
mod ports;
mod report;
mod tend;

use parcels::OUTLETS;

use cooling::Cooling;

/// One read from a destination, in bytes. Bytes are copied out of it at their exact size.
const SCRATCH: usize = 128 * 1024;

/// Counters since the start of the process.
#[derive(Debug, Default, Clone, Copy)]
struct Stats {
    /// Dials the destination answered.
    pub(crate) connected: u64,
    /// Dials that failed.
    pub(crate) failed: u64,
    /// Dials the policy forbids.
    pub(crate) denied: u64,
    /// Dials beyond a client's limits.
    pub(crate) limited: u64,
    /// Sessions given up because their client parked too many, or memory was short.
    pub(crate) evicted: u64,
    /// Flows of a process before.
    pub(crate) restored: u64,
    /// Flows for which there was no room to outlive this process.
    pub(crate) unkept: u64,
    /// Sessions that came from other slots.
    pub(crate) moved_in: u64,
    /// Times a client came from another address or by another path.
    pub(crate) readdressed: u64,
    /// Bytes to destinations.
    pub(crate) up_bytes: u64,
    /// Bytes from destinations.
    pub(crate) down_bytes: u64,
}

/// See the [module](self).
pub struct Gateway {
    number: SlotNumber,
    slots: u8,
    endpoint: Endpoint,
    dialler: Dialler,
    policy: Policy,
    usage: SharedUsage,
    limits: Limits,
    peers: BTreeMap<Connection, Peer>,
    parked: Parked,
    memory: Memory,
    /// Flows that found no room for what their destinations say.
    starved: BTreeSet<u64>,
    feed_at: Instant,
    /// Flows that outlive the process and have memory that keeps nothing.
    cooling: Cooling,
    /// What outlives this process, where a service manager keeps it.
    keep: Option<Keep>,
    flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    /// Flows that have something to do.
    turns: Turns<PublicKey>,
    /// Flows that have, but for the bandwidth of their client, and when it has some again.
    throttled: Throttled<u64>,
    /// Ports of the clients' datagrams.
    outlets: BTreeMap<OutletNumber, Outlet>,
    /// Before then none of them is given up.
    outlets_end: Option<Instant>,
    /// When it was told last that there is no port for one.
    portless_at: Option<Instant>,
    port_choice: PortChoice,
    resolvers: Resolvers,
    datagrams: Datagrams,
    /// Dials by the time they are given up.
    dials: VecDeque<(Instant, u64)>,
    news: VecDeque<News>,
    /// How many connections there have been.
    serials: u64,
    scratch: Vec<u8>,
    stats: Stats,
    figures: Figures,
}

impl Gateway {
    /// The gateway of one of `slots` slots. `own` are addresses of this machine, which no client may
    /// reach.
    ///
    /// # Errors
    /// The key cannot be used, or the system has no more descriptors.
    pub fn new(
        (number, slots): (SlotNumber, u8),
        config: &GatewayConfig,
        key: SecretKey,
        own: impl IntoIterator<Item = IpAddr>,
        usage: SharedUsage,
        tuning: Tuning,
        now: Instant,
    ) -> anyhow::Result<Self> {
        let server = ServerId { node: 0, slot: number.0 };
        let port_choice = PortChoice::new(&key);
        let identity = Identity { key, role: Role::Gateway { server } };
        let tuning = Tuning { half_open: half_open(&config.limits, slots), ..tuning };
        let mut policy = Policy::new(&config.egress);
        policy.set_own(own);
        Ok(Self {
            number,
            slots,
            endpoint: Endpoint::new(&identity, &tuning)?,
            dialler: Dialler::new()?,
            policy,
            usage,
            limits: config.limits,
            peers: BTreeMap::new(),
            parked: Parked::default(),
            memory: Memory::new(memory(&config.limits, slots)),
            starved: BTreeSet::new(),
            cooling: Cooling::default(),
            feed_at: now,
            keep: None,
            flows: BTreeMap::new(),
            next_flow: 0,
            turns: Turns::default(),
            throttled: Throttled::new(),
            outlets: BTreeMap::new(),
            outlets_end: None,
            portless_at: None,
            port_choice,
            resolvers: Resolvers::default(),
            datagrams: Datagrams { echoes: echo::is_possible(), ..Datagrams::default() },
            dials: VecDeque::new(),
            news: VecDeque::new(),
            serials: 0,
            scratch: vec![0; SCRATCH],
            stats: Stats::default(),
            figures: Figures::default(),
        })
    }

    /// Changes what [`new`](Self::new) was told of destinations and limits. Flows that exist stay.
    pub fn configure(&mut self, config: &GatewayConfig) {
        self.policy.reconfigure(&config.egress);
        self.silence_denied();
        self.usage.lock().reconfigure(&config.limits);
        self.limits = config.limits;
        self.memory.confine(memory(&self.limits, self.slots));
        self.endpoint.set_half_open(half_open(&self.limits, self.slots));
        for peer in self.peers.values().filter(|peer| peer.session.is_some()) {
            let flows = self.usage.lock().most_flows(&peer.key);
            self.endpoint.grant(peer.connection, streams(flows.into()));
        }
    }

    /// Addresses of this machine are these now. No client may reach them; flows that exist stay.
    pub fn set_own(&mut self, own: impl IntoIterator<Item = IpAddr>) {
        self.policy.set_own(own);
        self.silence_denied();
    }

    /// A datagram arrived.
    pub fn handle_datagram(
        &mut self,
        remote: SocketAddr,
        local: Option<IpAddr>,
        ecn: Option<u8>,
        data: BytesMut,
        now: Instant,
    ) {
        self.endpoint.handle_datagram(remote, local, ecn, data, now);
    }

    /// Takes the kernel's news about destinations. Whether there was any.
    ///
    /// # Errors
    /// The kernel's.
    pub fn handle_sockets(&mut self) -> io::Result<bool> {
        let news = self.dialler.ready()?;
        for ready in &news {
            self.note(*ready);
        }
        Ok(!news.is_empty())
    }

    fn note(&mut self, ready: Ready) {
        if ready.flow >= OUTLETS {
            self.note_outlet(OutletNumber(ready.flow));
        } else if let Some(flow) = self.flows.get_mut(&ready.flow) {
            flow.note(ready);
            Self::enqueue(&mut self.turns, ready.flow, flow);
        }
    }

    fn enqueue(turns: &mut Turns<PublicKey>, number: u64, flow: &mut Flow) {
        if !std::mem::replace(&mut flow.queued, true) {
            turns.push(flow.owner, number);
        }
    }

    /// Lets everything that was touched react. Whether more could be done at once.
    pub fn advance(&mut self, now: Instant) -> bool {
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((connection, event)) = self.endpoint.poll_event() {
            self.handle_event(connection, event, now);
        }
        self.expire_dials(now);
        self.expire_parked(now);
        self.feed_starved(now);
        self.cool_flows(now);
        self.wake_throttled(now);
        self.turn_flows(now);
        self.expire_outlets(now);
        self.relieve_memory();
        self.tend_peers(now);
        self.tidy_keep();
        !self.turns.is_empty()
    }

    /// The next datagrams to send.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Transmit> {
        self.endpoint.poll_transmit(now, buffer)
    }

    /// When [`advance`](Self::advance) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let peers = self.peers.values().filter_map(Peer::deadline).min();
        let dials = self.dials.front().map(|(at, _)| *at);
        let parked = self.parked.deadline(self.limits.hold);
        let starved = Some(self.feed_at).filter(|_| !self.starved.is_empty());
        let throttled = self.throttled.deadline();
        let timers = [self.endpoint.poll_timeout(), peers, dials, parked, starved];
        let rest = [self.cooling.deadline(), self.outlets_end, throttled];
        timers.into_iter().chain(rest).flatten().min()
    }

    fn handle_event(&mut self, connection: Connection, event: Event, now: Instant) {
        match event {
            Event::Connected { key, remote } => {
                debug!(%remote, %key, "Connected");
                self.serials += 1;
                let caller = Caller { connection, serial: self.serials, key };
                self.peers.insert(connection, Peer::new(caller, remote, now));
            }
            Event::Lost(reason) => self.lost(connection, &reason, now),
            Event::Opened => self.accept_streams(connection, now),
            Event::Readable(stream) => self.readable(connection, stream, now),
            Event::Writable(stream) => self.writable(connection, stream),
            Event::Stopped(stream, code) => self.stopped(connection, stream, code),
            Event::Datagrams => self.note_parcels(connection),
            Event::PathOpened(path) => self.path_opened(connection, path, now),
            Event::PathClosed(path) => {
                if let Some(peer) = self.peers.get_mut(&connection) {
                    peer.forget_path(path, now);
                }
            }
            Event::PathStatus { path, carry } => {
                if let Some(peer) = self.peers.get_mut(&connection)
                    && carry
                {
                    let input = Input::Prefer { path: PathKey(path.0), by: PreferredBy::Peer };
                    peer.paths.handle(input, now);
                }
            }
            Event::StreamsAvailable => {}
        }
    }

    fn path_opened(&mut self, connection: Connection, path: Path, now: Instant) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.paths.handle(Input::Opened { path: PathKey(path.0) }, now);
        // The engine takes a new path for available; it carries when the client says so.
        if peer.paths.active().is_some_and(|active| active.0 != path.0) {
            self.endpoint.back_up(connection, path);
        }
    }

    fn accept_streams(&mut self, connection: Connection, now: Instant) {
        while let Some(stream) = self.endpoint.accept(connection) {
            let Some(peer) = self.peers.get_mut(&connection) else { return };
            if peer.control.is_none() {
                peer.control = Some(ControlStream::new(stream));
            } else {
                peer.streams.insert(stream, Use::Header(BytesMut::new()));
            }
            self.readable(connection, stream, now);
        }
    }

    fn readable(&mut self, connection: Connection, stream: Stream, now: Instant) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if peer.control.as_ref().is_some_and(|control| control.stream() == stream) {
            self.read_control(connection, now);
            return;
        }
        if peer.parcels.stream() == Some(stream) {
            self.note_parcels(connection);
            return;
        }
        match peer.streams.get_mut(&stream) {
            Some(Use::Flow(number)) => {
                if let Some(flow) = self.flows.get_mut(number) {
                    Self::enqueue(&mut self.turns, *number, flow);
                }
            }
            Some(Use::Header(partial)) => {
                match Pipe::read_header(&mut self.endpoint, connection, stream, partial) {
                    Ok(None) => {}
                    Ok(Some(header)) => {
                        let rest = partial.split();
                        self.begin(connection, stream, &header, rest, now);
                    }
                    Err(error) => {
                        debug!(%error, "A stream without a header");
                        peer.streams.remove(&stream);
                        self.endpoint.abort(connection, stream, StreamCode::Reset.code());
                    }
                }
            }
            None => {}
        }
    }

    fn writable(&mut self, connection: Connection, stream: Stream) {
        let Some(peer) = self.peers.get(&connection) else { return };
        if peer.parcels.stream() == Some(stream) {
            self.write_parcels(connection);
        } else if let Some(Use::Flow(number)) = peer.streams.get(&stream)
            && let Some(flow) = self.flows.get_mut(number)
        {
            Self::enqueue(&mut self.turns, *number, flow);
        }
    }

    fn stopped(&mut self, connection: Connection, stream: Stream, code: u64) {
        let Some(peer) = self.peers.get(&connection) else { return };
        if let Some(Use::Flow(number)) = peer.streams.get(&stream)
            && StreamCode::from_code(code) == StreamCode::Reset
        {
            let number = *number;
            self.end(number, End::ByClient);
        }
    }

    fn read_control(&mut self, connection: Connection, now: Instant) {
        loop {
            let Some(peer) = self.peers.get_mut(&connection) else { return };
            let Some(control) = peer.control.as_mut() else { return };
            let received = control.receive(&mut self.endpoint, connection);
            if peer.session.is_none() && control.received() > ADMISSION_BYTES {
                self.deny(connection, Denial::Protocol, now);
                return;
            }
            match received {
                Ok(None) => return,
                Ok(Some(frame)) => self.handle_control(connection, frame, now),
                Err(error) => {
                    debug!(%error, "Control stream ended");
                    self.deny(connection, Denial::Protocol, now);
                    return;
                }
            }
        }
    }

    fn handle_control(&mut self, connection: Connection, frame: Control, now: Instant) {
        let own = self.capabilities();
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        match frame {
            Control::Hello { version, capabilities } => {
                peer.capabilities = capabilities & own;
                if version != VERSION {
                    self.deny(connection, Denial::Version, now);
                } else if !std::mem::replace(&mut peer.greeted, true)
                    && let Some(control) = peer.control.as_mut()
                {
                    control.send(&Control::Hello { version: VERSION, capabilities: own });
                }
            }
            // The first word must be a hello: without a common version nothing else has meaning.
            _ if !peer.greeted => self.deny(connection, Denial::Protocol, now),
            // Each is asked once: the head answers for all slots.
            Control::Enrol { .. } if std::mem::replace(&mut peer.enrolling, true) => {
                self.deny(connection, Denial::Protocol, now);
            }
            Control::Attach { .. } if std::mem::replace(&mut peer.attaching, true) => {
                self.deny(connection, Denial::Protocol, now);
            }
            Control::Enrol { token } => {
                self.news.push_back(News::Enrol(peer.caller(), Token::from_bytes(token)));
            }
            Control::Attach { session, epoch } => {
                let caller = peer.caller();
                self.news.push_back(News::Attach(Attach { caller, session, epoch }));
            }
            Control::Taken(entries) if peer.session.is_some() => {
                let Some(session) = peer.session.as_ref() else { return };
                for entry in entries {
                    let Some(number) = session.flows.get(&entry.flow) else { continue };
                    let Some(flow) = self.flows.get_mut(number) else { continue };
                    match flow.pipe.sender.acknowledge(entry.offset, entry.limit, entry.fin) {
                        Ok(()) => Self::enqueue(&mut self.turns, *number, flow),
                        Err(violation) => {
                            let number = *number;
                            warn!(%violation, "A client broke the rules of a flow");
                            self.end(number, End::Violation(violation));
                            return;
                        }
                    }
                }
            }
            Control::Holding { flows, last } if peer.session.is_some() => {
                self.holding(connection, &flows, last);
            }
            Control::Over(flows) if peer.session.is_some() => self.over(connection, &flows),
            Control::Park if peer.session.is_some() => self.park_sleeper(connection, now),
            Control::Taken(_)
            | Control::Holding { .. }
            | Control::Park
            | Control::Over(_)
            | Control::Limited(_)
            | Control::Attached { .. }
            | Control::Enrolled { .. }
            | Control::Denied { .. } => self.deny(connection, Denial::Protocol, now),
        }
    }

    /// The next thing the head must know.
    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Tells a client that it is not admitted, and ends its connection.
    fn deny(&mut self, connection: Connection, reason: Denial, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&connection) {
            debug!(remote = %peer.remote, "Denied");
            info!(key = %peer.key, %reason, "Client denied");
        }
        // The code of the close carries the reason: a frame before it might be lost with it.
        self.endpoint.close(connection, reason.code(), "denied", now);
        self.lose(connection, "denied");
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("number", &self.number)
            .field("peers", &self.peers)
            .field("parked", &self.parked)
            .field("memory", &self.memory)
            .field("flows", &self.flows)
            .finish_non_exhaustive()
    }
}

impl AsFd for Gateway {
    /// Readable when [`Gateway::handle_sockets`] has news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dialler.as_fd()
    }
}

/// Streams of a client that may have so many flows: one for control, one for parcels, and some so that
/// it is told of those beyond instead of waiting for a stream.
fn streams(flows: u64) -> u64 {
    const BEYOND: u64 = 255;
    flows + 2 + BEYOND
}

/// Handshakes that may be under way at one of `slots` slots: strangers spread evenly.
fn half_open(limits: &Limits, slots: u8) -> usize {
    let half_open = limits.half_open.div_ceil(u32::from(slots.max(1)));
    usize::try_from(half_open).unwrap_or(usize::MAX)
}

/// What the flows of one of `slots` slots may keep, in bytes.
fn memory(limits: &Limits, slots: u8) -> u64 {
    let all = if limits.memory == 0 { machine::memory() / 4 } else { limits.memory };
    all / u64::from(slots.max(1))
}
