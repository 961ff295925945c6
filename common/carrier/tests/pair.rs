//! Both ends of the carrier on a virtual clock and a network in memory.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use whimbrel_carrier::{
    AnswerOrEnd, Connection, Endpoint, Event, Lost, Path, Pipe, Pulled, Stream,
};
use whimbrel_common::session::INITIAL_WINDOW;
use whimbrel_common::wire::{FlowAnswer, FlowHeader, WireFlow};

#[path = "pair/stage.rs"]
mod stage;
#[path = "pair/urgency.rs"]
mod urgency;

use stage::*;

#[test]
fn ends_learn_each_others_keys() {
    let (pair, _, _) = Pair::connected();
    let (seen, expected) = (&pair.gateway_events[0].1, key(1).public());
    assert!(matches!(seen, Event::Connected { key, .. } if *key == expected), "{seen:?}");
    let (seen, expected) = (&pair.client_events[0], key(2).public());
    assert!(matches!(seen, Event::Connected { key, .. } if *key == expected), "{seen:?}");
}

#[test]
fn short_message_takes_a_round_trip_however_many_went_before() {
    let (mut pair, at_client, at_gateway) = Pair::connected();
    let stream = pair.client.open(at_client).expect("the gateway grants streams");
    let message = Bytes::from_static(&[1; 60]);
    let mut slowest = Duration::ZERO;
    for _ in 0..300 {
        // Others shortly before: a request seldom comes alone.
        for _ in 0..3 {
            pair.client.write(at_client, stream, message.clone()).unwrap();
            pair.run(Duration::from_millis(2));
        }
        let began = pair.now;
        pair.client.write(at_client, stream, message.clone()).unwrap();
        let mut missing = 4 * message.len();
        while missing > 0 {
            pair.run(Duration::from_millis(1));
            let heard = read_all(&mut pair.gateway, at_gateway, stream);
            if !heard.is_empty() {
                pair.gateway.write(at_gateway, stream, heard.into()).unwrap();
            }
            missing -= read_all(&mut pair.client, at_client, stream).len();
            assert!(pair.now - began < Duration::from_secs(1), "{missing} bytes are missing");
        }
        slowest = slowest.max(pair.now - began);
    }
    // Each way ends on a step of the clock.
    assert!(slowest <= 2 * ONE_WAY + Duration::from_millis(4), "the slowest took {slowest:?}");
}

#[test]
fn client_refuses_a_gateway_with_another_key() {
    let mut pair = Pair::new(client(1, key(9).public()), gateway(2));
    pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_millis(500));
    assert!(matches!(pair.lost(), Some(Lost::Authentication(_))), "{:?}", pair.lost());
}

#[test]
fn stranger_may_send_four_kibibytes() {
    let mut pair = Pair::new(client(1, key(2).public()), gateway(2));
    let connection = pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_millis(200));
    let stream = pair.client.open(connection).unwrap();
    assert_eq!(pair.client.open(connection), None, "a stranger has one stream");
    let written = pair.client.write(connection, stream, Bytes::from(vec![0; 100_000])).unwrap();
    assert_eq!(written, 4096);
}

#[test]
fn unanswered_handshake_ends() {
    let mut pair = Pair::new(client(1, key(2).public()), gateway(2));
    pair.dead = vec![link(1)];
    pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_secs(11));
    assert_eq!(pair.lost(), Some(&Lost::Closed));
}

#[test]
fn newcomers_prove_their_address_while_many_handshakes_hang() {
    for (half_open, retries) in [(3, 1), (4, 0)] {
        let mut pair = Pair::new(client(1, key(2).public()), gateway(2));
        pair.gateway.set_half_open(half_open);
        // Each begins from an address of its own and is never heard of again.
        for stranger in 0..3 {
            let mut endpoint = client(10 + stranger, key(2).public());
            endpoint.connect(GATEWAY, pair.now).unwrap();
            let mut datagram = Vec::new();
            endpoint.poll_transmit(pair.now, &mut datagram).unwrap();
            let from = SocketAddr::from(([203, 0, 113, stranger], 4433));
            pair.gateway.handle_datagram(from, None, None, datagram[..].into(), pair.now);
        }
        pair.client.connect(GATEWAY, pair.now).unwrap();
        pair.run(Duration::from_millis(300));
        let connected = |event: &(_, Event)| matches!(event.1, Event::Connected { .. });
        assert!(pair.gateway_events.iter().any(connected), "with {half_open} half open");
        assert_eq!(pair.gateway.retries(), retries, "with {half_open} half open");
    }
}

