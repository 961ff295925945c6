//! The client: it connects, attaches its session, and moves its flows from one connection to the
//! next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use whimbrel_carrier::{Connection, ControlStream, Endpoint, Event, Lost, Path, Reports, Stream};
use whimbrel_common::wire::{Control, DETACH, SessionId, VERSION, WireFlow};

use crate::GATEWAY;
use crate::ferry::Ferry;
use crate::story::Stories;

#[path = "client_flows.rs"]
mod flows;

/// An attempt to connect without an answer is given up after this.
const ATTEMPT: Duration = Duration::from_secs(4);

/// Between attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// A connection without an answer for this long is doubted: another is tried beside it.
const DOUBT: Duration = Duration::from_secs(3);

/// A connection that is doubted gets this long once another one stands.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// Keeps a connection without traffic from looking dead, and finds out when it is.
const PROBE: Duration = Duration::from_secs(5);

/// A connection that is to carry the session.
#[derive(Debug)]
struct Live {
    connection: Connection,
    control: ControlStream,
    attached: bool,
    probe_at: Instant,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    live: Option<Live>,
    attempt: Option<(Connection, Instant)>,
    /// Connected while the old connection was in doubt.
    candidate: Option<(Connection, Instant)>,
    next_attempt: Instant,
    pub(crate) session: Option<SessionId>,
    epoch: u64,
    /// The last epoch the gateway confirmed.
    pub(crate) confirmed: u64,
    hold: Duration,
    alone_since: Option<Instant>,
    pub(crate) ferries: BTreeMap<WireFlow, Ferry>,
    streams: BTreeMap<Stream, WireFlow>,
    work: BTreeSet<WireFlow>,
    waiting: BTreeSet<WireFlow>,
    reports: Reports,
    /// Another connection is wanted although this one may be well.
    restless: bool,
    pub(crate) counts: Counts,
}

/// What happened to a client.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) attached: u64,
    pub(crate) resets: u64,
    pub(crate) moves: u64,
}

