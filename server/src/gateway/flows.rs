//! Flows: dialled for a stream, resumed on another one, moved, and over.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::{debug, warn};
use whimbrel_carrier::{Connection, Pipe, Stream};
use whimbrel_common::path::Input;
use whimbrel_common::session::share;
use whimbrel_common::wire::{
    Control, Denial, FlowAnswer, FlowHeader, Limit, RESOLVER, RefuseReason, StreamCode, WireFlow,
};
use whimbrel_gateway_core::associations::OutletNumber;

use crate::dial::{Destination, refusal};
use crate::flow::{End, Flow, Terms, Turn};
use crate::keep::{Keep, Shelf};
use crate::metrics::limit;
use crate::peer::Use;
use crate::sessions::Session;

use super::Gateway;
use super::parcels::OUTLETS;

/// How long a flow that found no room waits before it looks again: short beside what a person
/// notices, long beside a round trip.
const FEED_EVERY: Duration = Duration::from_millis(100);

impl Gateway {
    pub(super) fn begin(
        &mut self,
        connection: Connection,
        stream: Stream,
        header: &FlowHeader,
        rest: BytesMut,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        if peer.session.is_none() {
            self.deny(connection, Denial::Protocol, now);
            return;
        }
        match *header {
            FlowHeader::Open { flow, destination, limit } => {
                let mut pipe = Pipe::accept(flow, stream, limit);
                pipe.accept_rest(rest);
                let dialled = self.dial(connection, flow, destination, pipe, now);
                if let Err((mut pipe, reason)) = dialled {
                    pipe.part(&FlowAnswer::Refused { reason }, &mut self.endpoint, connection);
                    if let Some(peer) = self.peers.get_mut(&connection) {
                        peer.streams.remove(&stream);
                    }
                }
            }
            FlowHeader::Parcels => self.begin_parcels(connection, stream, rest),
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
        let Some(session) = peer.session.as_mut() else {
            return Err((pipe, RefuseReason::Failed));
        };
        // A dial may be overtaken by many others; what counts is that there is no such flow.
        if session.flows.contains_key(&flow) {
            return Err((pipe, RefuseReason::Failed));
        }
        session.seen.insert(flow);
        let resolver = (destination == RESOLVER).then(|| self.resolvers.choose(now)).flatten();
        let asked = resolver.is_some();
        let destination = resolver.unwrap_or(destination);
        // Its own resolver answers whoever is admitted, wherever it is.
        if !asked && let Err(denied) = self.policy.check(destination) {
            debug!(client = %session.name, %denied, "Denied");
            self.stats.denied += 1;
            return Err((pipe, RefuseReason::Denied));
        }
        if let Err(exceeded) = self.usage.lock().open(&peer.key, now) {
            debug!(client = %session.name, %exceeded, "Limited");
            self.stats.limited += 1;
            self.figures.limits.count(&limit::name(exceeded));
            if let Some(limit) = limit::told(exceeded) {
                peer.tell_limit(limit, now);
            }
            return Err((pipe, RefuseReason::Limit));
        }
        let number = self.next_flow;
        self.next_flow += 1;
        let socket = match Destination::unconnected(destination) {
            Ok(socket) => socket,
            Err(error) => {
                self.usage.lock().close(&peer.key);
                self.stats.failed += 1;
                self.resolvers.failed(destination);
                debug!(%destination, %error, "Cannot dial");
                return Err((pipe, refusal(&error)));
            }
        };
        let mut dialled = Flow::new((peer.key, connection), pipe, destination, socket);
        // Before it connects: a destination must not see a connection that nobody goes on with.
        if let Err(error) = Self::shelve(&mut self.keep, session, &mut dialled) {
            // Counted, not told: where there is no room, every dial would say so.
            self.stats.unkept += 1;
            debug!(%error, "A connection will end with this process");
        }
        if let (Some(keep), Some(place)) = (&mut self.keep, session.place) {
            keep.note_session(place, session.epoch, &session.seen);
        }
        if let Err(error) = dialled.dial(number, &self.dialler) {
            self.usage.lock().close(&peer.key);
            self.stats.failed += 1;
            self.resolvers.failed(destination);
            debug!(%destination, %error, "Cannot dial");
            let (pipe, shelf) = dialled.abandon();
            if let (Some(keep), Some(shelf)) = (&mut self.keep, shelf) {
                keep.close_flow(shelf);
            }
            return Err((pipe, refusal(&error)));
        }
        session.flows.insert(flow, number);
        peer.streams.insert(dialled.pipe.stream(), Use::Flow(number));
        self.dials.push_back((now + self.limits.dial_timeout, number));
        self.flows.insert(number, dialled);
        Ok(())
    }

    /// Makes a flow outlive this process, if there is a way and room.
    fn shelve(keep: &mut Option<Keep>, session: &Session, flow: &mut Flow) -> io::Result<()> {
        let (Some(keep), Some(place)) = (keep, session.place) else { return Ok(()) };
        let shelf = keep.open_flow(place, flow.pipe.flow, flow.destination);
        let Some(shelf) = shelf else { return Err(io::ErrorKind::StorageFull.into()) };
        match keep.park(&shelf, flow.socket()) {
            Ok(()) => flow.outlive(shelf),
            Err(error) => {
                keep.close_flow(shelf);
                Err(error)
            }
        }
    }

    fn resume(&mut self, connection: Connection, stream: Stream, resume: &Resume, rest: BytesMut) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let Some(session) = peer.session.as_ref() else { return };
        let known = session.flows.get(&resume.flow).copied();
        let flow = known.and_then(|number| self.flows.get_mut(&number).map(|flow| (number, flow)));
        let Some((number, flow)) = flow else {
            let seen = session.seen.contains(resume.flow);
            let answer = if seen { FlowAnswer::Gone } else { FlowAnswer::NeverSeen };
            let mut pipe = Pipe::accept(resume.flow, stream, 0);
            pipe.part(&answer, &mut self.endpoint, connection);
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
        if let Some(shelf) = &flow.shelf {
            shelf.resume(resume.epoch);
        }
        flow.pipe.accept_rest(rest);
        if !flow.is_dialling() {
            let (taken, limit, fin_taken) = flow.pipe.receiver.report();
            let offset = flow.pipe.sender.taken();
            let repeated = sent.saturating_sub(offset);
            self.figures.replayed += repeated;
            flow.pipe.answer(&FlowAnswer::Resumed { taken, fin_taken, offset, limit, repeated });
        }
        if let Some(old) = old {
            Pipe::supersede(&mut self.endpoint, connection, old);
            peer.streams.remove(&old);
        }
        peer.streams.insert(stream, Use::Flow(number));
        Self::enqueue(&mut self.turns, number, flow);
    }

    /// The client names flows it has. Those that wait to be resumed and are not among them are
    /// over: their end was on its way when the connection was lost.
    pub(super) fn holding(&mut self, connection: Connection, flows: &[WireFlow], last: bool) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let Some(session) = &peer.session else { return };
        // What it does not have here need not be remembered.
        peer.holding.extend(flows.iter().filter(|flow| session.flows.contains_key(flow)));
        if !last {
            return;
        }
        let held = std::mem::take(&mut peer.holding);
        let others = session.flows.iter().filter(|(flow, _)| !held.contains(flow));
        let others: Vec<u64> = others.map(|(_, number)| *number).collect();
        for number in others {
            let Some(flow) = self.flows.get(&number).filter(|flow| flow.parked) else { continue };
            let end = if flow.is_complete() { End::Complete } else { End::ByClient };
            self.end(number, end);
        }
    }

