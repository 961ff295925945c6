//! ICMP echo in IP packets (RFC 792, RFC 4443 §4): requests read from a TUN, replies and errors
//! written to it.

use std::net::IpAddr;

use super::{
    IPV4_HEADER, IPV6_HEADER, Malformed, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Unreachable, be16,
    compose, compose_error, compose_too_big, fill_checksum, fill_ipv4_checksum, header_length,
    parse_ipv4, parse_ipv6, protocol, unreachable, write_header,
};

/// Bytes before what an echo carries: type, code, checksum, identifier and sequence number.
const ECHO_HEADER: usize = 8;

/// Types of a request and a reply, in IPv4 and IPv6.
const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

/// Whether this is an ICMP packet or a fragment of one, or looks like it so far.
#[must_use]
pub fn is_icmp(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => protocol(packet) == Some(PROTOCOL_ICMP),
        Some(6) => protocol(packet) == Some(PROTOCOL_ICMPV6),
        Some(_) | None => false,
    }
}

/// An echo request whose headers have been checked, its checksum excepted.
#[derive(Debug, Clone, Copy)]
pub struct EchoRequest<'a> {
    packet: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
    icmp: &'a [u8],
    /// It came in fragments.
    was_cut: bool,
}

impl<'a> EchoRequest<'a> {
    /// Checks one IP packet. Bytes after the length that its header states are ignored.
    ///
    /// # Errors
    /// [`Malformed`]: what is wrong with it; [`Malformed::Protocol`] for any other ICMP message.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let version = packet.first().ok_or(Malformed::Truncated)? >> 4;
        let (parsed, request) = match version {
            4 => (parse_ipv4(packet, PROTOCOL_ICMP)?, REQUEST_V4),
            6 => (parse_ipv6(packet, PROTOCOL_ICMPV6)?, REQUEST_V6),
            _ => return Err(Malformed::Version),
        };
        let (packet, header, source, destination) = parsed;
        let icmp = &packet[header..];
        if icmp.len() < ECHO_HEADER {
            return Err(Malformed::Truncated);
        }
        if icmp[..2] != [request, 0] {
            return Err(Malformed::Protocol);
        }
        Ok(Self { packet, source, destination, icmp, was_cut: false })
    }

    /// The same request, which came in [fragments](super::Fragments).
    #[must_use]
    pub fn from_fragments(self) -> Self {
        Self { was_cut: true, ..self }
    }

    /// Who asks.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Who is asked.
    #[must_use]
    pub fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Tells the programs of a host apart.
    #[must_use]
    pub fn identifier(&self) -> u16 {
        be16(self.icmp, 4)
    }

    /// Tells the requests of a program apart.
    #[must_use]
    pub fn sequence(&self) -> u16 {
        be16(self.icmp, 6)
    }

    /// Hops it may make.
    #[must_use]
    pub fn hops(&self) -> u8 {
        if self.source.is_ipv4() { self.packet[8] } else { self.packet[7] }
    }

    /// What it carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.icmp[ECHO_HEADER..]
    }

    /// Bytes of the whole IP packet.
    #[must_use]
    pub fn packet_length(&self) -> usize {
        self.packet.len()
    }

    /// Whether its sender wants to know when it is too big, as of a
    /// [datagram](super::Datagram::must_stay_whole).
    #[must_use]
    pub fn must_stay_whole(&self) -> bool {
        if self.source.is_ipv4() { self.packet[6] & 0x40 != 0 } else { !self.was_cut }
    }

    /// The ICMP error that says it does not reach its destination, as if that had sent it.
    #[must_use]
    pub fn unreachable(&self, reason: Unreachable) -> Vec<u8> {
        unreachable(self.destination, self.source, reason, self.packet)
    }

    /// The ICMP error that says that packets of `mtu` bytes fit, and this one does not.
    #[must_use]
    pub fn too_big(&self, mtu: u16) -> Vec<u8> {
        compose_too_big(self.destination, self.source, mtu, self.packet)
    }
}

/// One echo as its program knows it. Both addresses must be of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoEnds {
    /// Who asks.
    pub source: IpAddr,
    /// Who is asked.
    pub destination: IpAddr,
    /// Tells the programs of a host apart.
    pub identifier: u16,
    /// Tells the requests of a program apart.
    pub sequence: u16,
}

/// What became of an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoError {
    /// It does not reach its destination.
    Unreachable(Unreachable),
    /// It has made all the hops it may (time exceeded).
    Expired,
}

impl EchoEnds {
    /// Bytes of the IP packet that replies with so much payload; `None` if no packet can.
    #[must_use]
    pub fn reply_length(&self, payload: usize) -> Option<usize> {
        let length = header_length(self.source) + ECHO_HEADER + payload;
        let counted = if self.source.is_ipv4() { length } else { length - IPV6_HEADER };
        (counted <= usize::from(u16::MAX)).then_some(length)
    }

    /// Writes the whole reply, with complete checksums, into exactly
    /// [`reply_length`](Self::reply_length) bytes. `hops` are those it might still have made.
    pub fn write_reply(&self, hops: u8, payload: &[u8], packet: &mut [u8]) {
        let Self { source, destination, .. } = *self;
        let (kind, protocol) = match source {
            IpAddr::V4(_) => (REPLY_V4, PROTOCOL_ICMP),
            IpAddr::V6(_) => (REPLY_V6, PROTOCOL_ICMPV6),
        };
        let header = header_length(source);
        packet[header..header + ECHO_HEADER].copy_from_slice(&self.header(kind));
        packet[header + ECHO_HEADER..].copy_from_slice(payload);
        write_header(destination, source, protocol, packet);
        fill_checksum(packet, header, protocol, 2);
        set_hops(packet, hops);
    }

    /// The ICMP error about a request that is not at hand any more: its headers are made up, which
    /// suffices to find its socket. `by` says so.
    #[must_use]
    pub fn error(&self, by: IpAddr, error: EchoError) -> Vec<u8> {
        let Self { source, destination, .. } = *self;
        let (kind, protocol, expired) = match source {
            IpAddr::V4(_) => (REQUEST_V4, PROTOCOL_ICMP, 11),
            IpAddr::V6(_) => (REQUEST_V6, PROTOCOL_ICMPV6, 3),
        };
        let quoted = compose(source, destination, protocol, 2, &self.header(kind));
        match error {
            EchoError::Unreachable(reason) => unreachable(by, source, reason, &quoted),
            EchoError::Expired => compose_error(by, source, [expired, 0], 0, &quoted),
        }
    }

    fn header(&self, kind: u8) -> [u8; ECHO_HEADER] {
        let [id_high, id_low] = self.identifier.to_be_bytes();
        let [high, low] = self.sequence.to_be_bytes();
        [kind, 0, 0, 0, id_high, id_low, high, low]
    }
}

fn set_hops(packet: &mut [u8], hops: u8) {
    if packet[0] >> 4 == 4 {
        packet[8] = hops;
        fill_ipv4_checksum(&mut packet[..IPV4_HEADER]);
    } else {
        packet[7] = hops;
    }
}

#[cfg(test)]
mod tests;
