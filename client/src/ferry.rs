//! One flow at the client: an application's TCP on one side, a stream on the other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::debug;
use whimbrel_carrier::{AnswerOrEnd, Connection, Endpoint, Pipe, Pulled, StreamEnd};
use whimbrel_client_core::engine::{Engine, FlowId, Refusal};
use whimbrel_common::session::{self, INITIAL_WINDOW, Violation};
use whimbrel_common::wire::{
    FlowAnswer, FlowHeader, RefuseReason, StreamCode, WireError, WireFlow,
};

use crate::report::{FlowReport, Transport};

/// Bytes all flows move before everything else gets its turn: a few milliseconds of one core.
pub(crate) const TURN: u64 = 1024 * 1024;

/// One read from the application, in bytes: it is one chunk until the gateway has taken it.
const CHUNK: usize = 64 * 1024;

/// Bytes a flow may have waiting for its stream before the application is left unread.
const UNSENT: u64 = 256 * 1024;

/// A flow counts as active this long after its last byte: what was in flight to it when a path
/// fell silent is asked for again at once. Later than that, the carrier's own recovery is soon
/// enough.
const ACTIVE: Duration = Duration::from_secs(3);

/// A pause in a flow that is not idle counts as a stall from here on.
pub(crate) const STALL: Duration = Duration::from_millis(100);

/// What all flows are moved by at the moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The round trip of the path that carries.
    pub(crate) rtt: Duration,
    /// The largest window of a flow, in bytes.
    pub(crate) window: u64,
    /// Bytes of a flow's ring towards the application that stay unused.
    pub(crate) reserve: usize,
    /// Bytes moved in one direction before other flows get their turn.
    pub(crate) budget: usize,
}

impl Terms {
    /// The terms of `flows` flows, `busy` of which have something to move through rings of `ring`
    /// bytes.
    pub(crate) fn new(rtt: Duration, flows: usize, busy: usize, ring: usize) -> Self {
        let window = session::share(flows);
        let reserve = ring - usize::try_from(window).unwrap_or(ring).min(ring);
        let fair = usize::try_from(TURN / 2).unwrap_or(usize::MAX) / busy.max(1);
        Self { rtt, window, reserve, budget: fair.max(CHUNK) }
    }
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Ferry {
    pub(crate) flow: FlowId,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) since: Instant,
    /// Bytes from the application.
    pub(crate) up_bytes: u64,
    /// Bytes to the application.
    pub(crate) down_bytes: u64,
    /// Bytes sent a second time after moves, by either end.
    pub(crate) replayed: u64,
    /// Connections that were lost under it.
    reconnects: u64,
    pub(crate) moves: u64,
    pub(crate) longest_stall: Duration,
    pub(crate) queued: bool,
    pub(crate) pipe: Option<Pipe>,
    phase: Phase,
    redialled: bool,
    /// The connection that carried the flow is lost, and no stream of another carries it yet.
    detached: bool,
    /// The application reset the flow while the gateway could not be told.
    doomed: bool,
    last_byte: Instant,
    /// What was under way was sent again since the last byte: the pause is none of the
    /// application's.
    carried_over: bool,
    /// The gateway has given the flow up: what it said last is delivered, and nothing else.
    severed: bool,
    /// The application's connection is over; what is left concerns the gateway only.
    app_gone: bool,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for a session or a stream.
    Waiting,
    /// The gateway dials.
    Dialling,
    /// Bytes flow.
    Open,
}

/// What a turn left to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing until something becomes ready.
    Rest,
    /// More could be moved at once.
    Again,
    /// The flow is over.
    Over(End),
}

/// How a flow ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions were ended and the gateway knows.
    Complete,
    /// The gateway could not open it.
    Refused(RefuseReason),
    /// The destination or the gateway reset it.
    ByGateway,
    /// The application reset it.
    ByApplication,
    /// The gateway broke the rules of the flow.
    Violation(Violation),
    /// The gateway sent something that is no frame.
    Wire(WireError),
}

