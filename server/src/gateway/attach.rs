//! How sessions come to a connection, leave it, wait, and end.

use std::time::Instant;

use tracing::{info, warn};
use whimbrel_carrier::{Connection, Lost};
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::wire::{Control, DETACH, Denial, SessionId};
use whimbrel_gateway_core::associations::Associations;
use whimbrel_gateway_core::clients::Options;
use whimbrel_gateway_core::seen::Seen;

use crate::flow::{End, Flow};
use crate::keep::{Keep, KeptSession};
use crate::metrics::limit;
use crate::peer::Peer;
use crate::sessions::{GivenUp, Session};
use crate::talk::{Attach, Caller, Client, Moved, News};

use super::{Gateway, streams};

impl Gateway {
    /// The outcome of [`News::Enrol`].
    pub fn enrolled(&mut self, caller: &Caller, outcome: Result<ClientName, Denial>, now: Instant) {
        let Some(peer) = self.calling(caller) else { return };
        match outcome {
            Ok(name) => {
                info!(client = %name, key = %peer.key, "Enrolled");
                if let Some(control) = peer.control.as_mut() {
                    control.send(&Control::Enrolled { name: name.to_string() });
                }
            }
            Err(denial) => self.deny(caller.connection, denial, now),
        }
    }

    /// The connection that asked, if it is still there.
    fn calling(&mut self, caller: &Caller) -> Option<&mut Peer> {
        self.peers.get_mut(&caller.connection).filter(|peer| peer.caller() == *caller)
    }

    /// The outcome of [`News::Attach`]: who the client is, or `None` for a stranger, and its
    /// session if it was with another slot.
    pub fn attached(
        &mut self,
        attach: &Attach,
        client: Option<Client>,
        moved: Option<Moved>,
        now: Instant,
    ) {
        let Attach { caller, session: wanted, epoch } = *attach;
        let Caller { connection, key, .. } = caller;
        let arrived = moved.map(|moved| self.house(moved, now));
        let stranger = self.calling(&caller).map(|peer| peer.session.is_none());
        let Some((name, options)) = client else {
            if let Some(session) = arrived {
                self.give_up(session, GivenUp::Revoked);
            }
            if stranger.is_some() {
                self.deny(connection, Denial::UnknownKey, now);
            }
            return;
        };
        if stranger != Some(true) {
            if let Some(session) = arrived {
                self.park(session, now);
            }
            // A second attach on one connection would leave its streams behind.
            if stranger.is_some() {
                self.deny(connection, Denial::Protocol, now);
            }
            return;
        }
        let old = arrived.or_else(|| self.reclaim(wanted?, &key, epoch, now));
        let resumed = old.is_some();
        let fresh = || self.new_session(key, name.clone(), now);
        let Some(mut session) = old.or_else(fresh) else {
            self.deny(connection, Denial::Busy, now);
            return;
        };
        session.epoch = epoch;
        session.name = name;
        if let Some(since) = session.away_since.take() {
            self.figures.resume_gaps.observe(now.saturating_duration_since(since));
        }
        if let (Some(keep), Some(place)) = (&mut self.keep, session.place) {
            keep.note_session(place, epoch, &session.seen);
        }
        self.usage.lock().allow(&key, &options);
        let flows = u64::from(options.flows.unwrap_or(self.limits.flows_per_client));
        self.endpoint.grant(connection, streams(flows));
        let (client, id, slot) = (&session.name, session.id, self.number);
        info!(%client, session = %id, %slot, resumed, flows = session.flows.len(), "Client attached");
        self.join_outlets(&session, Some(connection));
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.session = Some(session);
        if let Some(control) = peer.control.as_mut() {
            let hold = self.limits.hold.as_secs();
            control.send(&Control::Attached { session: id, epoch, hold, flows });
        }
    }

    fn new_session(&mut self, key: PublicKey, name: ClientName, now: Instant) -> Option<Session> {
        let id = whimbrel_host::random::bytes().ok().map(SessionId)?;
        if !self.admit(key, now) {
            self.figures.limits.count(limit::SESSIONS);
            return None;
        }
        let place = self.keep.as_mut().and_then(|keep| keep.open_session(id, key));
        self.news.push_back(News::Opened(id, key));
        let bandwidth = self.usage.bandwidth(key, now);
        let mut session = Session::new(id, key, name, 0, bandwidth);
        session.place = place;
        Some(session)
    }

