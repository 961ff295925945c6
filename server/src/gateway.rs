//! The gateway's data thread: clients, their flows and the sockets of their destinations.
//!
//! Everything belongs to one [`Gateway`]. Its owner feeds datagrams, socket news and the time, and
//! takes datagrams to send; nothing here waits.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use bytes::BytesMut;
use tracing::{debug, info, warn};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Lost, Path, Pipe, Role, Stream, Transmit,
    Tuning,
};
use whimbrel_common::cid::ServerId;
use whimbrel_common::config::GatewayConfig;
use whimbrel_common::identity::{ClientName, PublicKey, SecretKey};
use whimbrel_common::invite::Token;
use whimbrel_common::path::{Action, Input, PathKey, PreferredBy};
use whimbrel_common::session;
use whimbrel_common::wire::{
    Control, DETACH, Denial, FlowAnswer, FlowHeader, RefuseReason, SessionId, StreamCode, VERSION,
    WireFlow,
};
use whimbrel_gateway_core::clients::Options;
use whimbrel_gateway_core::egress::Policy;
use whimbrel_gateway_core::limits::Usage;

use crate::dial::{Dialler, Ready, refusal};
use crate::flow::{End, Flow, Terms, Turn};
use crate::peer::{ADMISSION_BYTES, Parked, Peer, Use};

/// Sessions of one client that may wait for it: a daemon and a few wrapped commands. A client that
/// was killed never comes back for its own.
const MOST_PARKED: usize = 8;

/// One read from a destination, in bytes. Bytes are copied out of it at their exact size.
const SCRATCH: usize = 128 * 1024;

/// Counters since the start of the process.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Stats {
    /// Dials the destination answered.
    pub(crate) connected: u64,
    /// Dials that failed.
    pub(crate) failed: u64,
    /// Dials the policy forbids.
    pub(crate) denied: u64,
    /// Dials beyond a client's limits.
    pub(crate) limited: u64,
    /// Sessions given up because their client parked too many.
    pub(crate) evicted: u64,
    /// Bytes to destinations.
    pub(crate) up_bytes: u64,
    /// Bytes from destinations.
    pub(crate) down_bytes: u64,
}

/// A question about a client's rights, which the files of the gateway answer.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) connection: Connection,
    pub(crate) key: PublicKey,
    pub(crate) question: Question,
}

#[derive(Debug)]
pub(crate) enum Question {
    /// May this key be enrolled with this token?
    Enrol(Token),
    /// Is this key enrolled?
    Attach { session: Option<SessionId>, epoch: u64 },
}

/// See the [module](self).
pub(crate) struct Gateway {
    endpoint: Endpoint,
    dialler: Dialler,
    policy: Policy,
    usage: Usage,
    limits: whimbrel_common::config::Limits,
    peers: BTreeMap<Connection, Peer>,
    parked: BTreeMap<SessionId, Parked>,
    flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    work: VecDeque<u64>,
    /// Dials by the time they are given up.
    dials: VecDeque<(Instant, u64)>,
    asks: VecDeque<Ask>,
    scratch: Vec<u8>,
    pub(crate) stats: Stats,
    pub(crate) since: Instant,
}

impl Gateway {
    pub(crate) fn new(
        config: &GatewayConfig,
        key: SecretKey,
        own: impl IntoIterator<Item = IpAddr>,
    ) -> anyhow::Result<Self> {
        let identity = Identity { key, role: Role::Gateway { server: ServerId::default() } };
        let half_open = usize::try_from(config.limits.half_open).unwrap_or(usize::MAX);
        let tuning = Tuning { half_open, ..Tuning::default() };
        let mut policy = Policy::new(&config.egress);
        policy.set_own(own);
        Ok(Self {
            endpoint: Endpoint::new(&identity, &tuning)?,
            dialler: Dialler::new()?,
            policy,
            usage: Usage::new(&config.limits),
            limits: config.limits,
            peers: BTreeMap::new(),
            parked: BTreeMap::new(),
            flows: BTreeMap::new(),
            next_flow: 0,
            work: VecDeque::new(),
            dials: VecDeque::new(),
            asks: VecDeque::new(),
            scratch: vec![0; SCRATCH],
            stats: Stats::default(),
            since: Instant::now(),
        })
    }

