//! The client's data thread: applications' flows on one side, the tunnel on the other.
//!
//! Everything belongs to one [`Client`]. Its owner feeds packets, datagrams, link news and the
//! time, and takes packets and datagrams to send; nothing here waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::{debug, info};
use whimbrel_carrier::{Pipe, Reports, Stream, Tuning};
use whimbrel_client_core::engine::{Engine, EngineConfig, FlowEvent, FlowId, PacketSink, Refusal};
use whimbrel_client_core::rest::{Input, Rest};
use whimbrel_common::config::Offline;
use whimbrel_common::path::Move;
use whimbrel_common::wire::{Control, MOST_HOLDING, RESOLVER, StreamCode, Taken, WireFlow};

use crate::counts::Counts;
use crate::ferry::{End, Ferry, TURN, Terms, Turn};
use crate::journal::Journal;
use crate::report::EventKind;
use crate::run::NAMESERVER;
use crate::slab::Slab;
use crate::tunnel::{News, Standing, Tunnel};

mod account;
mod datagrams;
mod echoes;
mod names;
mod nap;
mod patience;
mod pause;

use datagrams::Datagrams;
use names::Names;
use nap::WokenUp;
use pause::Pause;

/// New connections wait this long for a session before `capture.offline` decides.
const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of buffer of one flow, each way: they are touched on use and returned when idle.
const BUFFER: usize = 1024 * 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct Client {
    engine: Engine,
    /// The way to the gateway.
    pub tunnel: Tunnel,
    pub(crate) journal: Journal,
    pub(crate) counts: Counts,
    ferries: BTreeMap<FlowId, Ferry>,
    streams: HashMap<Stream, FlowId>,
    work: VecDeque<FlowId>,
    /// Flows that wait for a session or a stream, oldest first.
    waiting: BTreeSet<FlowId>,
    reports: Reports,
    names: Names,
    /// The name server inside the host's TUN.
    nameserver: SocketAddr,
    datagrams: Datagrams,
    /// Bytes of flows on their way again for the move at hand.
    replayed: u64,
    offline: Offline,
    hold: Duration,
    /// Since when the session has no connection.
    alone_since: Option<Instant>,
    /// Since when new connections cannot be opened.
    detached_since: Option<Instant>,
    given_up: bool,
    /// The session is attached, but no link has worked for a while.
    parked: bool,
    paused: Option<Pause>,
    /// What is done when the machine sleeps.
    rest: Rest,
    may_sleep: bool,
    /// Time slept that nobody was told of yet.
    asleep: Duration,
    woken_up: Option<WokenUp>,
}

impl Client {
    /// `hold` says how long flows are held without a connection, if the gateway does the same.
    pub fn new(tunnel: Tunnel, offline: Offline, hold: Duration, seed: u64, now: Instant) -> Self {
        let config = EngineConfig { buffer: BUFFER, ..EngineConfig::default() };
        let engine = Engine::new(config, seed, Box::new(Slab::new(BUFFER)), now);
        Self {
            engine,
            tunnel,
            journal: Journal::default(),
            counts: Counts::default(),
            ferries: BTreeMap::new(),
            streams: HashMap::new(),
            work: VecDeque::new(),
            waiting: BTreeSet::new(),
            reports: Reports::default(),
            names: Names::new(),
            nameserver: SocketAddr::new(NAMESERVER.into(), RESOLVER.port()),
            datagrams: Datagrams::new(seed),
            replayed: 0,
            offline,
            hold,
            alone_since: None,
            detached_since: Some(now),
            given_up: false,
            parked: false,
            paused: None,
            rest: Rest::new(Tuning::default().idle_timeout),
            may_sleep: false,
            asleep: Duration::ZERO,
            woken_up: None,
        }
    }

