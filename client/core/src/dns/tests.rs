use super::*;

fn datagram(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    let datagram = Datagram::parse(packet).ok()?;
    Some((datagram.source(), datagram.destination(), datagram.payload()))
}

const NAME: &[u8] = b"\x07example\x04test\x00";

/// A message with one question, and with these further records.
fn message(id: u16, flags: u16, records: &[u8], additional: u16) -> Vec<u8> {
    let mut text = Vec::new();
    for word in [id, flags, 1, 0, 0, additional] {
        text.extend_from_slice(&word.to_be_bytes());
    }
    [&text, NAME, &[0, 1, 0, 1], records].concat()
}

fn asked(message: &[u8]) -> Query {
    let (source, server) =
        ("10.213.52.11:4000".parse().unwrap(), "10.213.52.53:53".parse().unwrap());
    Query::parse(&compose_datagram(source, server, message)).unwrap()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[test]
fn a_query_goes_on_after_its_length_and_its_answer_comes_back() {
    let question = message(7, 0x0100, &[], 0);
    let query = asked(&question);
    assert_eq!(query.framed(), framed(&question));
    let answer = framed(&message(7, 0x8180, b"records", 0));
    assert_eq!(query.answer(&answer[..answer.len() - 1]), None);
    let packet = query.answer(&answer).unwrap();
    let (from, to, text) = datagram(&packet).unwrap();
    assert_eq!((from, to), (query.server, query.source));
    assert_eq!(text, &answer[2..]);
}

#[test]
fn ipv6_is_spoken_as_well() {
    let (source, server) =
        ("[fd52::1]:4000".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap());
    let question = message(7, 0x0100, &[], 0);
    let query = Query::parse(&compose_datagram(source, server, &question)).unwrap();
    assert_eq!((query.source, query.server), (source, server));
    let packet = query.answer(&framed(&message(7, 0x8180, b"", 0))).unwrap();
    assert_eq!(datagram(&packet).unwrap().1, source);
}

#[test]
fn what_does_not_fit_is_cut_to_its_question_and_says_so() {
    let long = message(7, 0x8180, &[9; 600], 0);
    let packet = asked(&message(7, 0x0100, &[], 0)).answer(&framed(&long)).unwrap();
    let (_, _, text) = datagram(&packet).unwrap();
    assert_eq!(text, message(7, 0x8380, &[], 0));
}

#[test]
fn whoever_takes_more_gets_more() {
    let opt = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
    let long = message(7, 0x8180, &[9; 600], 0);
    let packet = asked(&message(7, 0x0100, opt, 1)).answer(&framed(&long)).unwrap();
    assert_eq!(datagram(&packet).unwrap().2, long);
}

#[test]
fn an_answer_to_something_else_is_none() {
    let query = asked(&message(7, 0x0100, &[], 0));
    assert_eq!(query.answer(&framed(&message(8, 0x8180, b"", 0))), None);
    assert_eq!(query.answer(&framed(b"short")), None);
    assert_eq!(query.answer(&[]), None);
}

#[test]
fn a_failure_repeats_the_question() {
    let packet = asked(&message(7, 0x0100, b"more", 1)).failure();
    assert_eq!(datagram(&packet).unwrap().2, message(7, 0x8182, &[], 0));
}

#[test]
fn only_queries_are_taken_for_queries() {
    let (source, server) = ("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:53".parse().unwrap());
    let elsewhere = "10.0.0.2:54".parse().unwrap();
    let question = message(7, 0x0100, &[], 0);
    let packet = compose_datagram(source, server, &question);
    assert!(Query::parse(&packet).is_some());
    assert_eq!(Query::parse(&compose_datagram(source, elsewhere, &question)), None);
    assert_eq!(Query::parse(&compose_datagram(source, server, &message(7, 0x8180, &[], 0))), None);
    for length in 0..packet.len() {
        assert_eq!(Query::parse(&packet[..length]), None, "{length} bytes");
    }
}

#[test]
fn no_message_is_too_odd_to_be_answered() {
    for odd in [
        [0xff; 40].to_vec(),
        [0; 40].to_vec(),
        [&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], [63; 70].as_slice()].concat(),
    ] {
        let mut odd = odd;
        odd[2] &= 0x7f;
        let query = asked(&odd);
        assert!(datagram(&query.failure()).is_some());
        assert!(query.answer(&framed(&[&odd[..2], &[0xff; 2000]].concat())).is_some());
    }
}

#[test]
fn public_means_reachable_from_a_gateway() {
    for public in ["9.9.9.9", "1.1.1.1", "2620:fe::fe"] {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
    let local = ["192.168.1.1", "10.0.0.1", "127.0.0.53", "100.64.0.1", "169.254.1.1", "0.0.0.0"];
    for local in local.into_iter().chain(["224.0.0.1", "fd00::1", "fe80::1", "::1"]) {
        assert!(!is_public(local.parse().unwrap()), "{local}");
    }
}
