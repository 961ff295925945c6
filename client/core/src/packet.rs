//! Reading the TCP segments a TUN delivers, and composing the packets that
//! refuse a connection: RST (RFC 9293 §3.10.7.1) and ICMP destination
//! unreachable (RFC 792, RFC 1812 §5.2.7.1, RFC 4443 §3.1). [`Datagram`] reads
//! and writes UDP, [`EchoRequest`] and [`EchoEnds`] do so with ICMP echo.
//!
//! Everything that reaches the TCP engine has passed [`Segment::parse`]: its
//! lengths agree with the buffer, its addresses are unicast, its ports are not
//! zero and its flags are no contradiction. Checksums are not verified, because
//! a TUN with checksum offload hands over packets whose checksum is partial.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{TcpPacket, TcpRepr};

mod datagram;
mod echo;
mod fragments;
#[cfg(test)]
mod tests;

pub(crate) use datagram::compose_datagram;
pub use datagram::{
    Datagram, compose_too_big, compose_undelivered, datagram_length, is_datagram, write_datagram,
};
pub use echo::{EchoEnds, EchoError, EchoRequest, is_icmp};
pub use fragments::Fragments;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_HEADER: usize = 20;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

pub(crate) const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;
/// IPv6's fragment header.
const NEXT_FRAGMENT: u8 = 44;
/// Hop limit of the packets composed here, the default of RFC 1700.
const HOP_LIMIT: u8 = 64;

/// Why a packet is not a TCP segment the engine can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its own length fields say, or than its headers need.
    #[error("packet is shorter than its headers say")]
    Truncated,
    /// Neither version 4 nor version 6.
    #[error("packet is neither IPv4 nor IPv6")]
    Version,
    /// A header length below the minimum or beyond the packet.
    #[error("header length is impossible")]
    HeaderLength,
    /// IPv4 options, or TCP options that do not parse.
    #[error("packet carries options that are not supported")]
    Options,
    /// A fragment: the kernel segments TCP, so none is expected on a TUN.
    #[error("packet is a fragment")]
    Fragment,
    /// IPv6 extension headers.
    #[error("packet carries IPv6 extension headers")]
    ExtensionHeader,
    /// Another protocol than the one that is read.
    #[error("packet is of another protocol")]
    Protocol,
    /// A source or destination that no connection can have.
    #[error("an address is not unicast")]
    Address,
    /// Port zero.
    #[error("a port is zero")]
    Port,
    /// More than one of SYN, FIN and RST.
    #[error("TCP flags contradict each other")]
    Flags,
}

/// A TCP segment whose headers have been checked.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    packet: &'a [u8],
    ip_header: usize,
    tcp_header: usize,
    source: SocketAddr,
    destination: SocketAddr,
}

