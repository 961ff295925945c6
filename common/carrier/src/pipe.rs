//! A flow's offsets and credit, joined to the stream that carries it.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use whimbrel_common::session::{REPORT_DELAY, Receiver, Sender, Violation};
use whimbrel_common::wire::{
    self, Control, FlowAnswer, FlowHeader, StreamCode, Taken, WireError, WireFlow,
};

use crate::endpoint::{Connection, Endpoint, Read, Stream, StreamEnd, Urgency};

/// A flow that keeps no more than this goes before those that keep more, in bytes: keystrokes,
/// requests and short answers fit, as in the initial window of RFC 6928 (ten packets). A flow with
/// more to send leaves the rank as soon as it has said it, so nobody starves.
const SPARSE: u64 = 16 * 1024;

/// Both directions of one flow, and the stream they currently use.
#[derive(Debug)]
pub struct Pipe {
    /// The flow.
    pub flow: WireFlow,
    /// What this end sends.
    pub sender: Sender,
    /// What this end receives.
    pub receiver: Receiver,
    stream: Stream,
    epoch: u64,
    /// The last epoch the peer answered.
    answered: u64,
    /// Frames to be written before any byte of the flow.
    head: BytesMut,
    /// The beginning of the peer's frame while it is incomplete.
    partial: BytesMut,
    blocked: bool,
    /// What the stream was ranked as last; `None` for one that was not yet.
    urgency: Option<Urgency>,
    /// How the peer's direction of the stream ended. The engine says it once and then forgets the
    /// stream, which would look like a reset.
    closed: Option<Closed>,
}

/// How the peer's direction of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    End,
    Abandoned(StreamCode),
}

/// What [`Pipe::pull`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Pulled {
    /// Bytes of the flow, in order.
    Data(Bytes),
    /// Nothing yet.
    Blocked,
    /// The peer ended its direction.
    End,
    /// The peer reset the flow.
    Reset,
    /// The stream was superseded or lost; the flow lives on elsewhere.
    Superseded,
}

impl Pipe {
    /// The client's end of a new flow, whose header goes out first.
    pub fn dial(flow: WireFlow, stream: Stream, header: &FlowHeader) -> Self {
        let mut pipe = Self::accept(flow, stream, 0);
        wire::encode_header(header, &mut pipe.head);
        pipe
    }

    /// The gateway's end of a new flow; the client granted `limit`.
    pub fn accept(flow: WireFlow, stream: Stream, limit: u64) -> Self {
        Self {
            flow,
            sender: Sender::new(limit),
            receiver: Receiver::default(),
            stream,
            epoch: 0,
            answered: 0,
            head: BytesMut::new(),
            partial: BytesMut::new(),
            blocked: false,
            urgency: None,
            closed: None,
        }
    }

    /// The gateway's end of a flow that no stream carries: it waits to be resumed.
    pub fn resting(flow: WireFlow, epoch: u64, sender: Sender, receiver: Receiver) -> Self {
        let pipe = Self::accept(flow, Stream::CONTROL, 0);
        Self { sender, receiver, epoch, ..pipe }
    }

    /// The stream that carries the flow now.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// How often the flow was resumed.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last epoch that was answered; bytes of the peer follow its answer.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// The answer of the current epoch has arrived.
    pub fn mark_answered(&mut self) {
        self.answered = self.epoch;
    }

    /// Queues the gateway's answer before any byte of the flow.
    pub fn answer(&mut self, answer: &FlowAnswer) {
        wire::encode_answer(answer, &mut self.head);
    }

    /// Says this as the last word of a flow that is over, and hears no more of it.
    pub fn part(&mut self, answer: &FlowAnswer, endpoint: &mut Endpoint, connection: Connection) {
        self.answer(answer);
        self.sender.finish();
        // A stream that is gone already needs no answer.
        let _gone = self.push(endpoint, connection);
        endpoint.stop(connection, self.stream, StreamCode::Superseded.code());
    }

