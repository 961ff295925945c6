use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, Ipv4Packet, Ipv6Packet};

use super::*;

fn ends(v6: bool) -> EchoEnds {
    let (source, destination) =
        if v6 { ("fd00::2", "2001:db8::1") } else { ("10.0.0.2", "192.0.2.1") };
    EchoEnds {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        identifier: 0x1234,
        sequence: 7,
    }
}

fn request(v6: bool, payload: &[u8]) -> Vec<u8> {
    let EchoEnds { source, destination, .. } = ends(v6);
    let (kind, protocol) =
        if v6 { (REQUEST_V6, PROTOCOL_ICMPV6) } else { (REQUEST_V4, PROTOCOL_ICMP) };
    let message = [&ends(v6).header(kind)[..], payload].concat();
    compose(source, destination, protocol, 2, &message)
}

fn reply(v6: bool, payload: &[u8]) -> Vec<u8> {
    let ends = ends(v6);
    let mut packet = vec![0xaa; ends.reply_length(payload.len()).unwrap()];
    ends.write_reply(57, payload, &mut packet);
    packet
}

#[test]
fn a_request_is_read_as_it_was_sent() {
    for v6 in [false, true] {
        let packet = request(v6, b"ping");
        assert!(is_icmp(&packet));
        let request = EchoRequest::parse(&packet).unwrap();
        let EchoEnds { source, destination, identifier, sequence } = ends(v6);
        assert_eq!((request.source(), request.destination()), (source, destination));
        assert_eq!((request.identifier(), request.sequence()), (identifier, sequence));
        assert_eq!((request.payload(), request.hops()), (&b"ping"[..], 64));
        assert!(request.must_stay_whole());
        assert_eq!(request.from_fragments().must_stay_whole(), !v6);
    }
}

#[test]
fn only_requests_are_taken() {
    for v6 in [false, true] {
        let mut packet = request(v6, b"ping");
        let header = packet.len() - ECHO_HEADER - 4;
        for (at, value) in [(header, 3), (header, if v6 { REPLY_V6 } else { REPLY_V4 })] {
            packet[at] = value;
            assert_eq!(EchoRequest::parse(&packet).err(), Some(Malformed::Protocol));
        }
        let short = compose(
            ends(v6).source,
            ends(v6).destination,
            if v6 { PROTOCOL_ICMPV6 } else { PROTOCOL_ICMP },
            2,
            &[if v6 { REQUEST_V6 } else { REQUEST_V4 }, 0, 0, 0, 0],
        );
        assert_eq!(EchoRequest::parse(&short).err(), Some(Malformed::Truncated));
    }
    // ICMP of the other family.
    let mut strange = request(false, b"");
    strange[9] = PROTOCOL_ICMPV6;
    assert!(!is_icmp(&strange));
}

#[test]
fn another_stack_understands_the_reply() {
    let checked = ChecksumCapabilities::default();
    for payload in [&b""[..], b"odd", &[0xff; 1400]] {
        let v4 = reply(false, payload);
        let ip = Ipv4Packet::new_checked(&v4[..]).unwrap();
        assert!(ip.verify_checksum() && ip.hop_limit() == 57);
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        let repr = Icmpv4Repr::parse(&icmp, &checked).unwrap();
        assert_eq!(repr, Icmpv4Repr::EchoReply { ident: 0x1234, seq_no: 7, data: payload });
        let v6 = reply(true, payload);
        let ip = Ipv6Packet::new_checked(&v6[..]).unwrap();
        assert_eq!(ip.hop_limit(), 57);
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        let repr = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &icmp, &checked).unwrap();
        assert_eq!(repr, Icmpv6Repr::EchoReply { ident: 0x1234, seq_no: 7, data: payload });
    }
}

#[test]
fn an_error_quotes_the_request_it_is_about() {
    let router = |v6| if v6 { "2001:db8::fe" } else { "198.51.100.1" }.parse::<IpAddr>().unwrap();
    let errors = [
        (EchoError::Expired, [11, 0], [3, 0]),
        (EchoError::Unreachable(Unreachable::Host), [3, 1], [1, 3]),
        (EchoError::Unreachable(Unreachable::Prohibited), [3, 13], [1, 1]),
    ];
    for v6 in [false, true] {
        for (error, v4_code, v6_code) in errors {
            let packet = ends(v6).error(router(v6), error);
            let header = header_length(ends(v6).source);
            let code = if v6 { v6_code } else { v4_code };
            assert_eq!(packet[header..header + 2], code, "{error:?}");
            let quoted = EchoRequest::parse(&packet[header + 8..]).unwrap();
            assert_eq!((quoted.identifier(), quoted.sequence()), (0x1234, 7));
            assert_eq!(quoted.destination(), ends(v6).destination);
            let from = if v6 {
                IpAddr::from(Ipv6Packet::new_checked(&packet[..]).unwrap().src_addr())
            } else {
                IpAddr::from(Ipv4Packet::new_checked(&packet[..]).unwrap().src_addr())
            };
            assert_eq!(from, router(v6));
        }
    }
}

#[test]
fn what_does_not_fit_a_packet_has_no_reply() {
    assert_eq!(ends(false).reply_length(65_507), Some(65_535));
    assert_eq!(ends(false).reply_length(65_508), None);
    assert_eq!(ends(true).reply_length(65_527), Some(65_575));
    assert_eq!(ends(true).reply_length(65_528), None);
}

proptest! {
    #[test]
    fn noise_is_told_apart_without_a_panic(mut bytes: Vec<u8>, v6: bool) {
        let _parsed = EchoRequest::parse(&bytes);
        let whole = request(v6, b"ping");
        let length = bytes.len().min(whole.len());
        bytes[..length].copy_from_slice(&whole[..length]);
        let _parsed = EchoRequest::parse(&bytes);
    }
}