impl<'a> Segment<'a> {
    /// Checks one IP packet. Bytes after the length the IP header states are
    /// ignored.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let version = packet.first().ok_or(Malformed::Truncated)? >> 4;
        let (packet, ip_header, source, destination) = match version {
            4 => parse_ipv4(packet, PROTOCOL_TCP)?,
            6 => parse_ipv6(packet, PROTOCOL_TCP)?,
            _ => return Err(Malformed::Version),
        };
        let tcp = &packet[ip_header..];
        if tcp.len() < TCP_HEADER {
            return Err(Malformed::Truncated);
        }
        let tcp_header = usize::from(tcp[12] >> 4) * 4;
        if tcp_header < TCP_HEADER || tcp_header > tcp.len() {
            return Err(Malformed::HeaderLength);
        }
        let (from, to) = (be16(tcp, 0), be16(tcp, 2));
        if from == 0 || to == 0 {
            return Err(Malformed::Port);
        }
        if (tcp[13] & (SYN | FIN | RST)).count_ones() > 1 {
            return Err(Malformed::Flags);
        }
        Ok(Self {
            packet,
            ip_header,
            tcp_header,
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
        })
    }

    /// Whether the TCP options parse; the engine checks it before it holds a
    /// SYN, because a SYN it could not replay must not be offered.
    pub fn check_options(&self) -> Result<(), Malformed> {
        let tcp = TcpPacket::new_checked(self.tcp()).map_err(|_| Malformed::HeaderLength)?;
        let (source, destination) = (self.source.ip().into(), self.destination.ip().into());
        TcpRepr::parse(&tcp, &source, &destination, &ChecksumCapabilities::ignored())
            .map(|_| ())
            .map_err(|_| Malformed::Options)
    }

    /// The IP packet, cut to the length its header states.
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// Who sent it.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Whom it is for.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Whether it asks for a new connection: SYN without ACK.
    pub fn opens(&self) -> bool {
        self.flags() & (SYN | ACK) == SYN
    }

    /// Whether it is a reset.
    pub fn resets(&self) -> bool {
        self.flags() & RST != 0
    }

    /// Whether it ends its sender's direction.
    pub fn finishes(&self) -> bool {
        self.flags() & FIN != 0
    }

    /// Sequence number of its first byte (or of its SYN).
    pub fn sequence(&self) -> u32 {
        be32(self.tcp(), 4)
    }

    /// Number of payload bytes.
    pub fn payload_len(&self) -> usize {
        self.packet.len() - self.ip_header - self.tcp_header
    }

    /// The MSS option of a SYN, if it carries one.
    pub fn mss(&self) -> Option<u16> {
        option(&self.tcp()[TCP_HEADER..self.tcp_header], 2)
            .filter(|value| value.len() == 2)
            .map(|value| be16(value, 0))
    }

    /// The packet with its payload cut off, as a held SYN is kept.
    pub fn headers(&self) -> Box<[u8]> {
        let mut headers = self.packet[..self.ip_header + self.tcp_header].to_vec();
        set_length(&mut headers, self.ip_header);
        headers.into_boxed_slice()
    }

    /// The packet with the first `count` bytes of its payload and without its FIN, for a segment
    /// whose end does not fit.
    pub fn part(&self, count: usize) -> Vec<u8> {
        let length = self.ip_header + self.tcp_header + count;
        let mut packet = self.packet[..length.min(self.packet.len())].to_vec();
        packet[self.ip_header + 13] &= !FIN;
        set_length(&mut packet, self.ip_header);
        packet
    }

    /// The packet with its FIN and without its payload.
    pub fn fin_alone(&self) -> Vec<u8> {
        let mut packet = self.part(0);
        let payload = u32::try_from(self.payload_len()).expect("an IP packet is below 4 GiB");
        let sequence = self.sequence().wrapping_add(payload);
        packet[self.ip_header + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
        packet[self.ip_header + 13] |= FIN;
        packet
    }

    /// The RST that answers this segment where no connection exists (RFC 9293
    /// §3.10.7.1), with complete checksums. None for a RST.
    pub fn reset(&self) -> Option<Vec<u8>> {
        if self.resets() {
            return None;
        }
        let numbers = if self.flags() & ACK != 0 {
            Numbers { sequence: be32(self.tcp(), 8), acknowledgment: None }
        } else {
            let controls = u32::from(self.flags() & SYN != 0) + u32::from(self.finishes());
            let length = u32::try_from(self.payload_len()).expect("an IP packet is below 4 GiB");
            let end = self.sequence().wrapping_add(length).wrapping_add(controls);
            Numbers { sequence: 0, acknowledgment: Some(end) }
        };
        Some(compose_reset(self.destination, self.source, numbers))
    }

    fn tcp(&self) -> &'a [u8] {
        &self.packet[self.ip_header..]
    }

    fn flags(&self) -> u8 {
        self.tcp()[13]
    }
}

/// The numbers of a segment composed here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: Option<u32>,
}

