//! Reading and rewriting the headers of an IP packet in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ICMP for IPv4 (RFC 792).
pub const ICMP: u8 = 1;
/// TCP (RFC 9293).
pub const TCP: u8 = 6;
/// UDP (RFC 768).
pub const UDP: u8 = 17;
/// ICMP for IPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Which end of a packet an address or port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the packet came from.
    Source,
    /// Where it goes.
    Destination,
}

/// What the network needs to know about one IP packet. Ports of ICMP echo are its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Where the transport header begins, in bytes.
    pub transport: usize,
    /// Source port, if the protocol has one and the packet is not a later fragment.
    pub source_port: Option<u16>,
    /// Destination port, likewise.
    pub destination_port: Option<u16>,
}

impl Headers {
    /// Reads the headers; `None` for anything truncated or not IP.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        let mut headers = match packet.first()? >> 4 {
            4 => Self::read_v4(packet)?,
            6 => Self::read_v6(packet)?,
            _ => return None,
        };
        headers.read_ports(packet);
        Some(headers)
    }

    fn read_v4(packet: &[u8]) -> Option<Self> {
        let transport = usize::from(packet[0] & 0x0f) * 4;
        let total = usize::from(u16_at(packet, 2)?);
        if transport < IPV4_HEADER || total < transport || packet.len() < total {
            return None;
        }
        let later_fragment = u16_at(packet, 6)? & 0x1fff != 0;
        Some(Self {
            source: v4_at(packet, 12)?.into(),
            destination: v4_at(packet, 16)?.into(),
            protocol: packet[9],
            transport: if later_fragment { packet.len() } else { transport },
            source_port: None,
            destination_port: None,
        })
    }

    fn read_v6(packet: &[u8]) -> Option<Self> {
        let total = IPV6_HEADER + usize::from(u16_at(packet, 4)?);
        if packet.len() < total {
            return None;
        }
        Some(Self {
            source: v6_at(packet, 8)?.into(),
            destination: v6_at(packet, 24)?.into(),
            protocol: packet[6],
            transport: IPV6_HEADER,
            source_port: None,
            destination_port: None,
        })
    }

    fn read_ports(&mut self, packet: &[u8]) {
        match self.protocol {
            TCP | UDP => {
                self.source_port = u16_at(packet, self.transport);
                self.destination_port = u16_at(packet, self.transport + 2);
            }
            ICMP | ICMPV6 if self.is_echo(packet) => {
                self.source_port = u16_at(packet, self.transport + 4);
                self.destination_port = self.source_port;
            }
            _ => {}
        }
    }

    /// Whether this is an echo request or reply.
    #[must_use]
    pub fn is_echo(&self, packet: &[u8]) -> bool {
        let kind = packet.get(self.transport).copied();
        match self.protocol {
            ICMP => matches!(kind, Some(0 | 8)),
            ICMPV6 => matches!(kind, Some(128 | 129)),
            _ => false,
        }
    }

    /// Whether this is an echo request.
    #[must_use]
    pub fn is_echo_request(&self, packet: &[u8]) -> bool {
        let kind = packet.get(self.transport).copied();
        matches!((self.protocol, kind), (ICMP, Some(8)) | (ICMPV6, Some(128)))
    }

    /// The bytes after the UDP header, if this is a whole UDP packet.
    #[must_use]
    pub fn udp_payload<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        if self.protocol == UDP { packet.get(self.transport + 8..) } else { None }
    }

    /// Where the transport checksum lies, in bytes; `None` if there is none to keep right.
    fn checksum(&self, packet: &[u8]) -> Option<usize> {
        let at = match self.protocol {
            TCP => self.transport + 16,
            UDP => self.transport + 6,
            ICMP | ICMPV6 => self.transport + 2,
            _ => return None,
        };
        let current = u16_at(packet, at)?;
        // A zero UDP checksum over IPv4 means "not computed" (RFC 768).
        (self.protocol != UDP || current != 0).then_some(at)
    }

    /// Writes another address at one end and keeps every checksum right (RFC 1624).
    /// An address of the other family is ignored.
    pub fn set_address(&mut self, packet: &mut [u8], end: End, address: IpAddr) {
        let transport_sum = self.checksum(packet);
        match address {
            IpAddr::V4(new) if packet[0] >> 4 == 4 => {
                let at = if end == End::Source { 12 } else { 16 };
                let covered = transport_sum.filter(|_| self.protocol != ICMP);
                replace(packet, at, &new.octets(), &[Some(10), covered]);
            }
            IpAddr::V6(new) if packet[0] >> 4 == 6 => {
                let at = if end == End::Source { 8 } else { 24 };
                replace(packet, at, &new.octets(), &[transport_sum]);
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return,
        }
        match end {
            End::Source => self.source = address,
            End::Destination => self.destination = address,
        }
    }

    /// Writes another port (or echo identifier) at one end and keeps the checksum right.
    pub fn set_port(&mut self, packet: &mut [u8], end: End, port: u16) {
        let at = match (self.protocol, end) {
            (TCP | UDP, End::Source) => self.transport,
            (TCP | UDP, End::Destination) => self.transport + 2,
            _ => self.transport + 4,
        };
        if packet.len() < at + 2 {
            return;
        }
        let sum = self.checksum(packet);
        replace(packet, at, &port.to_be_bytes(), &[sum]);
        match end {
            End::Source => self.source_port = Some(port),
            End::Destination => self.destination_port = Some(port),
        }
    }
}

