//! The names a gateway's owner gives to clients.

use std::fmt;
use std::str::FromStr;

use crate::units::serde_as_text;

/// The name of a client at its gateway: 1 to 64 of A-Z a-z 0-9 . _ and -, not starting with a
/// dash or a dot. So it is safe on a command line, in a file and in a log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientName(String);

/// A text that is no client name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a client name: use 1 to 64 of A-Z a-z 0-9 . _ and -, starting with a letter or digit"
)]
pub struct NameError(String);

impl ClientName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !fits {
            return Err(NameError(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

serde_as_text!(ClientName);
