use proptest::prelude::*;

use super::*;

fn control_frames() -> Vec<Control> {
    let session = SessionId([7; 16]);
    vec![
        Control::Hello { version: VERSION, capabilities: 0 },
        Control::Enrol { token: [9; 16] },
        Control::Attach { session: None, epoch: 1 },
        Control::Attach { session: Some(session), epoch: 300 },
        Control::Attached { session, epoch: 2, hold: 86_400, flows: 20_000 },
        Control::Enrolled { name: "laptop".into() },
        Control::Denied { reason: Denial::Revoked },
        Control::Taken(vec![
            Taken { flow: WireFlow(1), offset: 70_000, limit: 140_000, fin: false },
            Taken { flow: WireFlow(2), offset: 5, limit: 5, fin: true },
        ]),
        Control::Holding { flows: vec![WireFlow(1), WireFlow(70_000)], last: false },
        Control::Holding { flows: Vec::new(), last: true },
        Control::Over(vec![WireFlow(3), WireFlow(90)]),
        Control::Limited(Limit::Memory),
        Control::Park,
    ]
}

#[test]
fn control_frames_come_back_as_they_went_even_byte_by_byte() {
    let mut sent = BytesMut::new();
    control_frames().iter().for_each(|frame| encode_control(frame, &mut sent));
    let (mut input, mut received) = (BytesMut::new(), Vec::new());
    for byte in sent {
        input.put_u8(byte);
        while let Some(frame) = decode_control(&mut input).unwrap() {
            received.push(frame);
        }
    }
    assert_eq!(received, control_frames());
    assert!(input.is_empty());
}

#[test]
fn an_older_gateway_skips_the_wish_to_be_parked() {
    let mut bytes = BytesMut::new();
    encode_control(&Control::Park, &mut bytes);
    assert_eq!(&bytes[..], [0x11, 0], "an odd type, which is optional");
}

#[test]
fn an_older_client_skips_what_is_over() {
    let mut bytes = BytesMut::new();
    encode_control(&Control::Over(vec![WireFlow(5)]), &mut bytes);
    assert_eq!(&bytes[..], [0x13, 1, 5], "an odd type, which is optional");
}

#[test]
fn limits_are_told_in_passing() {
    let mut bytes = BytesMut::new();
    encode_control(&Control::Limited(Limit::Bandwidth), &mut bytes);
    assert_eq!(&bytes[..], [0x15, 1, 2], "an odd type, which is optional");
    // One that we do not know, and what comes after it.
    let mut bytes = BytesMut::from(&[0x15, 1, 60, 0x11, 0][..]);
    assert_eq!(decode_control(&mut bytes), Ok(Some(Control::Park)));
}

#[test]
fn flow_headers_and_answers_come_back_as_they_went() {
    let headers = [
        FlowHeader::Open {
            flow: WireFlow(4),
            destination: "[2001:db8::1]:443".parse().unwrap(),
            limit: 65_536,
        },
        FlowHeader::Open {
            flow: WireFlow(5),
            destination: "192.0.2.1:22".parse().unwrap(),
            limit: 1,
        },
        FlowHeader::Resume {
            flow: WireFlow(6),
            epoch: 2,
            taken: 10,
            fin_taken: true,
            offset: 3,
            limit: 99,
        },
        FlowHeader::Parcels,
    ];
    for header in headers {
        let mut bytes = BytesMut::new();
        encode_header(&header, &mut bytes);
        bytes.put_slice(b"data");
        assert_eq!(decode_header(&mut bytes), Ok(Some(header)));
        assert_eq!(&bytes[..], b"data");
    }
    let answers = [
        FlowAnswer::Opened { limit: 65_536 },
        FlowAnswer::Refused { reason: RefuseReason::Denied },
        FlowAnswer::Resumed { taken: 1, fin_taken: false, offset: 2, limit: 3, repeated: 4 },
        FlowAnswer::NeverSeen,
        FlowAnswer::Gone,
    ];
    for answer in answers {
        let mut bytes = BytesMut::new();
        encode_answer(&answer, &mut bytes);
        assert_eq!(decode_answer(&mut bytes), Ok(Some(answer)));
    }
}

#[test]
fn wire_bytes_are_stable() {
    let mut bytes = BytesMut::new();
    encode_control(&Control::Hello { version: 1, capabilities: 0 }, &mut bytes);
    let destination = "192.0.2.1:443".parse().unwrap();
    encode_header(&FlowHeader::Open { flow: WireFlow(1), destination, limit: 65_536 }, &mut bytes);
    encode_answer(&FlowAnswer::Refused { reason: RefuseReason::Refused }, &mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "00020100200c018001000004c000020101bb260100");
}

#[test]
fn unknown_optional_frames_are_skipped_and_required_ones_refused() {
    let mut bytes = BytesMut::new();
    put_frame(0x7f, b"whatever", &mut bytes);
    let after = Control::Enrol { token: [1; 16] };
    encode_control(&after, &mut bytes);
    assert_eq!(decode_control(&mut bytes), Ok(Some(after)));
    put_frame(0x7e, b"whatever", &mut bytes);
    assert_eq!(decode_control(&mut bytes), Err(WireError::UnknownFrame(0x7e)));
}

#[test]
fn oversized_and_malformed_frames_are_refused() {
    let mut bytes = BytesMut::new();
    encode_varint(kind::TAKEN, &mut bytes);
    encode_varint(1 << 40, &mut bytes);
    assert!(matches!(decode_control(&mut bytes), Err(WireError::TooLarge { .. })));
    let mut bytes = BytesMut::new();
    put_frame(kind::ENROL, b"x", &mut bytes);
    assert_eq!(decode_control(&mut bytes), Err(WireError::Malformed(kind::ENROL)));
    let mut bytes = BytesMut::new();
    put_frame(kind::OPEN, &[1, 1, 5, 0, 0], &mut bytes);
    assert_eq!(decode_header(&mut bytes), Err(WireError::Malformed(kind::OPEN)));
}

proptest! {
    #[test]
    fn varints_come_back_as_they_went(value in 0..=MAX_VARINT) {
        let mut bytes = BytesMut::new();
        encode_varint(value, &mut bytes);
        prop_assert_eq!(decode_varint(&mut bytes), Some(value));
        prop_assert!(bytes.is_empty());
    }

    #[test]
    fn any_bytes_are_decoded_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut control = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decode_control(&mut control) {}
        let _ = decode_header(&mut BytesMut::from(&bytes[..]));
        let _ = decode_answer(&mut BytesMut::from(&bytes[..]));
    }
}
