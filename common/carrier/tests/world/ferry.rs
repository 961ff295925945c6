//! One flow at the client: an application's socket on one side, a stream on the other.
#![expect(clippy::unwrap_in_result, reason = "a broken promise ends the test; an end is no error")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_carrier::{AnswerOrEnd, Connection, Endpoint, Pipe, Pulled, StreamEnd};
use whimbrel_common::session::INITIAL_WINDOW;
use whimbrel_common::wire::{FlowAnswer, FlowHeader, StreamCode, WireFlow};

use crate::story::{Socket, Story};

/// Where a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for a session or a stream.
    Waiting,
    /// The gateway dials.
    Dialling,
    /// Bytes flow.
    Open,
    /// Over here. Whether the gateway knows it is never certain while the session lives, so every
    /// new connection tells it again, by this code.
    Over(StreamCode),
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions were ended and both ends know.
    Complete,
    /// The application reset it.
    ByApplication,
    /// The destination or the gateway reset or refused it.
    ByGateway,
    /// Over in good order, and the gateway has said so.
    Settled,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Ferry {
    flow: WireFlow,
    pub(crate) pipe: Option<Pipe>,
    pub(crate) phase: Phase,
    /// The connection that carried the flow is lost, and no stream of another carries it yet.
    pub(crate) detached: bool,
    redialled: bool,
}

