//! The gateway: it attaches sessions to connections, parks them, and is restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_carrier::{Connection, ControlStream, Endpoint, Event, Lost, Pipe, Reports, Stream};
use whimbrel_common::identity::PublicKey;
use whimbrel_common::wire::{Control, DETACH, SessionId, StreamCode, VERSION, WireFlow};
use whimbrel_gateway_core::seen::Seen;

use crate::flow::Flow;
use crate::journal::Journal;
use crate::story::Stories;

#[path = "gateway_flows.rs"]
mod flows;
#[path = "gateway_restart.rs"]
mod restart;

/// Streams a client may have open at once: few, so that every one that is left behind shows.
pub(crate) const STREAMS: u64 = 64;

/// A connection has this long to ask for a session.
const ADMISSION: Duration = Duration::from_secs(5);

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    key: PublicKey,
    epoch: u64,
    pub(crate) flows: BTreeMap<WireFlow, u64>,
    seen: Seen,
}

/// What a stream of a client carries.
#[derive(Debug)]
enum Use {
    /// Its header is not complete.
    Header(BytesMut),
    /// A flow, by the gateway's number.
    Flow(u64),
    /// Nothing: its flow is over, and the client was told.
    Answered,
}

/// A client's connection.
#[derive(Debug)]
struct Peer {
    key: PublicKey,
    since: Instant,
    session: Option<Session>,
    control: Option<ControlStream>,
    streams: BTreeMap<Stream, Use>,
    reports: Reports,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) endpoint: Endpoint,
    peers: BTreeMap<Connection, Peer>,
    parked: BTreeMap<SessionId, (Instant, Session)>,
    pub(crate) flows: BTreeMap<u64, Flow>,
    next_flow: u64,
    next_session: u8,
    work: BTreeSet<u64>,
    pub(crate) journal: Journal,
    hold: Duration,
    pub(crate) restored: u64,
}

