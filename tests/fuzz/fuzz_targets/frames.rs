//! What a peer sends: frames of the control stream, heads of flows, reports and offsets, parcels.
#![no_main]

use std::fmt::Debug;

use bytes::{BufMut, Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use whimbrel_common::wire::{self, MAX_VARINT, WireError};
use whimbrel_fuzz::Input;

#[path = "frames/flow.rs"]
mod flow;
#[path = "frames/hostile.rs"]
mod hostile;

fuzz_target!(init: whimbrel_fuzz::seeds::plant("frames"), |bytes: &[u8]| {
    let mut input = Input::new(bytes);
    match input.byte() % 8 {
        0 => check_decoder(&mut input, wire::MAX_CONTROL_BODY, wire::decode_control, |frame, out| {
            wire::encode_control(frame, out);
        }),
        1 => check_decoder(&mut input, wire::MAX_FLOW_BODY, wire::decode_header, |head, out| {
            wire::encode_header(head, out);
        }),
        2 => check_decoder(&mut input, wire::MAX_FLOW_BODY, wire::decode_answer, |answer, out| {
            wire::encode_answer(answer, out);
        }),
        3 => check_varint(&mut input),
        4 => hostile::check(&mut input),
        5 => check_decoder(&mut input, wire::MAX_PARCEL, wire::take_parcel, |parcel, out| {
            wire::put_parcel(parcel, out);
        }),
        6 => check_parcel(&mut input),
        _ => flow::check(&mut input),
    }
});

type Decoded<T> = (Vec<T>, Option<WireError>);

/// However the bytes are cut on their way, the same frames come out, and each is read back from
/// what is written for it.
fn check_decoder<T: PartialEq + Debug>(
    input: &mut Input<'_>,
    limit: usize,
    decode: impl Fn(&mut BytesMut) -> Result<Option<T>, WireError>,
    encode: impl Fn(&T, &mut BytesMut),
) {
    let cuts: [usize; 4] = std::array::from_fn(|_| 1 + usize::from(input.byte()));
    let bytes = input.rest();
    let whole = decode_pieces(&[bytes], limit, &decode);
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*cut).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    assert_eq!(decode_pieces(&pieces, limit, &decode), whole);
    for frame in &whole.0 {
        let mut out = BytesMut::new();
        encode(frame, &mut out);
        match decode(&mut out) {
            Ok(Some(again)) => assert_eq!(again, *frame),
            other => panic!("{frame:?} is read back as {other:?}"),
        }
        assert!(out.is_empty(), "{frame:?} leaves {out:?}");
    }
}

fn decode_pieces<T>(
    pieces: &[&[u8]],
    limit: usize,
    decode: impl Fn(&mut BytesMut) -> Result<Option<T>, WireError>,
) -> Decoded<T> {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.put_slice(piece);
        loop {
            match decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(buffer.len() < limit + 16, "an incomplete frame of {} bytes", buffer.len());
    }
    (frames, None)
}

/// A parcel is what its datagram holds, and is read back from what is written for it.
fn check_parcel(input: &mut Input<'_>) {
    let bytes = Bytes::copy_from_slice(input.rest());
    let Ok(Some(parcel)) = wire::decode_parcel(bytes) else { return };
    let again = wire::decode_parcel(wire::encode_parcel(&parcel));
    assert_eq!(again, Ok(Some(parcel)));
}

fn check_varint(input: &mut Input<'_>) {
    let value = input.long();
    let mut out = BytesMut::new();
    wire::encode_varint(value, &mut out);
    for length in 0..out.len() {
        let mut part = &out[..length];
        assert_eq!(wire::decode_varint(&mut part), None);
        assert_eq!(part.len(), length, "nothing is taken of half a number");
    }
    assert_eq!(wire::decode_varint(&mut out), Some(value.min(MAX_VARINT)));
    assert!(out.is_empty());
    let mut rest = input.rest();
    while let Some(value) = wire::decode_varint(&mut rest) {
        assert!(value <= MAX_VARINT);
    }
    assert!(rest.len() < 8);
}