    /// The answer of the gateway, once it is complete.
    ///
    /// # Errors
    /// [`WireError`] when what came is no answer.
    pub fn read_answer(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
    ) -> Result<Option<AnswerOrEnd>, WireError> {
        loop {
            if let Some(answer) = wire::decode_answer(&mut self.partial)? {
                return Ok(Some(AnswerOrEnd::Answer(answer)));
            }
            match self.read(endpoint, connection, wire::MAX_FLOW_BODY) {
                Ok(Some(bytes)) => self.partial.extend_from_slice(&bytes),
                Ok(None) | Err(Closed::Abandoned(StreamCode::Superseded)) => return Ok(None),
                Err(Closed::End | Closed::Abandoned(StreamCode::Reset)) => {
                    return Ok(Some(AnswerOrEnd::End));
                }
            }
        }
    }

    /// The next bytes of the stream, if any have arrived.
    fn read(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
        max: usize,
    ) -> Result<Option<Bytes>, Closed> {
        if let Some(closed) = self.closed {
            return Err(closed);
        }
        let closed = match endpoint.read(connection, self.stream, max) {
            Read::Data(bytes) => return Ok(Some(bytes)),
            Read::Blocked => return Ok(None),
            Read::End => Closed::End,
            Read::Reset(code) => Closed::Abandoned(StreamCode::from_code(code)),
        };
        self.closed = Some(closed);
        Err(closed)
    }

    /// The header of a stream a client opened, once it is complete. `partial` keeps what came so
    /// far; what follows the header stays in it and belongs to [`accept_rest`](Self::accept_rest).
    ///
    /// # Errors
    /// [`WireError`] when what came is no header.
    pub fn read_header(
        endpoint: &mut Endpoint,
        connection: Connection,
        stream: Stream,
        partial: &mut BytesMut,
    ) -> Result<Option<FlowHeader>, WireError> {
        loop {
            if let Some(header) = wire::decode_header(partial)? {
                return Ok(Some(header));
            }
            match endpoint.read(connection, stream, wire::MAX_FLOW_BODY) {
                Read::Data(bytes) => partial.extend_from_slice(&bytes),
                Read::Blocked => return Ok(None),
                Read::End | Read::Reset(_) => return Err(WireError::Malformed(0)),
            }
        }
    }

    /// Bytes of the flow that arrived together with its header.
    pub fn accept_rest(&mut self, rest: BytesMut) {
        self.partial = rest;
    }

    /// Moves the flow to a new stream: what the peer has not taken is sent again.
    ///
    /// `theirs` is what the peer has taken of our direction, `offset` where its bytes on the new
    /// stream begin.
    ///
    /// # Errors
    /// [`Violation`] when the offsets cannot be true.
    pub fn resume(
        &mut self,
        stream: Stream,
        epoch: u64,
        theirs: u64,
        offset: u64,
    ) -> Result<(), Violation> {
        self.sender.rewind(theirs)?;
        self.receiver.resume(offset)?;
        self.stream = stream;
        self.epoch = epoch;
        self.head.clear();
        self.partial.clear();
        self.blocked = false;
        self.urgency = None;
        self.closed = None;
        Ok(())
    }

    /// The client's half of moving the flow to a new stream before the gateway has said what it
    /// has taken: everything kept is sent again, and the gateway skips what it has.
    pub fn redial(&mut self, stream: Stream) {
        self.epoch += 1;
        let offset = self.sender.taken();
        self.sender.rewind(offset).expect("what was taken had been sent");
        let (taken, limit, fin_taken) = self.receiver.report();
        self.stream = stream;
        self.blocked = false;
        self.urgency = None;
        self.closed = None;
        self.head.clear();
        self.partial.clear();
        let header = FlowHeader::Resume {
            flow: self.flow,
            epoch: self.epoch,
            taken,
            fin_taken,
            offset,
            limit,
        };
        wire::encode_header(&header, &mut self.head);
    }

