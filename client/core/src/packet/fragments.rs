//! Packets of UDP and ICMP that the kernel cut into fragments, because they are larger than the TUN's MTU, put
//! together again (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! Their sender is this host's own kernel, so fragments come together and in order. What does not
//! is given up: half a datagram is worth nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{
    IPV4_HEADER, IPV6_HEADER, NEXT_FRAGMENT, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, be16,
    be32, fill_ipv4_checksum, set_length,
};
use crate::engine::DeviceId;

/// Bytes of IPv6's fragment header.
const FRAGMENT_HEADER: usize = 8;

/// Datagrams put together at the same time: what several programs send in the same moment.
const MOST: usize = 64;

/// The kernel sends all fragments of a packet in one go.
const LIFETIME: Duration = Duration::from_secs(1);

/// Packets that are not complete yet.
#[derive(Debug, Default)]
pub struct Fragments {
    packets: BTreeMap<Key, Packet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    device: DeviceId,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    number: u32,
}

/// The header and what has come of the rest, without a gap.
#[derive(Debug)]
struct Packet {
    since: Instant,
    bytes: Vec<u8>,
    header: usize,
}

/// One fragment.
struct Piece<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    number: u32,
    header: usize,
    offset: usize,
    more: bool,
    bytes: &'a [u8],
}

impl Fragments {
    /// Takes a fragment; the whole packet with the last one. What is no fragment of UDP or ICMP is nothing.
    pub fn take(&mut self, device: DeviceId, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let piece = Piece::parse(packet)?;
        let Piece { source, destination, protocol, number, .. } = piece;
        let key = Key { device, source, destination, protocol, number };
        if piece.offset == 0 {
            self.begin(key, packet, piece.header, now);
        }
        let begun = self.packets.get_mut(&key)?;
        let fits = begun.bytes.len() - begun.header == piece.offset
            && begun.bytes.len() + piece.bytes.len() <= begun.header + usize::from(u16::MAX);
        if !fits {
            self.packets.remove(&key);
            return None;
        }
        begun.bytes.extend_from_slice(piece.bytes);
        if piece.more {
            return None;
        }
        self.packets.remove(&key).and_then(|packet| packet.finish(protocol))
    }

    /// Whether this is a fragment of a packet of UDP or ICMP.
    #[must_use]
    pub fn is_fragment(packet: &[u8]) -> bool {
        Piece::parse(packet).is_some()
    }

    fn begin(&mut self, key: Key, packet: &[u8], header: usize, now: Instant) {
        self.packets.retain(|_, packet| now.saturating_duration_since(packet.since) < LIFETIME);
        if self.packets.len() >= MOST {
            let oldest = self.packets.iter().min_by_key(|(_, packet)| packet.since);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.packets.remove(&oldest);
            }
        }
        let bytes = packet[..header].to_vec();
        self.packets.insert(key, Packet { since: now, bytes, header });
    }
}

impl Packet {
    /// The packet as if it had never been cut; `None` if it could not have been one packet.
    fn finish(mut self, protocol: u8) -> Option<Vec<u8>> {
        if self.header == IPV4_HEADER {
            if self.bytes.len() > usize::from(u16::MAX) {
                return None;
            }
            self.bytes[6..8].fill(0);
            set_length(&mut self.bytes, IPV4_HEADER);
            fill_ipv4_checksum(&mut self.bytes[..IPV4_HEADER]);
        } else {
            self.bytes[6] = protocol;
            set_length(&mut self.bytes, IPV6_HEADER);
        }
        Some(self.bytes)
    }
}

impl<'a> Piece<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Option<Self> {
        let plain = packet.len() >= IPV4_HEADER
            && packet[0] == 0x45
            && matches!(packet[9], PROTOCOL_UDP | PROTOCOL_ICMP);
        if !plain || be16(packet, 6) & 0x3fff == 0 {
            return None;
        }
        let bytes = packet.get(IPV4_HEADER..usize::from(be16(packet, 2)))?;
        Some(Self {
            source: IpAddr::from(be32(packet, 12).to_be_bytes()),
            destination: IpAddr::from(be32(packet, 16).to_be_bytes()),
            protocol: packet[9],
            number: u32::from(be16(packet, 4)),
            header: IPV4_HEADER,
            offset: usize::from(be16(packet, 6) & 0x1fff) * 8,
            more: packet[6] & 0x20 != 0,
            bytes,
        })
    }

    fn parse_v6(packet: &'a [u8]) -> Option<Self> {
        let begin = IPV6_HEADER + FRAGMENT_HEADER;
        let plain = packet.len() >= begin && packet[6] == NEXT_FRAGMENT;
        if !plain || !matches!(packet[IPV6_HEADER], PROTOCOL_UDP | PROTOCOL_ICMPV6) {
            return None;
        }
        let bytes = packet.get(begin..IPV6_HEADER + usize::from(be16(packet, 4)))?;
        let place = be16(packet, IPV6_HEADER + 2);
        let address = |at: usize| {
            let mut octets = [0u8; 16];
            octets.copy_from_slice(&packet[at..at + 16]);
            IpAddr::from(octets)
        };
        Some(Self {
            source: address(8),
            destination: address(24),
            protocol: packet[IPV6_HEADER],
            number: be32(packet, IPV6_HEADER + 4),
            header: IPV6_HEADER,
            offset: usize::from(place & 0xfff8),
            more: place & 1 != 0,
            bytes,
        })
    }
}

#[cfg(test)]
mod tests;
