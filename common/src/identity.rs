//! Who is who: Ed25519 keys (RFC 8032) used as TLS raw public keys (RFC 7250), and the names
//! a gateway knows its clients by.

mod key_file;
mod name;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

pub use key_file::KeyFileError;
pub use name::{ClientName, NameError};

use crate::units::serde_as_text;

/// An Ed25519 public key. Written as 43 characters of URL-safe base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// An Ed25519 private key: its 32-byte seed. Never shown; overwritten when dropped.
pub struct SecretKey([u8; 32]);

/// DER of `SubjectPublicKeyInfo` around an Ed25519 key, up to the key itself (RFC 8410 §4).
const SPKI_HEAD: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// DER of a version 1 `PrivateKeyInfo` around an Ed25519 seed, up to the seed (RFC 8410 §7).
const PKCS8_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

impl PublicKey {
    /// The key with these bytes. Any 32 bytes are taken; an invalid point verifies nothing.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key as the `SubjectPublicKeyInfo` that TLS raw public keys carry (RFC 8410 §4).
    #[must_use]
    pub fn to_spki(&self) -> [u8; 44] {
        joined(&SPKI_HEAD, &self.0)
    }

    /// The key inside a `SubjectPublicKeyInfo`; nothing if that is not exactly an Ed25519 one.
    #[must_use]
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let key = der.strip_prefix(&SPKI_HEAD)?;
        key.try_into().ok().map(Self)
    }
}

impl SecretKey {
    /// The key with this seed. Give 32 bytes from the system's random source.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(seed)
    }

    /// The 32 bytes of the seed.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.0)
            .expect("every 32-byte seed is an Ed25519 key");
        let mut bytes = [0; 32];
        bytes.copy_from_slice(pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The key as PKCS #8 version 1 (RFC 8410 §7), the form TLS libraries load.
    #[must_use]
    pub fn to_pkcs8(&self) -> [u8; 48] {
        joined(&PKCS8_HEAD, &self.0)
    }

    /// The text of a key file: one line, `whimbrel-key-1` and the seed.
    #[must_use]
    pub fn to_key_file(&self) -> String {
        key_file::format(&self.0)
    }

    /// Reads the text of a key file.
    ///
    /// # Errors
    /// Anything but one line as [`SecretKey::to_key_file`] writes it. The error never quotes
    /// what it found: it may be most of a secret.
    pub fn from_key_file(text: &str) -> Result<Self, KeyFileError> {
        key_file::parse(text).map(Self)
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the write above: without a reader the optimiser may drop it.
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A text that is no public key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a public key: a key is 43 characters, A-Z a-z 0-9 - and _")]
pub struct PublicKeyError;

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| PublicKeyError)?;
        bytes.try_into().map(Self).map_err(|_| PublicKeyError)
    }
}

serde_as_text!(PublicKey);

fn joined<const HEAD: usize, const WHOLE: usize>(head: &[u8; HEAD], key: &[u8; 32]) -> [u8; WHOLE] {
    const { assert!(HEAD + 32 == WHOLE) };
    let mut whole = [0; WHOLE];
    whole[..HEAD].copy_from_slice(head);
    whole[HEAD..].copy_from_slice(key);
    whole
}