/// A RST from `source` to `destination`, with complete checksums.
pub(crate) fn compose_reset(
    source: SocketAddr,
    destination: SocketAddr,
    numbers: Numbers,
) -> Vec<u8> {
    compose_control(source, destination, RST, numbers, 0)
}

/// A FIN from `source` to `destination`, with complete checksums; `window` as
/// it stands in the header.
pub(crate) fn compose_fin(
    source: SocketAddr,
    destination: SocketAddr,
    numbers: Numbers,
    window: u16,
) -> Vec<u8> {
    compose_control(source, destination, FIN, numbers, window)
}

/// An ACK without data from `source` to `destination`, with complete checksums; `window` as it
/// stands in the header.
pub(crate) fn compose_ack(
    source: SocketAddr,
    destination: SocketAddr,
    numbers: Numbers,
    window: u16,
) -> Vec<u8> {
    compose_control(source, destination, 0, numbers, window)
}

/// Both addresses must be of one family.
fn compose_control(
    source: SocketAddr,
    destination: SocketAddr,
    control: u8,
    numbers: Numbers,
    window: u16,
) -> Vec<u8> {
    let mut tcp = [0u8; TCP_HEADER];
    tcp[0..2].copy_from_slice(&source.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&destination.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&numbers.sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&numbers.acknowledgment.unwrap_or(0).to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = if numbers.acknowledgment.is_some() { control | ACK } else { control };
    tcp[14..16].copy_from_slice(&window.to_be_bytes());
    compose(source.ip(), destination.ip(), PROTOCOL_TCP, 16, &tcp)
}

/// What an ICMP destination unreachable says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No route to the network.
    Network,
    /// No route to the network, in words that Linux tells sockets of UDP: of the usual ones it
    /// assumes that they may pass.
    NetworkUnknown,
    /// No route to the host.
    Host,
    /// Nobody listens at the port.
    Port,
    /// A policy forbids it.
    Prohibited,
}

impl Unreachable {
    /// RFC 792 and RFC 1812 §5.2.7.1: 0 network, 1 host, 3 port, 6 network unknown, 13
    /// administratively.
    fn code_v4(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::NetworkUnknown => 6,
            Self::Host => 1,
            Self::Port => 3,
            Self::Prohibited => 13,
        }
    }

    /// RFC 4443 §3.1: 0 no route, 3 address, 4 port, 6 reject route, 1 administratively.
    fn code_v6(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::NetworkUnknown => 6,
            Self::Host => 3,
            Self::Port => 4,
            Self::Prohibited => 1,
        }
    }
}

/// Bytes of an IPv4 packet an ICMP error should not exceed (RFC 1812 §4.3.2.3).
const ICMP_LIMIT_V4: usize = 576;
/// The IPv6 minimum MTU, which an ICMPv6 error may not exceed (RFC 4443 §3.1).
const ICMP_LIMIT_V6: usize = 1280;
const ICMP_HEADER: usize = 8;

/// The ICMP error that answers `segment`, as if its destination had sent it,
/// with complete checksums.
pub(crate) fn compose_unreachable(segment: &Segment<'_>, reason: Unreachable) -> Vec<u8> {
    let (from, to) = (segment.destination.ip(), segment.source.ip());
    unreachable(from, to, reason, segment.packet)
}

/// A destination unreachable of `from` about the packet `quoted`, with complete checksums.
fn unreachable(from: IpAddr, to: IpAddr, reason: Unreachable, quoted: &[u8]) -> Vec<u8> {
    let (kind, code) = match to {
        IpAddr::V4(_) => (3, reason.code_v4()),
        IpAddr::V6(_) => (1, reason.code_v6()),
    };
    compose_error(from, to, [kind, code], 0, quoted)
}

