use proptest::prelude::*;

use super::*;

fn remote(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn echo(association: u64, remote: &str, sequence: u16) -> Echo {
    Echo { association: Association(association), remote: remote.parse().unwrap(), sequence }
}

fn parcels() -> Vec<Parcel> {
    let (v4, v6) = (remote("192.0.2.1:443"), remote("[2001:db8::1]:53"));
    let (echo4, echo6) = (echo(4, "192.0.2.1", 7), echo(1 << 40, "2001:db8::1", 65_535));
    vec![
        Parcel::Datagram {
            association: Association(1),
            remote: v4,
            payload: Bytes::from_static(b"question"),
        },
        Parcel::Datagram { association: Association(70_000), remote: v6, payload: Bytes::new() },
        Parcel::Unreachable { association: Association(2), remote: v6, reason: Undelivered::Port },
        Parcel::Renew { association: Association(3), remote: v4 },
        Parcel::Echo { echo: echo4, hops: 64, payload: Bytes::from_static(b"ping") },
        Parcel::Echo { echo: echo6, hops: 0, payload: Bytes::new() },
        Parcel::EchoFailed { echo: echo4, by: v4.ip(), reason: Undelivered::Host },
        Parcel::EchoFailed { echo: echo6, by: v6.ip(), reason: Undelivered::Expired },
    ]
}

#[test]
fn parcels_come_back_as_they_went() {
    for parcel in parcels() {
        assert_eq!(decode_parcel(encode_parcel(&parcel)), Ok(Some(parcel)));
    }
}

#[test]
fn a_datagram_has_these_bytes() {
    let bytes = encode_datagram(Association(5), remote("192.0.2.1:443"), b"?");
    assert_eq!(bytes[..], [0, 5, 4, 192, 0, 2, 1, 1, 187, b'?']);
}

#[test]
fn an_echo_has_these_bytes() {
    let bytes = encode_echo(echo(5, "192.0.2.1", 258), 63, b"!");
    assert_eq!(bytes[..], [3, 5, 4, 192, 0, 2, 1, 1, 2, 63, b'!']);
    let failed = Parcel::EchoFailed {
        echo: echo(5, "192.0.2.1", 258),
        by: "198.51.100.1".parse().unwrap(),
        reason: Undelivered::Expired,
    };
    let bytes = encode_parcel(&failed);
    assert_eq!(bytes[..], [4, 5, 4, 192, 0, 2, 1, 1, 2, 4, 198, 51, 100, 1, 4]);
}

#[test]
fn every_reason_comes_back_and_an_unknown_one_is_a_network_that_does_not_deliver() {
    for reason in Undelivered::ALL {
        assert_eq!(Undelivered::from_code(reason.code()), reason);
    }
    assert_eq!(Undelivered::from_code(999), Undelivered::Network);
}

#[test]
fn a_kind_of_a_later_version_is_lost_like_any_other_parcel() {
    assert_eq!(decode_parcel(Bytes::from_static(&[0x3e, 1, 2, 3])), Ok(None));
}

#[test]
fn what_is_cut_short_or_too_long_is_malformed() {
    assert!(decode_parcel(Bytes::new()).is_err());
    for parcel in parcels() {
        let whole = encode_parcel(&parcel);
        let payload = match &parcel {
            Parcel::Datagram { payload, .. } | Parcel::Echo { payload, .. } => payload.len(),
            Parcel::Unreachable { .. } | Parcel::Renew { .. } | Parcel::EchoFailed { .. } => {
                let mut longer = BytesMut::from(&whole[..]);
                longer.put_u8(0);
                assert!(decode_parcel(longer.freeze()).is_err(), "{parcel:?}");
                0
            }
        };
        for length in 0..whole.len() - payload {
            assert!(decode_parcel(whole.slice(..length)).is_err(), "{parcel:?} of {length}");
        }
    }
}

#[test]
fn parcels_on_a_stream_come_back_byte_by_byte() {
    let mut sent = BytesMut::new();
    parcels().iter().for_each(|parcel| put_parcel(&encode_parcel(parcel), &mut sent));
    let (mut input, mut received) = (BytesMut::new(), Vec::new());
    for byte in sent {
        input.put_u8(byte);
        while let Some(bytes) = take_parcel(&mut input).unwrap() {
            received.push(decode_parcel(bytes).unwrap().unwrap());
        }
    }
    assert_eq!(received, parcels());
    assert!(input.is_empty());
}

#[test]
fn a_length_beyond_any_parcel_is_refused_before_it_is_waited_for() {
    let mut input = BytesMut::new();
    encode_varint(MAX_PARCEL as u64 + 1, &mut input);
    assert!(matches!(take_parcel(&mut input), Err(WireError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn garbage_is_told_apart_without_a_panic(bytes: Vec<u8>) {
        if let Ok(Some(parcel)) = decode_parcel(Bytes::from(bytes.clone())) {
            prop_assert_eq!(decode_parcel(encode_parcel(&parcel)), Ok(Some(parcel)));
        }
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = take_parcel(&mut input) {}
    }

    #[test]
    fn any_datagram_comes_back(
        association in 0..=super::super::MAX_VARINT,
        ip: IpAddr,
        port: u16,
        payload: Vec<u8>,
    ) {
        let parcel = Parcel::Datagram {
            association: Association(association),
            remote: SocketAddr::new(ip, port),
            payload: payload.into(),
        };
        prop_assert_eq!(decode_parcel(encode_parcel(&parcel)), Ok(Some(parcel)));
    }
}
