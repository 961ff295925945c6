//! What goes first when there is more to send than the network takes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use whimbrel_carrier::{Connection, ControlStream, Pipe, Stream};
use whimbrel_common::session::{INITIAL_WINDOW, MAX_WINDOW};
use whimbrel_common::wire::{self, Control, FlowHeader, Taken, WireFlow};

use crate::stage::{GATEWAY, Pair, read_all};

/// A client with this many uploads that never end, on a wire of 20 Mbit/s they have filled.
fn saturated(uploads: u64) -> (Pair, Connection, Connection, Vec<Pipe>) {
    let (mut pair, at_client, at_gateway) = Pair::connected();
    // Nothing is under way: from here on all that leaves and arrives is counted.
    (pair.rate, pair.left, pair.arrived) = (Some(2500), 0, 0);
    let mut pipes: Vec<Pipe> =
        (0..uploads).map(|flow| open_pipe(&mut pair, at_client, flow)).collect();
    for pipe in &mut pipes {
        pipe.sender.acknowledge(0, MAX_WINDOW, false).expect("credit");
        while pipe.sender.room() > 0 {
            let chunk = pipe.sender.room().min(65_536);
            pipe.sender.push(vec![1; chunk].into());
        }
        pipe.push(&mut pair.client, at_client).expect("the stream is open");
    }
    pair.run(Duration::from_millis(300));
    assert!(pair.left > 500_000, "the wire is not filled: {} bytes", pair.left);
    (pair, at_client, at_gateway, pipes)
}

fn open_pipe(pair: &mut Pair, connection: Connection, flow: u64) -> Pipe {
    let stream = pair.client.open(connection).expect("the gateway grants streams");
    let destination = GATEWAY;
    let header = FlowHeader::Open { flow: WireFlow(flow), destination, limit: INITIAL_WINDOW };
    let mut pipe = Pipe::dial(WireFlow(flow), stream, &header);
    pipe.sender.acknowledge(0, INITIAL_WINDOW, false).expect("credit");
    pipe
}

/// Bytes that leave for the gateway from this moment on before everything written on `stream`
/// has: what the wire held already is not ours to order.
fn overtaken_by(pair: &mut Pair, connection: Connection, stream: Stream, length: usize) -> usize {
    let (left, mut heard) = (pair.left, 0);
    let deadline = pair.now + Duration::from_secs(30);
    while heard < length {
        pair.run(Duration::from_millis(1));
        heard += read_all(&mut pair.gateway, connection, stream).len();
        assert!(pair.now < deadline, "{heard} of {length} bytes");
    }
    pair.arrived.saturating_sub(left)
}

/// Bytes of the frame that opens a flow.
fn header_length() -> usize {
    let mut header = BytesMut::new();
    let flow = WireFlow(100);
    let open = FlowHeader::Open { flow, destination: GATEWAY, limit: INITIAL_WINDOW };
    wire::encode_header(&open, &mut header);
    header.len()
}

/// What may leave before: the packet that is being filled, and the message's own.
const HEADROOM: usize = 3 * 1500;

#[test]
fn keystroke_waits_behind_no_bulk_of_this_end() {
    let (mut pair, at_client, at_gateway, _bulk) = saturated(40);
    let mut keys = open_pipe(&mut pair, at_client, 100);
    for _ in 0..20 {
        let before = keys.sender.total();
        keys.sender.push(Bytes::from_static(&[b'k'; 64]));
        let message = if before == 0 { 64 + header_length() } else { 64 };
        keys.push(&mut pair.client, at_client).unwrap();
        assert!(!keys.is_blocked(), "a keystroke is not even taken");
        let overtaken = overtaken_by(&mut pair, at_gateway, keys.stream(), message);
        assert!(overtaken <= HEADROOM, "{overtaken} bytes left before the keystroke");
        keys.sender.acknowledge(keys.sender.total(), u64::MAX, false).unwrap();
    }
}

#[test]
fn credit_waits_behind_no_bulk_of_this_end() {
    let (mut pair, at_client, at_gateway, bulk) = saturated(40);
    let mut control = ControlStream::new(Stream::CONTROL);
    let taken = bulk.iter().map(|pipe| Taken { flow: pipe.flow, offset: 1, limit: 2, fin: false });
    control.send(&Control::Taken(taken.collect()));
    control.flush(&mut pair.client, at_client).unwrap();
    let overtaken = overtaken_by(&mut pair, at_gateway, Stream::CONTROL, 40);
    assert!(overtaken <= HEADROOM, "{overtaken} bytes left before the report");
}

#[test]
fn what_has_much_to_say_takes_turns() {
    let (mut pair, _, at_gateway, bulk) = saturated(4);
    pair.run(Duration::from_secs(3));
    let heard: Vec<usize> = bulk
        .iter()
        .map(|pipe| read_all(&mut pair.gateway, at_gateway, pipe.stream()).len())
        .collect();
    let (least, most) = (heard.iter().min().unwrap(), heard.iter().max().unwrap());
    assert!(*least > 1_000_000 && most - least < 50_000, "{heard:?}");
}
