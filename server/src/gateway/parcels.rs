//! What need not arrive: parcels of clients go out through ports of this machine, and what comes
//! in there goes back to them.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tracing::debug;
use whimbrel_carrier::{Connection, Stream};
use whimbrel_common::identity::PublicKey;
use whimbrel_common::path::Input;
use whimbrel_common::wire::{
    self, Association, Denial, Limit, Parcel, RESOLVER, StreamCode, Undelivered, capability,
};
use whimbrel_gateway_core::associations::OutletNumber;
use whimbrel_gateway_core::turns::Turn;

use crate::outlet::{self, Bounce};
use crate::sessions::Session;

use super::Gateway;

/// Numbers of outlets among those that the kernel tells news of, and of those that wait for their
/// turn, begin here, those of flows below.
pub(super) const OUTLETS: u64 = 1 << 63;

/// What a client sends in datagrams waits for its turn under the number of its connection after this.
const ARRIVED: u64 = OUTLETS | 1 << 62;

/// Counted for each datagram beside its payload: small ones cost as much work as larger ones.
const LEAST: u64 = 200;

/// Errors read from one port before others get their turn.
const BOUNCES: usize = 32;

impl Gateway {
    /// Queries to the gateway itself are put to these from now on.
    pub fn resolve_with(&mut self, servers: Vec<SocketAddr>) {
        self.resolvers.set(servers);
    }