/// Turns an echo request into its own reply, in place.
pub fn answer_echo(packet: &mut [u8], headers: &mut Headers) {
    let (source, destination) = (headers.source, headers.destination);
    headers.set_address(packet, End::Source, destination);
    headers.set_address(packet, End::Destination, source);
    let reply = if headers.protocol == ICMP { 0 } else { 129 };
    let code = packet[headers.transport + 1];
    let sum = headers.checksum(packet);
    replace(packet, headers.transport, &[reply, code], &[sum]);
}

/// Builds an IP packet around a transport segment whose checksum field, at `checksum` bytes
/// into it, is still zero.
#[must_use]
pub fn build(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    mut segment: Vec<u8>,
    checksum: usize,
) -> Vec<u8> {
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    let mut sum = ones_sum(&segment);
    if protocol != ICMP {
        sum += address_sum(source) + address_sum(destination);
        sum += u32::from(protocol) + u32::from(length);
    }
    segment[checksum..checksum + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            v4_header(source, destination, protocol, length)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            v6_header(source, destination, protocol, length)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Vec::new(),
    };
    packet.extend_from_slice(&segment);
    packet
}

/// Builds a UDP packet between two endpoints of one address family.
#[must_use]
pub fn build_udp(
    source: std::net::SocketAddr,
    destination: std::net::SocketAddr,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut segment = Vec::with_capacity(payload.len() + 8);
    segment.extend_from_slice(&source.port().to_be_bytes());
    segment.extend_from_slice(&destination.port().to_be_bytes());
    segment.extend_from_slice(&length.to_be_bytes());
    segment.extend_from_slice(&[0, 0]);
    segment.extend_from_slice(payload);
    build(source.ip(), destination.ip(), UDP, segment, 6)
}

/// "Host unreachable" for a packet, sent by `router` (RFC 792 type 3 code 1, RFC 4443 type 1
/// code 3).
#[must_use]
pub fn host_unreachable(router: IpAddr, packet: &[u8], headers: &Headers) -> Vec<u8> {
    let (protocol, kind, code) = if router.is_ipv4() { (ICMP, 3, 1) } else { (ICMPV6, 1, 3) };
    let mut segment = vec![kind, code, 0, 0, 0, 0, 0, 0];
    // The quoted part: enough for the sender to find the socket.
    segment.extend_from_slice(&packet[..packet.len().min(headers.transport + 64)]);
    build(router, headers.source, protocol, segment, 2)
}

/// The packet that an ICMP error quotes, read as far as it is quoted: where it begins, and its
/// headers relative to that.
#[must_use]
pub(super) fn quoted(packet: &[u8], headers: &Headers) -> Option<(usize, Headers)> {
    let kind = *packet.get(headers.transport)?;
    let is_error = match headers.protocol {
        ICMP => matches!(kind, 3 | 11 | 12),
        ICMPV6 => matches!(kind, 1..=4),
        _ => false,
    };
    let at = headers.transport + 8;
    let inner = packet.get(at..).filter(|_| is_error)?;
    let v6 = inner.first()? >> 4 == 6;
    let (source, destination, protocol, transport) = if v6 {
        let protocol = *inner.get(6)?;
        (v6_at(inner, 8)?.into(), v6_at(inner, 24)?.into(), protocol, IPV6_HEADER)
    } else {
        let transport = usize::from(inner[0] & 0x0f) * 4;
        (v4_at(inner, 12)?.into(), v4_at(inner, 16)?.into(), *inner.get(9)?, transport)
    };
    let (source_port, destination_port) = (None, None);
    let mut quoted =
        Headers { source, destination, protocol, transport, source_port, destination_port };
    quoted.read_ports(inner);
    Some((at, quoted))
}