/// Datagrams that begin connections from ports of `host`, and what never comes after them.
fn knock(pair: &mut Pair, host: [u8; 4], times: u16) {
    for stranger in 0..times {
        let mut endpoint = client(10, key(2).public());
        endpoint.connect(GATEWAY, pair.now).expect("a client may connect");
        let mut datagram = Vec::new();
        endpoint.poll_transmit(pair.now, &mut datagram).expect("a first packet");
        let from = SocketAddr::from((host, 6000 + stranger));
        pair.gateway.handle_datagram(from, None, None, datagram[..].into(), pair.now);
    }
}

#[test]
fn crowd_of_one_network_keeps_out_its_own_and_nobody_else() {
    // The client is in 10.0.1.0, too, or is not.
    for (crowd, connects) in [([10, 0, 1, 2], false), ([203, 0, 113, 9], true)] {
        let mut pair = Pair::new(client(1, key(2).public()), gateway(2));
        pair.gateway.set_half_open(3);
        knock(&mut pair, crowd, 3);
        pair.client.connect(GATEWAY, pair.now).unwrap();
        pair.run(Duration::from_millis(300));
        let connected = |event: &(_, Event)| matches!(event.1, Event::Connected { .. });
        assert_eq!(pair.gateway_events.iter().any(connected), connects, "{crowd:?}");
        assert!(pair.gateway.retries() > 0);
        assert_eq!(pair.gateway.ignored() > 0, !connects, "{crowd:?}");
    }
}

#[test]
fn strangers_are_never_more_than_twice_as_many_as_may_be() {
    let mut pair = Pair::new(client(1, key(2).public()), gateway(2));
    pair.gateway.set_half_open(6);
    knock(&mut pair, [203, 0, 113, 9], 6);
    pair.gateway.set_half_open(3);
    pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_millis(300));
    assert!(pair.gateway.retries() == 0 && pair.gateway.ignored() > 0);
    // Those that never went on are given up, and it has not stopped asking.
    pair.run(Duration::from_secs(9));
    let connected = |event: &(_, Event)| matches!(event.1, Event::Connected { .. });
    assert!(!pair.gateway_events.iter().any(connected));
    pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_secs(5));
    assert!(pair.gateway_events.iter().any(connected), "{:?}", pair.gateway_events);
}

#[test]
fn client_that_was_admitted_is_no_stranger() {
    let (mut pair, ..) = Pair::connected();
    pair.gateway.set_half_open(1);
    pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_millis(300));
    assert_eq!(pair.gateway.retries(), 0);
    // That one was not admitted: it counts although its handshake is over.
    pair.client.connect(GATEWAY, pair.now).unwrap();
    pair.run(Duration::from_millis(300));
    assert_eq!(pair.gateway.retries(), 1);
}

#[test]
fn restarted_gateway_resets_old_connections_at_once() {
    let (mut pair, connection, _) = Pair::connected();
    pair.gateway = gateway(2);
    pair.client.ping(connection, Path::FIRST);
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.lost(), Some(&Lost::Reset));
}

#[test]
fn connection_made_the_moment_another_was_lost_lives() {
    let (mut pair, connection, _) = Pair::connected();
    pair.gateway = gateway(2);
    pair.client.ping(connection, Path::FIRST);
    pair.client_events.clear();
    let reset = |client: &mut Endpoint| {
        client.advance();
        std::iter::from_fn(|| client.poll_event())
            .any(|(_, event)| matches!(event, Event::Lost(Lost::Reset)))
    };
    for _ in 0..100 {
        pair.deliver();
        pair.gateway.advance();
        if reset(&mut pair.client) {
            break;
        }
        pair.exchange();
        pair.now += Duration::from_millis(1);
    }
    // It gets the number of the one before, of which nothing must be left.
    assert_eq!(pair.client.connect(GATEWAY, pair.now).unwrap(), connection);
    pair.run(Duration::from_millis(200));
    let connected = |event: &Event| matches!(event, Event::Connected { .. });
    assert!(pair.client_events.iter().any(connected), "{:?}", pair.client_events);
}