    /// The next bytes of the flow, at most `max`.
    pub fn pull(&mut self, endpoint: &mut Endpoint, connection: Connection, max: usize) -> Pulled {
        loop {
            let skip = self.receiver.skip();
            if !self.partial.is_empty() {
                let take = if skip > 0 { skip } else { max }.min(self.partial.len());
                let bytes = self.partial.split_to(take).freeze();
                if skip > 0 {
                    self.receiver.skipped(take);
                    continue;
                }
                return Pulled::Data(bytes);
            }
            let want = if skip > 0 { skip } else { max };
            match self.read(endpoint, connection, want) {
                Ok(Some(bytes)) if skip > 0 => self.receiver.skipped(bytes.len()),
                Ok(Some(bytes)) => return Pulled::Data(bytes),
                Ok(None) => return Pulled::Blocked,
                Err(Closed::End) => return Pulled::End,
                Err(Closed::Abandoned(StreamCode::Reset)) => return Pulled::Reset,
                Err(Closed::Abandoned(StreamCode::Superseded)) => return Pulled::Superseded,
            }
        }
    }

    /// Hands the stream what it takes, and its end when everything was said.
    ///
    /// # Errors
    /// [`StreamEnd`] when the stream takes nothing any more.
    pub fn push(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
    ) -> Result<(), StreamEnd> {
        if !self.announce(endpoint, connection)? {
            return Ok(());
        }
        if self.sender.has_unsent() {
            let sparse = self.sender.held() <= SPARSE;
            let urgency = if sparse { Urgency::Sparse } else { Urgency::Bulk };
            self.rank(urgency, endpoint, connection);
        }
        while let Some(chunk) = self.sender.unsent() {
            let length = chunk.len();
            let count = endpoint.write(connection, self.stream, chunk)?;
            self.sender.advance(count);
            if count < length {
                self.blocked = true;
                return Ok(());
            }
        }
        self.blocked = false;
        if self.sender.end_due() {
            endpoint.finish(connection, self.stream)?;
            self.sender.end_sent();
        }
        Ok(())
    }

    /// Hands the stream the frames before the bytes of the flow, and nothing else: for a flow that is
    /// resumed only to be reset, as a stream that has ended cannot be. Tells whether it took them.
    ///
    /// # Errors
    /// [`StreamEnd`] when the stream takes nothing any more.
    pub fn announce(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
    ) -> Result<bool, StreamEnd> {
        if !self.head.is_empty() {
            self.rank(Urgency::Sparse, endpoint, connection);
        }
        while !self.head.is_empty() {
            let chunk = self.head.clone().freeze();
            let count = endpoint.write(connection, self.stream, chunk)?;
            if count == 0 {
                self.blocked = true;
                return Ok(false);
            }
            let _written = self.head.split_to(count);
        }
        Ok(true)
    }

    fn rank(&mut self, urgency: Urgency, endpoint: &mut Endpoint, connection: Connection) {
        if self.urgency.replace(urgency) != Some(urgency) {
            endpoint.rank(connection, self.stream, urgency);
        }
    }

    /// Whether the stream refused bytes at the last [`push`](Self::push).
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Abandons the stream: the peer's TCP connection must be reset.
    pub fn reset(&self, endpoint: &mut Endpoint, connection: Connection) {
        endpoint.abort(connection, self.stream, StreamCode::Reset.code());
    }

    /// Abandons a stream the flow does not use any more.
    pub fn supersede(endpoint: &mut Endpoint, connection: Connection, stream: Stream) {
        endpoint.abort(connection, stream, StreamCode::Superseded.code());
    }

    /// Ends the stream of a flow that is over in good order. What was to be said before still is: the
    /// answer to a client that resumed the flow only to hear that all was taken.
    pub fn conclude(&mut self, endpoint: &mut Endpoint, connection: Connection) {
        // A stream that is gone already needs no end.
        let _gone = self.announce(endpoint, connection);
        let _gone = endpoint.finish(connection, self.stream);
        endpoint.stop(connection, self.stream, StreamCode::Superseded.code());
    }

    /// Whether both directions are over and known to be so.
    pub fn is_done(&self) -> bool {
        self.sender.is_done() && self.receiver.is_done() && !self.receiver.report_due()
    }
}

/// What stands at the head of the gateway's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerOrEnd {
    /// The gateway's answer.
    Answer(FlowAnswer),
    /// The stream ended without one: the gateway gave the flow up.
    End,
}

