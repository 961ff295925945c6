//! Names for the applications of wrapped commands, whose UDP leads nowhere: each query becomes a
//! flow of our own to a resolver.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tracing::debug;
use whimbrel_client_core::dns::{PORT, Query, is_public};
use whimbrel_client_core::engine::{DeviceId, Engine, FlowId, Tenant};
use whimbrel_client_core::packet;

use whimbrel_common::wire::{RESOLVER, capability};

use super::Client;
use crate::devices::HOST;
use crate::ferry::End;
use crate::resolver::FALLBACK;

/// Who asks has given up by now: resolvers of programs repeat a query after 5 s, and a third time
/// at most as a rule (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(15);

/// Queries under way at a time; who asks repeats what is dropped.
const QUERIES: usize = 512;

/// Queries under way, and whom they are put to.
#[derive(Debug)]
pub(super) struct Names {
    /// Never empty.
    resolvers: Vec<IpAddr>,
    /// The one that is asked.
    current: usize,
    queries: BTreeMap<FlowId, Pending>,
}

#[derive(Debug)]
struct Pending {
    device: DeviceId,
    query: Query,
    until: Instant,
    /// Only its flow is still to end.
    answered: bool,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { resolvers: vec![FALLBACK], current: 0, queries: BTreeMap::new() }
    }

    /// Puts later queries to the first of these, and to the next whenever one fails.
    pub(super) fn ask(&mut self, resolvers: Vec<IpAddr>) {
        if !resolvers.is_empty() && resolvers != self.resolvers {
            (self.resolvers, self.current) = (resolvers, 0);
        }
    }

    /// Whom a query to `server` is put to: to it, if it can be reached. What a host's settings name
    /// is a server of the local network as a rule.
    pub(super) fn resolver_for(&self, server: SocketAddr) -> SocketAddr {
        let resolver = self.resolvers[self.current % self.resolvers.len()];
        if is_public(server.ip()) { server } else { SocketAddr::new(resolver, PORT) }
    }

    /// Takes a packet that is a query. Whether it was one.
    pub(super) fn take(
        &mut self,
        engine: &mut Engine,
        device: DeviceId,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let Some(query) = Query::parse(packet) else { return false };
        let resolver = self.resolver_for(query.server);
        if self.queries.len() < QUERIES
            && let Some(flow) = engine.originate(query.source, resolver, &query.framed())
        {
            debug!(%flow, %resolver, "A query goes on over TCP");
            self.queries
                .insert(flow, Pending { device, query, until: now + PATIENCE, answered: false });
        }
        true
    }

    /// Answers what has its answer, or will never have one. Each lasts until its flow has ended.
    pub(super) fn advance(&mut self, engine: &mut Engine, now: Instant) {
        let mut failed = false;
        let done = self.queries.extract_if(.., |flow, pending| {
            let (packet, over) = match engine.received(*flow) {
                Some(_) if pending.answered => (None, false),
                Some((stream, ended)) => (pending.query.answer(stream), ended),
                None => (None, true),
            };
            let late = pending.until <= now;
            if !pending.answered && (packet.is_some() || over || late) {
                pending.answered = true;
                failed |= packet.is_none() && !is_public(pending.query.server.ip());
                let packet = packet.unwrap_or_else(|| pending.query.failure());
                engine.reply(pending.device, packet);
                engine.hang_up(*flow);
            }
            if late {
                engine.abort(*flow);
            }
            engine.received(*flow).is_none()
        });
        done.for_each(drop);
        self.current += usize::from(failed);
    }

    /// When [`advance`](Self::advance) gives one up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        // Ids rise with time.
        self.queries.values().next().map(|pending| pending.until)
    }
}

impl Client {
    /// A packet came from a TUN.
    pub fn handle_packet(&mut self, device: DeviceId, packet: &[u8], now: Instant) {
        if packet::is_icmp(packet) {
            self.take_icmp(device, packet, now);
        } else if !packet::is_datagram(packet) {
            self.engine.handle_packet(device, packet, now);
        } else if device == HOST || !self.names.take(&mut self.engine, device, packet, now) {
            self.take_datagram(device, packet, now);
        }
    }

    /// Whether the gateway answers queries of the host with its own resolver, at the address of the
    /// name server inside the TUN.
    pub(crate) fn has_resolver(&self) -> bool {
        self.tunnel.can(capability::PARCELS | capability::RESOLVER)
    }

    /// Whether the gateway that was attached last can do that.
    pub(crate) fn knows_resolver(&self) -> bool {
        self.datagrams.has_resolver()
    }

    /// Whom names are asked of on behalf of wrapped commands.
    pub(crate) fn ask(&mut self, resolvers: Vec<IpAddr>) {
        self.names.ask(resolvers);
    }

    /// Where a connection of a device leads: who came to the name server by UDP for too long an
    /// answer comes again by TCP.
    pub(super) fn place(&self, device: DeviceId, destination: SocketAddr) -> SocketAddr {
        if device == HOST && destination == self.nameserver {
            return RESOLVER;
        }
        if device == HOST || destination.port() != PORT {
            return destination;
        }
        self.names.resolver_for(destination)
    }

    /// How many connections of a device's applications there are.
    pub(crate) fn count(&self, device: DeviceId) -> usize {
        self.engine.count(device)
    }

    /// A TUN is gone, and its applications with it.
    pub(crate) fn abandon(&mut self, device: DeviceId) {
        self.engine.abort_device(device);
        self.engine.release(device);
        self.abandon_datagrams(device);
    }

    /// A TUN is a user's, whose connections may not crowd out those of others.
    pub(crate) fn assign(&mut self, device: DeviceId, uid: u32) {
        self.engine.assign(device, Tenant(uid));
    }

    /// No process is left behind a TUN. What has been said goes on its way, and is answered to
    /// nobody: connections that wait for nothing but the other end are reset, as the kernel does
    /// with those that no process has.
    pub(crate) fn bury(&mut self, device: DeviceId, now: Instant) {
        let of_device =
            |flow: FlowId| self.engine.flow(flow).is_some_and(|view| view.device == device);
        let over: Vec<FlowId> = self
            .ferries
            .iter()
            .filter(|(flow, ferry)| ferry.has_said_all() && of_device(**flow))
            .map(|(flow, _)| *flow)
            .collect();
        for flow in over {
            self.engine.abort(flow);
            self.end(flow, &End::ByApplication, now);
        }
    }
}