    /// The client has given up flows whose streams cannot tell it.
    pub(super) fn over(&mut self, connection: Connection, flows: &[WireFlow]) {
        for flow in flows {
            let session = self.peers.get(&connection).and_then(|peer| peer.session.as_ref());
            let number = session.and_then(|session| session.flows.get(flow).copied());
            let Some(number) = number else { continue };
            let complete = self.flows.get(&number).is_some_and(Flow::is_complete);
            self.end(number, if complete { End::Complete } else { End::ByClient });
        }
    }

    pub(super) fn expire_dials(&mut self, now: Instant) {
        while let Some((at, number)) = self.dials.front().copied()
            && at <= now
        {
            self.dials.pop_front();
            let Some(flow) = self.flows.get_mut(&number).filter(|flow| flow.is_dialling()) else {
                continue;
            };
            // A client that is away hears of the answer when it is back.
            if flow.parked && !flow.has_connected() {
                self.end(number, End::Refused(RefuseReason::TimedOut));
            } else if !flow.parked
                && let Turn::Over(end) = flow.time_out(&mut self.endpoint)
            {
                self.end(number, end);
            }
        }
    }

    /// Flows that have come to rest give their memory back.
    pub(super) fn cool_flows(&mut self, now: Instant) {
        for warm in self.cooling.due(now) {
            let Some(flow) = self.flows.get_mut(&warm.flow) else { continue };
            let Some(shelf) = &mut flow.shelf else { continue };
            if warm.is_at_rest(flow.down_bytes) {
                shelf.cool();
            }
            flow.watched = shelf.can_cool();
            if flow.watched {
                self.cooling.add(warm.flow, flow.down_bytes, now);
            }
        }
    }

