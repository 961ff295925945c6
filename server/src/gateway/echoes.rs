//! Pings of clients: each request goes out through an ICMP socket of its program's association, and
//! what comes of it goes back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use tracing::debug;
use whimbrel_carrier::Connection;
use whimbrel_common::path::Input;
use whimbrel_common::wire::{self, Association, Echo, Parcel, Undelivered, capability};
use whimbrel_gateway_core::associations::OutletNumber;

use crate::outlet::{self, Bounce, echo};

use super::Gateway;

impl Gateway {
    /// What clients are told that this gateway can.
    pub(super) fn capabilities(&self) -> u64 {
        if self.datagrams.echoes { capability::ALL } else { capability::ALL & !capability::ECHOES }
    }

    /// A client asks for an echo.
    pub(super) fn take_echo(
        &mut self,
        connection: Connection,
        echo: Echo,
        hops: u8,
        payload: &[u8],
        now: Instant,
    ) {
        if let Err(reason) = self.ask_echo(connection, echo, hops, payload, now) {
            let by = match echo.remote {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let parcel = Parcel::EchoFailed { echo, by, reason };
            self.send_back(connection, echo.association, &parcel, now);
        }
    }

    fn ask_echo(
        &mut self,
        connection: Connection,
        echo: Echo,
        hops: u8,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Undelivered> {
        let remote = SocketAddr::new(echo.remote, 0);
        if let Err(denied) = self.policy.check(remote) {
            debug!(%denied, "Denied");
            self.datagrams.denied += 1;
            return Err(Undelivered::Denied);
        }
        if !self.datagrams.echoes {
            return Err(Undelivered::Denied);
        }
        // The gateway is a hop like any other.
        let hops = hops.checked_sub(1).filter(|hops| *hops > 0).ok_or(Undelivered::Expired)?;
        let outlet = match self.outlet_for(connection, echo.association, remote, now) {
            Ok(outlet) => outlet,
            Err(why) => {
                self.datagrams.dropped += 1;
                return why.map_or(Ok(()), Err);
            }
        };
        match outlet.ask(echo.remote, echo.sequence, hops, payload) {
            Ok(()) => {
                let bytes = payload.len() as u64;
                self.datagrams.echo_requests += 1;
                self.stats.up_bytes += bytes;
                if let Some(session) = self.session_of(connection) {
                    session.count_datagrams(bytes, 0);
                }
                Ok(())
            }
            Err(error) => {
                self.datagrams.dropped += 1;
                debug!(remote = %echo.remote, %error, "An echo request cannot be sent");
                outlet::undelivered(&error).map_or(Ok(()), Err)
            }
        }
    }

    /// Hands on the next reply, and tells its length; `None` if there is none.
    pub(super) fn hear_echo(&mut self, number: OutletNumber, now: Instant) -> Option<u64> {
        let outlet = self.outlets.get(&number)?;
        let reply = match outlet.hear(&mut self.scratch) {
            Ok(Some(reply)) => reply,
            Ok(None) => return Some(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return outlet::is_late(&error).then_some(0),
        };
        let association = outlet.association;
        let peer = outlet.client.and_then(|client| self.peers.get_mut(&client));
        let Some(peer) = peer else {
            // Its client is away. Later it would be too late.
            self.datagrams.dropped += 1;
            return Some(0);
        };
        let session = peer.session.as_mut()?;
        if !session.associations.admits(association, reply.from) {
            self.datagrams.unasked += 1;
            return Some(0);
        }
        let payload = &self.scratch[echo::HEADER..reply.length];
        let bytes = payload.len() as u64;
        peer.paths.handle(Input::Activity, now);
        session.count_datagrams(0, bytes);
        self.stats.down_bytes += bytes;
        self.datagrams.echo_replies += 1;
        let echo = Echo { association, remote: reply.from, sequence: reply.sequence };
        let parcel = wire::encode_echo(echo, reply.hops, payload);
        peer.parcels.send(&mut self.endpoint, peer.connection, association, parcel, now);
        Some(bytes)
    }

    /// Tells a client what came of its request instead of a reply.
    pub(super) fn tell_echo_failed(
        &mut self,
        client: Connection,
        association: Association,
        bounce: &Bounce,
        reason: Undelivered,
        now: Instant,
    ) {
        let remote = bounce.remote.ip();
        let echo = Echo { association, remote, sequence: echo::sequence(&bounce.head) };
        let by = bounce.by.filter(|by| by.is_ipv4() == remote.is_ipv4()).unwrap_or(remote);
        let parcel = Parcel::EchoFailed { echo, by, reason };
        self.send_back(client, association, &parcel, now);
    }
}