impl Ferry {
    pub(crate) fn new(
        flow: FlowId,
        source: SocketAddr,
        destination: SocketAddr,
        now: Instant,
    ) -> Self {
        Self {
            flow,
            source,
            destination,
            since: now,
            up_bytes: 0,
            down_bytes: 0,
            replayed: 0,
            reconnects: 0,
            moves: 0,
            longest_stall: Duration::ZERO,
            queued: false,
            pipe: None,
            phase: Phase::Waiting,
            redialled: false,
            detached: false,
            doomed: false,
            last_byte: now,
            carried_over: false,
            severed: false,
            app_gone: false,
            ended: false,
        }
    }

    /// Whether the flow waits for a stream.
    pub(crate) fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    /// Whether bytes can flow.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// What a person reads in the list of flows; `parked` while no network reaches the gateway.
    pub(crate) fn describe(&self, parked: bool, now: Instant) -> FlowReport {
        let finished = self.pipe.as_ref().is_some_and(|pipe| pipe.sender.is_finished());
        let state = match self.phase {
            Phase::Waiting => "held",
            Phase::Dialling | Phase::Open if parked => "held",
            Phase::Dialling => "opening",
            Phase::Open if self.doomed => "closing",
            Phase::Open if self.app_gone || self.ended && finished => "closing",
            Phase::Open if self.ended || finished => "half-closed",
            Phase::Open => "open",
        };
        FlowReport {
            id: self.flow.0,
            protocol: Transport::Tcp,
            source: self.source,
            destination: self.destination,
            state: state.to_owned(),
            tx_bytes: self.up_bytes,
            rx_bytes: self.down_bytes,
            age_s: now.saturating_duration_since(self.since).as_secs(),
            stalled_ms_longest: u64::try_from(self.longest_stall.as_millis()).unwrap_or(u64::MAX),
            moves_survived: self.moves,
            reconnects_survived: self.reconnects,
            replayed_bytes: self.replayed,
            held_bytes: self.pipe.as_ref().map_or(0, |pipe| pipe.sender.held()),
        }
    }

    /// Asks the gateway to dial, on a stream of `connection` if it has one to give. Whether it had.
    pub(crate) fn dial(&mut self, endpoint: &mut Endpoint, connection: Connection) -> bool {
        let Some(stream) = endpoint.open(connection) else { return false };
        let header = FlowHeader::Open {
            flow: WireFlow(self.flow.0),
            destination: self.destination,
            limit: INITIAL_WINDOW,
        };
        self.pipe = Some(Pipe::dial(WireFlow(self.flow.0), stream, &header));
        self.phase = Phase::Dialling;
        true
    }

    /// The session is gone. Whether the flow can be dialled again: no byte has moved yet.
    pub(crate) fn dial_again(&mut self) -> bool {
        // Once: the request itself might be what ends the session.
        let again = self.phase == Phase::Dialling && !std::mem::replace(&mut self.redialled, true);
        if again {
            self.phase = Phase::Waiting;
            self.pipe = None;
            self.detached = false;
        }
        again || self.phase == Phase::Waiting
    }

    /// The connection is gone, the session may go on over another one.
    pub(crate) fn detach(&mut self) {
        self.detached = self.pipe.is_some();
    }

    /// Whether the gateway has not answered yet where it goes on. A reset could overtake the
    /// question, and the gateway would keep the flow.
    pub(crate) fn is_resuming(&self) -> bool {
        let unanswered = |pipe: &Pipe| pipe.epoch() > pipe.answered();
        self.phase == Phase::Open && self.pipe.as_ref().is_some_and(unanswered)
    }

    /// Whether the flow belongs to a connection that is gone.
    pub(crate) fn is_detached(&self) -> bool {
        self.detached
    }

    /// The gateway is told that the application reset the flow as soon as it can be.
    pub(crate) fn doom(&mut self) {
        self.doomed = true;
    }