    /// Flows that found no room try again when some may have been made.
    pub(super) fn feed_starved(&mut self, now: Instant) {
        if self.starved.is_empty() || now < self.feed_at {
            return;
        }
        self.feed_at = now + FEED_EVERY;
        for number in std::mem::take(&mut self.starved) {
            if let Some(flow) = self.flows.get_mut(&number) {
                Self::enqueue(&mut self.turns, number, flow);
            }
        }
    }

    /// Flows of clients that have bandwidth again wait for their turn.
    pub(super) fn wake_throttled(&mut self, now: Instant) {
        while let Some(number) = self.throttled.next_due(now) {
            if number >= OUTLETS {
                self.wake_outlet(OutletNumber(number));
            } else if let Some(flow) = self.flows.get_mut(&number) {
                Self::enqueue(&mut self.turns, number, flow);
            }
        }
    }

    pub(super) fn turn_flows(&mut self, now: Instant) {
        self.turns.begin();
        while let Some(turn) = self.turns.next_turn() {
            let moved = if turn.flow >= OUTLETS {
                self.turn_datagrams(turn, now)
            } else {
                self.turn_flow(turn.flow, turn.budget, now)
            };
            self.turns.count(turn.client, moved);
        }
    }

    /// Moves what can be moved of one flow. How many bytes that were.
    fn turn_flow(&mut self, number: u64, budget: usize, now: Instant) -> u64 {
        let clients = self.peers.len();
        let Some(flow) = self.flows.get_mut(&number) else { return 0 };
        flow.queued = false;
        let peer = self.peers.get_mut(&flow.client).filter(|_| !flow.parked);
        let Some(peer) = peer else { return 0 };
        let rtt = peer.rtt();
        let Some(session) = peer.session.as_mut() else { return 0 };
        let before = (flow.up_bytes, flow.down_bytes);
        let was_dialling = flow.is_dialling();
        let most = self.limits.buffered_per_client;
        let (up, down) = session.room(self.limits.bandwidth_per_client, now);
        let within = |room: &Result<u64, Instant>| {
            room.map_or(0, |room| usize::try_from(room).unwrap_or(usize::MAX).min(budget))
        };
        let terms = Terms {
            rtt,
            window: self.memory.window(share(session.flows.len())),
            allowance: self.memory.allowance(session.held, most, clients),
            up: within(&up),
            down: within(&down),
        };
        let turn = flow.turn(&mut self.endpoint, &mut self.scratch, terms, now);
        let moved = (flow.up_bytes - before.0, flow.down_bytes - before.1);
        session.count(moved.0, moved.1);
        self.stats.up_bytes += moved.0;
        self.stats.down_bytes += moved.1;
        if was_dialling && !flow.is_dialling() {
            self.stats.connected += 1;
            self.resolvers.answered(flow.destination);
        }
        self.memory.count(flow.counted, flow.held());
        session.held = session.held + flow.held() - flow.counted;
        flow.counted = flow.held();
        if terms.allowance == 0 && flow.waits_to_read() {
            self.figures.limits.count(&Limit::Memory.to_string());
            peer.tell_limit(Limit::Memory, now);
            self.starved.insert(number);
        } else if flow.held() >= terms.allowance && flow.waits_to_read() {
            self.figures.limits.count(&Limit::Buffered.to_string());
            peer.tell_limit(Limit::Buffered, now);
        }
        if moved != (0, 0) {
            peer.paths.handle(Input::Activity, now);
        }
        if !flow.watched && flow.shelf.as_ref().is_some_and(Shelf::can_cool) {
            flow.watched = true;
            self.cooling.add(number, flow.down_bytes, now);
        }
        peer.reports.note(flow.pipe.flow, &flow.pipe.receiver, now);
        // What has room and did not use all of it has nothing more to move.
        let goes_on = up.is_ok() && moved.0 >= terms.up as u64
            || down.is_ok() && moved.1 >= terms.down as u64;
        let waits = up.err().into_iter().chain(down.err()).min().filter(|_| !goes_on);
        match (turn, waits) {
            (Turn::Rest, _) => {}
            (Turn::Again, Some(at)) => {
                self.figures.limits.count(&Limit::Bandwidth.to_string());
                peer.tell_limit(Limit::Bandwidth, now);
                self.throttled.add(number, at);
            }
            (Turn::Again, None) => Self::enqueue(&mut self.turns, number, flow),
            (Turn::Over(end), _) => self.end(number, end),
        }
        moved.0 + moved.1
    }