#[test]
fn gateway_with_another_key_cannot_reset_connections() {
    let (mut pair, connection, _) = Pair::connected();
    pair.gateway = gateway(3);
    pair.client.ping(connection, Path::FIRST);
    pair.run(Duration::from_millis(500));
    assert_eq!(pair.lost(), None);
}

/// The engine's successor closes such connections ("too many gaps in stream buffer").
#[test]
fn paused_reader_of_small_frames_or_bulk_stops_nobody_else() {
    for (size, pause) in [(200, Duration::from_secs(5)), (65_536, Duration::from_secs(2))] {
        let (mut pair, at_client, at_gateway) = Pair::connected();
        let paused = pair.client.open(at_client).unwrap();
        let other = pair.client.open(at_client).unwrap();
        let end = pair.now + pause;
        let (mut sent, mut received) = (0, Vec::new());
        while pair.now < end {
            let bulk = Bytes::from(vec![7; size]);
            sent += pair.client.write(at_client, paused, bulk).unwrap();
            pair.client.write(at_client, other, Bytes::from_static(b"0123456789")).unwrap();
            pair.run(Duration::from_millis(5));
            while pair.gateway.accept(at_gateway).is_some() {}
            received.extend(read_all(&mut pair.gateway, at_gateway, other));
        }
        pair.run(Duration::from_secs(1));
        received.extend(read_all(&mut pair.gateway, at_gateway, other));
        assert_eq!(pair.lost(), None);
        assert!(received.len() >= 1_000, "the other stream moved {} bytes", received.len());
        let mut drained = 0;
        for _ in 0..200 {
            drained += read_all(&mut pair.gateway, at_gateway, paused).len();
            pair.run(Duration::from_millis(20));
        }
        assert_eq!(drained, sent, "{size}-byte writes arrive after the pause");
    }
}

#[test]
fn data_follows_the_path_that_carries() {
    let (mut pair, connection, _) = Pair::connected();
    let stream = pair.client.open(connection).unwrap();
    let path = pair.open_second_path(connection);
    pair.run(Duration::from_secs(1));
    pair.sent_on.clear();
    pair.client.write(connection, stream, Bytes::from(vec![1; 5000])).unwrap();
    pair.run(Duration::from_millis(1));
    assert!(pair.sent_on.iter().all(|used| *used == link(1)), "a spare path stays spare");
    pair.client.carry(connection, path, pair.now);
    pair.run(Duration::from_millis(100));
    pair.sent_on.clear();
    pair.client.write(connection, stream, Bytes::from(vec![1; 5000])).unwrap();
    pair.run(Duration::from_millis(1));
    assert!(pair.sent_on.contains(&link(2)));
    assert!(!pair.sent_on.contains(&link(1)));
}

/// The engine would send over the only validated path, and never deem it lost there.
#[test]
fn rebinding_costs_a_round_trip_although_the_spare_path_is_dead() {
    let (mut pair, at_client, at_gateway) = Pair::connected();
    let stream = pair.client.open(at_client).unwrap();
    pair.client.write(at_client, stream, Bytes::from_static(b"?")).unwrap();
    let path = pair.open_second_path(at_client);
    pair.gateway.back_up(at_gateway, path);
    pair.gateway.carry(at_gateway, Path::FIRST, pair.now);
    pair.run(Duration::from_secs(1));
    let stream_there = pair.gateway.accept(at_gateway).unwrap();
    pair.dead = vec![link(2)];
    for round in 1..=20 {
        pair.port = 5000 + round;
        pair.client.write(at_client, stream, Bytes::from_static(b"?")).unwrap();
        let begin = pair.now;
        for _ in 0..10 {
            let bytes = Bytes::from_static(&[7; 100]);
            pair.gateway.write(at_gateway, stream_there, bytes).unwrap();
            pair.run(Duration::from_millis(1));
        }
        let mut heard = 0;
        while heard < 1000 {
            pair.run(Duration::from_millis(1));
            heard += read_all(&mut pair.client, at_client, stream).len();
            // To the gateway, there and back for the challenge, and to the client.
            let took = pair.now - begin;
            assert!(took <= 4 * ONE_WAY + ACK_DELAY, "round {round}: {heard} bytes after {took:?}");
        }
    }
}

