//! Address ranges as people write them: `10.0.0.0/8`, `fd00::/8`, or a single address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses of one family: every address that shares the first `prefix` bits.
///
/// The host bits of `address` are always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The range of `prefix` bits around `address`; host bits are cleared.
    ///
    /// # Errors
    /// A prefix longer than the address: 32 bits for IPv4, 128 for IPv6.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let longest = bits(address);
        if prefix > longest {
            return Err(CidrError::PrefixTooLong { prefix, longest });
        }
        Ok(Self { address: mask(address, prefix), prefix })
    }

    /// The range that holds `address` alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, prefix: bits(address) }
    }

    /// The first address of the range.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Leading bits that members share: 0..=32 for IPv4, 0..=128 for IPv6.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in the range. An address of the other family never is, not even
    /// an IPv4-mapped one: unmap first where that is meant.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.prefix) == self.address
    }
}

/// The most specific range that holds `address`, if any does.
#[must_use]
pub fn longest_match(ranges: &[Cidr], address: IpAddr) -> Option<Cidr> {
    ranges.iter().filter(|range| range.contains(address)).max_by_key(|range| range.prefix).copied()
}

/// Why a text is no address range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CidrError {
    /// The part before the slash is no address.
    #[error("\"{0}\" is not an IPv4 or IPv6 address")]
    Address(String),
    /// The part after the slash is no number.
    #[error("\"{0}\" is not a prefix length: write a number of bits, as in 10.0.0.0/8")]
    Prefix(String),
    /// More bits than the address has.
    #[error("prefix length {prefix} is too long: at most {longest} bits")]
    PrefixTooLong {
        /// What was found.
        prefix: u8,
        /// The most this family allows.
        longest: u8,
    },
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| CidrError::Address(address.to_owned()))?;
        match prefix {
            None => Ok(Self::host(address)),
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                let prefix = digits.parse().map_err(|_| CidrError::Prefix(digits.to_owned()))?;
                Self::new(address, prefix)
            }
            Some(other) => Err(CidrError::Prefix(other.to_owned())),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let kept = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & kept).into()
        }
        IpAddr::V6(v6) => {
            let kept = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & kept).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn text_survives_a_round_trip() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "::/0", "fd00::/8", "::1/128"] {
            assert_eq!(range(text).to_string(), text);
        }
    }

    #[test]
    fn host_bits_are_cleared_and_a_bare_address_is_one_host() {
        assert_eq!(range("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(range("10.1.2.3").to_string(), "10.1.2.3/32");
        assert_eq!(range("fd00::1").to_string(), "fd00::1/128");
    }

    #[test]
    fn families_never_match_each_other() {
        assert!(!range("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(!range("::/0").contains("127.0.0.1".parse().unwrap()));
        assert!(range("::/0").contains("::ffff:127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn longest_match_prefers_the_most_specific_range() {
        let ranges = [range("10.0.0.0/8"), range("10.1.0.0/16"), range("0.0.0.0/0")];
        let pick = |address: &str| longest_match(&ranges, address.parse().unwrap());
        assert_eq!(pick("10.1.2.3"), Some(range("10.1.0.0/16")));
        assert_eq!(pick("10.2.2.3"), Some(range("10.0.0.0/8")));
        assert_eq!(pick("192.0.2.1"), Some(range("0.0.0.0/0")));
        assert_eq!(pick("2001:db8::1"), None);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(error("ten/8"), "\"ten\" is not an IPv4 or IPv6 address");
        assert_eq!(error("10.0.0.0/33"), "prefix length 33 is too long: at most 32 bits");
        assert_eq!(
            error("10.0.0.0/+8"),
            "\"+8\" is not a prefix length: write a number of bits, as in 10.0.0.0/8"
        );
        assert_eq!(
            error("10.0.0.0/"),
            "\"\" is not a prefix length: write a number of bits, as in 10.0.0.0/8"
        );
    }
}
