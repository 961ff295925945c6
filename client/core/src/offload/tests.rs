use std::num::NonZeroU16;

use smoltcp::wire::{IpAddress, Ipv4Packet, TcpPacket};

use super::{HEADER, payload, prepare};
use crate::packet::{fold, sum};

fn data_v4(bytes: usize) -> Vec<u8> {
    let total = u16::try_from(40 + bytes).unwrap();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0xaa, 0xaa];
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.extend([192, 0, 2, 1, 10, 0, 0, 2]);
    packet.extend([0, 80, 0x13, 0x88, 0, 0, 0, 9, 0, 0, 0, 7, 0x50, 16, 1, 0, 0xbb, 0xbb, 0, 0]);
    packet.extend((0..bytes).map(|at| at.to_le_bytes()[0] ^ 3));
    packet
}

fn data_v6(bytes: usize) -> Vec<u8> {
    let v4 = data_v4(bytes);
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
    packet[4..6].copy_from_slice(&u16::try_from(20 + bytes).unwrap().to_be_bytes());
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend_from_slice(&v4[20..]);
    packet
}

fn field(header: &[u8; HEADER], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

/// What the kernel does with a packet that needs its checksum: sum from the
/// start, complement, store at the offset.
fn complete(header: &[u8; HEADER], packet: &mut [u8]) {
    assert_eq!(header[0], 1);
    let start = usize::from(field(header, 6));
    let at = start + usize::from(field(header, 8));
    let checksum = !fold(sum(0, &packet[start..]));
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn kernel_completes_the_partial_checksum() {
    for bytes in [0, 1, 2, 999, 60_000] {
        for mut packet in [data_v4(bytes), data_v6(bytes)] {
            let mut header = [0xff; HEADER];
            prepare(&mut header, &mut packet, None);
            assert_eq!(header[1], 0);
            assert_eq!((field(&header, 2), field(&header, 4)), (0, 0));
            complete(&header, &mut packet);
            let (ip_header, source, destination) = if packet[0] >> 4 == 4 {
                let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
                assert!(ip.verify_checksum());
                assert!(ip.dont_frag());
                (20, IpAddress::v4(192, 0, 2, 1), IpAddress::v4(10, 0, 0, 2))
            } else {
                let source = IpAddress::v6(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
                (40, source, IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 2))
            };
            let tcp = TcpPacket::new_checked(&packet[ip_header..]).unwrap();
            assert!(tcp.verify_checksum(&source, &destination), "{bytes}");
        }
    }
}

#[test]
fn super_segment_names_its_kind_and_sizes() {
    let size = NonZeroU16::new(1440);
    for (mut packet, kind, headers) in [(data_v4(5000), 1, 40), (data_v6(5000), 4, 60)] {
        let mut header = [0; HEADER];
        prepare(&mut header, &mut packet, size);
        assert_eq!(header[..2], [1, kind]);
        assert_eq!(field(&header, 2), headers);
        assert_eq!(field(&header, 4), 1440);
        assert_eq!(field(&header, 6), headers - 20);
        assert_eq!(field(&header, 8), 16);
    }
}

#[test]
fn other_packets_are_left_alone() {
    let mut icmp = data_v4(8);
    icmp[9] = 1;
    let short = data_v4(0)[..39].to_vec();
    let odd = {
        let mut packet = data_v4(0);
        packet[0] = 0x41;
        packet
    };
    for mut packet in [icmp, short, odd, vec![], vec![0x45], vec![0x60; 7], vec![0x99; 60]] {
        let before = packet.clone();
        let mut header = [0xff; HEADER];
        prepare(&mut header, &mut packet, None);
        assert_eq!(header, [0; HEADER]);
        assert_eq!(packet, before);
    }
}

#[test]
fn payload_follows_the_header() {
    assert_eq!(payload(&[0; 12]), Some(&[0; 2][..]));
    assert_eq!(payload(&[0; 10]), None);
    assert_eq!(payload(&[0; 3]), None);
}
