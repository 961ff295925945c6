//! What must hold at every step, and when everything has come to rest.

use std::time::Duration;

use whimbrel_carrier::Pipe;
use whimbrel_common::session::MAX_WINDOW;

use crate::flow::Flow;
use crate::gateway::STREAMS;
use crate::network::Weather;
use crate::stage::Stage;
use crate::story::Socket;

impl Stage {
    /// At every step: I1, I2 and I3.
    pub(crate) fn check(&self) {
        for (flow, story) in &self.stories {
            story.check(*flow);
        }
        for (wire, ferry) in &self.client.ferries {
            let Some(pipe) = &ferry.pipe else { continue };
            let story = &self.stories[wire];
            check_pipe(pipe, &story.application, story.destination.as_ref());
        }
        for flow in self.gateway.flows.values() {
            let story = &self.stories[&flow.pipe.flow];
            let Some(destination) = &story.destination else { continue };
            check_pipe(&flow.pipe, destination, Some(&story.application));
        }
    }

    /// The network is good again, and everybody goes on: nothing may be left (I5).
    pub(crate) fn settle(&mut self) {
        self.network.heal();
        let fair = Weather::fair(&mut self.chance);
        self.network.turn(fair);
        self.client_clock.asleep = None;
        self.gateway_clock.asleep = None;
        self.lively = true;
        self.settling = true;
        self.thieves.iter_mut().for_each(|thief| thief.go(self.now));
        // Long enough to find out that the gateway was restarted.
        self.run(Duration::from_secs(10), |_| false);
        self.run(Duration::from_mins(10), Self::is_quiet);
        self.run(Duration::from_secs(2), |_| false);
        assert!(self.is_quiet(), "I5: {:?} is left, and {:?}", self.client, self.left());
        assert_eq!(self.client.streams(), 0, "I5: streams are left at the client");
        assert!(self.gateway.is_bare(), "I5: streams are left: {:#?}", self.gateway);
        self.check_credit();
        // A session its client has given up waits for its time to be over.
        self.gateway_clock.ahead += Duration::from_hours(48);
        self.run(Duration::from_secs(5), |_| false);
        for (flow, story) in &self.stories {
            story.check_end(*flow);
        }
        assert!(self.gateway.flows.is_empty(), "I5: {:#?}", self.gateway.flows);
        assert!(self.gateway.journal.flows.is_empty(), "I5: {:#?}", self.gateway.journal);
    }

    fn is_quiet(&self) -> bool {
        self.client.is_quiet() && self.left().is_empty()
    }

    /// Flows of the gateway that their client could still end.
    fn left(&self) -> Vec<&Flow> {
        self.gateway.flows.values().filter(|flow| self.gateway.is_reachable(flow)).collect()
    }

    /// Streams that are over count against the client no more.
    fn check_credit(&mut self) {
        let connection = self.client.connection().expect("the network is good");
        let opened = std::iter::from_fn(|| self.client.endpoint.open(connection)).count() as u64;
        // More credit is announced once an eighth of it is used.
        let least = STREAMS - 1 - STREAMS / 8;
        assert!(opened >= least, "I5: {opened} streams of {STREAMS} may be opened: some are left");
    }
}

/// `near` is the socket at the pipe's own end.
fn check_pipe(pipe: &Pipe, near: &Socket, far: Option<&Socket>) {
    let (sender, receiver) = (&pipe.sender, &pipe.receiver);
    assert!(sender.held() <= MAX_WINDOW, "I2: {pipe:?}");
    assert!(receiver.limit() - receiver.taken() <= MAX_WINDOW, "I2: {pipe:?}");
    assert_eq!(receiver.taken(), near.given, "I3: {pipe:?}");
    assert_eq!(receiver.is_done(), near.ends > 0, "I3: {pipe:?}");
    assert_eq!(sender.total(), near.read, "I1: {pipe:?}");
    let (given, ended) = far.map_or((0, false), |far| (far.given, far.ends > 0));
    assert!(sender.taken() <= given, "I3: {given} bytes were handed on: {pipe:?}");
    assert!(ended || !sender.is_done(), "I3: no end was handed on: {pipe:?}");
}
