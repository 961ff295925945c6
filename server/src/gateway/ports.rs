//! Ports for the datagrams of clients, and what becomes of a datagram that has none.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use tracing::{debug, warn};
use whimbrel_carrier::Connection;
use whimbrel_common::wire::{Association, Undelivered};
use whimbrel_gateway_core::associations::{OutletNumber, Way};
use whimbrel_gateway_core::limits::Exceeded;

use crate::metrics::limit;
use crate::outlet::{self, Outlet};
use crate::usage::PortLease;

use super::Gateway;
use super::parcels::OUTLETS;

/// What has no port is lost; the client is told if it is of use to know.
type Portless = Option<Undelivered>;

/// Nobody need know.
const LOST: Portless = None;

/// Clients can ask for ports as fast as they send datagrams, and a machine that has none has none for
/// a while.
const TELL_EVERY: Duration = Duration::from_mins(1);

impl Gateway {
    /// The port of an association, which is opened if there is none.
    pub(super) fn outlet_for(
        &mut self,
        connection: Connection,
        association: Association,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<&mut Outlet, Portless> {
        let session = self.session_of(connection).ok_or(LOST)?;
        let number = match session.associations.send(association, remote, now) {
            Way::Open(number) => number,
            Way::New => self.open_outlet(connection, association, remote, now)?,
            Way::Impossible => return Err(LOST),
        };
        self.outlets.get_mut(&number).ok_or(LOST)
    }

    /// A query that cannot go where its predecessors went has a port of the other family from now on.
    pub(super) fn change_family(
        &mut self,
        connection: Connection,
        association: Association,
        server: SocketAddr,
    ) {
        let session = self.session_of(connection);
        let old = session.and_then(|it| it.associations.change_family(association, server));
        if let Some(old) = old {
            self.outlets.remove(&old);
        }
    }

    /// Whom clients have sent to and may not send to any more does not answer any more either.
    pub(super) fn silence_denied(&mut self) {
        let (policy, resolvers) = (&self.policy, &self.resolvers);
        // Port 25 is the only one that matters, and no other one stands for it.
        let may =
            |remote| resolvers.contains(remote) || policy.check(SocketAddr::new(remote, 0)).is_ok();
        let attached = self.peers.values_mut().filter_map(|peer| peer.session.as_mut());
        for session in attached.chain(self.parked.iter_mut()) {
            session.associations.retain_remotes(may);
        }
    }

    fn open_outlet(
        &mut self,
        connection: Connection,
        association: Association,
        remote: SocketAddr,
        now: Instant,
    ) -> Result<OutletNumber, Portless> {
        let lease = self.lease_port(connection, now)?;
        let wanted = self.port_choice.port(&lease.key(), association);
        let v4 = remote.is_ipv4();
        let number = OutletNumber(OUTLETS | self.next_flow);
        let open = if remote.port() == 0 { Outlet::open_echo } else { Outlet::open };
        let opened = open(v4, wanted, (association, connection), lease)
            .and_then(|outlet| self.dialler.watch(number.0, outlet.as_fd()).map(|()| outlet));
        let outlet = opened.map_err(|error| self.told_portless(&error, now))?;
        self.next_flow += 1;
        let session = self.session_of(connection).ok_or(LOST)?;
        let evicted = session.associations.open(association, number, remote, now);
        let end = session.associations.deadline();
        self.outlets_end = [self.outlets_end, end].into_iter().flatten().min();
        self.outlets.insert(number, outlet);
        if let Some(evicted) = evicted {
            self.outlets.remove(&evicted);
        }
        Ok(number)
    }

    /// Counts one more port of a client. If it has as many as it may, another one of the same session
    /// goes for it.
    fn lease_port(&mut self, connection: Connection, now: Instant) -> Result<PortLease, Portless> {
        let peer = self.peers.get_mut(&connection).ok_or(LOST)?;
        let session = peer.session.as_mut().ok_or(LOST)?;
        let mut leased = self.usage.open_port(peer.key, now);
        if let Err(Exceeded::Ports(_)) = leased
            && let Some(oldest) = session.associations.evict()
        {
            self.outlets.remove(&oldest);
            leased = self.usage.open_port(peer.key, now);
        }
        leased.map_err(|exceeded| {
            debug!(client = %session.name, %exceeded, "Limited");
            self.figures.limits.count(&limit::name(exceeded));
            // It may have one soon; one that waits in vain for another to end should know.
            matches!(exceeded, Exceeded::Ports(_)).then_some(Undelivered::Denied)
        })
    }

    /// The kernel gives no port: what that means for the client.
    fn told_portless(&mut self, error: &io::Error, now: Instant) -> Portless {
        let reason = outlet::undelivered(error);
        let quiet = |at| now.saturating_duration_since(at) < TELL_EVERY;
        if reason.is_some() || self.portless_at.is_some_and(quiet) {
            debug!(%error, "No port for a client's datagrams");
        } else {
            warn!(%error, "No port for a client's datagrams; told once a minute at most");
            self.portless_at = Some(now);
        }
        reason
    }
}