impl Ferry {
    pub(crate) fn new(flow: WireFlow) -> Self {
        Self { flow, pipe: None, phase: Phase::Waiting, detached: false, redialled: false }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// Whether bytes may go on: the gateway has answered on the stream in use.
    pub(crate) fn is_answered(&self) -> bool {
        self.pipe.as_ref().is_some_and(|pipe| pipe.epoch() == pipe.answered())
    }

    /// Asks the gateway to dial, or to go on over a new connection. Whether there was a stream.
    pub(crate) fn begin(&mut self, endpoint: &mut Endpoint, connection: Connection) -> bool {
        let Some(stream) = endpoint.open(connection) else { return false };
        if let Some(pipe) = &mut self.pipe {
            self.detached = false;
            pipe.redial(stream);
            return true;
        }
        let destination = SocketAddr::from(([198, 51, 100, 7], 443));
        let limit = INITIAL_WINDOW;
        let header = FlowHeader::Open { flow: self.flow, destination, limit };
        self.pipe = Some(Pipe::dial(self.flow, stream, &header));
        self.phase = Phase::Dialling;
        true
    }

    /// The session is gone. Whether the flow can be dialled again.
    pub(crate) fn dial_again(&mut self) -> bool {
        let again = self.phase == Phase::Dialling && !std::mem::replace(&mut self.redialled, true);
        if again {
            self.phase = Phase::Waiting;
            self.pipe = None;
            self.detached = false;
        }
        again || self.phase == Phase::Waiting
    }

    /// A flow that was dialled once is not dialled again.
    pub(crate) fn give_up(&mut self) {
        self.redialled = true;
    }

    /// What was in flight is sent and asked for again on another stream of the same connection.
    /// Whether there was a stream.
    pub(crate) fn replay(&mut self, endpoint: &mut Endpoint, connection: Connection) -> bool {
        let Some(pipe) = self.pipe.as_mut() else { return false };
        if self.phase != Phase::Open || self.detached {
            return false;
        }
        let Some(stream) = endpoint.open(connection) else { return false };
        let old = pipe.stream();
        pipe.redial(stream);
        Pipe::supersede(endpoint, connection, old);
        true
    }

    /// Moves what can be moved.
    pub(crate) fn turn(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
        story: &mut Story,
        rtt: Duration,
        now: Instant,
    ) -> Result<(), End> {
        let told = self.is_over() && self.is_answered();
        let Some(pipe) = self.pipe.as_mut().filter(|_| !self.detached && !told) else {
            return Ok(());
        };
        if self.phase == Phase::Over(StreamCode::Reset) {
            // Without bytes and their end, so that the stream can be reset.
            let _ = pipe.announce(endpoint, connection);
        } else {
            push(pipe, endpoint, connection)?;
        }
        if self.phase == Phase::Dialling || pipe.epoch() > pipe.answered() {
            match pipe.read_answer(endpoint, connection).expect("the gateway answers") {
                None => return Ok(()),
                Some(answer) => self.take_answer(answer, story)?,
            }
        }
        let Some(pipe) = self.pipe.as_mut() else { return Ok(()) };
        match self.phase {
            Phase::Over(code) => {
                endpoint.abort(connection, pipe.stream(), code.code());
                Ok(())
            }
            Phase::Open => {
                carry_up(pipe, endpoint, connection, &mut story.application)?;
                carry_down(pipe, endpoint, connection, &mut story.application, (rtt, now))?;
                if pipe.is_done() { Err(End::Complete) } else { Ok(()) }
            }
            Phase::Waiting | Phase::Dialling => Ok(()),
        }
    }

    fn take_answer(&mut self, answer: AnswerOrEnd, story: &mut Story) -> Result<(), End> {
        let over = self.is_over();
        let unseen = answer == AnswerOrEnd::Answer(FlowAnswer::NeverSeen);
        if unseen && self.dial_again() {
            return Ok(());
        }
        let Some(pipe) = self.pipe.as_mut() else { return Ok(()) };
        match answer {
            AnswerOrEnd::Answer(FlowAnswer::Opened { limit }) => {
                pipe.sender.acknowledge(0, limit, false).expect("nothing was sent");
            }
            AnswerOrEnd::Answer(FlowAnswer::Resumed {
                taken, fin_taken, offset, limit, ..
            }) => {
                pipe.receiver.resume(offset).expect("no hole");
                pipe.sender.acknowledge(taken, limit, fin_taken).expect("it was sent");
            }
            _ if over => return Err(End::Settled),
            AnswerOrEnd::Answer(FlowAnswer::Gone)
                if pipe.receiver.is_done() && pipe.sender.is_finished() =>
            {
                return Err(End::Settled);
            }
            AnswerOrEnd::Answer(FlowAnswer::NeverSeen) => {
                assert!(self.redialled, "the gateway forgot a flow it had opened");
                story.excuse("two requests to dial were lost");
                return Err(End::ByGateway);
            }
            AnswerOrEnd::Answer(FlowAnswer::Refused { .. } | FlowAnswer::Gone)
            | AnswerOrEnd::End => return Err(End::ByGateway),
        }
        pipe.mark_answered();
        if self.phase == Phase::Dialling {
            self.phase = Phase::Open;
        }
        Ok(())
    }
}

/// Application to gateway.
fn carry_up(
    pipe: &mut Pipe,
    endpoint: &mut Endpoint,
    connection: Connection,
    application: &mut Socket,
) -> Result<(), End> {
    while !pipe.sender.is_finished() {
        match application.take(pipe.sender.room().min(16 * 1024)) {
            None => pipe.sender.finish(),
            Some(chunk) if chunk.is_empty() => break,
            Some(chunk) => pipe.sender.push(Bytes::from(chunk)),
        }
        push(pipe, endpoint, connection)?;
    }
    Ok(())
}

/// Gateway to application.
fn carry_down(
    pipe: &mut Pipe,
    endpoint: &mut Endpoint,
    connection: Connection,
    application: &mut Socket,
    (rtt, now): (Duration, Instant),
) -> Result<(), End> {
    while !pipe.receiver.is_done() && pipe.epoch() == pipe.answered() {
        let room = application.room();
        if room == 0 {
            break;
        }
        match pipe.pull(endpoint, connection, room) {
            Pulled::Data(bytes) => {
                application.put(&bytes);
                pipe.receiver.take(bytes.len(), now, rtt).expect("within the credit");
            }
            Pulled::Blocked | Pulled::Superseded => break,
            Pulled::End => {
                application.put_end();
                pipe.receiver.take_end();
            }
            Pulled::Reset => return Err(End::ByGateway),
        }
    }
    Ok(())
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