/// Which flows owe their peer a report, and since when.
#[derive(Debug, Default)]
pub struct Reports {
    due: BTreeSet<WireFlow>,
    since: Option<Instant>,
    urgent: bool,
}

/// Flows reported in one frame; more go into the next.
const REPORTS_PER_FRAME: usize = 1000;

impl Reports {
    /// Looks at a flow after it took bytes.
    pub fn note(&mut self, flow: WireFlow, receiver: &Receiver, now: Instant) {
        if receiver.report_due() {
            self.due.insert(flow);
            self.since.get_or_insert(now);
            self.urgent |= receiver.report_urgent();
        }
    }

    /// When the reports must be sent.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| if self.urgent { since } else { since + REPORT_DELAY })
    }

    /// The reports to send now, if they are due. `receiver` finds a flow that still exists.
    pub fn collect<'a>(
        &mut self,
        now: Instant,
        mut report: impl FnMut(WireFlow) -> Option<(u64, u64, bool)> + 'a,
    ) -> Vec<Control> {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        self.since = None;
        self.urgent = false;
        let taken: Vec<Taken> = std::mem::take(&mut self.due)
            .into_iter()
            .filter_map(|flow| {
                report(flow).map(|(offset, limit, fin)| Taken { flow, offset, limit, fin })
            })
            .collect();
        taken.chunks(REPORTS_PER_FRAME).map(|chunk| Control::Taken(chunk.to_vec())).collect()
    }
}

/// The control stream of a connection.
#[derive(Debug)]
pub struct ControlStream {
    stream: Stream,
    ranked: bool,
    input: BytesMut,
    output: BytesMut,
    received: u64,
}

/// How the control stream ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlEnd {
    /// What came is no frame of ours.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer ended or reset it.
    #[error("the peer ended the control stream")]
    Ended,
    /// The peer leaves our frames unread.
    #[error("the peer does not read its control stream")]
    Overflow,
}

/// Control bytes kept for a peer that does not read, before it is given up. A report of 20,000
/// flows has 440 KiB.
const MAX_CONTROL_OUTPUT: usize = 4 * 1024 * 1024;

impl ControlStream {
    /// The control stream of a connection, on `stream`.
    pub fn new(stream: Stream) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { stream, ranked: false, input, output, received: 0 }
    }

    /// Which stream it is.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Bytes received so far, those of skipped frames included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Queues a frame.
    pub fn send(&mut self, frame: &Control) {
        wire::encode_control(frame, &mut self.output);
    }

    /// Hands the queued frames to the stream.
    ///
    /// # Errors
    /// [`ControlEnd`] when the peer does not take them.
    pub fn flush(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
    ) -> Result<(), ControlEnd> {
        if !self.output.is_empty() && !std::mem::replace(&mut self.ranked, true) {
            endpoint.rank(connection, self.stream, Urgency::Control);
        }
        while !self.output.is_empty() {
            let chunk = self.output.clone().freeze();
            match endpoint.write(connection, self.stream, chunk) {
                Ok(0) => break,
                Ok(count) => {
                    let _written = self.output.split_to(count);
                }
                Err(StreamEnd::Stopped(_) | StreamEnd::Gone) => return Err(ControlEnd::Ended),
            }
        }
        if self.output.len() > MAX_CONTROL_OUTPUT { Err(ControlEnd::Overflow) } else { Ok(()) }
    }

    /// The next frame of the peer.
    ///
    /// # Errors
    /// [`ControlEnd`] when there will be no further one.
    pub fn receive(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
    ) -> Result<Option<Control>, ControlEnd> {
        loop {
            if let Some(frame) = wire::decode_control(&mut self.input)? {
                return Ok(Some(frame));
            }
            match endpoint.read(connection, self.stream, wire::MAX_CONTROL_BODY) {
                Read::Data(bytes) => {
                    self.received += bytes.len() as u64;
                    self.input.extend_from_slice(&bytes);
                }
                Read::Blocked => return Ok(None),
                Read::End | Read::Reset(_) => return Err(ControlEnd::Ended),
            }
        }
    }
}