/// An ICMP error of `from` about the packet `quoted`, with complete checksums. `rest` are the four
/// bytes behind the checksum.
fn compose_error(
    from: IpAddr,
    to: IpAddr,
    kind_and_code: [u8; 2],
    rest: u32,
    quoted: &[u8],
) -> Vec<u8> {
    let (protocol, limit) = match to {
        IpAddr::V4(_) => (PROTOCOL_ICMP, ICMP_LIMIT_V4 - IPV4_HEADER - ICMP_HEADER),
        IpAddr::V6(_) => (PROTOCOL_ICMPV6, ICMP_LIMIT_V6 - IPV6_HEADER - ICMP_HEADER),
    };
    let mut message = vec![0u8; ICMP_HEADER];
    message[..2].copy_from_slice(&kind_and_code);
    message[4..8].copy_from_slice(&rest.to_be_bytes());
    message.extend_from_slice(&quoted[..quoted.len().min(limit)]);
    compose(from, to, protocol, 2, &message)
}

/// What an IP packet, or the whole of which it is a fragment, carries by its first headers.
fn protocol(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => packet.get(9).copied(),
        6 if packet.get(6) == Some(&NEXT_FRAGMENT) => packet.get(IPV6_HEADER).copied(),
        6 => packet.get(6).copied(),
        _ => None,
    }
}

/// An IP packet around `payload`, whose checksum at `checksum_at` is filled in.
fn compose(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    checksum_at: usize,
    payload: &[u8],
) -> Vec<u8> {
    let ip_header = header_length(destination);
    let mut packet = vec![0u8; ip_header];
    packet.extend_from_slice(payload);
    write_header(source, destination, protocol, &mut packet);
    fill_checksum(&mut packet, ip_header, protocol, checksum_at);
    packet
}

/// Bytes of the IP header of a packet composed here.
fn header_length(destination: IpAddr) -> usize {
    match destination {
        IpAddr::V4(_) => IPV4_HEADER,
        IpAddr::V6(_) => IPV6_HEADER,
    }
}

/// Writes the IP header at the front of a packet that is otherwise complete.
fn write_header(source: IpAddr, destination: IpAddr, protocol: u8, packet: &mut [u8]) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet[..IPV4_HEADER].fill(0);
            packet[0] = 0x45;
            packet[6] = 0x40;
            packet[8] = HOP_LIMIT;
            packet[9] = protocol;
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
        }
        (source, destination) => {
            packet[..IPV6_HEADER].fill(0);
            packet[0] = 0x60;
            packet[6] = protocol;
            packet[7] = HOP_LIMIT;
            packet[8..24].copy_from_slice(&to_v6(source).octets());
            packet[24..40].copy_from_slice(&to_v6(destination).octets());
        }
    }
    set_length(packet, header_length(destination));
}

/// Fills the checksum of what follows the IP header, at `checksum_at` there.
fn fill_checksum(packet: &mut [u8], ip_header: usize, protocol: u8, checksum_at: usize) {
    packet[ip_header + checksum_at..][..2].fill(0);
    let initial = if protocol == PROTOCOL_ICMP { 0 } else { pseudo_header(packet, ip_header) };
    let checksum = !fold(sum(initial, &packet[ip_header..]));
    // RFC 768: zero says that there is none.
    let checksum = if protocol == PROTOCOL_UDP && checksum == 0 { u16::MAX } else { checksum };
    packet[ip_header + checksum_at..][..2].copy_from_slice(&checksum.to_be_bytes());
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Writes the length of `packet` into its IP header, and for IPv4 the header
/// checksum.
fn set_length(packet: &mut [u8], ip_header: usize) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        let total = u16::try_from(length).expect("composed packets are below 64 KiB");
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        fill_ipv4_checksum(&mut packet[..ip_header]);
    } else {
        let payload = u16::try_from(length - ip_header).expect("composed packets are below 64 KiB");
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
    }
}