    /// Counts one more session of a client. One that nobody came back for gives way to it.
    fn admit(&mut self, key: PublicKey, now: Instant) -> bool {
        if self.usage.lock().admit(key, now) {
            return true;
        }
        let Some(oldest) = self.parked.evict_own(&key) else { return false };
        self.give_up(oldest, GivenUp::Evicted);
        self.usage.lock().admit(key, now)
    }

    /// Gives a session away, with all its flows, to a client of another slot that may have it.
    pub fn hand_over(&mut self, id: SessionId, attach: &Attach, now: Instant) -> Option<Moved> {
        let mut session = self.reclaim(id, &attach.caller.key, attach.epoch, now)?;
        // The other slot opens them again, at the same ports, when the client renews them.
        self.close_outlets(&session);
        session.associations = Associations::default();
        let numbers = session.flows.values();
        let flows: Vec<Flow> = numbers.filter_map(|number| self.flows.remove(number)).collect();
        for flow in &flows {
            self.dialler.forget(flow.socket());
        }
        self.memory.count(session.held, 0);
        let kept = flows.iter().filter(|flow| flow.shelf.is_some()).count();
        if let Some(keep) = &mut self.keep {
            keep.part(kept);
        }
        let (client, slot) = (&session.name, self.number);
        info!(%client, session = %id, %slot, flows = flows.len(), "Client moves to another slot");
        Some(Moved { from: self.number, session, flows, kept })
    }

    /// So many sockets of sessions that were handed over need not be kept here any more.
    pub(crate) fn left(&mut self, sockets: usize) {
        if let Some(keep) = &mut self.keep {
            keep.left(sockets);
        }
    }

    /// Takes in a session of another slot. Its flows wait to be resumed.
    fn house(&mut self, moved: Moved, now: Instant) -> Session {
        let Moved { from, mut session, flows, kept } = moved;
        session.flows.clear();
        for mut flow in flows {
            let number = self.next_flow;
            self.next_flow += 1;
            if let Err(error) = self.dialler.watch(number, flow.socket()) {
                warn!(%error, "A flow cannot move to another slot");
                session.held = session.held.saturating_sub(flow.counted);
                self.usage.lock().close(&session.key);
                Self::close_flow(&mut self.keep, flow, End::ByClient);
                continue;
            }
            flow.settle();
            if flow.is_dialling() {
                self.dials.push_back((now + self.limits.dial_timeout, number));
            }
            session.flows.insert(flow.pipe.flow, number);
            self.flows.insert(number, flow);
        }
        self.memory.count(0, session.held);
        self.house_kept(&session);
        // Where they come from they may be given up, now that they are kept here.
        self.news.push_back(News::Housed(from, kept));
        self.stats.moved_in += 1;
        session
    }

    fn house_kept(&mut self, session: &Session) {
        let Some(keep) = &mut self.keep else { return };
        let flows = session.flows.values().filter_map(|number| self.flows.get(number));
        let kept: Vec<_> =
            flows.filter_map(|flow| Some((flow.shelf.as_ref()?.ticket(), flow.socket()))).collect();
        let Err(error) = keep.house(&kept) else { return };
        warn!(%error, "Connections that moved to another slot will end with this process");
        for number in session.flows.values() {
            let flow = self.flows.get_mut(number);
            if let Some(shelf) = flow.and_then(|flow| flow.shelf.take()) {
                keep.close_flow(shelf);
                self.stats.unkept += 1;
            }
        }
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
        let peer = self.peers.remove(&old)?;
        let silence = peer.silence(now);
        let mut session = peer.session?;
        session.away_since = now.checked_sub(silence);
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
        let Some(peer) = self.peers.remove(&connection) else { return };
        let silence = peer.silence(now);
        let Some(mut session) = peer.session else { return };
        session.away_since = now.checked_sub(silence);
        // A client that had flows may not have heard the last of them.
        let bare = session.flows.is_empty() && session.associations.is_empty();
        if bare && session.seen == Seen::default() {
            self.finish(session, &reason);
            return;
        }
        let (client, id) = (&session.name, session.id);
        info!(%client, session = %id, flows = session.flows.len(), reason, "Client parked");
        self.park(session, now);
    }

