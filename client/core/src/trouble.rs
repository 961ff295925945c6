//! Why the gateway does not carry anything, as kinds that ask for different remedies.

use std::fmt;
use std::str::FromStr;

/// What stands between this client and its gateway.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Trouble {
    /// The gateway's name leads to no address.
    NameUnknown,
    /// No link has an address of the gateway's family.
    NoFamily,
    /// Nothing answers at the gateway's address.
    Unreachable,
    /// This machine's own firewall lets nothing out to it.
    Forbidden,
    /// What answers is no Whimbrel gateway.
    NotOurs,
    /// What answers has another key than the configuration names.
    WrongKey,
    /// The gateway has revoked this client, or never knew it.
    Revoked,
    /// The two ends speak different versions.
    Version,
    /// The gateway has reached a limit.
    Busy,
    /// Anything else.
    Other,
}

impl Trouble {
    const NAMES: [(Self, &str); 10] = [
        (Self::NameUnknown, "name-unknown"),
        (Self::NoFamily, "no-family"),
        (Self::Unreachable, "unreachable"),
        (Self::Forbidden, "forbidden"),
        (Self::NotOurs, "not-ours"),
        (Self::WrongKey, "wrong-key"),
        (Self::Revoked, "revoked"),
        (Self::Version, "version"),
        (Self::Busy, "busy"),
        (Self::Other, "other"),
    ];
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(trouble, _)| trouble == self);
        f.pad(named.map_or("other", |(_, name)| name))
    }
}

impl FromStr for Trouble {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::NAMES.iter().find(|(_, name)| *name == text).map(|(trouble, _)| *trouble).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for (trouble, name) in Trouble::NAMES {
            assert_eq!(trouble.to_string(), name);
            assert_eq!(name.parse(), Ok(trouble));
        }
        assert_eq!("".parse::<Trouble>(), Err(()));
    }
}
