//! One flow at the gateway: a stream of a client on one side, a destination's socket on the other.
#![expect(clippy::unwrap_in_result, reason = "a broken promise ends the test; an end is no error")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use whimbrel_carrier::{Connection, Endpoint, Pipe, Pulled, StreamEnd};
use whimbrel_common::session::{Receiver, Sender};
use whimbrel_common::wire::{FlowAnswer, SessionId, StreamCode, WireFlow};

use crate::journal::{Journal, Record};
use crate::story::{self, Socket, Story};

/// Chunks read from the stream but not written yet.
const GATHER: usize = 8;

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions were ended and the client knows.
    Complete,
    /// The dial failed; the client was told.
    Refused,
    /// The destination reset the connection.
    ByDestination,
    /// The client reset the flow.
    ByClient,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) client: Connection,
    pub(crate) session: SessionId,
    pub(crate) pipe: Pipe,
    /// The connection that carried the flow is lost, and no stream of another carries it yet.
    pub(crate) parked: bool,
    /// When the destination answers, while it has not.
    pub(crate) answers: Option<Instant>,
    pending: VecDeque<Bytes>,
    /// The destination's end was read.
    read_end: bool,
    /// The client's end was read.
    write_end: bool,
    /// The client's end was written.
    ended: bool,
    /// The flow was resumed after that: only a reset can come.
    resumed: bool,
}

impl Flow {
    pub(crate) fn new(
        client: Connection,
        session: SessionId,
        pipe: Pipe,
        answers: Option<Instant>,
    ) -> Self {
        Self {
            client,
            session,
            pipe,
            parked: false,
            answers,
            pending: VecDeque::new(),
            read_end: false,
            write_end: false,
            ended: false,
            resumed: false,
        }
    }

    /// A flow of a process before: the kernel knows how far its socket came, the journal what the
    /// client has taken. `None` when the destination is gone.
    pub(crate) fn restored(
        session: SessionId,
        flow: WireFlow,
        record: &Record,
        socket: Option<&Socket>,
        now: Instant,
    ) -> Option<Self> {
        let (sender, receiver, read_end, ended) = match socket {
            Some(socket) if socket.is_dead() => return None,
            Some(socket) => {
                let kept = story::bytes(socket.says, record.taken, socket.read);
                let read_end = socket.fin && socket.read == socket.said;
                let ended = socket.ends > 0;
                let receiver = Receiver::restored(socket.given, ended);
                (Sender::restored(record.taken, kept, read_end), receiver, read_end, ended)
            }
            None => {
                (Sender::restored(0, vec![], false), Receiver::restored(0, false), false, false)
            }
        };
        let pipe = Pipe::resting(flow, record.epoch, sender, receiver);
        let answers = (!record.opened).then_some(now);
        Some(Self {
            parked: true,
            read_end,
            write_end: ended,
            ended,
            ..Self::new(Connection::NONE, session, pipe, answers)
        })
    }

    /// Bytes read from the stream but not written are sent again on the next one.
    pub(crate) fn forget_queued(&mut self) {
        self.pending.clear();
        self.write_end = self.ended;
        self.resumed = self.ended;
    }

    /// Moves what can be moved.
    pub(crate) fn turn(
        &mut self,
        endpoint: &mut Endpoint,
        story: &mut Story,
        journal: &mut Journal,
        rtt: Duration,
        now: Instant,
    ) -> Result<(), End> {
        if let Some(at) = self.answers {
            if now < at {
                return Ok(());
            }
            if story.refuses {
                return Err(End::Refused);
            }
            self.answers = None;
            journal.open(self.session, self.pipe.flow);
            self.pipe.answer(&FlowAnswer::Opened { limit: self.pipe.receiver.limit() });
        }
        let socket = story.destination.as_mut().expect("it was dialled");
        if socket.broken {
            return Err(End::ByDestination);
        }
        self.carry_up(endpoint, socket, rtt, now)?;
        self.carry_down(endpoint, socket, journal)?;
        if self.pipe.is_done() { Err(End::Complete) } else { Ok(()) }
    }

    /// Client to destination.
    fn carry_up(
        &mut self,
        endpoint: &mut Endpoint,
        socket: &mut Socket,
        rtt: Duration,
        now: Instant,
    ) -> Result<(), End> {
        while self.resumed {
            match self.pipe.pull(endpoint, self.client, 16 * 1024) {
                Pulled::Data(bytes) => panic!("{} bytes after the end", bytes.len()),
                Pulled::Blocked | Pulled::Superseded => break,
                Pulled::End => self.resumed = false,
                Pulled::Reset => return Err(End::ByClient),
            }
        }
        while !self.ended {
            self.fetch(endpoint)?;
            let Some(chunk) = self.pending.front_mut() else {
                if self.write_end {
                    socket.put_end();
                    self.pipe.receiver.take_end();
                    self.ended = true;
                }
                return Ok(());
            };
            let count = chunk.len().min(socket.room());
            if count == 0 {
                return Ok(());
            }
            socket.put(&chunk[..count]);
            chunk.advance(count);
            if chunk.is_empty() {
                self.pending.pop_front();
            }
            self.pipe.receiver.take(count, now, rtt).expect("within the credit");
        }
        Ok(())
    }

    fn fetch(&mut self, endpoint: &mut Endpoint) -> Result<(), End> {
        while !self.write_end && self.pending.len() < GATHER {
            match self.pipe.pull(endpoint, self.client, 16 * 1024) {
                Pulled::Data(bytes) => self.pending.push_back(bytes),
                Pulled::Blocked | Pulled::Superseded => break,
                Pulled::End => self.write_end = true,
                Pulled::Reset => return Err(End::ByClient),
            }
        }
        Ok(())
    }

    /// Destination to client.
    fn carry_down(
        &mut self,
        endpoint: &mut Endpoint,
        socket: &mut Socket,
        journal: &mut Journal,
    ) -> Result<(), End> {
        self.push(endpoint)?;
        journal.take(self.session, self.pipe.flow, self.pipe.sender.taken());
        while !self.read_end {
            match socket.take(self.pipe.sender.room().min(16 * 1024)) {
                None => {
                    self.read_end = true;
                    self.pipe.sender.finish();
                }
                Some(chunk) if chunk.is_empty() => break,
                Some(chunk) => self.pipe.sender.push(Bytes::from(chunk)),
            }
            self.push(endpoint)?;
        }
        Ok(())
    }

    fn push(&mut self, endpoint: &mut Endpoint) -> Result<(), End> {
        match self.pipe.push(endpoint, self.client) {
            Ok(()) | Err(StreamEnd::Gone) => Ok(()),
            Err(StreamEnd::Stopped(code)) => match StreamCode::from_code(code) {
                StreamCode::Reset => Err(End::ByClient),
                StreamCode::Superseded => Ok(()),
            },
        }
    }
}
