//! The gateway's flows: dialled for a stream, resumed on another one, and over.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_carrier::{Connection, Path, Pipe, Read, Stream, StreamEnd};
use whimbrel_common::wire::{DETACH, FlowAnswer, FlowHeader, StreamCode, WireFlow};

use super::{Gateway, Use};
use crate::flow::{End, Flow};
use crate::story::Stories;

impl Gateway {
    pub(super) fn begin(
        &mut self,
        connection: Connection,
        stream: Stream,
        header: &FlowHeader,
        rest: BytesMut,
        stories: &mut Stories,
        now: Instant,
    ) {
        match *header {
            FlowHeader::Open { flow, limit, .. } => {
                let mut pipe = Pipe::accept(flow, stream, limit);
                pipe.accept_rest(rest);
                self.dial(connection, flow, pipe, stories, now);
            }
            FlowHeader::Resume { .. } => self.resume(connection, stream, header, rest),
            FlowHeader::Parcels => {}
        }
    }

    fn dial(
        &mut self,
        connection: Connection,
        flow: WireFlow,
        pipe: Pipe,
        stories: &mut Stories,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let session = peer.session.as_mut().expect("clients wait for their session");
        assert!(!session.seen.contains(flow), "{flow:?} is dialled twice");
        session.seen.insert(flow);
        self.journal.note_session(session.id, session.key, session.epoch, &session.seen);
        self.journal.begin(session.id, flow);
        let story = stories.get_mut(&flow).expect("every flow has one");
        story.dial();
        let answers = now + Duration::from_millis(story.ponders);
        let number = self.next_flow;
        self.next_flow += 1;
        session.flows.insert(flow, number);
        peer.streams.insert(pipe.stream(), Use::Flow(number));
        self.flows.insert(number, Flow::new(connection, session.id, pipe, Some(answers)));
        self.work.insert(number);
    }

    fn resume(
        &mut self,
        connection: Connection,
        stream: Stream,
        header: &FlowHeader,
        rest: BytesMut,
    ) {
        let FlowHeader::Resume { flow: wire, epoch, taken, fin_taken, offset, limit } = *header
        else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let session = peer.session.as_ref().expect("clients wait for their session");
        let known = session.flows.get(&wire).copied();
        let Some((number, flow)) =
            known.and_then(|number| Some((number, self.flows.get_mut(&number)?)))
        else {
            let seen = session.seen.contains(wire);
            let answer = if seen { FlowAnswer::Gone } else { FlowAnswer::NeverSeen };
            let mut pipe = Pipe::accept(wire, stream, 0);
            pipe.answer(&answer);
            self.say_last(connection, pipe);
            return;
        };
        if epoch <= flow.pipe.epoch() {
            Pipe::supersede(&mut self.endpoint, connection, stream);
            peer.streams.remove(&stream);
            return;
        }
        let old = Some(flow.pipe.stream()).filter(|_| !flow.parked);
        let sent = flow.pipe.sender.taken() + flow.pipe.sender.in_flight();
        flow.pipe.resume(stream, epoch, taken, offset).expect("possible offsets");
        flow.pipe.sender.acknowledge(taken, limit, fin_taken).expect("it was sent");
        flow.client = connection;
        flow.parked = false;
        flow.forget_queued();
        self.journal.resume(flow.session, wire, epoch);
        flow.pipe.accept_rest(rest);
        if flow.answers.is_none() {
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
        self.work.insert(number);
    }

    /// The answer is all there is to say on this stream; what comes is thrown away.
    fn say_last(&mut self, connection: Connection, mut pipe: Pipe) {
        pipe.sender.finish();
        if let Err(StreamEnd::Stopped(_)) = pipe.push(&mut self.endpoint, connection) {
            Pipe::supersede(&mut self.endpoint, connection, pipe.stream());
        }
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.streams.insert(pipe.stream(), Use::Answered);
            self.drain(connection, pipe.stream());
        }
    }

    /// Throws away what comes on a stream without a use, so that it can end.
    pub(super) fn drain(&mut self, connection: Connection, stream: Stream) {
        loop {
            match self.endpoint.read(connection, stream, usize::MAX) {
                Read::Data(_) => {}
                Read::Blocked => return,
                Read::End | Read::Reset(_) => break,
            }
        }
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.streams.remove(&stream);
        }
    }

    pub(super) fn turn_flows(&mut self, stories: &mut Stories, now: Instant) {
        while let Some(number) = self.work.pop_first() {
            let Some(flow) = self.flows.get_mut(&number).filter(|flow| !flow.parked) else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&flow.client) else { continue };
            let path = self.endpoint.path(flow.client, Path::FIRST);
            let rtt = path.map_or(Duration::from_millis(100), |path| path.rtt);
            let story = stories.get_mut(&flow.pipe.flow).expect("every flow has one");
            let turn = flow.turn(&mut self.endpoint, story, &mut self.journal, rtt, now);
            peer.reports.note(flow.pipe.flow, &flow.pipe.receiver, now);
            if let Err(end) = turn {
                self.end(number, end, stories, now);
            }
        }
    }

    pub(super) fn stopped(
        &mut self,
        connection: Connection,
        stream: Stream,
        code: u64,
        stories: &mut Stories,
        now: Instant,
    ) {
        match (self.flow_on(connection, stream), StreamCode::from_code(code)) {
            (Some(number), StreamCode::Reset) => {
                self.end(number, End::ByClient, stories, now);
            }
            (Some(_), StreamCode::Superseded) => {}
            (None, _) => {
                if let Some(peer) = self.peers.get_mut(&connection) {
                    peer.streams.remove(&stream);
                }
                Pipe::supersede(&mut self.endpoint, connection, stream);
            }
        }
    }

    /// A flow is over: its stream, its socket and its record go.
    pub(super) fn end(&mut self, number: u64, end: End, stories: &mut Stories, now: Instant) {
        let Some(flow) = self.flows.remove(&number) else { return };
        let (client, stream, wire) = (flow.client, flow.pipe.stream(), flow.pipe.flow);
        self.journal.remove(flow.session, wire);
        let peer = self.peers.get_mut(&client).expect("a flow that moves has one");
        peer.streams.remove(&stream);
        if let Some(session) = &mut peer.session {
            session.flows.remove(&wire);
        }
        match end {
            End::Complete => {
                // After a resume that had nothing left to say, its answer is all there is.
                if let Err(StreamEnd::Stopped(_)) = self.endpoint.finish(client, stream) {
                    Pipe::supersede(&mut self.endpoint, client, stream);
                }
                peer.streams.insert(stream, Use::Answered);
                self.drain(client, stream);
            }
            End::ByDestination if flow.pipe.sender.is_finished() => {
                // A stream that has ended both ways cannot be reset: the client must ask.
                self.endpoint.close(client, DETACH, "a flow was reset", now);
            }
            End::ByDestination | End::ByClient => flow.pipe.reset(&mut self.endpoint, client),
            End::Refused => {
                let mut pipe = flow.pipe;
                let reason = whimbrel_common::wire::RefuseReason::Refused;
                pipe.answer(&FlowAnswer::Refused { reason });
                self.say_last(client, pipe);
            }
        }
        let socket = stories.get_mut(&wire).and_then(|story| story.destination.as_mut());
        if let (Some(socket), End::ByClient) = (socket, end) {
            socket.tear();
        }
    }
}
