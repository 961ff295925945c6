use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, Ipv4Packet, Ipv6Packet, UdpPacket,
};

use super::*;

fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
    let (source, destination) = if v6 {
        ("[fd00::2]:40000", "[2001:db8::1]:53")
    } else {
        ("10.0.0.2:40000", "192.0.2.1:53")
    };
    (source.parse().unwrap(), destination.parse().unwrap())
}

fn datagram_of(v6: bool, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = ends(v6);
    let mut packet = vec![0xaa; datagram_length(destination, payload.len()).unwrap()];
    write_datagram(source, destination, payload, &mut packet);
    packet
}

#[test]
fn a_datagram_is_read_as_it_was_written() {
    for v6 in [false, true] {
        let packet = datagram_of(v6, b"question");
        assert!(is_datagram(&packet));
        let datagram = Datagram::parse(&packet).unwrap();
        assert_eq!((datagram.source(), datagram.destination()), ends(v6));
        assert_eq!(datagram.payload(), b"question");
        assert!(datagram.must_stay_whole());
        assert_eq!(datagram.packet_length(), packet.len());
    }
}

#[test]
fn another_stack_finds_every_checksum_right() {
    for payload in [&b""[..], b"odd", b"even", &[0xff; 1400]] {
        let v4 = datagram_of(false, payload);
        let ip = Ipv4Packet::new_checked(&v4[..]).unwrap();
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_eq!(udp.payload(), payload);
        let v6 = datagram_of(true, payload);
        let ip = Ipv6Packet::new_checked(&v6[..]).unwrap();
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        assert_ne!(udp.checksum(), 0, "IPv6 has no datagrams without one");
    }
}

#[test]
fn lengths_that_contradict_each_other_are_named() {
    let damaged = |changes: &[(usize, u8)]| {
        let mut packet = datagram_of(false, b"12345678");
        changes.iter().for_each(|(at, value)| packet[*at] = *value);
        Datagram::parse(&packet).err()
    };
    assert_eq!(damaged(&[(25, 7)]), Some(Malformed::HeaderLength));
    assert_eq!(damaged(&[(25, 17)]), Some(Malformed::Truncated));
    assert_eq!(damaged(&[(20, 0), (21, 0)]), Some(Malformed::Port));
    assert_eq!(damaged(&[(22, 0), (23, 0)]), Some(Malformed::Port));
    assert_eq!(damaged(&[(16, 224)]), Some(Malformed::Address));
    assert_eq!(damaged(&[(9, 6)]), Some(Malformed::Protocol));
    assert_eq!(damaged(&[(6, 0x20)]), Some(Malformed::Fragment));
    assert_eq!(damaged(&[(25, 9)]), None, "bytes behind it are ignored");
}

#[test]
fn a_payload_that_no_packet_can_carry_has_no_length() {
    let ((_, v4), (_, v6)) = (ends(false), ends(true));
    assert_eq!(datagram_length(v4, 65_507), Some(65_535));
    assert_eq!(datagram_length(v4, 65_508), None);
    assert_eq!(datagram_length(v6, 65_527), Some(65_575));
    assert_eq!(datagram_length(v6, 65_528), None);
}

#[test]
fn errors_quote_what_they_are_about() {
    let caps = ChecksumCapabilities::default();
    let (source, destination) = ends(false);
    let error = compose_undelivered(source, destination, Unreachable::Port);
    let ip = Ipv4Packet::new_checked(&error[..]).unwrap();
    assert_eq!(IpAddr::V4(ip.dst_addr()), source.ip());
    let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    assert_eq!((u8::from(icmp.msg_type()), icmp.msg_code()), (3, 3));
    assert!(matches!(
        Icmpv4Repr::parse(&icmp, &caps).unwrap(),
        Icmpv4Repr::DstUnreachable { header, .. } if IpAddr::V4(header.dst_addr) == destination.ip()
    ));

    let (source, destination) = ends(true);
    let error = compose_undelivered(source, destination, Unreachable::Port);
    let ip = Ipv6Packet::new_checked(&error[..]).unwrap();
    let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
    assert_eq!((u8::from(icmp.msg_type()), icmp.msg_code()), (1, 4));
    let parsed = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &icmp, &caps).unwrap();
    assert!(matches!(
        parsed,
        Icmpv6Repr::DstUnreachable { header, .. } if IpAddr::V6(header.dst_addr) == destination.ip()
    ));
}

#[test]
fn too_big_says_what_fits() {
    let packet = datagram_of(false, &[7; 1450]);
    let error = Datagram::parse(&packet).unwrap().too_big(1400);
    assert_eq!(error[20..22], [3, 4]);
    assert_eq!(be16(&error, 26), 1400);
    let packet = datagram_of(true, &[7; 1450]);
    let error = Datagram::parse(&packet).unwrap().too_big(1400);
    assert_eq!(error[40..42], [2, 0]);
    assert_eq!(error[44..48], 1400_u32.to_be_bytes());
    assert!(error.len() <= 1280, "RFC 4443 §3.2");
}

proptest! {
    #[test]
    fn garbage_is_never_more_than_an_error(bytes: Vec<u8>) {
        let _ = is_datagram(&bytes);
        let _ = Datagram::parse(&bytes);
    }

    #[test]
    fn a_damaged_datagram_panics_nothing(
        v6: bool, at in 0_usize..56, value: u8, cut in 0_usize..60,
    ) {
        let mut packet = datagram_of(v6, b"12345678");
        let at = at % packet.len();
        packet[at] = value;
        packet.truncate(cut.max(1));
        if let Ok(datagram) = Datagram::parse(&packet) {
            let _ = (datagram.unreachable(Unreachable::Host), datagram.too_big(1280));
        }
    }
}
