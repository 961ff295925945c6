//! How sessions come to a connection, leave it, wait, and end.

use std::time::Instant;

use tracing::{info, warn};
use whimbrel_carrier::{Connection, Lost};
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::wire::{Control, DETACH, Denial, SessionId};
use whimbrel_gateway_core::clients::Options;
use whimbrel_gateway_core::seen::Seen;

use crate::flow::{End, Flow};
use crate::keep::{Keep, KeptSession};
use crate::sessions::{GivenUp, Session};

use super::Gateway;

impl Gateway {
    /// The outcome of [`Question::Enrol`](super::Question::Enrol).
    pub(crate) fn enrolled(
        &mut self,
        connection: Connection,
        outcome: Result<ClientName, Denial>,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        match outcome {
            Ok(name) => {
                info!(client = %name, key = %peer.key, "Enrolled");
                if let Some(control) = peer.control.as_mut() {
                    control.send(&Control::Enrolled { name: name.to_string() });
                }
            }
            Err(denial) => self.deny(connection, denial, now),
        }
    }

    /// The outcome of [`Question::Attach`](super::Question::Attach): who the client is, or `None`
    /// for a stranger.
    pub(crate) fn attached(
        &mut self,
        connection: Connection,
        wanted: Option<SessionId>,
        epoch: u64,
        client: Option<(ClientName, Options)>,
        now: Instant,
    ) {
        let Some((name, options)) = client else {
            self.deny(connection, Denial::UnknownKey, now);
            return;
        };
        // A second attach on one connection would leave its streams behind.
        let stranger = self.peers.get(&connection).filter(|peer| peer.session.is_none());
        let Some(key) = stranger.map(|peer| peer.key) else {
            self.deny(connection, Denial::Protocol, now);
            return;
        };
        let old = wanted.and_then(|session| self.reclaim(session, &key, epoch, now));
        let resumed = old.is_some();
        let Some(mut session) = old.or_else(|| self.new_session(key, name.clone())) else {
            self.deny(connection, Denial::Busy, now);
            return;
        };
        session.epoch = epoch;
        session.name = name;
        if let (Some(keep), Some(place)) = (&mut self.keep, session.place) {
            keep.note_session(place, epoch, &session.seen);
        }
        self.usage.welcome(key, &options, now);
        let flows = u64::from(options.flows.unwrap_or(self.limits.flows_per_client));
        // One more than flows: the control stream.
        self.endpoint.grant(connection, flows + 1);
        let (client, id) = (&session.name, session.id);
        info!(%client, session = %id, resumed, flows = session.flows.len(), "Client attached");
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.session = Some(session);
        if let Some(control) = peer.control.as_mut() {
            let hold = self.limits.hold.as_secs();
            control.send(&Control::Attached { session: id, epoch, hold, flows });
        }
    }

    fn new_session(&mut self, key: PublicKey, name: ClientName) -> Option<Session> {
        let id = whimbrel_host::random::bytes().ok().map(SessionId)?;
        let place = self.keep.as_mut().and_then(|keep| keep.open_session(id, key));
        Some(Session { place, ..Session::new(id, key, name, 0) })
    }

    /// Takes a session away from wherever it was: a place where it is parked, or a connection that
    /// is not known to be dead yet.
    fn reclaim(
        &mut self,
        id: SessionId,
        key: &PublicKey,
        epoch: u64,
        now: Instant,
    ) -> Option<Session> {
        if let Some(session) = self.parked.claim(id, key, epoch) {
            return Some(session);
        }
        let rightful = |session: &Session| session.is_rightful(id, key, epoch);
        let old = self.peers.values().find(|peer| peer.session.as_ref().is_some_and(rightful))?;
        let old = old.connection;
        self.endpoint.close(old, DETACH, "attached anew", now);
        let session = self.peers.remove(&old)?.session?;
        self.rest(&session);
        Some(session)
    }

    /// A connection is gone; what that means for its session depends on why.
    pub(super) fn lost(&mut self, connection: Connection, reason: &Lost, now: Instant) {
        let goes_on = match reason {
            Lost::ClosedByPeer(code) => *code == DETACH,
            Lost::Reset
            | Lost::TimedOut
            | Lost::Closed
            | Lost::Authentication(_)
            | Lost::NotOurs(_)
            | Lost::Failed(_) => true,
        };
        let reason = reason.to_string();
        if !goes_on {
            self.lose(connection, &reason);
            return;
        }
        let Some(session) = self.peers.remove(&connection).and_then(|peer| peer.session) else {
            return;
        };
        // A client that had flows may not have heard the last of them.
        if session.flows.is_empty() && session.seen == Seen::default() {
            self.finish(session, &reason);
            return;
        }
        let (client, id) = (&session.name, session.id);
        info!(%client, session = %id, flows = session.flows.len(), reason, "Client parked");
        self.rest(&session);
        for session in self.parked.insert(session, now) {
            self.give_up(session, GivenUp::Evicted);
        }
    }

    /// The client goes to sleep: its destinations are not read from here on, and the end of the
    /// connection tells it so.
    pub(super) fn park_sleeper(&mut self, connection: Connection, now: Instant) {
        self.endpoint.close(connection, DETACH, "parked", now);
        self.lost(connection, &Lost::Failed("the client sleeps".to_owned()), now);
    }