    /// A session waits for its client.
    fn park(&mut self, session: Session, now: Instant) {
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
        self.join_outlets(session, None);
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
        self.stats.evicted += u64::from(matches!(why, GivenUp::Evicted | GivenUp::Crowded));
        self.figures.given_up.count(why.name());
        self.finish(session, &why.to_string());
    }

    fn finish(&mut self, session: Session, reason: &str) {
        info!(client = %session.name, flows = session.flows.len(), reason, "Client gone");
        self.close_outlets(&session);
        for number in session.flows.into_values() {
            if let Some(flow) = self.flows.remove(&number) {
                self.usage.lock().close(&session.key);
                Self::close_flow(&mut self.keep, flow, End::ByClient);
            }
        }
        if let (Some(keep), Some(place)) = (&mut self.keep, session.place) {
            keep.close_session(place);
        }
        self.memory.count(session.held, 0);
        self.usage.lock().leave(&session.key);
        self.news.push_back(News::Closed(session.id));
    }

    /// Closes a flow's socket, and then gives up what outlives the process.
    pub(super) fn close_flow(keep: &mut Option<Keep>, flow: Flow, end: End) {
        if let (Some(shelf), Some(keep)) = (flow.close(end), keep) {
            keep.close_flow(shelf);
        }
    }

    /// Gives up parked sessions that keep something while there is too little room.
    pub(super) fn relieve_memory(&mut self) {
        while self.memory.evicts()
            && let Some(session) = self.parked.evict()
        {
            self.give_up(session, GivenUp::Crowded);
        }
    }

    pub(super) fn expire_parked(&mut self, now: Instant) {
        for session in self.parked.expire(now, self.limits.hold) {
            self.give_up(session, GivenUp::Expired);
        }
    }

    /// Goes on with what the service manager kept of a process before, and with who the clients
    /// are; `None` for one that is not admitted any more.
    pub fn restore(
        &mut self,
        mut keep: Keep,
        sessions: Vec<(KeptSession, Option<Client>)>,
        now: Instant,
    ) {
        let mut admitted = Vec::new();
        for (kept, client) in sessions {
            match client {
                Some(client) => admitted.push((kept, client)),
                None => {
                    let (key, flows) = (kept.key, kept.flows.len());
                    info!(%key, flows, "Its client is not admitted any more");
                    keep.discard(kept);
                }
            }
        }
        self.keep = Some(keep);
        for (kept, (name, options)) in admitted {
            self.restore_session(kept, name, &options, now);
        }
    }

    fn restore_session(
        &mut self,
        kept: KeptSession,
        name: ClientName,
        options: &Options,
        now: Instant,
    ) {
        let bandwidth = self.usage.bandwidth(kept.key, now);
        let mut session = Session::new(kept.id, kept.key, name, kept.epoch, bandwidth);
        session.place = Some(kept.place);
        session.seen = kept.seen;
        session.away_since = Some(now);
        if let Some(keep) = &mut self.keep {
            // What was never dialled is not used any more.
            keep.note_session(kept.place, kept.epoch, &session.seen);
        }
        {
            let mut usage = self.usage.lock();
            usage.welcome(kept.key, now);
            usage.allow(&kept.key, options);
        }
        for kept in kept.flows {
            let (wire, number) = (kept.flow, self.next_flow);
            self.next_flow += 1;
            match Flow::restored(session.key, kept, |socket| self.dialler.adopt(number, socket)) {
                Ok(mut flow) => {
                    flow.counted = flow.held();
                    session.held += flow.counted;
                    self.memory.count(0, flow.counted);
                    self.usage.lock().resume(&session.key);
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
        self.park(session, now);
    }

    /// Cuts a client off: its connections, its flows. How many connections there were.
    pub fn cut_off(&mut self, key: &PublicKey, now: Instant) -> usize {
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
    pub fn close(&mut self, now: Instant) {
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
