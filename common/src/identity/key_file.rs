//! The text of a key file: one line, a version word and the seed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const VERSION: &str = "whimbrel-key-1";

/// Why a text is no key file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Nothing in it.
    #[error("the key file is empty")]
    Empty,
    /// It does not start with the version word.
    #[error("not a Whimbrel key file: it must be one line starting with \"whimbrel-key-1\"")]
    Version,
    /// The secret is not 32 bytes of base64.
    #[error("the key in the file is damaged: it must be 43 characters, A-Z a-z 0-9 - and _")]
    Damaged,
    /// Something follows the first line.
    #[error("the key file has more than one line")]
    Trailing,
}

pub(super) fn format(seed: &[u8; 32]) -> String {
    format!("{VERSION} {}\n", URL_SAFE_NO_PAD.encode(seed))
}

pub(super) fn parse(text: &str) -> Result<[u8; 32], KeyFileError> {
    let text = text.trim_end();
    if text.is_empty() {
        return Err(KeyFileError::Empty);
    }
    let secret = text.strip_prefix(VERSION).ok_or(KeyFileError::Version)?;
    let secret = secret.strip_prefix(' ').ok_or(KeyFileError::Version)?;
    if secret.contains('\n') {
        return Err(KeyFileError::Trailing);
    }
    let bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| KeyFileError::Damaged)?;
    bytes.try_into().map_err(|_| KeyFileError::Damaged)
}