/// The same ICMP error for another receiver, quoting a packet from another source.
#[must_use]
pub(super) fn requote(
    packet: &[u8],
    headers: &Headers,
    (at, mut quoted): (usize, Headers),
    receiver: IpAddr,
    port: u16,
) -> Vec<u8> {
    let mut segment = packet[headers.transport..].to_vec();
    let inner = &mut segment[at - headers.transport..];
    quoted.set_address(inner, End::Source, receiver);
    quoted.set_port(inner, End::Source, port);
    segment[2..4].fill(0);
    build(headers.source, receiver, headers.protocol, segment, 2)
}

fn v4_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&(length.saturating_add(20)).to_be_bytes());
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&destination.octets());
    let sum = !fold(ones_sum(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn v6_header(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&destination.octets());
    header
}

/// Overwrites bytes at an even offset and updates the checksums that cover them (RFC 1624 eqn 3).
fn replace(packet: &mut [u8], at: usize, new: &[u8], checksums: &[Option<usize>]) {
    let old = ones_complement_sum(&packet[at..at + new.len()]);
    let delta = old + ones_sum(new);
    packet[at..at + new.len()].copy_from_slice(new);
    for at in checksums.iter().flatten() {
        let current = u16::from_be_bytes([packet[*at], packet[*at + 1]]);
        let updated = !fold(u32::from(!current) + delta);
        packet[*at..*at + 2].copy_from_slice(&updated.to_be_bytes());
    }
}

fn ones_sum(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    match words.remainder() {
        [last] => sum + (u32::from(*last) << 8),
        _ => sum,
    }
}

fn ones_complement_sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|word| u32::from(!u16::from_be_bytes([word[0], word[1]]))).sum()
}

fn address_sum(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => ones_sum(&address.octets()),
        IpAddr::V6(address) => ones_sum(&address.octets()),
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded until it fits")
}

pub(super) fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

pub(super) fn u32_at(packet: &[u8], at: usize) -> Option<u32> {
    Some((u32::from(u16_at(packet, at)?) << 16) | u32::from(u16_at(packet, at + 2)?))
}

fn v4_at(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn v6_at(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn sums_are_right(packet: &[u8]) -> bool {
        let headers = Headers::read(packet).unwrap();
        let segment = &packet[headers.transport..];
        let mut sum = ones_sum(segment);
        if headers.protocol != ICMP {
            sum += address_sum(headers.source) + address_sum(headers.destination);
            sum += u32::from(headers.protocol) + u32::try_from(segment.len()).unwrap();
        }
        let ip = packet[0] >> 4 == 6 || fold(ones_sum(&packet[..20])) == 0xffff;
        ip && fold(sum) == 0xffff
    }

    #[test]
    fn translation_keeps_checksums_right() {
        let cases = [
            ("10.0.0.2:4000", "192.0.2.10:443", "203.0.113.9"),
            ("[fd10::2]:4000", "[2001:db8::1]:443", "2001:db8:ffff::7"),
        ];
        for (source, destination, outside) in cases {
            let source: SocketAddr = source.parse().unwrap();
            let mut packet = build_udp(source, destination.parse().unwrap(), b"odd");
            assert!(sums_are_right(&packet));
            let mut headers = Headers::read(&packet).unwrap();
            headers.set_address(&mut packet, End::Source, outside.parse().unwrap());
            headers.set_port(&mut packet, End::Source, 61001);
            assert!(sums_are_right(&packet));
            assert_eq!(Headers::read(&packet).unwrap(), headers);
            assert_eq!(headers.udp_payload(&packet), Some(&b"odd"[..]));
        }
    }

    #[test]
    fn echo_answers_are_valid_and_go_back() {
        let addresses = [("10.0.0.2", "192.0.2.1", ICMP, 8), ("fd10::2", "fd10::1", ICMPV6, 128)];
        for (source, destination, protocol, kind) in addresses {
            let segment = vec![kind, 0, 0, 0, 7, 7, 0, 1, 1, 2, 3];
            let source: IpAddr = source.parse().unwrap();
            let mut packet = build(source, destination.parse().unwrap(), protocol, segment, 2);
            let mut headers = Headers::read(&packet).unwrap();
            assert!(headers.is_echo_request(&packet));
            answer_echo(&mut packet, &mut headers);
            assert!(sums_are_right(&packet));
            assert_eq!(headers.destination, source);
            assert!(!headers.is_echo_request(&packet) && headers.is_echo(&packet));
        }
    }

    #[test]
    fn truncated_packets_are_not_read() {
        let packet =
            build_udp("10.0.0.2:1".parse().unwrap(), "10.0.0.3:2".parse().unwrap(), &[9; 40]);
        for length in 0..packet.len() {
            assert_eq!(Headers::read(&packet[..length]), None);
        }
    }
}