/// After an outage the NAT of the path that is to carry has forgotten it, and the path that carried
/// is still dead.
#[test]
fn path_with_a_new_address_carries_after_a_round_trip_although_the_others_are_dead() {
    let (mut pair, at_client, at_gateway) = Pair::connected();
    let stream = pair.client.open(at_client).unwrap();
    pair.client.write(at_client, stream, Bytes::from_static(b"?")).unwrap();
    let path = pair.open_second_path(at_client);
    pair.gateway.carry(at_gateway, path, pair.now);
    pair.client.carry(at_client, path, pair.now);
    pair.run(Duration::from_secs(1));
    let stream_there = pair.gateway.accept(at_gateway).unwrap();
    pair.dead = vec![link(2)];
    pair.port = 6000;
    pair.client.ping(at_client, Path::FIRST);
    while pair.gateway.remote(at_gateway, Path::FIRST) != Some(pair.address(link(1))) {
        pair.run(Duration::from_millis(1));
    }
    pair.gateway.carry(at_gateway, Path::FIRST, pair.now);
    pair.gateway.write(at_gateway, stream_there, Bytes::from_static(&[7; 100])).unwrap();
    let begin = pair.now;
    while read_all(&mut pair.client, at_client, stream).is_empty() {
        pair.run(Duration::from_millis(1));
        let took = pair.now - begin;
        assert!(took <= 3 * ONE_WAY + ACK_DELAY, "nothing after {took:?}");
    }
}

#[test]
fn spare_path_starts_afresh_when_it_is_to_carry() {
    let (mut pair, connection, _) = Pair::connected();
    let path = pair.open_second_path(connection);
    for _ in 0..40 {
        pair.client.ping(connection, path);
        pair.run(Duration::from_secs(1));
    }
    let fresh = pair.client.path(connection, Path::FIRST).unwrap().cwnd;
    pair.client.carry(connection, path, pair.now);
    assert!(pair.client.path(connection, path).unwrap().cwnd >= fresh.min(12_000));
}

#[test]
fn probe_passes_a_full_window() {
    let (mut pair, connection, _) = Pair::connected();
    let stream = pair.client.open(connection).unwrap();
    pair.run(Duration::from_secs(1));
    pair.dead = vec![link(1)];
    pair.client.write(connection, stream, Bytes::from(vec![1; 1_000_000])).unwrap();
    pair.run(Duration::from_secs(20));
    pair.sent_on.clear();
    pair.run(Duration::from_millis(50));
    let before = pair.sent_on.len();
    pair.client.ping(connection, Path::FIRST);
    pair.run(Duration::from_millis(2));
    assert!(pair.sent_on.len() > before, "the probe went out");
}

#[test]
fn steered_path_recovers_what_was_in_flight() {
    let (mut pair, at_client, at_gateway) = Pair::connected();
    let stream = pair.client.open(at_client).unwrap();
    let path = pair.open_second_path(at_client);
    pair.dead = vec![link(1)];
    pair.client.write(at_client, stream, Bytes::from(vec![3; 8000])).unwrap();
    pair.run(Duration::from_millis(100));
    while pair.gateway.accept(at_gateway).is_some() {}
    assert_eq!(read_all(&mut pair.gateway, at_gateway, stream).len(), 0);
    pair.steered = true;
    pair.client.carry(at_client, path, pair.now);
    pair.client.ping(at_client, Path::FIRST);
    pair.run(Duration::from_millis(200));
    while pair.gateway.accept(at_gateway).is_some() {}
    assert_eq!(read_all(&mut pair.gateway, at_gateway, stream), vec![3; 8000]);
}

