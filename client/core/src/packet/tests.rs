use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket};

use super::{Malformed, Segment, Unreachable, compose_unreachable, fold, option, sum};

fn syn_v4() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend([10, 0, 0, 2, 192, 0, 2, 1]);
    packet.extend([0x13, 0x88, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend([2, 4, 5, 180]);
    packet
}

fn syn_v6() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 6, 64];
    packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend_from_slice(&syn_v4()[20..]);
    packet
}

fn damaged(mut packet: Vec<u8>, changes: &[(usize, u8)]) -> Option<Malformed> {
    for (at, value) in changes {
        packet[*at] = *value;
    }
    Segment::parse(&packet).err()
}

#[test]
fn syn_is_read() {
    for packet in [syn_v4(), syn_v6()] {
        let segment = Segment::parse(&packet).unwrap();
        assert!(segment.opens() && !segment.resets() && !segment.finishes());
        assert_eq!(segment.source().port(), 5000);
        assert_eq!(segment.destination().port(), 80);
        assert_eq!(segment.sequence(), 9);
        assert_eq!(segment.mss(), Some(1460));
        assert_eq!(segment.payload_len(), 0);
        assert_eq!(segment.check_options(), Ok(()));
    }
}

#[test]
fn impossible_ipv4_headers_are_named() {
    let cases = [
        (&[(0, 0x55)][..], Malformed::Version),
        (&[(0, 0x44)], Malformed::HeaderLength),
        (&[(0, 0x4f)], Malformed::HeaderLength),
        (&[(0, 0x46)], Malformed::Options),
        (&[(3, 45)], Malformed::Truncated),
        (&[(2, 0xff)], Malformed::Truncated),
        (&[(3, 19)], Malformed::HeaderLength),
        (&[(3, 30)], Malformed::Truncated),
        (&[(6, 0x20)], Malformed::Fragment),
        (&[(7, 1)], Malformed::Fragment),
        (&[(9, 17)], Malformed::Protocol),
        (&[(12, 224)], Malformed::Address),
        (&[(16, 127)], Malformed::Address),
        (&[(20, 0), (21, 0)], Malformed::Port),
        (&[(23, 0)], Malformed::Port),
        (&[(32, 0x40)], Malformed::HeaderLength),
        (&[(32, 0x70)], Malformed::HeaderLength),
        (&[(33, 3)], Malformed::Flags),
        (&[(33, 6)], Malformed::Flags),
    ];
    for (changes, reason) in cases {
        assert_eq!(damaged(syn_v4(), changes), Some(reason), "{changes:?}");
    }
}

#[test]
fn impossible_ipv6_headers_are_named() {
    let cases = [
        (&[(5, 25)][..], Malformed::Truncated),
        (&[(5, 10)], Malformed::Truncated),
        (&[(6, 44)], Malformed::Fragment),
        (&[(6, 0)], Malformed::ExtensionHeader),
        (&[(6, 43)], Malformed::ExtensionHeader),
        (&[(6, 58)], Malformed::Protocol),
        (&[(24, 0xff)], Malformed::Address),
    ];
    for (changes, reason) in cases {
        assert_eq!(damaged(syn_v6(), changes), Some(reason), "{changes:?}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for packet in [syn_v4(), syn_v6()] {
        for length in 0..packet.len() {
            assert_eq!(Segment::parse(&packet[..length]).err(), Some(Malformed::Truncated));
        }
    }
}

#[test]
fn trailing_bytes_are_not_part_of_the_segment() {
    let mut packet = syn_v4();
    packet.extend([1; 30]);
    assert_eq!(Segment::parse(&packet).unwrap().packet(), syn_v4());
}

#[test]
fn options_that_do_not_parse_are_named() {
    for length in [0, 1, 3, 40] {
        let mut packet = syn_v4();
        packet[41] = length;
        let segment = Segment::parse(&packet).unwrap();
        assert_eq!(segment.check_options(), Err(Malformed::Options), "{length}");
        assert_eq!(segment.mss(), None);
    }
}

#[test]
fn option_is_found_behind_others() {
    assert_eq!(option(&[1, 1, 8, 3, 9, 3, 3, 7], 3), Some(&[7][..]));
    assert_eq!(option(&[0, 3, 3, 7], 3), None);
    assert_eq!(option(&[8], 3), None);
    assert_eq!(option(&[8, 0, 3, 3, 7], 3), None);
}

#[test]
fn headers_state_their_own_length() {
    for mut packet in [syn_v4(), syn_v6()] {
        packet.extend(b"early data");
        if packet[0] == 0x45 {
            packet[3] += 10;
        } else {
            packet[5] += 10;
        }
        let headers = Segment::parse(&packet).unwrap().headers();
        let held = Segment::parse(&headers).unwrap();
        assert_eq!(held.payload_len(), 0);
        assert_eq!(held.sequence(), 9);
    }
}

#[test]
fn reset_acknowledges_what_it_answers() {
    for packet in [syn_v4(), syn_v6()] {
        let reset = Segment::parse(&packet).unwrap().reset().unwrap();
        let answer = Segment::parse(&reset).unwrap();
        assert!(answer.resets());
        assert_eq!(answer.reset(), None);
        assert_eq!(answer.source().port(), 80);
        assert_eq!(answer.tcp()[8..12], 10u32.to_be_bytes());
        let (source, destination) = (answer.source().ip().into(), answer.destination().ip().into());
        let tcp = TcpPacket::new_checked(answer.tcp()).unwrap();
        assert!(tcp.verify_checksum(&source, &destination));
        if packet[0] == 0x45 {
            assert!(Ipv4Packet::new_checked(&reset[..]).unwrap().verify_checksum());
        }
    }
}

#[test]
fn unreachable_stays_within_its_limit() {
    let mut packet = syn_v6();
    packet.extend([0; 4000]);
    packet[4..6].copy_from_slice(&4024u16.to_be_bytes());
    let segment = Segment::parse(&packet).unwrap();
    let answer = compose_unreachable(&segment, Unreachable::Host);
    assert_eq!(answer.len(), 1280);
    assert_eq!(Ipv6Packet::new_checked(&answer[..]).unwrap().total_len(), 1280);
}

#[test]
fn sum_of_an_odd_length_pads_with_zero() {
    assert_eq!(fold(sum(0, &[1, 2, 3])), 0x0102 + 0x0300);
    assert_eq!(fold(0xffff_ffff), 0xffff);
}