    /// A flow is over: its stream, its socket and what it counted go.
    pub(super) fn end(&mut self, number: u64, end: End) {
        let Some(mut flow) = self.flows.remove(&number) else { return };
        debug!(flow = flow.pipe.flow.0, destination = %flow.destination, ?end, "Flow over");
        self.settle(number, &flow);
        match end {
            End::Complete if flow.parked => {}
            // Everything was taken; a stream that is not ended would count as open for ever.
            End::Complete => flow.pipe.conclude(&mut self.endpoint, flow.client),
            End::Refused(_) => {
                self.stats.failed += 1;
                self.resolvers.failed(flow.destination);
            }
            End::ByDestination | End::ByClient | End::Violation(_) if flow.parked => {}
            End::ByDestination | End::ByClient | End::Violation(_) => {
                flow.pipe.reset(&mut self.endpoint, flow.client);
                // A stream that both ends have finished cannot be reset.
                let finished = flow.pipe.sender.is_finished() && end != End::ByClient;
                let peer = self.peers.get_mut(&flow.client).filter(|_| finished);
                if let Some(control) = peer.and_then(|peer| peer.control.as_mut()) {
                    control.send(&Control::Over(vec![flow.pipe.flow]));
                }
            }
        }
        Self::close_flow(&mut self.keep, flow, end);
    }

    /// Takes a flow that is over out of its session.
    fn settle(&mut self, number: u64, flow: &Flow) {
        if !flow.parked
            && let Some(peer) = self.peers.get_mut(&flow.client)
        {
            peer.streams.remove(&flow.pipe.stream());
        }
        let owns = |session: &&mut Session| session.flows.get(&flow.pipe.flow) == Some(&number);
        let owner = match self.peers.get_mut(&flow.client) {
            Some(peer) if !flow.parked => peer.session.as_mut(),
            Some(_) | None => {
                let attached = self.peers.values_mut().filter_map(|peer| peer.session.as_mut());
                attached.chain(self.parked.iter_mut()).find(owns)
            }
        };
        if let Some(session) = owner {
            session.flows.remove(&flow.pipe.flow);
            session.held = session.held.saturating_sub(flow.counted);
            self.memory.count(flow.counted, 0);
            self.usage.lock().close(&session.key);
        }
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