/// Fills the checksum of an IPv4 header.
pub(crate) fn fill_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !fold(sum(0, header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The unfolded sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) of a
/// packet whose upper layer starts at `ip_header` and reaches to its end.
pub(crate) fn pseudo_header(packet: &[u8], ip_header: usize) -> u32 {
    let (addresses, protocol) = if packet[0] >> 4 == 4 {
        (&packet[12..20], packet[9])
    } else {
        (&packet[8..40], packet[6])
    };
    let length = u32::try_from(packet.len() - ip_header).expect("an IP packet is below 4 GiB");
    sum(u32::from(protocol) + (length >> 16) + (length & 0xffff), addresses)
}

/// Adds `bytes` to an RFC 1071 sum. The result of 64 KiB cannot overflow.
pub(crate) fn sum(initial: u32, bytes: &[u8]) -> u32 {
    let mut words = bytes.chunks_exact(2);
    let total = words
        .by_ref()
        .fold(initial, |total, word| total + u32::from(u16::from_be_bytes([word[0], word[1]])));
    words.remainder().first().map_or(total, |last| total + (u32::from(*last) << 8))
}

/// Folds an RFC 1071 sum to 16 bits; its complement is the checksum.
pub(crate) fn fold(total: u32) -> u16 {
    let once = (total >> 16) + (total & 0xffff);
    let twice = (once >> 16) + (once & 0xffff);
    u16::try_from(twice).expect("two folds leave 16 bits")
}

/// The value of the first TCP option of this kind.
pub(crate) fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match options {
            [] | [0, ..] => return None,
            [1, rest @ ..] => options = rest,
            [kind, length, ..] => {
                let length = usize::from(*length);
                let value = options.get(2..length)?;
                if *kind == wanted {
                    return Some(value);
                }
                options = &options[length..];
            }
            [_] => return None,
        }
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

type Network<'a> = (&'a [u8], usize, IpAddr, IpAddr);

fn parse_ipv4(packet: &[u8], protocol: u8) -> Result<Network<'_>, Malformed> {
    if packet.len() < IPV4_HEADER {
        return Err(Malformed::Truncated);
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(be16(packet, 2));
    if header < IPV4_HEADER || header > total {
        return Err(Malformed::HeaderLength);
    }
    if total > packet.len() {
        return Err(Malformed::Truncated);
    }
    if header > IPV4_HEADER {
        return Err(Malformed::Options);
    }
    // More fragments, or an offset.
    if be16(packet, 6) & 0x3fff != 0 {
        return Err(Malformed::Fragment);
    }
    if packet[9] != protocol {
        return Err(Malformed::Protocol);
    }
    let address = |at: usize| {
        let address = Ipv4Addr::from(be32(packet, at));
        let usable = !address.is_multicast()
            && !address.is_broadcast()
            && !address.is_unspecified()
            && !address.is_loopback();
        usable.then_some(IpAddr::V4(address)).ok_or(Malformed::Address)
    };
    Ok((&packet[..total], header, address(12)?, address(16)?))
}

fn parse_ipv6(packet: &[u8], protocol: u8) -> Result<Network<'_>, Malformed> {
    if packet.len() < IPV6_HEADER {
        return Err(Malformed::Truncated);
    }
    let total = IPV6_HEADER + usize::from(be16(packet, 4));
    if total > packet.len() {
        return Err(Malformed::Truncated);
    }
    match packet[6] {
        next if next == protocol => {}
        NEXT_FRAGMENT => return Err(Malformed::Fragment),
        // Hop-by-hop, routing, ESP, AH, destination options, mobility, HIP, shim6.
        0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 => return Err(Malformed::ExtensionHeader),
        _ => return Err(Malformed::Protocol),
    }
    let address = |at: usize| {
        let mut octets = [0u8; 16];
        octets.copy_from_slice(&packet[at..at + 16]);
        let address = Ipv6Addr::from(octets);
        let usable = !address.is_multicast() && !address.is_unspecified() && !address.is_loopback();
        usable.then_some(IpAddr::V6(address)).ok_or(Malformed::Address)
    };
    Ok((&packet[..total], IPV6_HEADER, address(8)?, address(24)?))
}
