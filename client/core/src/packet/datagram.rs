//! UDP in IP packets (RFC 768): read from a TUN, written to it, and the ICMP errors about it.

use std::net::{IpAddr, SocketAddr};

use super::{
    IPV4_HEADER, IPV6_HEADER, Malformed, PROTOCOL_UDP, Unreachable, be16, compose, compose_error,
    fill_checksum, header_length, parse_ipv4, parse_ipv6, protocol, unreachable, write_header,
};

/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;

/// Bytes of payload that fit a packet of either family.
const LARGEST_PAYLOAD: usize = 65_535 - IPV4_HEADER - UDP_HEADER;

/// Whether this is a UDP packet or a fragment of one, or looks like it so far.
#[must_use]
pub fn is_datagram(packet: &[u8]) -> bool {
    protocol(packet) == Some(PROTOCOL_UDP)
}

/// A UDP datagram whose headers have been checked, its checksum excepted.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    packet: &'a [u8],
    payload: &'a [u8],
    source: SocketAddr,
    destination: SocketAddr,
    /// It came in fragments.
    was_cut: bool,
}

impl<'a> Datagram<'a> {
    /// Checks one IP packet. Bytes after the lengths that its headers state are ignored.
    ///
    /// # Errors
    /// [`Malformed`]: what is wrong with it.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let version = packet.first().ok_or(Malformed::Truncated)? >> 4;
        let (packet, ip_header, source, destination) = match version {
            4 => parse_ipv4(packet, PROTOCOL_UDP)?,
            6 => parse_ipv6(packet, PROTOCOL_UDP)?,
            _ => return Err(Malformed::Version),
        };
        let udp = &packet[ip_header..];
        if udp.len() < UDP_HEADER {
            return Err(Malformed::Truncated);
        }
        let length = usize::from(be16(udp, 4));
        if length < UDP_HEADER {
            return Err(Malformed::HeaderLength);
        }
        let payload = udp.get(UDP_HEADER..length).ok_or(Malformed::Truncated)?;
        let (from, to) = (be16(udp, 0), be16(udp, 2));
        if from == 0 || to == 0 {
            return Err(Malformed::Port);
        }
        Ok(Self {
            packet,
            payload,
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
            was_cut: false,
        })
    }

    /// The same datagram, which came in [fragments](super::Fragments).
    #[must_use]
    pub fn from_fragments(self) -> Self {
        Self { was_cut: true, ..self }
    }

    /// Who sent it.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Whom it is for.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// What it carries.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Bytes of the whole IP packet.
    #[must_use]
    pub fn packet_length(&self) -> usize {
        self.packet.len()
    }

    /// Whether its sender wants to know when it is too big, rather than have it cut up: DF in
    /// IPv4, always in IPv6 unless it did.
    #[must_use]
    pub fn must_stay_whole(&self) -> bool {
        match self.source {
            SocketAddr::V4(_) => self.packet[6] & 0x40 != 0,
            SocketAddr::V6(_) => !self.was_cut,
        }
    }

    /// The ICMP error that says it does not reach its destination, as if that had sent it.
    #[must_use]
    pub fn unreachable(&self, reason: Unreachable) -> Vec<u8> {
        unreachable(self.destination.ip(), self.source.ip(), reason, self.packet)
    }

    /// The ICMP error that says that packets of `mtu` bytes fit, and this one does not.
    #[must_use]
    pub fn too_big(&self, mtu: u16) -> Vec<u8> {
        compose_too_big(self.destination.ip(), self.source.ip(), mtu, self.packet)
    }
}

/// Packet too big, or "fragmentation needed" in IPv4 (RFC 1191 §4, RFC 4443 §3.2).
#[must_use]
pub fn compose_too_big(from: IpAddr, to: IpAddr, mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let kind_and_code = match to {
        IpAddr::V4(_) => [3, 4],
        IpAddr::V6(_) => [2, 0],
    };
    compose_error(from, to, kind_and_code, u32::from(mtu), quoted)
}

/// The ICMP error about a datagram of `source` that did not reach `destination` and is not at hand
/// any more: its headers are made up, which suffices to find its socket. Both addresses must be of
/// one family.
#[must_use]
pub fn compose_undelivered(
    source: SocketAddr,
    destination: SocketAddr,
    reason: Unreachable,
) -> Vec<u8> {
    let mut udp = [0; UDP_HEADER];
    write_udp_header(source, destination, UDP_HEADER, &mut udp);
    let quoted = compose(source.ip(), destination.ip(), PROTOCOL_UDP, 6, &udp);
    unreachable(destination.ip(), source.ip(), reason, &quoted)
}

/// Bytes of the IP packet that carries so much payload to `destination`; `None` if no packet can.
#[must_use]
pub fn datagram_length(destination: SocketAddr, payload: usize) -> Option<usize> {
    let length = header_length(destination.ip()) + UDP_HEADER + payload;
    // The length of an IPv4 packet counts its header, that of an IPv6 packet does not.
    let counted = if destination.is_ipv4() { length } else { length - IPV6_HEADER };
    (counted <= usize::from(u16::MAX)).then_some(length)
}

/// Writes a whole packet, with complete checksums, into exactly [`datagram_length`] bytes. Both
/// addresses must be of one family.
pub fn write_datagram(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    packet: &mut [u8],
) {
    let ip_header = header_length(destination.ip());
    let udp = packet.len() - ip_header;
    write_udp_header(source, destination, udp, &mut packet[ip_header..ip_header + UDP_HEADER]);
    packet[ip_header + UDP_HEADER..].copy_from_slice(payload);
    write_header(source.ip(), destination.ip(), PROTOCOL_UDP, packet);
    fill_checksum(packet, ip_header, PROTOCOL_UDP, 6);
}

/// The packet as [`write_datagram`] does it; what does not fit one is cut off.
pub(crate) fn compose_datagram(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Vec<u8> {
    let payload = &payload[..payload.len().min(LARGEST_PAYLOAD)];
    let length = header_length(destination.ip()) + UDP_HEADER + payload.len();
    let mut packet = vec![0; length];
    write_datagram(source, destination, payload, &mut packet);
    packet
}

fn write_udp_header(source: SocketAddr, destination: SocketAddr, length: usize, udp: &mut [u8]) {
    udp[0..2].copy_from_slice(&source.port().to_be_bytes());
    udp[2..4].copy_from_slice(&destination.port().to_be_bytes());
    let length = u16::try_from(length).expect("its owner asked for the length of the packet");
    udp[4..6].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests;