    /// A datagram arrived.
    pub(crate) fn handle_datagram(
        &mut self,
        remote: SocketAddr,
        local: Option<IpAddr>,
        ecn: Option<u8>,
        data: BytesMut,
        now: Instant,
    ) {
        self.endpoint.handle_datagram(remote, local, ecn, data, now);
    }

    /// Takes the kernel's news about destinations.
    pub(crate) fn handle_sockets(&mut self) -> io::Result<bool> {
        let news = self.dialler.ready()?;
        for ready in &news {
            self.note(*ready);
        }
        Ok(!news.is_empty())
    }

    fn note(&mut self, ready: Ready) {
        if let Some(flow) = self.flows.get_mut(&ready.flow) {
            flow.note(ready);
            Self::enqueue(&mut self.work, ready.flow, flow);
        }
    }

    fn enqueue(work: &mut VecDeque<u64>, number: u64, flow: &mut Flow) {
        if !std::mem::replace(&mut flow.queued, true) {
            work.push_back(number);
        }
    }

    /// Lets everything that was touched react. Whether more could be done at once.
    pub(crate) fn advance(&mut self, now: Instant) -> bool {
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((connection, event)) = self.endpoint.poll_event() {
            self.handle_event(connection, event, now);
        }
        self.expire_dials(now);
        self.expire_parked(now);
        self.turn_flows(now);
        self.tend_peers(now);
        !self.work.is_empty()
    }

    /// The next datagrams to send.
    pub(crate) fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Transmit> {
        self.endpoint.poll_transmit(now, buffer)
    }