    /// A client opened the stream of parcels that are too large for datagrams.
    pub(super) fn begin_parcels(&mut self, connection: Connection, stream: Stream, rest: BytesMut) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        peer.streams.remove(&stream);
        if let Some(old) = peer.parcels.adopt(stream, rest) {
            self.endpoint.abort(connection, old, StreamCode::Superseded.code());
        }
        self.note_parcels(connection);
    }

    /// Parcels came from a client.
    pub(super) fn note_parcels(&mut self, connection: Connection) {
        if let Some(peer) = self.peers.get_mut(&connection)
            && !std::mem::replace(&mut peer.parcels_queued, true)
        {
            self.turns.push(peer.key, ARRIVED | connection.index() as u64);
        }
    }

    /// Serves what is no flow. How many bytes that moved.
    pub(super) fn turn_datagrams(
        &mut self,
        Turn { flow, budget, .. }: Turn<PublicKey>,
        now: Instant,
    ) -> u64 {
        if flow >= ARRIVED {
            let index = usize::try_from(flow - ARRIVED).unwrap_or(usize::MAX);
            self.receive_parcels(Connection::at(index), budget, now)
        } else {
            self.turn_outlet(OutletNumber(flow), budget, now)
        }
    }

    fn receive_parcels(&mut self, connection: Connection, budget: usize, now: Instant) -> u64 {
        let mut moved = 0;
        while moved < budget as u64 {
            let Some(peer) = self.peers.get_mut(&connection) else { return moved };
            peer.parcels_queued = false;
            match peer.parcels.receive(&mut self.endpoint, connection) {
                Ok(Some(parcel)) => moved += self.deliver(connection, parcel, now),
                Ok(None) => return moved,
                Err(error) => {
                    debug!(%error, "What came on the stream of parcels is none");
                    self.deny(connection, Denial::Protocol, now);
                    return moved;
                }
            }
        }
        self.note_parcels(connection);
        moved
    }

    /// Does what a client asks. How many bytes that were.
    fn deliver(&mut self, connection: Connection, parcel: Parcel, now: Instant) -> u64 {
        // A stranger's are not even counted.
        let Some(peer) = self.peers.get_mut(&connection) else { return 0 };
        let Some(session) = peer.session.as_mut() else { return 0 };
        let bytes = match &parcel {
            Parcel::Datagram { payload, .. } | Parcel::Echo { payload, .. } => {
                peer.paths.handle(Input::Activity, now);
                if session.datagram_room_up(self.limits.bandwidth_per_client, now).is_err() {
                    self.datagrams.dropped += 1;
                    self.figures.limits.count(&Limit::Bandwidth.to_string());
                    peer.tell_limit(Limit::Bandwidth, now);
                    return LEAST;
                }
                LEAST + payload.len() as u64
            }
            Parcel::Unreachable { .. } | Parcel::Renew { .. } | Parcel::EchoFailed { .. } => LEAST,
        };
        self.carry_out(connection, parcel, now);
        bytes
    }

    fn carry_out(&mut self, connection: Connection, parcel: Parcel, now: Instant) {
        let (association, remote, payload) = match parcel {
            Parcel::Datagram { association, remote, payload } => {
                (association, remote, Some(payload))
            }
            Parcel::Renew { association, remote } => (association, remote, None),
            Parcel::Echo { echo, hops, payload } => {
                return self.take_echo(connection, echo, hops, &payload, now);
            }
            // Only a gateway says it.
            Parcel::Unreachable { .. } | Parcel::EchoFailed { .. } => return,
        };
        if remote.port() == 0 {
            self.datagrams.dropped += 1;
            return;
        }
        if let Err(reason) = self.send_out(connection, association, remote, payload, now) {
            let parcel = Parcel::Unreachable { association, remote, reason };
            self.send_back(connection, association, &parcel, now);
        }
    }

    /// Sends a datagram out through the port of its association; without one only makes sure of
    /// the port.
    fn send_out(
        &mut self,
        connection: Connection,
        association: Association,
        remote: SocketAddr,
        payload: Option<Bytes>,
        now: Instant,
    ) -> Result<(), Undelivered> {
        let asked = remote == RESOLVER;
        let remote = if asked {
            self.resolvers.choose(now).ok_or(Undelivered::Host)?
        } else if let Err(denied) = self.policy.check(remote) {
            debug!(%denied, "Denied");
            self.datagrams.denied += 1;
            return Err(Undelivered::Denied);
        } else {
            remote
        };
        if asked {
            self.change_family(connection, association, remote);
        }
        let outlet = self.outlet_for(connection, association, remote, now);
        let outlet = match outlet {
            Ok(outlet) => outlet,
            Err(why) => {
                self.datagrams.dropped += u64::from(payload.is_some());
                if asked && why == Some(Undelivered::Network) {
                    self.resolvers.failed(remote);
                }
                return why.map_or(Ok(()), Err);
            }
        };
        if asked {
            outlet.asks(remote);
        }
        let Some(payload) = payload else { return Ok(()) };
        match outlet.send(&payload, remote) {
            Ok(()) => {
                self.datagrams.up += 1;
                self.stats.up_bytes += payload.len() as u64;
                if let Some(session) = self.session_of(connection) {
                    session.count_datagrams(payload.len() as u64, 0);
                }
                Ok(())
            }
            Err(error) => {
                self.datagrams.dropped += 1;
                debug!(%remote, %error, "A datagram cannot be sent");
                let why = outlet::undelivered(&error);
                if asked && why.is_some() {
                    self.resolvers.failed(remote);
                }
                why.map_or(Ok(()), Err)
            }
        }
    }

    pub(super) fn session_of(&mut self, connection: Connection) -> Option<&mut Session> {
        self.peers.get_mut(&connection)?.session.as_mut()
    }

    /// The kernel has something for a port.
    pub(super) fn note_outlet(&mut self, number: OutletNumber) {
        if let Some(outlet) = self.outlets.get_mut(&number)
            && !std::mem::replace(&mut outlet.queued, true)
        {
            self.turns.push(outlet.lease.key(), number.0);
        }
    }

    /// A port of a client that has bandwidth again waits for its turn.
    pub(super) fn wake_outlet(&mut self, number: OutletNumber) {
        if let Some(outlet) = self.outlets.get_mut(&number) {
            outlet.queued = false;
            self.note_outlet(number);
        }
    }

    /// Reads what came for a client. How many bytes that were.
    fn turn_outlet(&mut self, number: OutletNumber, budget: usize, now: Instant) -> u64 {
        let Some(outlet) = self.outlets.get_mut(&number) else { return 0 };
        outlet.queued = false;
        let client = outlet.client;
        self.read_bounces(number, now);
        let rate = self.limits.bandwidth_per_client;
        let session = client.and_then(|client| self.session_of(client));
        let room = match session.map_or(Ok(u64::MAX), |it| it.datagram_room_down(rate, now)) {
            Ok(room) => room.min(budget as u64),
            Err(at) => {
                self.figures.limits.count(&Limit::Bandwidth.to_string());
                if let Some(peer) = client.and_then(|client| self.peers.get_mut(&client)) {
                    peer.tell_limit(Limit::Bandwidth, now);
                }
                if let Some(outlet) = self.outlets.get_mut(&number) {
                    // It is queued there, and nowhere else.
                    outlet.queued = true;
                    self.throttled.add(number.0, at);
                }
                return 0;
            }
        };
        let mut moved = 0;
        while moved < room {
            match self.read_outlet(number, now) {
                Some(bytes) => moved += LEAST + bytes,
                None => return moved,
            }
        }
        self.note_outlet(number);
        moved
    }

    /// Hands on the next datagram that came in at a port, and tells its length; `None` if there is
    /// none.
    fn read_outlet(&mut self, number: OutletNumber, now: Instant) -> Option<u64> {
        let outlet = self.outlets.get(&number)?;
        if outlet.echoes {
            return self.hear_echo(number, now);
        }
        match outlet.receive(&mut self.scratch) {
            Ok((length, remote)) => {
                let (association, client) = (outlet.association, outlet.client);
                let answered = outlet.has_asked(remote);
                self.take_in(association, client, (remote, answered), length, now);
                Some(length as u64)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) if outlet::is_late(&error) => Some(0),
            Err(error) => {
                debug!(%error, "A port cannot be read");
                None
            }
        }
    }

    /// Tells clients which of their datagrams did not arrive.
    fn read_bounces(&mut self, number: OutletNumber, now: Instant) {
        for _ in 0..BOUNCES {
            let Some(outlet) = self.outlets.get(&number) else { return };
            let Ok(bounce) = outlet.bounced() else { return };
            let Bounce { remote, reason, .. } = bounce;
            let (association, client, echoes) = (outlet.association, outlet.client, outlet.echoes);
            let asked_resolver = outlet.has_asked(remote);
            if asked_resolver {
                self.resolvers.failed(remote);
            }
            let session = client.and_then(|client| self.session_of(client));
            let asked = session
                .is_some_and(|session| session.associations.admits(association, remote.ip()));
            let (Some(client), Some(reason), true) = (client, reason, asked) else { continue };
            if echoes {
                self.tell_echo_failed(client, association, &bounce, reason, now);
            } else {
                let remote = if asked_resolver { RESOLVER } else { remote };
                // A client of an older version knows no other word for it.
                let reason = match reason {
                    Undelivered::Expired => Undelivered::Host,
                    Undelivered::Network
                    | Undelivered::Host
                    | Undelivered::Port
                    | Undelivered::Denied => reason,
                };
                let parcel = Parcel::Unreachable { association, remote, reason };
                self.send_back(client, association, &parcel, now);
            }
        }
    }

    fn take_in(
        &mut self,
        association: Association,
        client: Option<Connection>,
        (remote, answered): (SocketAddr, bool),
        length: usize,
        now: Instant,
    ) {
        let peer = client.and_then(|client| self.peers.get_mut(&client));
        let Some(peer) = peer else {
            // Its client is away. Later it would be too late.
            self.datagrams.dropped += 1;
            return;
        };
        let Some(session) = peer.session.as_mut() else { return };
        if !session.associations.admits(association, remote.ip()) {
            self.datagrams.unasked += 1;
            return;
        }
        peer.paths.handle(Input::Activity, now);
        session.count_datagrams(0, length as u64);
        self.stats.down_bytes += length as u64;
        self.datagrams.down += 1;
        if answered {
            self.resolvers.answered(remote);
        }
        let from = if answered { RESOLVER } else { remote };
        let parcel = wire::encode_datagram(association, from, &self.scratch[..length]);
        peer.parcels.send(&mut self.endpoint, peer.connection, association, parcel, now);
    }

    pub(super) fn send_back(
        &mut self,
        connection: Connection,
        association: Association,
        parcel: &Parcel,
        now: Instant,
    ) {
        if let Some(peer) = self.peers.get_mut(&connection)
            && peer.capabilities & capability::PARCELS != 0
        {
            let parcel = wire::encode_parcel(parcel);
            peer.parcels.send(&mut self.endpoint, connection, association, parcel, now);
        }
    }

    /// There may be room for parcels on their stream.
    pub(super) fn write_parcels(&mut self, connection: Connection) {
        if let Some(peer) = self.peers.get_mut(&connection) {
            peer.parcels.write(&mut self.endpoint, connection);
        }
    }

    pub(super) fn expire_outlets(&mut self, now: Instant) {
        if self.outlets_end.is_none_or(|end| now < end) {
            return;
        }
        let attached = self.peers.values_mut().filter_map(|peer| peer.session.as_mut());
        for session in attached.chain(self.parked.iter_mut()) {
            for outlet in session.associations.expire(now) {
                self.outlets.remove(&outlet);
            }
        }
        let attached = self.peers.values().filter_map(|peer| peer.session.as_ref());
        let sessions = attached.chain(self.parked.iter().map(|(_, session)| session));
        self.outlets_end = sessions.filter_map(|session| session.associations.deadline()).min();
    }

    /// The ports of a session wait with it, or are carried by a connection.
    pub(super) fn join_outlets(&mut self, session: &Session, client: Option<Connection>) {
        for number in session.associations.outlets() {
            if let Some(outlet) = self.outlets.get_mut(&number) {
                outlet.client = client;
            }
        }
    }

    /// Gives up the ports of a session.
    pub(super) fn close_outlets(&mut self, session: &Session) {
        for number in session.associations.outlets() {
            self.outlets.remove(&number);
        }
    }
}