    /// Lets everything that was touched react. Whether more could be done at once.
    pub fn advance(&mut self, sink: &mut dyn PacketSink, now: Instant) -> bool {
        self.engine.handle_timeout(now);
        self.tunnel.advance(now);
        while let Some(news) = self.tunnel.poll_news() {
            self.handle_news(news, now);
        }
        self.advance_rest(now);
        self.note_parking(now);
        self.drain_engine(now);
        self.open_waiting(now);
        self.turn_flows(now);
        self.names.advance(&mut self.engine, now);
        self.engine.flush(now, sink);
        self.advance_datagrams(sink, now);
        self.drain_engine(now);
        self.report(now);
        self.check_patience(now);
        self.check_hold(now);
        self.check_pause(now);
        self.trace_paths(now);
        let (tunnel, lost) = (&self.tunnel, self.tunnel.lost_bytes());
        self.journal.settle(now, lost, |link| tunnel.progress_of(link));
        !self.work.is_empty() && self.tunnel.connection().is_some()
    }

    /// When [`advance`](Self::advance) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let held = self.hold.min(self.tunnel.hold());
        let hold = self.alone_since.and_then(|since| since.checked_add(held));
        let patience = self.detached_since.filter(|_| !self.given_up).map(|at| at + PATIENCE);
        [
            self.engine.poll_timeout(),
            self.tunnel.poll_timeout(),
            self.reports.deadline(),
            self.datagrams.deadline(),
            self.journal.deadline(),
            self.rest_deadline(),
            self.names.deadline(),
            patience,
            hold,
            self.paused.and_then(|pause| pause.until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn drain_engine(&mut self, now: Instant) {
        while let Some(event) = self.engine.poll_event() {
            match event {
                FlowEvent::Open { flow, device, source, destination } => {
                    self.begin(flow, source, self.place(device, destination), now);
                }
                FlowEvent::Readable { flow } | FlowEvent::Writable { flow } => self.enqueue(flow),
                FlowEvent::Reset { flow } => self.end(flow, &End::ByApplication, now),
                FlowEvent::Closed { flow } => self.application_closed(flow),
            }
        }
    }

    fn begin(&mut self, flow: FlowId, source: SocketAddr, destination: SocketAddr, now: Instant) {
        debug!(flow = flow.0, %source, %destination, "New flow");
        self.journal.trace.flow_opened(flow.0);
        if self.given_up {
            self.counts.refuse_unreached();
            self.engine.refuse(flow, Refusal::HostUnreachable, now);
            return;
        }
        self.ferries.insert(flow, Ferry::new(flow, source, destination, now));
        self.waiting.insert(flow);
    }

    fn application_closed(&mut self, flow: FlowId) {
        let Some(ferry) = self.ferries.get_mut(&flow) else { return };
        if ferry.is_open() {
            ferry.application_closed();
            self.enqueue(flow);
        } else {
            // It was refused or aborted from here: nobody is left to tell.
            self.forget(flow);
        }
    }

    fn open_waiting(&mut self, now: Instant) {
        let Some(connection) = self.tunnel.connection().filter(|_| !self.parked) else { return };
        while let Some(flow) = self.waiting.first().copied() {
            let waits = |ferry: &&mut Ferry| ferry.is_waiting() || ferry.is_detached();
            if let Some(ferry) = self.ferries.get_mut(&flow).filter(waits) {
                let endpoint = &mut self.tunnel.endpoint;
                let begun = if ferry.is_detached() {
                    ferry.reattach(endpoint, connection)
                } else {
                    ferry.dial(endpoint, connection)
                };
                if !begun {
                    break;
                }
                if let Some(pipe) = &ferry.pipe {
                    self.streams.insert(pipe.stream(), flow);
                }
                self.enqueue(flow);
                self.tunnel.activity(now);
            }
            self.waiting.remove(&flow);
        }
    }

    fn enqueue(&mut self, flow: FlowId) {
        if let Some(ferry) = self.ferries.get_mut(&flow)
            && !std::mem::replace(&mut ferry.queued, true)
        {
            self.work.push_back(flow);
        }
    }

    fn handle_news(&mut self, news: News, now: Instant) {
        match news {
            News::Attached { resumed } => {
                self.journal.returned(resumed, now);
                self.attached(resumed, now);
            }
            News::Detached { reason, heard } => {
                self.journal.left(heard.unwrap_or(now));
                self.detached(&reason, now);
            }
            News::Ended => self.lose_flows("the gateway ended the session", now),
            News::Stream(stream) => {
                if let Some(flow) = self.streams.get(&stream).copied() {
                    self.enqueue(flow);
                } else {
                    self.note_parcels(Some(stream));
                }
            }
            News::Parcels => self.note_parcels(None),
            News::Stopped(stream, code) => {
                if let Some(flow) = self.streams.get(&stream).copied()
                    && StreamCode::from_code(code) == StreamCode::Reset
                {
                    self.end(flow, &End::ByGateway, now);
                }
            }
            News::StreamsAvailable => self.open_parcels(),
            News::Taken(entries) => self.taken(&entries, now),
            News::Over(flows) => self.over(&flows),
            News::Limited(limit) => self.limited(limit),
            News::Replay { silent_since } => self.replay(silent_since),
            News::Moved { step, from, to } => {
                self.moved(&step, from, to);
                self.ask_again(now);
            }
            News::Path { link, from, to } => {
                self.journal.path(&link, from, to);
            }
            News::Failed { reason } => {
                self.journal.tell(EventKind::Refused, format!("cannot attach: {reason}"));
            }
        }
    }

    fn attached(&mut self, resumed: bool, now: Instant) {
        self.detached_since = None;
        self.alone_since = None;
        self.given_up = false;
        self.parked = false;
        if resumed {
            let detached = self.ferries.iter().filter(|(_, ferry)| ferry.is_detached());
            self.waiting.extend(detached.map(|(flow, _)| *flow));
            self.tell_holding();
        } else {
            self.lose_flows("the gateway does not know the session any more", now);
        }
        self.attach_datagrams(now);
        let session = self.tunnel.session().map(|session| session.to_string());
        self.journal.tell(
            EventKind::Attached,
            format!("attached to the gateway, session {}", session.unwrap_or_default()),
        );
    }

    /// Tells the gateway which flows there are: the end of others may never have reached it.
    fn tell_holding(&mut self) {
        let flows: Vec<WireFlow> = self.ferries.keys().map(|flow| WireFlow(flow.0)).collect();
        let mut left = flows.len().div_ceil(MOST_HOLDING);
        let mut frames = Vec::new();
        for chunk in flows.chunks(MOST_HOLDING) {
            left -= 1;
            frames.push(Control::Holding { flows: chunk.to_vec(), last: left == 0 });
        }
        if frames.is_empty() {
            frames.push(Control::Holding { flows, last: true });
        }
        self.tunnel.send(&frames);
    }

    /// Changes what [`new`](Self::new) was told.
    pub(crate) fn configure(&mut self, offline: Offline, hold: Duration) {
        self.offline = offline;
        self.hold = hold;
    }

    /// An attached session without a link that works holds its flows and takes no new ones.
    fn note_parking(&mut self, now: Instant) {
        let parked = self.tunnel.standing(now) == Standing::Parked;
        if std::mem::replace(&mut self.parked, parked) == parked {
            return;
        }
        if parked {
            self.detached_since = Some(now);
        }
        if self.rest.is_resting() {
            return;
        }
        if parked {
            let held = self.ferries.len();
            info!(flows = held, "No network reaches the gateway; flows are held");
            let text = format!("no network reaches the gateway; {held} flows are held");
            self.journal.tell(EventKind::Parked, text);
        } else if self.tunnel.connection().is_some() {
            self.detached_since = None;
            self.given_up = false;
            self.ask_again(now);
            info!("The gateway is in reach again");
            self.journal.tell(EventKind::Attached, "the gateway is in reach again");
        }
    }

    fn detached(&mut self, reason: &str, now: Instant) {
        self.detached_since = Some(now);
        self.alone_since = Some(now);
        self.parked = true;
        self.ferries.values_mut().for_each(Ferry::detach);
        self.streams.clear();
        self.reports = Reports::default();
        self.datagrams.detach();
        if self.rest.is_resting() {
            self.rest(Input::Parked, now);
            return;
        }
        let held = self.ferries.len();
        self.journal.tell(
            EventKind::Offline,
            format!("the connection to the gateway is lost ({reason}); {held} flows are held"),
        );
    }

    /// The session is over: what was open at the gateway is gone.
    fn lose_flows(&mut self, reason: &str, now: Instant) {
        self.alone_since = None;
        let mut lost = Vec::new();
        for (flow, ferry) in self.ferries.iter_mut().filter(|(_, ferry)| ferry.is_detached()) {
            if ferry.dial_again() {
                self.waiting.insert(*flow);
            } else {
                lost.push(*flow);
            }
        }
        for flow in &lost {
            if let Some(ferry) = self.forget(*flow) {
                let endpoint = &mut self.tunnel.endpoint;
                ferry.close(&End::ByGateway, &mut self.engine, endpoint, None, now);
            }
        }
        if !lost.is_empty() {
            let text = format!("{reason}: {} flows were reset", lost.len());
            self.journal.tell(EventKind::Offline, text);
        }
    }

    /// The gateway has dropped by now what it held for us.
    fn check_hold(&mut self, now: Instant) {
        let hold = self.hold.min(self.tunnel.hold());
        let over = |since| now.saturating_duration_since(since) >= hold;
        if self.alone_since.is_some_and(over) {
            self.tunnel.forget_session();
            self.lose_flows("the gateway was out of reach for longer than flows are held", now);
        }
    }

    fn taken(&mut self, entries: &[Taken], now: Instant) {
        for entry in entries {
            let flow = FlowId(entry.flow.0);
            let Some(pipe) = self.ferries.get_mut(&flow).and_then(|ferry| ferry.pipe.as_mut())
            else {
                continue;
            };
            match pipe.sender.acknowledge(entry.offset, entry.limit, entry.fin) {
                Ok(()) => self.enqueue(flow),
                Err(violation) => self.end(flow, &End::Violation(violation), now),
            }
        }
    }

    /// Flows that the gateway has given up.
    fn over(&mut self, flows: &[WireFlow]) {
        for flow in flows.iter().map(|flow| FlowId(flow.0)) {
            if let Some(ferry) = self.ferries.get_mut(&flow) {
                ferry.sever();
                self.enqueue(flow);
            }
        }
    }

    /// A path died: flows that were moving ask for what was in flight at once, on new streams.
    fn replay(&mut self, silent_since: Instant) {
        let Some(connection) = self.tunnel.connection() else { return };
        let mut moved = Vec::new();
        for (flow, ferry) in &mut self.ferries {
            let old = ferry.pipe.as_ref().map(Pipe::stream);
            let before = ferry.replayed;
            if ferry.replay(&mut self.tunnel.endpoint, connection, silent_since) {
                self.replayed += ferry.replayed - before;
                moved.push((*flow, old, ferry.pipe.as_ref().map(Pipe::stream)));
            }
        }
        for (flow, old, new) in moved {
            old.and_then(|old| self.streams.remove(&old));
            new.and_then(|new| self.streams.insert(new, flow));
            self.enqueue(flow);
        }
    }

    fn moved(&mut self, step: &Move, from: Option<String>, to: String) {
        match &from {
            Some(from) => info!(from, to, reason = %step.reason, "Moved"),
            None => info!(link = to, "Starts on"),
        }
        let replayed = std::mem::take(&mut self.replayed);
        self.journal.moved(step, from, to, replayed, self.tunnel.lost_bytes());
    }

    fn turn_flows(&mut self, now: Instant) {
        let Some(connection) = self.tunnel.connection() else { return };
        let (rtt, mut due) = (self.tunnel.rtt(), self.work.len());
        let terms = Terms::new(rtt, self.ferries.len(), due, BUFFER);
        let mut moved = 0;
        while due > 0 && moved < TURN {
            due -= 1;
            let Some(flow) = self.work.pop_front() else { break };
            let Some(ferry) = self.ferries.get_mut(&flow) else { continue };
            ferry.queued = false;
            let before = ferry.up_bytes + ferry.down_bytes;
            let replayed = ferry.replayed;
            let stream = ferry.pipe.as_ref().map(Pipe::stream);
            let turn =
                ferry.turn(&mut self.engine, &mut self.tunnel.endpoint, connection, terms, now);
            if ferry.is_waiting() {
                stream.and_then(|stream| self.streams.remove(&stream));
                self.waiting.insert(flow);
            }
            moved += ferry.up_bytes + ferry.down_bytes - before;
            self.journal.add_replayed(ferry.replayed - replayed);
            if let Some(pipe) = &ferry.pipe {
                self.reports.note(pipe.flow, &pipe.receiver, now);
            }
            match turn {
                Turn::Rest => {}
                Turn::Again => self.enqueue(flow),
                Turn::Over(end) => self.end(flow, &end, now),
            }
        }
        if moved > 0 {
            self.tunnel.activity(now);
        }
    }

    fn end(&mut self, flow: FlowId, end: &End, now: Instant) {
        let connection = self.tunnel.connection();
        let unheard = |ferry: &&mut Ferry| ferry.is_detached() || ferry.is_resuming();
        let unheard =
            self.ferries.get_mut(&flow).filter(unheard).filter(|ferry| !ferry.is_doomed());
        if let (End::ByApplication, Some(ferry)) = (end, unheard) {
            ferry.doom();
            return;
        }
        if let Some(ferry) = self.forget(flow) {
            debug!(flow = flow.0, ?end, up = ferry.up_bytes, down = ferry.down_bytes, "Flow over");
            let bytes = (ferry.up_bytes, ferry.down_bytes, ferry.replayed);
            self.journal.trace.flow_ended(flow.0, end.name(), bytes);
            self.counts.end(end);
            if ferry.needs_word(end) {
                self.tunnel.send(&[Control::Over(vec![WireFlow(flow.0)])]);
            }
            ferry.close(end, &mut self.engine, &mut self.tunnel.endpoint, connection, now);
        }
    }

    fn forget(&mut self, flow: FlowId) -> Option<Ferry> {
        self.waiting.remove(&flow);
        let ferry = self.ferries.remove(&flow)?;
        self.counts.over(&ferry);
        if let Some(pipe) = &ferry.pipe {
            self.streams.remove(&pipe.stream());
        }
        Some(ferry)
    }

    fn report(&mut self, now: Instant) {
        let ferries = &mut self.ferries;
        let frames = self.reports.collect(now, |flow: WireFlow| {
            let pipe = ferries.get_mut(&FlowId(flow.0))?.pipe.as_mut()?;
            Some(pipe.receiver.report())
        });
        if !frames.is_empty() {
            self.tunnel.send(&frames);
            self.tunnel.flush(now);
        }
        // A report may have been the last thing a flow owed.
        let done: Vec<FlowId> = frames
            .iter()
            .flat_map(reported)
            .filter(|flow| {
                let pipe = self.ferries.get(flow).and_then(|ferry| ferry.pipe.as_ref());
                pipe.is_some_and(Pipe::is_done)
            })
            .collect();
        for flow in done {
            self.end(flow, &End::Complete, now);
        }
    }

    /// Without a session for too long, waiting connections learn it.
    fn check_patience(&mut self, now: Instant) {
        let Some(since) = self.detached_since else { return };
        if self.given_up || now < since + PATIENCE {
            return;
        }
        self.given_up = true;
        let ferries = &self.ferries;
        let is_new = |flow: &FlowId| ferries.get(flow).map(Ferry::is_waiting);
        let hopeless = patience::hopeless(&mut self.waiting, is_new);
        let refused = hopeless.len();
        for flow in hopeless {
            self.ferries.remove(&flow);
            self.counts.refuse_unreached();
            self.engine.refuse(flow, Refusal::HostUnreachable, now);
        }
        let what = match self.offline {
            Offline::Direct => "new connections go direct until it is back",
            Offline::Block => "new connections are refused until it is back",
        };
        info!(refused, what, "The gateway is out of reach");
        self.journal.tell(
            EventKind::Offline,
            format!("the gateway is out of reach: {what} ({refused} waiting ones were refused)"),
        );
    }

    /// Resets every flow and ends the connection: an orderly stop.
    pub(crate) fn stop(&mut self, sink: &mut dyn PacketSink, now: Instant) {
        self.engine.abort_all();
        self.engine.flush(now, sink);
        self.tunnel.close(now);
    }
}

/// The flows a frame reports on.
fn reported(frame: &Control) -> Vec<FlowId> {
    let Control::Taken(entries) = frame else { return Vec::new() };
    entries.iter().filter(|entry| entry.fin).map(|entry| FlowId(entry.flow.0)).collect()
}