    /// When [`advance`](Self::advance) wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let peers = self.peers.values().filter_map(Peer::deadline).min();
        let dials = self.dials.front().map(|(at, _)| *at);
        let parked = self.parked.values().map(|parked| parked.since).min();
        let parked = parked.and_then(|since| since.checked_add(self.limits.hold));
        [self.endpoint.poll_timeout(), peers, dials, parked].into_iter().flatten().min()
    }

    fn handle_event(&mut self, connection: Connection, event: Event, now: Instant) {
        match event {
            Event::Connected { key, remote } => {
                debug!(%remote, %key, "Connected");
                self.peers.insert(connection, Peer::new(connection, key, remote, now));
            }
            Event::Lost(reason) => {
                let goes_on = match reason {
                    Lost::ClosedByPeer(code) => code == DETACH,
                    Lost::Reset
                    | Lost::TimedOut
                    | Lost::Closed
                    | Lost::Authentication(_)
                    | Lost::NotOurs(_)
                    | Lost::Failed(_) => true,
                };
                if goes_on {
                    self.park(connection, &reason.to_string(), now);
                } else {
                    self.lose(connection, &reason.to_string());
                }
            }
            Event::Opened => self.accept_streams(connection, now),
            Event::Readable(stream) => self.readable(connection, stream, now),
            Event::Writable(stream) => self.writable(connection, stream),
            Event::Stopped(stream, code) => self.stopped(connection, stream, code),
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

    /// The connection is over, and the session with it.
    fn lose(&mut self, connection: Connection, reason: &str) {
        if let Some(peer) = self.peers.remove(&connection) {
            self.finish(peer, reason);
        }
    }

    fn finish(&mut self, peer: Peer, reason: &str) {
        if let Some(name) = &peer.name {
            info!(client = %name, flows = peer.flows.len(), reason, "Client gone");
        }
        for number in peer.flows.into_values() {
            if let Some(flow) = self.flows.remove(&number) {
                flow.close(End::ByClient);
                self.usage.close(&peer.key);
            }
        }
        // A client that connects again may do so before its old connection is known to be dead.
        let same = |other: &Peer| other.key == peer.key;
        let elsewhere = self.peers.values().any(same);
        if !elsewhere && !self.parked.values().any(|parked| same(&parked.peer)) {
            self.usage.forget(&peer.key);
        }
    }

    /// The connection is over, the session waits for its client.
    fn park(&mut self, connection: Connection, reason: &str, now: Instant) {
        let Some(peer) = self.peers.remove(&connection) else { return };
        let Some(session) = peer.session.filter(|_| !peer.flows.is_empty()) else {
            self.finish(peer, reason);
            return;
        };
        let client = peer.name.as_ref().map(ToString::to_string);
        info!(client, %session, flows = peer.flows.len(), reason, "Client parked");
        let key = peer.key;
        let peer = self.detach(peer);
        self.parked.insert(session, Parked { since: now, peer });
        self.evict(&key);
    }

    /// Its streams and paths are gone; its flows rest.
    fn detach(&mut self, mut peer: Peer) -> Peer {
        for number in peer.flows.values() {
            if let Some(flow) = self.flows.get_mut(number) {
                flow.parked = true;
            }
        }
        peer.control = None;
        peer.streams.clear();
        peer
    }

    /// Parks no more than [`MOST_PARKED`] sessions of a client.
    fn evict(&mut self, key: &PublicKey) {
        let mut own: Vec<(Instant, SessionId)> = self
            .parked
            .iter()
            .filter(|(_, parked)| parked.peer.key == *key)
            .map(|(session, parked)| (parked.since, *session))
            .collect();
        own.sort_unstable();
        for (_, session) in own.iter().rev().skip(MOST_PARKED) {
            self.stats.evicted += 1;
            self.unpark(*session, "the client parks too many sessions");
        }
    }

    fn unpark(&mut self, session: SessionId, reason: &str) {
        if let Some(parked) = self.parked.remove(&session) {
            self.finish(parked.peer, reason);
        }
    }

    fn expire_parked(&mut self, now: Instant) {
        let over =
            |parked: &Parked| now.saturating_duration_since(parked.since) >= self.limits.hold;
        let expired: Vec<SessionId> = self
            .parked
            .iter()
            .filter(|(_, parked)| over(parked))
            .map(|(session, _)| *session)
            .collect();
        for session in expired {
            self.unpark(session, "the client did not come back");
        }
    }

    /// Takes a session away from wherever it was: a place where it is parked, or a connection that
    /// is not known to be dead yet. It must belong to this key, and an old epoch is inert.
    fn reclaim(
        &mut self,
        session: SessionId,
        key: &PublicKey,
        epoch: u64,
        now: Instant,
    ) -> Option<Peer> {
        let rightful =
            |peer: &Peer| peer.session == Some(session) && peer.key == *key && epoch > peer.epoch;
        if self.parked.get(&session).is_some_and(|parked| rightful(&parked.peer)) {
            return self.parked.remove(&session).map(|parked| parked.peer);
        }
        let old = self.peers.values().find(|peer| rightful(peer))?.connection;
        self.endpoint.close(old, DETACH, "attached anew", now);
        let peer = self.peers.remove(&old)?;
        Some(self.detach(peer))
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
        match peer.streams.get_mut(&stream) {
            Some(Use::Flow(number)) => {
                if let Some(flow) = self.flows.get_mut(number) {
                    Self::enqueue(&mut self.work, *number, flow);
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
        if let Some(Use::Flow(number)) = peer.streams.get(&stream)
            && let Some(flow) = self.flows.get_mut(number)
        {
            Self::enqueue(&mut self.work, *number, flow);
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
            if peer.name.is_none() && control.received() > ADMISSION_BYTES {
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
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        match frame {
            Control::Hello { version, .. } => {
                if version != VERSION {
                    self.deny(connection, Denial::Version, now);
                } else if !std::mem::replace(&mut peer.greeted, true)
                    && let Some(control) = peer.control.as_mut()
                {
                    control.send(&Control::Hello { version: VERSION, capabilities: 0 });
                }
            }
            // The first word must be a hello: without a common version nothing else has meaning.
            _ if !peer.greeted => self.deny(connection, Denial::Protocol, now),
            Control::Enrol { token } => {
                self.ask(connection, Question::Enrol(Token::from_bytes(token)))
            }
            Control::Attach { session, epoch } => {
                self.ask(connection, Question::Attach { session, epoch });
            }
            Control::Taken(entries) if peer.name.is_some() => {
                for entry in entries {
                    let Some(number) = peer.flows.get(&entry.flow) else { continue };
                    let Some(flow) = self.flows.get_mut(number) else { continue };
                    match flow.pipe.sender.acknowledge(entry.offset, entry.limit, entry.fin) {
                        Ok(()) => Self::enqueue(&mut self.work, *number, flow),
                        Err(violation) => {
                            let number = *number;
                            warn!(%violation, "A client broke the rules of a flow");
                            self.end(number, End::Violation(violation));
                            return;
                        }
                    }
                }
            }
            Control::Taken(_)
            | Control::Attached { .. }
            | Control::Enrolled { .. }
            | Control::Denied { .. } => self.deny(connection, Denial::Protocol, now),
        }
    }

    fn ask(&mut self, connection: Connection, question: Question) {
        if let Some(peer) = self.peers.get(&connection) {
            self.asks.push_back(Ask { connection, key: peer.key, question });
        }
    }

    /// The next question about a client's rights.
    pub(crate) fn poll_ask(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// The outcome of [`Question::Enrol`].
    pub(crate) fn enrolled(
        &mut self,
        connection: Connection,
        outcome: Result<ClientName, Denial>,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        match outcome {
            Ok(name) => {
                info!(client = %name, key = %peer.key, "Enrolled");
                if let Some(control) = peer.control.as_mut() {
                    control.send(&Control::Enrolled { name: name.to_string() });
                }
            }
            Err(denial) => self.deny(connection, denial, now),
        }
    }

    /// The outcome of [`Question::Attach`]: who the client is, or `None` for a stranger.
    pub(crate) fn attached(
        &mut self,
        connection: Connection,
        wanted: Option<SessionId>,
        epoch: u64,
        client: Option<(ClientName, Options)>,
        now: Instant,
    ) {
        let Some((name, options)) = client else {
            self.deny(connection, Denial::UnknownKey, now);
            return;
        };
        let Some(fresh) = new_session() else {
            self.deny(connection, Denial::Busy, now);
            return;
        };
        // A second attach on one connection would leave its streams behind.
        let Some(key) = self.peers.get(&connection).filter(|it| it.name.is_none()).map(|it| it.key)
        else {
            self.deny(connection, Denial::Protocol, now);
            return;
        };
        let old = wanted.and_then(|session| self.reclaim(session, &key, epoch, now));
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.session = Some(fresh);
        if let Some(old) = old {
            peer.adopt(old);
        }
        peer.epoch = epoch;
        let session = peer.session.unwrap_or(fresh);
        let resumed = session != fresh;
        let flows = u64::from(options.flows.unwrap_or(self.limits.flows_per_client));
        self.usage.welcome(peer.key, &options, now);
        // One more than flows: the control stream.
        self.endpoint.grant(connection, flows + 1);
        info!(client = %name, %session, resumed, flows = peer.flows.len(), "Client attached");
        peer.name = Some(name);
        if let Some(control) = peer.control.as_mut() {
            let hold = self.limits.hold.as_secs();
            control.send(&Control::Attached { session, epoch, hold, flows });
        }
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

    fn begin(
        &mut self,
        connection: Connection,
        stream: Stream,
        header: &FlowHeader,
        rest: BytesMut,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if peer.name.is_none() {
            self.deny(connection, Denial::Protocol, now);
            return;
        }
        match *header {
            FlowHeader::Open { flow, destination, limit } => {
                let mut pipe = Pipe::accept(flow, stream, limit);
                pipe.accept_rest(rest);
                let dialled = self.dial(connection, flow, destination, pipe, now);
                if let Err((mut pipe, reason)) = dialled {
                    pipe.answer(&FlowAnswer::Refused { reason });
                    pipe.sender.finish();
                    let _ = pipe.push(&mut self.endpoint, connection);
                    if let Some(peer) = self.peers.get_mut(&connection) {
                        peer.streams.remove(&stream);
                    }
                }
            }
            FlowHeader::Resume { flow, epoch, taken, fin_taken, offset, limit } => {
                let resume = Resume { flow, epoch, taken, fin_taken, offset, limit };
                self.resume(connection, stream, &resume, rest);
            }
        }
    }

    #[expect(clippy::result_large_err, reason = "the pipe of a refused flow, once per flow")]
    fn dial(
        &mut self,
        connection: Connection,
        flow: WireFlow,
        destination: SocketAddr,
        pipe: Pipe,
        now: Instant,
    ) -> Result<(), (Pipe, RefuseReason)> {
        let Some(peer) = self.peers.get_mut(&connection) else {
            return Err((pipe, RefuseReason::Failed));
        };
        if peer.flows.contains_key(&flow) {
            return Err((pipe, RefuseReason::Failed));
        }
        peer.newest = peer.newest.max(Some(flow));
        if let Err(denied) = self.policy.check(destination) {
            debug!(client = ?peer.name.as_ref().map(ToString::to_string), %denied, "Denied");
            self.stats.denied += 1;
            return Err((pipe, RefuseReason::Denied));
        }
        if let Err(exceeded) = self.usage.open(&peer.key, now) {
            debug!(%exceeded, "Limited");
            self.stats.limited += 1;
            return Err((pipe, RefuseReason::Limit));
        }
        let number = self.next_flow;
        self.next_flow += 1;
        let socket = match self.dialler.dial(number, destination) {
            Ok(socket) => socket,
            Err(error) => {
                self.usage.close(&peer.key);
                self.stats.failed += 1;
                debug!(%destination, %error, "Cannot dial");
                return Err((pipe, refusal(&error)));
            }
        };
        peer.dials += 1;
        peer.flows.insert(flow, number);
        peer.streams.insert(pipe.stream(), Use::Flow(number));
        self.dials.push_back((now + self.limits.dial_timeout, number));
        self.flows.insert(number, Flow::new(connection, pipe, destination, socket));
        Ok(())
    }

    fn resume(&mut self, connection: Connection, stream: Stream, resume: &Resume, rest: BytesMut) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let known = peer.flows.get(&resume.flow).copied();
        let flow = known.and_then(|number| self.flows.get_mut(&number).map(|flow| (number, flow)));
        let Some((number, flow)) = flow else {
            let seen = peer.newest.is_some_and(|newest| resume.flow <= newest);
            let answer = if seen { FlowAnswer::Gone } else { FlowAnswer::NeverSeen };
            let mut pipe = Pipe::accept(resume.flow, stream, 0);
            pipe.answer(&answer);
            pipe.sender.finish();
            let _ = pipe.push(&mut self.endpoint, connection);
            peer.streams.remove(&stream);
            return;
        };
        if resume.epoch <= flow.pipe.epoch() {
            Pipe::supersede(&mut self.endpoint, connection, stream);
            peer.streams.remove(&stream);
            return;
        }
        let old = Some(flow.pipe.stream()).filter(|_| !flow.parked);
        let sent = flow.pipe.sender.taken() + flow.pipe.sender.in_flight();
        if let Err(violation) =
            flow.pipe.resume(stream, resume.epoch, resume.taken, resume.offset).and_then(|()| {
                flow.pipe.sender.acknowledge(resume.taken, resume.limit, resume.fin_taken)
            })
        {
            warn!(%violation, "A client resumed a flow with impossible offsets");
            for stream in old.into_iter().chain([stream]) {
                peer.streams.remove(&stream);
                self.endpoint.abort(connection, stream, StreamCode::Reset.code());
            }
            self.end(number, End::Violation(violation));
            return;
        }
        flow.client = connection;
        flow.parked = false;
        flow.forget_queued();
        flow.pipe.accept_rest(rest);
        if !flow.is_dialling() {
            let (taken, limit, fin_taken) = flow.pipe.receiver.report();
            let offset = flow.pipe.sender.taken();
            let repeated = sent.saturating_sub(offset);
            flow.pipe.answer(&FlowAnswer::Resumed { taken, fin_taken, offset, limit, repeated });
        }
        if let Some(old) = old {
            Pipe::supersede(&mut self.endpoint, connection, old);
            peer.streams.remove(&old);
        }
        peer.streams.insert(stream, Use::Flow(number));
        Self::enqueue(&mut self.work, number, flow);
    }

    fn expire_dials(&mut self, now: Instant) {
        while let Some((at, number)) = self.dials.front().copied()
            && at <= now
        {
            self.dials.pop_front();
            let Some(flow) = self.flows.get_mut(&number).filter(|flow| flow.is_dialling()) else {
                continue;
            };
            if flow.parked {
                self.end(number, End::Refused(RefuseReason::TimedOut));
            } else if let Turn::Over(end) = flow.time_out(&mut self.endpoint) {
                self.end(number, end);
            }
        }
    }

    fn turn_flows(&mut self, now: Instant) {
        for _ in 0..self.work.len() {
            let Some(number) = self.work.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(&number) else { continue };
            flow.queued = false;
            if flow.parked {
                continue;
            }
            let Some(peer) = self.peers.get_mut(&flow.client) else { continue };
            let before = (flow.up_bytes, flow.down_bytes);
            let was_dialling = flow.is_dialling();
            let terms = Terms {
                rtt: peer.rtt(),
                window: session::share(peer.flows.len()),
                may_read: peer.held < self.limits.buffered_per_client,
            };
            let turn = flow.turn(&mut self.endpoint, &mut self.scratch, terms, now);
            let moved = (flow.up_bytes - before.0, flow.down_bytes - before.1);
            peer.up_bytes += moved.0;
            peer.down_bytes += moved.1;
            self.stats.up_bytes += moved.0;
            self.stats.down_bytes += moved.1;
            self.stats.connected += u64::from(was_dialling && !flow.is_dialling());
            if moved != (0, 0) {
                peer.paths.handle(Input::Activity, now);
            }
            peer.held = peer.held + flow.held() - flow.counted;
            flow.counted = flow.held();
            peer.reports.note(flow.pipe.flow, &flow.pipe.receiver, now);
            match turn {
                Turn::Rest => {}
                Turn::Again => Self::enqueue(&mut self.work, number, flow),
                Turn::Over(end) => self.end(number, end),
            }
        }
    }

    /// A flow is over: its stream, its socket and what it counted go.
    fn end(&mut self, number: u64, end: End) {
        let Some(flow) = self.flows.remove(&number) else { return };
        debug!(flow = flow.pipe.flow.0, destination = %flow.destination, ?end, "Flow over");
        let owns = |peer: &&mut Peer| peer.flows.get(&flow.pipe.flow) == Some(&number);
        let owner = if flow.parked {
            let parked = self.parked.values_mut().map(|parked| &mut parked.peer);
            self.peers.values_mut().chain(parked).find(owns)
        } else {
            self.peers.get_mut(&flow.client)
        };
        if let Some(peer) = owner {
            peer.flows.remove(&flow.pipe.flow);
            peer.streams.remove(&flow.pipe.stream());
            peer.held = peer.held.saturating_sub(flow.counted);
            self.usage.close(&peer.key);
        }
        match end {
            End::Complete => {}
            End::Refused(_) => self.stats.failed += 1,
            End::ByDestination | End::ByClient | End::Violation(_) if flow.parked => {}
            End::ByDestination | End::ByClient | End::Violation(_) => {
                flow.pipe.reset(&mut self.endpoint, flow.client);
            }
        }
        flow.close(end);
    }

    fn tend_peers(&mut self, now: Instant) {
        let mut overdue = Vec::new();
        for peer in self.peers.values_mut() {
            let connection = peer.connection;
            if peer.name.is_none() && now >= peer.since + crate::peer::ADMISSION {
                overdue.push((connection, Denial::Protocol));
                continue;
            }
            peer.judge(&mut self.endpoint, now);
            while let Some(action) = peer.paths.poll_action() {
                act(&mut self.endpoint, peer, action);
            }
            let (flows, numbers) = (&mut self.flows, &peer.flows);
            let frames = peer.reports.collect(now, |flow| {
                let flow = flows.get_mut(numbers.get(&flow)?)?;
                Some(flow.pipe.receiver.report())
            });
            let Some(control) = peer.control.as_mut() else { continue };
            frames.iter().for_each(|frame| control.send(frame));
            if let Err(error) = control.flush(&mut self.endpoint, connection) {
                debug!(%error, "Control stream ended");
                overdue.push((connection, Denial::Protocol));
            }
        }
        for (connection, denial) in overdue {
            self.deny(connection, denial, now);
        }
    }

    /// Cuts a client off: its connections, its flows.
    pub(crate) fn cut_off(&mut self, key: &PublicKey, now: Instant) -> usize {
        let connections: Vec<Connection> = self
            .peers
            .values()
            .filter(|peer| peer.key == *key)
            .map(|peer| peer.connection)
            .collect();
        for connection in &connections {
            self.deny(*connection, Denial::Revoked, now);
        }
        let parked = self.parked.iter().filter(|(_, parked)| parked.peer.key == *key);
        let parked: Vec<SessionId> = parked.map(|(session, _)| *session).collect();
        for session in parked {
            self.unpark(session, "revoked");
        }
        connections.len()
    }

    /// Ends every connection, so that clients learn it at once.
    pub(crate) fn close(&mut self, now: Instant) {
        let connections: Vec<Connection> = self.peers.keys().copied().collect();
        for connection in connections {
            self.endpoint.close(connection, 0, "the gateway stops", now);
            self.lose(connection, "the gateway stops");
        }
    }

    /// The connected clients.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// How many flows there are.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// The paths of a connected client, the active one first.
    pub(crate) fn addresses(&self, peer: &Peer) -> Vec<SocketAddr> {
        let active = peer.paths.active();
        let mut paths = self.endpoint.paths(peer.connection);
        paths.sort_by_key(|path| Some(path.0) != active.map(|active| active.0));
        paths.into_iter().filter_map(|path| self.endpoint.remote(peer.connection, path)).collect()
    }
}

impl AsFd for Gateway {
    /// Readable when [`Gateway::handle_sockets`] has news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dialler.as_fd()
    }
}

/// The fields of [`FlowHeader::Resume`].
struct Resume {
    flow: WireFlow,
    epoch: u64,
    taken: u64,
    fin_taken: bool,
    offset: u64,
    limit: u64,
}

/// The gateway's half of path decisions: it probes, prefers and tells.
fn act(endpoint: &mut Endpoint, peer: &mut Peer, action: Action) {
    match action {
        Action::Probe { path } => endpoint.ping(peer.connection, Path(path.0)),
        Action::Carry { path } => endpoint.carry(peer.connection, Path(path.0)),
        Action::Moved(step) => {
            if step.from.is_none() {
                return;
            }
            peer.moves += 1;
            let client = peer.name.as_ref().map(ToString::to_string);
            info!(client, to = %step.to, reason = %step.reason, "Moved");
        }
        Action::StateChanged { path, from, to } => {
            debug!(%path, %from, %to, "Path state");
        }
        // A gateway opens, steers, closes and replays nothing.
        Action::Open { .. }
        | Action::Steer { .. }
        | Action::Unsteer { .. }
        | Action::Close { .. }
        | Action::Replay { .. } => {}
    }
}

fn new_session() -> Option<SessionId> {
    whimbrel_host::random::bytes().ok().map(SessionId)
}
