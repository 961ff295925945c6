//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

use crate::units::serde_as_text;

/// The name of a network interface, as Linux allows it: 1 to 15 bytes, no slash, colon or white
/// space, not `.` or `..` (`dev_valid_name` in net/core/dev.c).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InterfaceName(String);

/// A text that is no interface name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not an interface name: 1 to 15 characters without slash, colon or space")]
pub struct InterfaceNameError(String);

impl InterfaceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        let fits = (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':');
        if !fits {
            return Err(InterfaceNameError(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

serde_as_text!(InterfaceName);
