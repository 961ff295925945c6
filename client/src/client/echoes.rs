//! ICMP echo of the programs, when it is carried: what `ping` asks is asked by the gateway.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use tracing::debug;
use whimbrel_carrier::Connection;
use whimbrel_client_core::engine::DeviceId;
use whimbrel_client_core::packet::{
    EchoEnds, EchoError, EchoRequest, Fragments, Malformed, Unreachable,
};
use whimbrel_client_core::udp::{Protocol, Source};
use whimbrel_common::wire::{self, Echo, Undelivered};

use super::Client;
use super::datagrams::{Datagrams, ECHOES, Reply, fitting};
use crate::run::NAMESERVER;

/// What stands for the gateway where it is a hop of IPv6, beside the TUN's own address unless
/// that is configured. In IPv4 its name server does.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd52, 0x1109, 0x77b6, 0, 0, 0, 0, 0x53);

impl Client {
    /// Whether ICMP echo requests of the host should come here, as of
    /// [UDP](Self::captures_datagrams).
    #[must_use]
    pub fn captures_echoes(&self) -> bool {
        self.captures(self.datagrams.echoes_supported)
    }

    /// A program sent an ICMP packet.
    pub(super) fn take_icmp(&mut self, device: DeviceId, packet: &[u8], now: Instant) {
        let whole;
        let parsed = if Fragments::is_fragment(packet) {
            let Some(complete) = self.datagrams.fragments.take(device, packet, now) else { return };
            whole = complete;
            EchoRequest::parse(&whole).map(EchoRequest::from_fragments)
        } else {
            EchoRequest::parse(packet)
        };
        let request = match parsed {
            Ok(request) => request,
            // What the kernel says about what it got, as a rule: the engine counts what nobody takes.
            Err(Malformed::Protocol) => return self.engine.handle_packet(device, packet, now),
            Err(reason) => {
                debug!(%reason, "An echo request that cannot be read");
                self.datagrams.counts.malformed += 1;
                return;
            }
        };
        match self.tunnel.connection() {
            Some(connection) if self.datagrams.wanted && self.tunnel.can(ECHOES) => {
                self.send_echo(device, &request, connection, now);
            }
            Some(_) => self.refuse_echo(device, &request, Unreachable::Prohibited),
            None if self.given_up => self.refuse_echo(device, &request, Unreachable::Host),
            None => self.datagrams.counts.dropped += 1,
        }
    }

    fn refuse_echo(&mut self, device: DeviceId, request: &EchoRequest<'_>, reason: Unreachable) {
        self.datagrams.counts.dropped += 1;
        let packet = request.unreachable(reason);
        self.datagrams.replies.push_back(Reply::Error { device, packet });
    }

    fn send_echo(
        &mut self,
        device: DeviceId,
        request: &EchoRequest<'_>,
        connection: Connection,
        now: Instant,
    ) {
        let Datagrams { associations, parcels, counts, replies, .. } = &mut self.datagrams;
        let address = SocketAddr::new(request.source(), request.identifier());
        let source = Source { device, protocol: Protocol::Echo, address };
        let (remote, sequence) = (request.destination(), request.sequence());
        let payload = request.payload();
        let association = associations.send(source, SocketAddr::new(remote, 0), payload.len(), now);
        let echo = Echo { association, remote, sequence };
        let parcel = wire::encode_echo(echo, request.hops(), payload);
        let endpoint = &mut self.tunnel.endpoint;
        let excess = parcel.len().saturating_sub(endpoint.best_datagram_room(connection));
        if let Some(fits) = fitting(request.packet_length(), excess)
            && request.must_stay_whole()
        {
            replies.push_back(Reply::Error { device, packet: request.too_big(fits) });
            counts.dropped += 1;
            return;
        }
        counts.requests += 1;
        parcels.send(endpoint, connection, association, parcel, now);
        self.tunnel.activity(now);
    }
}

impl Datagrams {
    /// Whether it was for somebody here.
    pub(super) fn deliver_reply(&mut self, echo: Echo, hops: u8, payload: Bytes) -> bool {
        let Some((device, ends)) = self.asked(echo) else { return false };
        self.associations.receive(echo.association, payload.len());
        self.counts.replies += 1;
        self.replies.push_back(Reply::Echo { device, ends, hops, payload });
        true
    }

    /// Whether it was for somebody here.
    pub(super) fn deliver_failure(&mut self, echo: Echo, by: IpAddr, reason: Undelivered) -> bool {
        let Some((device, ends)) = self.asked(echo) else { return false };
        let by = match (by, by.is_unspecified()) {
            (IpAddr::V4(_), true) => IpAddr::V4(NAMESERVER),
            (IpAddr::V6(_), true) => IpAddr::V6(GATEWAY_V6),
            (by, false) => by,
        };
        if by.is_ipv4() != ends.source.is_ipv4() {
            self.counts.malformed += 1;
            return false;
        }
        let error = match reason {
            Undelivered::Network => EchoError::Unreachable(Unreachable::Network),
            Undelivered::Host => EchoError::Unreachable(Unreachable::Host),
            Undelivered::Port => EchoError::Unreachable(Unreachable::Port),
            Undelivered::Denied => EchoError::Unreachable(Unreachable::Prohibited),
            Undelivered::Expired => EchoError::Expired,
        };
        self.replies.push_back(Reply::Error { device, packet: ends.error(by, error) });
        true
    }

    /// Whose echo it is.
    fn asked(&mut self, echo: Echo) -> Option<(DeviceId, EchoEnds)> {
        let Some(entry) = self.associations.find(echo.association) else {
            self.counts.dropped += 1;
            return None;
        };
        let Source { device, protocol, address } = entry.source;
        if protocol != Protocol::Echo || address.is_ipv4() != echo.remote.is_ipv4() {
            self.counts.malformed += 1;
            return None;
        }
        let ends = EchoEnds {
            source: address.ip(),
            destination: echo.remote,
            identifier: address.port(),
            sequence: echo.sequence,
        };
        Some((device, ends))
    }
}
