use super::*;

/// RFC 8032 §7.1, test 1.
const SEED: [u8; 32] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
const PUBLIC: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

#[test]
fn public_key_is_the_one_of_the_rfc() {
    assert_eq!(*SecretKey::from_seed(SEED).public().as_bytes(), PUBLIC);
}

#[test]
fn public_key_text_survives_a_round_trip() {
    let key = PublicKey::from_bytes(PUBLIC);
    let text = key.to_string();
    assert_eq!(text.len(), 43);
    assert_eq!(text.parse(), Ok(key));
    assert_eq!(PublicKey::from_spki(&key.to_spki()), Some(key));
}

#[test]
fn near_keys_are_refused() {
    let text = PublicKey::from_bytes(PUBLIC).to_string();
    assert_eq!(text[1..].parse::<PublicKey>(), Err(PublicKeyError));
    assert_eq!(format!("{text}A").parse::<PublicKey>(), Err(PublicKeyError));
    assert_eq!(format!("{text}=").parse::<PublicKey>(), Err(PublicKeyError));
    assert_eq!("".parse::<PublicKey>(), Err(PublicKeyError));
    assert_eq!(PublicKey::from_spki(&PUBLIC), None);
    assert_eq!(PublicKey::from_spki(&[]), None);
}

#[test]
fn pkcs8_is_what_ring_reads() {
    let der = SecretKey::from_seed(SEED).to_pkcs8();
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).unwrap();
    assert_eq!(pair.public_key().as_ref(), PUBLIC);
}

#[test]
fn debug_never_shows_the_secret() {
    let shown = format!("{:?}", SecretKey::from_seed(SEED));
    assert_eq!(shown, format!("SecretKey(of {})", PublicKey::from_bytes(PUBLIC)));
}

#[test]
fn key_file_survives_a_round_trip() {
    let text = SecretKey::from_seed(SEED).to_key_file();
    assert_eq!(text, "whimbrel-key-1 nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A\n");
    assert_eq!(*SecretKey::from_key_file(&text).unwrap().seed(), SEED);
}

#[test]
fn key_file_errors_say_what_is_wrong_without_quoting_it() {
    let error = |text: &str| SecretKey::from_key_file(text).unwrap_err();
    assert_eq!(error(""), KeyFileError::Empty);
    assert_eq!(error("\n\n"), KeyFileError::Empty);
    assert_eq!(error("-----BEGIN PRIVATE KEY-----"), KeyFileError::Version);
    assert_eq!(error("whimbrel-key-2 nWGx"), KeyFileError::Version);
    assert_eq!(error("whimbrel-key-1 nWGx"), KeyFileError::Damaged);
    assert_eq!(
        error("whimbrel-key-1 nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A\nmore"),
        KeyFileError::Trailing
    );
}

#[test]
fn client_names_are_safe_everywhere() {
    for text in ["laptop", "a", "Anna.s-laptop_2", &"x".repeat(64)] {
        assert_eq!(text.parse::<ClientName>().unwrap().as_str(), text);
    }
    for text in ["", "-x", ".x", "a b", "a/b", "a\n", "ü", &"x".repeat(65)] {
        assert!(text.parse::<ClientName>().is_err(), "{text:?}");
    }
}