impl Gateway {
    pub(crate) fn new(endpoint: Endpoint, hold: Duration, journal: Journal) -> Self {
        Self {
            endpoint,
            peers: BTreeMap::new(),
            parked: BTreeMap::new(),
            flows: BTreeMap::new(),
            next_flow: 0,
            next_session: 0,
            work: BTreeSet::new(),
            journal,
            hold,
            restored: 0,
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let dials = self.flows.values().filter(|flow| !flow.parked).filter_map(|flow| flow.answers);
        let parked = self.parked.values().map(|(since, _)| *since + self.hold);
        let reports = self.peers.values().filter_map(|peer| peer.reports.deadline());
        let strangers = self.peers.values().filter(|peer| peer.session.is_none());
        let strangers = strangers.map(|peer| peer.since + ADMISSION);
        let engine = self.endpoint.poll_timeout().into_iter();
        engine.chain(dials).chain(parked).chain(reports).chain(strangers).min()
    }

    /// Lets everything that was touched react.
    pub(crate) fn advance(&mut self, stories: &mut Stories, now: Instant) {
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((connection, event)) = self.endpoint.poll_event() {
            self.handle_event(connection, event, stories, now);
        }
        self.expire(stories, now);
        for (number, flow) in &self.flows {
            let story = stories.get_mut(&flow.pipe.flow).expect("every flow has one");
            let socket = story.destination.as_mut();
            let stirred = socket.is_some_and(|socket| std::mem::take(&mut socket.stirred));
            if stirred || flow.answers.is_some_and(|at| at <= now) {
                self.work.insert(*number);
            }
        }
        self.turn_flows(stories, now);
        self.tend_peers(stories, now);
    }

    /// Whether no stream is in use beside control streams.
    pub(crate) fn is_bare(&self) -> bool {
        self.peers.values().all(|peer| peer.streams.is_empty())
    }

    /// Whether the client that carries on with a session could still reach this flow.
    pub(crate) fn is_reachable(&self, flow: &Flow) -> bool {
        let attached = self.peers.values().filter_map(|peer| peer.session.as_ref());
        attached.map(|session| session.id).any(|id| id == flow.session)
    }

    fn handle_event(
        &mut self,
        connection: Connection,
        event: Event,
        stories: &mut Stories,
        now: Instant,
    ) {
        match event {
            Event::Connected { key, .. } => {
                let peer = Peer {
                    key,
                    since: now,
                    session: None,
                    control: None,
                    streams: BTreeMap::new(),
                    reports: Reports::default(),
                };
                self.peers.insert(connection, peer);
            }
            Event::Lost(reason) => self.lost(connection, &reason, stories, now),
            Event::Opened => self.accept_streams(connection, stories, now),
            Event::Readable(stream) => self.readable(connection, stream, stories, now),
            Event::Writable(stream) => {
                if let Some(number) = self.flow_on(connection, stream) {
                    self.work.insert(number);
                }
            }
            Event::Stopped(stream, code) => self.stopped(connection, stream, code, stories, now),
            Event::PathOpened(_)
            | Event::PathClosed(_)
            | Event::Datagrams
            | Event::PathStatus { .. }
            | Event::StreamsAvailable => {}
        }
    }

    fn flow_on(&self, connection: Connection, stream: Stream) -> Option<u64> {
        match self.peers.get(&connection)?.streams.get(&stream)? {
            Use::Flow(number) => Some(*number),
            Use::Header(_) | Use::Answered => None,
        }
    }

    fn accept_streams(&mut self, connection: Connection, stories: &mut Stories, now: Instant) {
        while let Some(stream) = self.endpoint.accept(connection) {
            let Some(peer) = self.peers.get_mut(&connection) else { return };
            if peer.control.is_none() {
                peer.control = Some(ControlStream::new(stream));
            } else {
                peer.streams.insert(stream, Use::Header(BytesMut::new()));
            }
            self.readable(connection, stream, stories, now);
        }
    }

    fn readable(
        &mut self,
        connection: Connection,
        stream: Stream,
        stories: &mut Stories,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if peer.control.as_ref().is_some_and(|control| control.stream() == stream) {
            self.read_control(connection, now);
            return;
        }
        match peer.streams.get_mut(&stream) {
            Some(Use::Flow(number)) => {
                self.work.insert(*number);
            }
            Some(Use::Header(partial)) => {
                match Pipe::read_header(&mut self.endpoint, connection, stream, partial) {
                    Ok(None) => {}
                    Ok(Some(header)) => {
                        let rest = partial.split();
                        self.begin(connection, stream, &header, rest, stories, now);
                    }
                    // The client gave the flow up before its header arrived.
                    Err(_) => {
                        peer.streams.remove(&stream);
                        self.endpoint.abort(connection, stream, StreamCode::Reset.code());
                    }
                }
            }
            Some(Use::Answered) => self.drain(connection, stream),
            None => {}
        }
    }

    fn read_control(&mut self, connection: Connection, now: Instant) {
        while let Some(peer) = self.peers.get_mut(&connection) {
            let Some(control) = peer.control.as_mut() else { return };
            let received = control.receive(&mut self.endpoint, connection);
            match received.expect("clients keep to the protocol") {
                None => return,
                Some(Control::Hello { version, .. }) => {
                    assert_eq!(version, VERSION);
                    control.send(&Control::Hello { version, capabilities: 0 });
                }
                Some(Control::Attach { session, epoch }) => {
                    self.attach(connection, session, epoch, now);
                }
                Some(Control::Taken(entries)) => {
                    let Some(session) = peer.session.as_ref() else { continue };
                    for entry in entries {
                        let Some(number) = session.flows.get(&entry.flow) else { continue };
                        let Some(flow) = self.flows.get_mut(number) else { continue };
                        let sender = &mut flow.pipe.sender;
                        sender
                            .acknowledge(entry.offset, entry.limit, entry.fin)
                            .expect("the client took what was sent");
                        self.work.insert(*number);
                    }
                }
                Some(other) => panic!("unexpected {other:?}"),
            }
        }
    }

    fn attach(
        &mut self,
        connection: Connection,
        wanted: Option<SessionId>,
        epoch: u64,
        now: Instant,
    ) {
        let Some(key) = self.peers.get(&connection).map(|peer| peer.key) else { return };
        let old = wanted.and_then(|session| self.reclaim(session, &key, epoch, now));
        let mut session = old.unwrap_or_else(|| {
            self.next_session += 1;
            let id = SessionId([self.next_session; 16]);
            let seen = Seen::default();
            Session { id, key, epoch, flows: BTreeMap::new(), seen }
        });
        session.epoch = epoch;
        self.journal.note_session(session.id, key, epoch, &session.seen);
        self.endpoint.grant(connection, STREAMS);
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let attached = Control::Attached {
            session: session.id,
            epoch,
            hold: self.hold.as_secs(),
            flows: STREAMS,
        };
        peer.session = Some(session);
        if let Some(control) = peer.control.as_mut() {
            control.send(&attached);
        }
    }

    /// Takes a session away from wherever it is.
    fn reclaim(
        &mut self,
        id: SessionId,
        key: &PublicKey,
        epoch: u64,
        now: Instant,
    ) -> Option<Session> {
        let rightful =
            |session: &Session| session.id == id && session.key == *key && epoch > session.epoch;
        if self.parked.get(&id).is_some_and(|(_, session)| rightful(session)) {
            return self.parked.remove(&id).map(|(_, session)| session);
        }
        let (old, _) =
            self.peers.iter().find(|(_, peer)| peer.session.as_ref().is_some_and(rightful))?;
        let old = *old;
        self.endpoint.close(old, DETACH, "attached anew", now);
        let session = self.peers.remove(&old)?.session?;
        self.rest(&session);
        Some(session)
    }

    /// A connection is gone. A session that has carried anything waits for its client, even if
    /// every flow is over: the client may not know that yet.
    fn lost(&mut self, connection: Connection, reason: &Lost, stories: &mut Stories, now: Instant) {
        let Some(session) = self.peers.remove(&connection).and_then(|peer| peer.session) else {
            return;
        };
        if matches!(reason, Lost::ClosedByPeer(code) if *code != DETACH) {
            self.finish(session, stories);
            return;
        }
        self.rest(&session);
        self.parked.insert(session.id, (now, session));
    }

    fn rest(&mut self, session: &Session) {
        for number in session.flows.values() {
            self.flows.get_mut(number).expect("a session's flow").parked = true;
        }
    }

    fn finish(&mut self, session: Session, stories: &mut Stories) {
        // Flows that are over here may not be over at the client.
        if session.seen != Seen::default() {
            stories.values_mut().for_each(|story| story.excuse("its session ended"));
        }
        for (flow, number) in session.flows {
            self.flows.remove(&number);
            self.journal.remove(session.id, flow);
            if let Some(socket) =
                stories.get_mut(&flow).and_then(|story| story.destination.as_mut())
            {
                socket.tear();
            }
        }
        self.journal.close_session(session.id);
    }

    fn expire(&mut self, stories: &mut Stories, now: Instant) {
        let hold = self.hold;
        let over: Vec<Session> = self
            .parked
            .extract_if(.., |_, (since, _)| now >= *since + hold)
            .map(|(_, (_, session))| session)
            .collect();
        for session in over {
            self.finish(session, stories);
        }
    }

    fn tend_peers(&mut self, stories: &mut Stories, now: Instant) {
        let mut overdue = Vec::new();
        for (connection, peer) in &mut self.peers {
            if peer.session.is_none() && now >= peer.since + ADMISSION {
                overdue.push(*connection);
            }
            let (flows, session) = (&mut self.flows, peer.session.as_ref());
            let frames = peer.reports.collect(now, |flow| {
                let flow = flows.get_mut(session?.flows.get(&flow)?)?;
                Some(flow.pipe.receiver.report())
            });
            let Some(control) = peer.control.as_mut() else { continue };
            frames.iter().for_each(|frame| control.send(frame));
            control.flush(&mut self.endpoint, *connection).expect("clients read");
            // A report may have been the last thing a flow owed.
            let reported = frames.iter().flat_map(|frame| {
                if let Control::Taken(entries) = frame { entries.as_slice() } else { &[] }
            });
            let numbers = reported.filter_map(|entry| session?.flows.get(&entry.flow));
            self.work.extend(numbers);
        }
        for connection in overdue {
            // What the client wanted may be under way: its session goes on.
            self.endpoint.close(connection, DETACH, "asked for nothing", now);
        }
        self.turn_flows(stories, now);
    }
}