    /// Its flows have no stream until they are resumed.
    fn rest(&mut self, session: &Session) {
        for number in session.flows.values() {
            if let Some(flow) = self.flows.get_mut(number) {
                flow.parked = true;
            }
        }
    }

    /// The connection is over, and the session with it.
    pub(super) fn lose(&mut self, connection: Connection, reason: &str) {
        if let Some(session) = self.peers.remove(&connection).and_then(|peer| peer.session) {
            self.finish(session, reason);
        }
    }

    fn give_up(&mut self, session: Session, why: GivenUp) {
        self.stats.evicted += u64::from(why == GivenUp::Evicted);
        self.finish(session, &why.to_string());
    }

    fn finish(&mut self, session: Session, reason: &str) {
        info!(client = %session.name, flows = session.flows.len(), reason, "Client gone");
        for number in session.flows.into_values() {
            if let Some(flow) = self.flows.remove(&number) {
                self.usage.close(&session.key);
                Self::close_flow(&mut self.keep, flow, End::ByClient);
            }
        }
        if let (Some(keep), Some(place)) = (&mut self.keep, session.place) {
            keep.close_session(place);
        }
        // A client that connects again may do so before its old connection is known to be dead.
        let attached = self.peers.values().filter_map(|peer| peer.session.as_ref());
        let mut others = attached.chain(self.parked.iter().map(|(_, session)| session));
        if !others.any(|other| other.key == session.key) {
            self.usage.forget(&session.key);
        }
    }

    /// Closes a flow's socket, and then gives up what outlives the process.
    pub(super) fn close_flow(keep: &mut Option<Keep>, flow: Flow, end: End) {
        if let (Some(shelf), Some(keep)) = (flow.close(end), keep) {
            keep.close_flow(shelf);
        }
    }

    pub(super) fn expire_parked(&mut self, now: Instant) {
        for session in self.parked.expire(now, self.limits.hold) {
            self.give_up(session, GivenUp::Expired);
        }
    }

    /// Goes on with what the service manager kept of a process before. `admit` says who a client
    /// is, or `None` for one that is not admitted any more.
    pub(crate) fn restore(
        &mut self,
        keep: Keep,
        sessions: Vec<KeptSession>,
        mut admit: impl FnMut(&PublicKey) -> Option<(ClientName, Options)>,
        now: Instant,
    ) {
        self.keep = Some(keep);
        for kept in sessions {
            match admit(&kept.key) {
                Some((name, options)) => self.restore_session(kept, name, &options, now),
                None => self.drop_session(kept),
            }
        }
    }

    fn restore_session(
        &mut self,
        kept: KeptSession,
        name: ClientName,
        options: &Options,
        now: Instant,
    ) {
        let mut session = Session::new(kept.id, kept.key, name, kept.epoch);
        session.place = Some(kept.place);
        session.seen = kept.seen;
        if let Some(keep) = &mut self.keep {
            // What was never dialled is not used any more.
            keep.note_session(kept.place, kept.epoch, &session.seen);
        }
        self.usage.welcome(kept.key, options, now);
        for kept in kept.flows {
            let (wire, number) = (kept.flow, self.next_flow);
            self.next_flow += 1;
            match Flow::restored(kept, |socket| self.dialler.adopt(number, socket)) {
                Ok(flow) => {
                    self.usage.resume(&session.key);
                    if flow.is_dialling() {
                        self.dials.push_back((now + self.limits.dial_timeout, number));
                    }
                    session.flows.insert(wire, number);
                    self.flows.insert(number, flow);
                    self.stats.restored += 1;
                }
                Err(error) => warn!(flow = wire.0, %error, "A flow cannot be restored"),
            }
        }
        info!(client = %session.name, flows = session.flows.len(), "Client waits to come back");
        for session in self.parked.insert(session, now) {
            self.give_up(session, GivenUp::Evicted);
        }
    }

    fn drop_session(&mut self, kept: KeptSession) {
        info!(key = %kept.key, flows = kept.flows.len(), "Its client is not admitted any more");
        let Some(keep) = &mut self.keep else { return };
        for flow in kept.flows {
            // A connection that nobody ends would stay half open at the destination.
            let _ = rustix::net::connect_unspec(&flow.socket);
            keep.close_flow(flow.shelf);
        }
        keep.close_session(kept.place);
    }

    /// Cuts a client off: its connections, its flows.
    pub(crate) fn cut_off(&mut self, key: &PublicKey, now: Instant) -> usize {
        let own = self.peers.values().filter(|peer| peer.key == *key);
        let connections: Vec<Connection> = own.map(|peer| peer.connection).collect();
        for connection in &connections {
            self.deny(*connection, Denial::Revoked, now);
        }
        for session in self.parked.remove_all(key) {
            self.give_up(session, GivenUp::Revoked);
        }
        connections.len()
    }

    /// Ends every connection, so that clients learn it at once. Flows that outlive the process
    /// stay for the next one.
    pub(crate) fn close(&mut self, now: Instant) {
        let connections: Vec<Connection> = self.peers.keys().copied().collect();
        let code = if self.keep.is_some() { DETACH } else { 0 };
        for connection in connections {
            self.endpoint.close(connection, code, "the gateway stops", now);
            if self.keep.is_none() {
                self.lose(connection, "the gateway stops");
            }
        }
    }
}