impl Client {
    pub(crate) fn new(endpoint: Endpoint, hold: Duration, now: Instant) -> Self {
        Self {
            endpoint,
            live: None,
            attempt: None,
            candidate: None,
            next_attempt: now,
            session: None,
            epoch: 0,
            confirmed: 0,
            hold,
            alone_since: None,
            ferries: BTreeMap::new(),
            streams: BTreeMap::new(),
            work: BTreeSet::new(),
            waiting: BTreeSet::new(),
            reports: Reports::default(),
            restless: false,
            counts: Counts::default(),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let attempt = self.attempt.map(|(_, until)| until);
        let next = (self.live.is_none() && self.attempt.is_none()).then_some(self.next_attempt);
        let chance = self.candidate.map(|(_, since)| since + LAST_CHANCE);
        let hold = self.alone_since.map(|since| since + self.hold);
        let live = self.live.as_ref();
        let probe = live.map(|live| live.probe_at);
        let doubt = self.silent_since().map(|since| since + DOUBT);
        let doubt = doubt.filter(|_| self.attempt.is_none() && self.candidate.is_none());
        let doubt = doubt.map(|doubt| doubt.max(self.next_attempt));
        let engine = self.endpoint.poll_timeout();
        [engine, attempt, next, chance, hold, probe, doubt, self.reports.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets everything that was touched react.
    pub(crate) fn advance(&mut self, stories: &mut Stories, now: Instant) {
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((connection, event)) = self.endpoint.poll_event() {
            self.handle_event(connection, event, stories, now);
        }
        self.connect(now);
        self.weigh(now);
        self.probe(now);
        self.check_hold(stories, now);
        self.look_at_applications(stories);
        self.begin_waiting();
        self.turn_flows(stories, now);
        self.report(stories, now);
        if let Some(live) = &mut self.live {
            live.control.flush(&mut self.endpoint, live.connection).expect("the gateway reads");
        }
    }

    /// The connection flows use, once the session is attached.
    pub(crate) fn connection(&self) -> Option<Connection> {
        self.live.as_ref().filter(|live| live.attached).map(|live| live.connection)
    }

    /// Gives the connection up: at once, or as soon as another one stands.
    pub(crate) fn leave(&mut self, at_once: bool, now: Instant) {
        self.restless = !at_once;
        if at_once && let Some(connection) = self.live.as_ref().map(|live| live.connection) {
            self.lose(now);
            self.endpoint.close(connection, DETACH, "left", now);
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        let told = |ferry: &Ferry| ferry.is_over() && (ferry.is_answered() && !ferry.detached);
        self.connection().is_some() && self.waiting.is_empty() && self.ferries.values().all(told)
    }

    /// Streams in use, beside the control stream.
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    fn handle_event(
        &mut self,
        connection: Connection,
        event: Event,
        stories: &mut Stories,
        now: Instant,
    ) {
        if self.live.as_ref().is_none_or(|live| live.connection != connection) {
            self.handle_rival(connection, &event, now);
            return;
        }
        match event {
            Event::Lost(reason) => {
                self.counts.resets += u64::from(reason == Lost::Reset);
                self.lose(now);
                if matches!(reason, Lost::ClosedByPeer(code) if code != DETACH) {
                    self.session = None;
                    self.lose_flows(stories);
                }
            }
            Event::Readable(stream) if stream == Stream::CONTROL => self.read_control(stories),
            Event::Readable(stream) | Event::Writable(stream) => {
                self.work.extend(self.streams.get(&stream));
            }
            Event::Stopped(stream, code) => self.stopped(connection, stream, code, stories),
            Event::Connected { .. }
            | Event::Opened
            | Event::StreamsAvailable
            | Event::PathOpened(_)
            | Event::PathClosed(_)
            | Event::Datagrams
            | Event::PathStatus { .. } => {}
        }
    }

    /// Something happened on a connection other than the one that carries.
    fn handle_rival(&mut self, connection: Connection, event: &Event, now: Instant) {
        let is_attempt = self.attempt.is_some_and(|(attempt, _)| attempt == connection);
        match event {
            Event::Connected { .. } if is_attempt => {
                self.attempt = None;
                self.candidate = Some((connection, now));
            }
            Event::Lost(_) => {
                self.candidate.take_if(|(candidate, _)| *candidate == connection);
                if is_attempt {
                    self.attempt = None;
                    self.next_attempt = now + PAUSE;
                }
            }
            Event::Connected { .. }
            | Event::Opened
            | Event::StreamsAvailable
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Stopped(..)
            | Event::PathOpened(_)
            | Event::PathClosed(_)
            | Event::Datagrams
            | Event::PathStatus { .. } => {}
        }
    }

    /// Since when the connection owes an answer.
    fn silent_since(&self) -> Option<Instant> {
        let progress = self.endpoint.progress(self.live.as_ref()?.connection, Path::FIRST)?;
        let since = progress.expecting_since?;
        Some(progress.last_ack.map_or(since, |ack| ack.max(since)))
    }

    fn is_doubted(&self, now: Instant) -> bool {
        self.restless || self.silent_since().is_some_and(|since| now >= since + DOUBT)
    }

    /// Starts attempts when they are wanted, and ends those that take too long.
    fn connect(&mut self, now: Instant) {
        if let Some((attempt, _)) = self.attempt.take_if(|(_, until)| now >= *until) {
            self.endpoint.close(attempt, 0, "no answer", now);
            self.next_attempt = now + PAUSE;
        }
        let wanted = self.live.is_none() || self.is_doubted(now);
        let free = self.attempt.is_none() && self.candidate.is_none();
        if wanted && free && now >= self.next_attempt {
            let attempt = self.endpoint.connect(GATEWAY, now).expect("a client may connect");
            self.attempt = Some((attempt, now + ATTEMPT));
        }
    }

    /// Changes over to a new connection, unless the old one came back to life.
    fn weigh(&mut self, now: Instant) {
        if self.live.is_some() && !self.is_doubted(now) {
            let rivals = [self.attempt.take(), self.candidate.take()];
            for (rival, _) in rivals.into_iter().flatten() {
                self.endpoint.close(rival, 0, "the old connection lives", now);
            }
        }
        let alone = self.live.is_none() || self.restless;
        let ready = |(_, since): &mut (Connection, Instant)| alone || now >= *since + LAST_CHANCE;
        let Some((winner, _)) = self.candidate.take_if(ready) else { return };
        if let Some(old) = self.live.as_ref().map(|live| live.connection) {
            self.lose(now);
            self.endpoint.close(old, DETACH, "replaced", now);
        }
        self.greet(winner, now);
    }

    fn greet(&mut self, connection: Connection, now: Instant) {
        let stream = self.endpoint.open(connection).expect("one stream is granted to everybody");
        let mut control = ControlStream::new(stream);
        self.epoch += 1;
        control.send(&Control::Hello { version: VERSION, capabilities: 0 });
        control.send(&Control::Attach { session: self.session, epoch: self.epoch });
        let probe_at = now + PROBE;
        self.live = Some(Live { connection, control, attached: false, probe_at });
        self.restless = false;
    }

    fn probe(&mut self, now: Instant) {
        if let Some(live) = self.live.as_mut().filter(|live| now >= live.probe_at) {
            live.probe_at = now + PROBE;
            self.endpoint.ping(live.connection, Path::FIRST);
        }
    }

    /// The connection is gone; the session may go on over another one.
    fn lose(&mut self, now: Instant) {
        let Some(live) = self.live.take() else { return };
        if live.attached {
            self.alone_since = Some(now);
            self.streams.clear();
            self.reports = Reports::default();
            for ferry in self.ferries.values_mut() {
                ferry.detached = ferry.pipe.is_some();
            }
        }
        self.next_attempt = now;
    }

    /// The gateway has dropped by now what it held.
    fn check_hold(&mut self, stories: &mut Stories, now: Instant) {
        if self.alone_since.is_some_and(|since| now >= since + self.hold) {
            self.session = None;
            stories.values_mut().for_each(|story| story.excuse("the client held it too long"));
            // By the gateway's clock it may not be over: what is dialled there stays dialled.
            self.ferries.values_mut().for_each(Ferry::give_up);
            self.lose_flows(stories);
        }
    }

    fn read_control(&mut self, stories: &mut Stories) {
        while let Some(live) = &mut self.live {
            let received = live.control.receive(&mut self.endpoint, live.connection);
            match received.expect("the gateway keeps to the protocol") {
                None => return,
                Some(Control::Hello { version, .. }) => assert_eq!(version, VERSION),
                Some(Control::Attached { session, epoch, .. }) => {
                    assert_eq!(epoch, self.epoch, "I4: an answer to another attach");
                    live.attached = true;
                    self.confirmed = epoch;
                    self.counts.attached += 1;
                    let resumed = self.session.replace(session) == Some(session);
                    self.attached(resumed, stories);
                }
                Some(Control::Taken(entries)) => self.taken(&entries),
                Some(other) => panic!("unexpected {other:?}"),
            }
        }
    }
}
