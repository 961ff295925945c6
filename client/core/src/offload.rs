//! The virtio network header in front of every packet of a TUN opened with
//! `IFF_VNET_HDR`: ten bytes in the byte order of the host (Linux
//! `include/uapi/linux/virtio_net.h`, `struct virtio_net_hdr`).

use std::num::NonZeroU16;

use crate::packet::{
    IPV4_HEADER, IPV6_HEADER, PROTOCOL_TCP, TCP_HEADER, fill_ipv4_checksum, fold, pseudo_header,
};

#[cfg(test)]
mod tests;

/// Bytes of the header.
pub const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the receiver completes the checksum.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;
/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM: u16 = 16;

/// Fills the header for a packet we send, and completes the packet itself.
///
/// A TCP packet gets the partial checksum (the sum of its pseudo header), so
/// that the kernel completes or never needs it; an IPv4 one also DF and its
/// header checksum. `segment` is the payload size, in bytes, of the segments a
/// super-segment is to be cut into. Any other packet (ICMP) is left alone: it
/// carries its checksum already, and its header says nothing.
pub fn prepare(header: &mut [u8; HEADER], packet: &mut [u8], segment: Option<NonZeroU16>) {
    header.fill(0);
    let Some(shape) = Shape::of(packet) else { return };
    if shape.v4 {
        packet[6..8].copy_from_slice(&[0x40, 0]);
        fill_ipv4_checksum(&mut packet[..shape.ip_header]);
    }
    let partial = fold(pseudo_header(packet, shape.ip_header));
    let checksum_at = shape.ip_header + usize::from(TCP_CHECKSUM);
    packet[checksum_at..checksum_at + 2].copy_from_slice(&partial.to_be_bytes());

    header[0] = NEEDS_CHECKSUM;
    if let Some(size) = segment {
        header[1] = if shape.v4 { GSO_TCPV4 } else { GSO_TCPV6 };
        header[2..4].copy_from_slice(&native(shape.ip_header + shape.tcp_header));
        header[4..6].copy_from_slice(&size.get().to_ne_bytes());
    }
    header[6..8].copy_from_slice(&native(shape.ip_header));
    header[8..10].copy_from_slice(&TCP_CHECKSUM.to_ne_bytes());
}

/// The IP packet in a buffer read from the device, or None when the buffer
/// holds no more than the header.
pub fn payload(buffer: &[u8]) -> Option<&[u8]> {
    buffer.get(HEADER..).filter(|packet| !packet.is_empty())
}

struct Shape {
    v4: bool,
    ip_header: usize,
    tcp_header: usize,
}

impl Shape {
    /// None for anything but a TCP packet with whole headers.
    fn of(packet: &[u8]) -> Option<Self> {
        let (v4, ip_header, protocol) = match packet.first()? >> 4 {
            4 => (true, usize::from(packet[0] & 0x0f) * 4, *packet.get(9)?),
            6 => (false, IPV6_HEADER, *packet.get(6)?),
            _ => return None,
        };
        let whole = ip_header >= IPV4_HEADER && packet.len() >= ip_header + TCP_HEADER;
        if protocol != PROTOCOL_TCP || !whole {
            return None;
        }
        Some(Self { v4, ip_header, tcp_header: usize::from(packet[ip_header + 12] >> 4) * 4 })
    }
}

fn native(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("two headers are at most 120 bytes").to_ne_bytes()
}
