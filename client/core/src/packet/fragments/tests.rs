use std::net::SocketAddr;

use proptest::prelude::*;

use super::super::{Datagram, datagram_length, write_datagram};
use super::*;

const TUN: DeviceId = DeviceId(0);

#[expect(clippy::disallowed_methods, reason = "an arbitrary start of a virtual clock")]
fn start() -> Instant {
    Instant::now()
}

fn datagram(v6: bool, length: usize) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) = if v6 {
        ("[fd00::2]:40000".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap())
    } else {
        ("10.0.0.2:40000".parse().unwrap(), "192.0.2.1:53".parse().unwrap())
    };
    let payload: Vec<u8> = (0..=250).cycle().take(length).collect();
    let mut packet = vec![0; datagram_length(destination, length).unwrap()];
    write_datagram(source, destination, &payload, &mut packet);
    packet
}

/// Cuts a packet as the kernel does.
fn cut(packet: &[u8], number: u8, mtu: usize) -> Vec<Vec<u8>> {
    let v4 = packet[0] >> 4 == 4;
    let (header, extra) = if v4 { (IPV4_HEADER, 0) } else { (IPV6_HEADER, FRAGMENT_HEADER) };
    let room = (mtu - header - extra) / 8 * 8;
    let rest = &packet[header..];
    let pieces = rest.chunks(room).enumerate();
    pieces
        .map(|(at, piece)| {
            let (offset, more) = (at * room, at * room + piece.len() < rest.len());
            let mut fragment = packet[..header].to_vec();
            if v4 {
                fragment[5] = number;
                let place = u16::try_from(offset / 8).unwrap() | if more { 0x2000 } else { 0 };
                fragment[6..8].copy_from_slice(&place.to_be_bytes());
            } else {
                fragment[6] = NEXT_FRAGMENT;
                let place = u16::try_from(offset).unwrap() | u16::from(more);
                fragment.extend([PROTOCOL_UDP, 0]);
                fragment.extend(place.to_be_bytes());
                fragment.extend([0, 0, 0, number]);
            }
            fragment.extend_from_slice(piece);
            set_length(&mut fragment, header);
            fragment
        })
        .collect()
}

#[test]
fn what_was_cut_up_is_whole_again() {
    for (v6, length) in [(false, 1473), (true, 1453), (false, 65_507), (true, 60_000)] {
        let (packet, mut fragments) = (datagram(v6, length), Fragments::default());
        let pieces = cut(&packet, 7, 1500);
        assert!(pieces.len() > 1);
        let (last, first) = pieces.split_last().unwrap();
        for piece in first {
            assert!(Fragments::is_fragment(piece));
            assert_eq!(fragments.take(TUN, piece, start()), None);
        }
        let whole = fragments.take(TUN, last, start()).expect("it is complete");
        let (ours, sent) = (Datagram::parse(&whole).unwrap(), Datagram::parse(&packet).unwrap());
        assert_eq!(ours.payload(), sent.payload());
        assert_eq!((ours.source(), ours.destination()), (sent.source(), sent.destination()));
        assert!(fragments.packets.is_empty());
    }
}

#[test]
fn packets_cut_up_at_the_same_time_are_kept_apart() {
    let mut fragments = Fragments::default();
    let packets = [datagram(false, 3000), datagram(false, 4000)];
    let [one, other] = packets.each_ref().map(|packet| packet.len());
    let (a, b) = (cut(&packets[0], 1, 1500), cut(&packets[1], 2, 1500));
    let mut whole = Vec::new();
    for (a, b) in a.iter().zip(&b) {
        whole.extend(fragments.take(TUN, a, start()));
        whole.extend(fragments.take(TUN, b, start()));
    }
    whole.extend(b.get(a.len()..).unwrap().iter().filter_map(|b| fragments.take(TUN, b, start())));
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [one, other]);
}

#[test]
fn a_hole_or_a_repetition_gives_the_packet_up() {
    let pieces = cut(&datagram(false, 5000), 1, 1500);
    for wrong in [vec![0, 2, 3], vec![0, 1, 1, 2, 3], vec![1, 2, 3], vec![3]] {
        let mut fragments = Fragments::default();
        for at in wrong {
            assert_eq!(fragments.take(TUN, &pieces[at], start()), None);
        }
    }
}

#[test]
fn what_is_never_completed_is_bounded() {
    let mut fragments = Fragments::default();
    let packet = datagram(true, 3000);
    let now = start();
    for number in 0..200 {
        fragments.take(TUN, &cut(&packet, number, 1500)[0], now);
        assert!(fragments.packets.len() <= MOST);
    }
    fragments.take(TUN, &cut(&packet, 250, 1500)[0], now + LIFETIME);
    assert_eq!(fragments.packets.len(), 1);
}

#[test]
fn what_is_whole_is_no_fragment() {
    for v6 in [false, true] {
        assert!(!Fragments::is_fragment(&datagram(v6, 100)));
    }
}

proptest! {
    #[test]
    fn garbage_is_never_more_than_nothing(bytes: Vec<u8>, at in 0_usize..60, value: u8, v6: bool) {
        let mut fragments = Fragments::default();
        fragments.take(TUN, &bytes, start());
        for mut piece in cut(&datagram(v6, 2000), 3, 1500) {
            piece[at] = value;
            if let Some(whole) = fragments.take(TUN, &piece, start()) {
                let _ = Datagram::parse(&whole);
            }
        }
    }

    #[test]
    fn any_size_comes_back(length in 1500_usize..65_000, mtu in 600_usize..9000, v6: bool) {
        let (packet, mut fragments) = (datagram(v6, length), Fragments::default());
        let pieces = cut(&packet, 9, mtu);
        let mut whole = None;
        for piece in &pieces {
            whole = fragments.take(TUN, piece, start());
        }
        if pieces.len() > 1 {
            let whole = whole.unwrap();
            let payload = Datagram::parse(&whole).unwrap().payload().to_vec();
            prop_assert_eq!(payload.as_slice(), Datagram::parse(&packet).unwrap().payload());
        }
    }
}
