//! One packet by itself: reading it, and making one ready for the device.

use std::num::NonZeroU16;

use whimbrel_client_core::offload;
use whimbrel_client_core::packet::Segment;

/// Any bytes as a packet.
pub(crate) fn packet(bytes: &[u8]) {
    parsed(bytes);
    let mut header = [0xff; offload::HEADER];
    let mut prepared = bytes.to_vec();
    let segment = bytes.last().and_then(|last| NonZeroU16::new(u16::from(*last) << 4));
    offload::prepare(&mut header, &mut prepared, segment);
    assert_eq!(prepared.len(), bytes.len());
    let inner = offload::payload(bytes);
    assert_eq!(inner.is_some(), bytes.len() > offload::HEADER);
    if let Some(inner) = inner {
        parsed(inner);
    }
}

fn parsed(bytes: &[u8]) {
    let segment = match Segment::parse(bytes) {
        Ok(segment) => segment,
        Err(reason) => return assert!(!reason.to_string().is_empty()),
    };
    assert!(bytes.starts_with(segment.packet()));
    assert!(!(segment.opens() && segment.resets()));
    assert!(segment.source().is_ipv4() == segment.destination().is_ipv4());
    let _ = (segment.check_options(), segment.mss(), segment.sequence());
    let headers = segment.headers();
    let cut = Segment::parse(&headers).expect("headers alone are a segment");
    assert_eq!(cut.payload_len(), 0);
    assert_eq!(headers.len() + segment.payload_len(), segment.packet().len());
    assert_eq!((cut.source(), cut.destination()), (segment.source(), segment.destination()));
    assert_eq!((cut.sequence(), cut.mss()), (segment.sequence(), segment.mss()));
    let (count, end) = (segment.payload_len() / 2, segment.payload_len());
    let part = segment.part(count);
    let part = Segment::parse(&part).expect("a segment still");
    assert_eq!((part.payload_len(), part.finishes()), (count, false));
    assert_eq!(part.sequence(), segment.sequence());
    if segment.finishes() {
        let fin = segment.fin_alone();
        let fin = Segment::parse(&fin).expect("a segment still");
        assert_eq!((fin.payload_len(), fin.finishes()), (0, true));
        assert_eq!(fin.sequence().wrapping_sub(segment.sequence()) as usize, end);
    }
    match segment.reset() {
        None => assert!(segment.resets()),
        Some(reset) => {
            let answer = Segment::parse(&reset).expect("a RST of ours is a segment");
            assert!(answer.resets());
            assert_eq!(answer.source(), segment.destination());
            assert_eq!(answer.destination(), segment.source());
            checksums(&reset);
        }
    }
}

/// What a TUN gets from us for `packet`: the virtio header is right, and completing the checksum
/// as the kernel does gives a packet that is right.
pub(crate) fn outgoing(packet: &[u8], segment: Option<NonZeroU16>) {
    let mut header = [0xff; offload::HEADER];
    let mut prepared = packet.to_vec();
    offload::prepare(&mut header, &mut prepared, segment);
    let native = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (start, offset) = (native(6), native(8));
    if header[0] & 1 != 0 {
        let sum = !folded(&prepared[start..], 0);
        prepared[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
    }
    checksums(&prepared);
    let own = Segment::parse(&prepared);
    assert_eq!(own.is_ok(), header[0] & 1 != 0, "TCP is completed by the kernel, ICMP is complete");
    let Ok(own) = own else {
        assert_eq!(header, [0; offload::HEADER]);
        return;
    };
    own.check_options().expect("options of ours parse");
    match segment {
        None => assert_eq!(header[1], 0),
        Some(size) => {
            assert!(own.payload_len() > usize::from(size.get()));
            assert_eq!(native(4), usize::from(size.get()));
            assert_eq!(native(2) + own.payload_len(), prepared.len());
            assert_eq!(header[1], if own.source().is_ipv4() { 1 } else { 4 });
        }
    }
}

/// The checksums of a whole packet, added up the slow way (RFC 1071).
fn checksums(packet: &[u8]) {
    let (six, at) = if packet[0] >> 4 == 6 { (true, 40) } else { (false, 20) };
    let protocol = packet[if six { 6 } else { 9 }];
    let upper = &packet[at..];
    let length = u64::try_from(upper.len()).expect("a length");
    let pseudo = match (six, protocol) {
        (true, _) => words(&packet[8..40]) + length + u64::from(protocol),
        (false, 1) => 0,
        (false, _) => words(&packet[12..20]) + length + u64::from(protocol),
    };
    assert!(six || folded(&packet[..20], 0) == 0xffff, "IPv4 header checksum");
    assert_eq!(folded(upper, pseudo), 0xffff, "checksum of protocol {protocol}");
}

fn words(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(w.get(1).copied().unwrap_or(0))).sum()
}

fn folded(bytes: &[u8], initial: u64) -> u16 {
    let mut sum = initial + words(bytes);
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).expect("folded")
}
