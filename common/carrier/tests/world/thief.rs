//! Somebody who asks for a session that is not theirs, or not theirs any more, and for its flows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use whimbrel_carrier::{AnswerOrEnd, Connection, ControlStream, Endpoint, Event, Pipe};
use whimbrel_common::session::MAX_WINDOW;
use whimbrel_common::wire::{Control, FlowAnswer, FlowHeader, SessionId, Taken, VERSION, WireFlow};

use crate::GATEWAY;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Thief {
    pub(crate) endpoint: Endpoint,
    pub(crate) address: SocketAddr,
    connection: Connection,
    control: Option<ControlStream>,
    wanted: (SessionId, u64),
    /// The flows it wants, and whether it was told that there are none.
    flows: Vec<WireFlow>,
    asked: BTreeMap<WireFlow, Pipe>,
    pub(crate) refused: u64,
}

impl Thief {
    pub(crate) fn new(
        mut endpoint: Endpoint,
        address: SocketAddr,
        wanted: (SessionId, u64),
        flows: Vec<WireFlow>,
        now: Instant,
    ) -> Self {
        let connection = endpoint.connect(GATEWAY, now).expect("a client may connect");
        let asked = BTreeMap::new();
        Self { endpoint, address, connection, control: None, wanted, flows, asked, refused: 0 }
    }

    /// It has seen enough.
    pub(crate) fn go(&mut self, now: Instant) {
        self.endpoint.close(self.connection, 0, "gone", now);
    }

    pub(crate) fn advance(&mut self, now: Instant) {
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((_, event)) = self.endpoint.poll_event() {
            if matches!(event, Event::Connected { .. }) {
                let stream = self.endpoint.open(self.connection).expect("one is granted");
                let mut control = ControlStream::new(stream);
                let (session, epoch) = self.wanted;
                control.send(&Control::Hello { version: VERSION, capabilities: 0 });
                control.send(&Control::Attach { session: Some(session), epoch });
                self.control = Some(control);
            } else if matches!(event, Event::Lost(_)) {
                self.control = None;
            }
        }
        self.listen();
        self.ask();
    }

    fn listen(&mut self) {
        let Some(control) = self.control.as_mut() else { return };
        while let Ok(Some(frame)) = control.receive(&mut self.endpoint, self.connection) {
            let Control::Attached { session, .. } = frame else { continue };
            assert_ne!(session, self.wanted.0, "I4: a session was stolen");
            for flow in self.flows.drain(..) {
                let Some(stream) = self.endpoint.open(self.connection) else { break };
                let (taken, epoch, limit) = (0, u64::from(u32::MAX), MAX_WINDOW);
                let header =
                    FlowHeader::Resume { flow, epoch, taken, fin_taken: false, offset: 0, limit };
                self.asked.insert(flow, Pipe::dial(flow, stream, &header));
                let report = Taken { flow, offset: 1 << 40, limit: 1 << 50, fin: true };
                control.send(&Control::Taken(vec![report]));
            }
        }
        // A connection that is gone takes nothing.
        let _ = control.flush(&mut self.endpoint, self.connection);
    }

    fn ask(&mut self) {
        let (endpoint, connection) = (&mut self.endpoint, self.connection);
        let before = self.asked.len();
        self.asked.retain(|_, pipe| {
            // A stream that is gone takes nothing.
            let _ = pipe.push(endpoint, connection);
            let answer = pipe.read_answer(endpoint, connection);
            let Ok(Some(AnswerOrEnd::Answer(answer))) = answer else { return true };
            assert_eq!(answer, FlowAnswer::NeverSeen, "I4: a flow was stolen");
            false
        });
        self.refused += (before - self.asked.len()) as u64;
    }
}