/// Reads the header of the newest stream at the gateway.
fn accept_header(pair: &mut Pair, at_gateway: Connection) -> (Stream, FlowHeader, BytesMut) {
    let stream = pair.gateway.accept(at_gateway).expect("a stream was opened");
    let mut partial = BytesMut::new();
    let header = Pipe::read_header(&mut pair.gateway, at_gateway, stream, &mut partial)
        .expect("the header is one")
        .expect("the header arrived in one piece");
    (stream, header, partial)
}

#[test]
fn flow_goes_on_over_a_new_stream_without_a_byte_lost_or_repeated() {
    let (mut pair, at_client, at_gateway) = Pair::connected();
    let control = pair.client.open(at_client).unwrap();
    pair.client.write(at_client, control, Bytes::from_static(b"x")).unwrap();
    let first = pair.client.open(at_client).unwrap();
    let destination = "198.51.100.7:22".parse().unwrap();
    let open = FlowHeader::Open { flow: WireFlow(1), destination, limit: INITIAL_WINDOW };
    let mut here = Pipe::dial(WireFlow(1), first, &open);
    here.push(&mut pair.client, at_client).unwrap();
    pair.run(Duration::from_millis(50));
    assert!(pair.gateway.accept(at_gateway).is_some(), "the control stream");
    let (stream, header, rest) = accept_header(&mut pair, at_gateway);
    assert_eq!(header, open);
    let mut there = Pipe::accept(WireFlow(1), stream, INITIAL_WINDOW);
    there.accept_rest(rest);
    there.answer(&FlowAnswer::Opened { limit: there.receiver.limit() });
    there.push(&mut pair.gateway, at_gateway).unwrap();
    pair.run(Duration::from_millis(50));
    let answer = here.read_answer(&mut pair.client, at_client).unwrap();
    let Some(AnswerOrEnd::Answer(FlowAnswer::Opened { limit })) = answer else {
        panic!("{answer:?}")
    };
    here.sender.acknowledge(0, limit, false).unwrap();

    // 30,000 bytes arrive, of which 10,000 are taken; the next 20,000 never arrive.
    let bytes: Vec<u8> = (0..50_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mut taken = Vec::new();
    here.sender.push(Bytes::copy_from_slice(&bytes[..30_000]));
    here.push(&mut pair.client, at_client).unwrap();
    pair.run(Duration::from_millis(300));
    let rtt = 2 * ONE_WAY;
    while taken.len() < 10_000 {
        let Pulled::Data(chunk) = there.pull(&mut pair.gateway, at_gateway, 10_000 - taken.len())
        else {
            panic!("the bytes arrived")
        };
        there.receiver.take(chunk.len(), pair.now, rtt).unwrap();
        taken.extend_from_slice(&chunk);
    }
    pair.dead = vec![link(1)];
    here.sender.push(Bytes::copy_from_slice(&bytes[30_000..]));
    here.push(&mut pair.client, at_client).unwrap();
    pair.run(Duration::from_millis(20));
    pair.dead.clear();

    let second = pair.client.open(at_client).unwrap();
    here.redial(second);
    Pipe::supersede(&mut pair.client, at_client, first);
    here.push(&mut pair.client, at_client).unwrap();
    pair.run(Duration::from_millis(100));
    let (stream, header, rest) = accept_header(&mut pair, at_gateway);
    let FlowHeader::Resume { epoch: 1, taken: 0, offset: 0, .. } = header else {
        panic!("{header:?}")
    };
    there.resume(stream, 1, 0, 0).unwrap();
    there.accept_rest(rest);
    for _ in 0..100 {
        while let Pulled::Data(chunk) = there.pull(&mut pair.gateway, at_gateway, usize::MAX) {
            there.receiver.take(chunk.len(), pair.now, rtt).unwrap();
            taken.extend_from_slice(&chunk);
        }
        here.push(&mut pair.client, at_client).unwrap();
        pair.run(Duration::from_millis(10));
    }
    assert_eq!(taken, bytes);
}