    /// Whether the application reset it, which the gateway may not know yet.
    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed
    }

    /// Goes on over a new connection of the same session, if it has a stream to give. Whether it
    /// had.
    pub(crate) fn reattach(&mut self, endpoint: &mut Endpoint, connection: Connection) -> bool {
        let Some(pipe) = self.pipe.as_mut() else { return true };
        let Some(stream) = endpoint.open(connection) else { return false };
        self.replayed += pipe.sender.in_flight();
        self.carried_over |= pipe.sender.in_flight() > 0;
        self.detached = false;
        self.reconnects += 1;
        pipe.redial(stream);
        true
    }

    /// The application is gone in an orderly way.
    pub(crate) fn application_closed(&mut self) {
        self.app_gone = true;
    }

    /// The destination is gone, which the stream could not tell.
    pub(crate) fn sever(&mut self) {
        self.severed = true;
    }

    /// A path died: what was in flight is sent and asked for again on a new stream, at once.
    /// Whether the flow had any need of that.
    pub(crate) fn replay(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
        silent_since: Instant,
    ) -> bool {
        let Some(pipe) = self.pipe.as_mut() else { return false };
        let active = silent_since.saturating_duration_since(self.last_byte) < ACTIVE;
        // An outage may have swallowed what asked for the rest.
        let asking = pipe.epoch() > pipe.answered();
        // While the gateway dials there is nothing to repeat but the request itself, which must not
        // be: the stream that carries it recovers by itself.
        let moving = active || asking || pipe.sender.in_flight() > 0;
        if self.phase != Phase::Open || self.detached || !moving {
            return false;
        }
        let Some(stream) = endpoint.open(connection) else { return false };
        self.replayed += pipe.sender.in_flight();
        self.carried_over |= active || pipe.sender.in_flight() > 0;
        self.moves += 1;
        let old = pipe.stream();
        pipe.redial(stream);
        Pipe::supersede(endpoint, connection, old);
        true
    }

    /// Moves what can be moved.
    pub(crate) fn turn(
        &mut self,
        engine: &mut Engine,
        endpoint: &mut Endpoint,
        connection: Connection,
        terms: Terms,
        now: Instant,
    ) -> Turn {
        match self.try_turn(engine, endpoint, connection, terms, now) {
            Ok(true) => Turn::Again,
            Ok(false) => Turn::Rest,
            Err(end) => Turn::Over(end),
        }
    }

    fn try_turn(
        &mut self,
        engine: &mut Engine,
        endpoint: &mut Endpoint,
        connection: Connection,
        terms: Terms,
        now: Instant,
    ) -> Result<bool, End> {
        if self.detached {
            return Ok(false);
        }
        let Some(pipe) = self.pipe.as_mut() else { return Ok(false) };
        push(pipe, endpoint, connection)?;
        if self.phase == Phase::Dialling || pipe.epoch() > pipe.answered() {
            match pipe.read_answer(endpoint, connection).map_err(End::Wire)? {
                None => {}
                Some(answer) => {
                    let stream = pipe.stream();
                    self.take_answer(engine, answer, now)?;
                    if self.pipe.is_none() {
                        // It dials again, on another stream.
                        Pipe::supersede(endpoint, connection, stream);
                    }
                }
            }
        }
        if self.doomed && self.pipe.as_ref().is_some_and(|pipe| pipe.epoch() == pipe.answered()) {
            return Err(End::ByApplication);
        }
        if self.phase != Phase::Open || self.doomed {
            return Ok(false);
        }
        let up = self.carry_up(engine, endpoint, connection, terms.budget, now)?;
        let down = self.carry_down(engine, endpoint, connection, terms, now)?;
        match &self.pipe {
            Some(pipe) if pipe.is_done() => Err(End::Complete),
            Some(_) if self.severed && self.ended => Err(End::ByGateway),
            Some(_) | None => Ok(up || down),
        }
    }

    fn take_answer(
        &mut self,
        engine: &mut Engine,
        answer: AnswerOrEnd,
        now: Instant,
    ) -> Result<(), End> {
        // The request to dial was lost with a connection.
        let unseen = answer == AnswerOrEnd::Answer(FlowAnswer::NeverSeen) && !self.doomed;
        if unseen && self.dial_again() {
            return Ok(());
        }
        let Some(pipe) = self.pipe.as_mut() else { return Ok(()) };
        match answer {
            AnswerOrEnd::Answer(FlowAnswer::Opened { limit }) => {
                pipe.sender.acknowledge(0, limit, false).map_err(End::Violation)?;
                pipe.mark_answered();
                self.opened(engine, now);
                Ok(())
            }
            AnswerOrEnd::Answer(FlowAnswer::Resumed {
                taken,
                fin_taken,
                offset,
                limit,
                repeated,
            }) => {
                self.replayed += repeated;
                pipe.receiver.resume(offset).map_err(End::Violation)?;
                pipe.sender.acknowledge(taken, limit, fin_taken).map_err(End::Violation)?;
                pipe.mark_answered();
                debug!(flow = self.flow.0, taken, repeated, "Flow goes on");
                self.opened(engine, now);
                Ok(())
            }
            AnswerOrEnd::Answer(FlowAnswer::Refused { reason }) => Err(End::Refused(reason)),
            // The gateway forgot the flow because everything was done; only its word was lost.
            AnswerOrEnd::Answer(FlowAnswer::Gone)
                if pipe.receiver.is_done() && pipe.sender.is_finished() =>
            {
                Err(End::Complete)
            }
            AnswerOrEnd::Answer(FlowAnswer::NeverSeen | FlowAnswer::Gone) | AnswerOrEnd::End => {
                Err(End::ByGateway)
            }
        }
    }

    /// The gateway's connection stands.
    fn opened(&mut self, engine: &mut Engine, now: Instant) {
        if self.phase == Phase::Dialling {
            self.phase = Phase::Open;
            self.last_byte = now;
            engine.accept(self.flow, now);
        }
    }

    /// Application to gateway; whether more could be moved at once.
    fn carry_up(
        &mut self,
        engine: &mut Engine,
        endpoint: &mut Endpoint,
        connection: Connection,
        budget: usize,
        now: Instant,
    ) -> Result<bool, End> {
        let Some(pipe) = self.pipe.as_mut() else { return Ok(false) };
        let mut moved = 0;
        while !pipe.sender.is_finished() && pipe.sender.held() - pipe.sender.in_flight() < UNSENT {
            let room = pipe.sender.room().min(CHUNK);
            // Without room only the end can be taken, which needs none.
            let mut chunk = BytesMut::with_capacity(room.min(engine.readable(self.flow)));
            let read = engine.read(self.flow, room, &mut chunk);
            if read.bytes > 0 {
                pipe.sender.push(chunk.freeze());
                self.up_bytes += read.bytes as u64;
                moved += read.bytes;
            }
            if read.fin {
                pipe.sender.finish();
            }
            if read.bytes == 0 && !read.fin {
                break;
            }
            push(pipe, endpoint, connection)?;
            if moved >= budget {
                break;
            }
        }
        if moved > 0 {
            self.note_progress(now);
        }
        Ok(moved >= budget)
    }

    /// Gateway to application; whether more could be moved at once.
    fn carry_down(
        &mut self,
        engine: &mut Engine,
        endpoint: &mut Endpoint,
        connection: Connection,
        terms: Terms,
        now: Instant,
    ) -> Result<bool, End> {
        let Some(pipe) = self.pipe.as_mut() else { return Ok(false) };
        let mut moved = 0;
        while !self.ended && moved < terms.budget && pipe.epoch() == pipe.answered() {
            let room = engine.writable(self.flow).saturating_sub(terms.reserve);
            if room == 0 {
                break;
            }
            match pipe.pull(endpoint, connection, room) {
                Pulled::Data(bytes) => {
                    let written = engine.write(self.flow, &bytes);
                    debug_assert_eq!(written, bytes.len(), "room was asked for before");
                    pipe.receiver.take(bytes.len(), now, terms.rtt).map_err(End::Violation)?;
                    pipe.receiver.bound(terms.window);
                    self.down_bytes += bytes.len() as u64;
                    moved += bytes.len();
                }
                Pulled::Blocked | Pulled::Superseded => break,
                Pulled::End => {
                    engine.finish(self.flow);
                    pipe.receiver.take_end();
                    self.ended = true;
                }
                Pulled::Reset => return Err(End::ByGateway),
            }
        }
        if moved > 0 {
            self.note_progress(now);
        }
        Ok(moved >= terms.budget)
    }

    fn note_progress(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last_byte);
        let pipe_waits = self.pipe.as_ref().is_some_and(|pipe| pipe.sender.held() > 0);
        // A pause without anything under way is the application's own.
        let waited = std::mem::take(&mut self.carried_over) || pause < ACTIVE && pipe_waits;
        if pause > STALL && waited {
            self.longest_stall = self.longest_stall.max(pause);
        }
        self.last_byte = now;
    }

    /// Whether the gateway learns only by a word of its own that the flow is over: a stream that both
    /// ends have finished cannot be reset.
    pub(crate) fn needs_word(&self, end: &End) -> bool {
        let ours = match end {
            End::ByApplication | End::Violation(_) | End::Wire(_) => true,
            End::Complete | End::Refused(_) | End::ByGateway => false,
        };
        ours && self.pipe.as_ref().is_some_and(|pipe| pipe.sender.is_finished())
    }

    /// Whether the gateway has taken all the application will ever say.
    pub(crate) fn has_said_all(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.sender.is_done())
    }

    /// Tells both sides how the flow ended, where they do not know yet.
    pub(crate) fn close(
        self,
        end: &End,
        engine: &mut Engine,
        endpoint: &mut Endpoint,
        connection: Option<Connection>,
        now: Instant,
    ) {
        match end {
            End::Complete => {}
            End::Refused(reason) => engine.refuse(self.flow, refusal(*reason), now),
            End::ByGateway if self.phase != Phase::Open => {
                engine.refuse(self.flow, Refusal::HostUnreachable, now);
            }
            End::ByGateway | End::Violation(_) | End::Wire(_) => engine.abort(self.flow),
            End::ByApplication => {}
        }
        let (Some(pipe), Some(connection)) = (&self.pipe, connection) else { return };
        if self.detached {
            return;
        }
        // A stream that nobody ends counts against those that may be open for as long as the
        // connection lasts.
        match end {
            End::Complete | End::Refused(_) => {
                Pipe::supersede(endpoint, connection, pipe.stream());
            }
            End::ByGateway | End::ByApplication | End::Violation(_) | End::Wire(_) => {
                pipe.reset(endpoint, connection);
            }
        }
    }
}

fn push(pipe: &mut Pipe, endpoint: &mut Endpoint, connection: Connection) -> Result<(), End> {
    match pipe.push(endpoint, connection) {
        Ok(()) | Err(StreamEnd::Gone) => Ok(()),
        Err(StreamEnd::Stopped(code)) => match StreamCode::from_code(code) {
            StreamCode::Reset => Err(End::ByGateway),
            StreamCode::Superseded => Ok(()),
        },
    }
}

fn refusal(reason: RefuseReason) -> Refusal {
    match reason {
        RefuseReason::Refused => Refusal::Refused,
        RefuseReason::HostUnreachable | RefuseReason::Limit | RefuseReason::Failed => {
            Refusal::HostUnreachable
        }
        RefuseReason::NetworkUnreachable => Refusal::NetworkUnreachable,
        RefuseReason::TimedOut => Refusal::TimedOut,
        RefuseReason::Denied => Refusal::Prohibited,
    }
}
