//! IPv4 addresses as a network of IPv6 alone reaches them, through its translator: found by the name
//! that has no IPv6 address of its own (RFC 7050), made as RFC 6052 says.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The name to look up; whoever translates answers with IPv6 addresses (RFC 7050 §2.2).
pub const NAME: &str = "ipv4only.arpa";

/// What [`NAME`] stands for in IPv4.
const KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The lengths a prefix may have, in octets (RFC 6052 §2.2), the longest first: a shorter one that
/// fits as well would be a coincidence.
const LENGTHS: [usize; 6] = [12, 8, 7, 6, 5, 4];

/// The octet that is zero whatever the prefix, and skipped.
const RESERVED: usize = 8;

/// A translator's prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    octets: [u8; 16],
    length: usize,
}

impl Prefix {
    /// The prefix in an IPv6 address of [`NAME`]; `None` if that is none.
    #[must_use]
    pub fn of(answer: Ipv6Addr) -> Option<Self> {
        let octets = answer.octets();
        let fits = |length: &usize| KNOWN.contains(&inside(octets, *length));
        let length = LENGTHS.into_iter().find(fits).filter(|_| octets[RESERVED] == 0)?;
        Some(Self { octets, length })
    }

    /// How the network reaches an IPv4 address.
    #[must_use]
    pub fn reach(self, address: Ipv4Addr) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..self.length].copy_from_slice(&self.octets[..self.length]);
        for (place, octet) in places(self.length).zip(address.octets()) {
            octets[place] = octet;
        }
        octets.into()
    }
}

/// Where the octets of the IPv4 address are.
fn places(length: usize) -> impl Iterator<Item = usize> {
    (length..16).filter(|place| *place != RESERVED).take(4)
}

fn inside(octets: [u8; 16], length: usize) -> Ipv4Addr {
    let mut address = [0; 4];
    for (octet, place) in address.iter_mut().zip(places(length)) {
        *octet = octets[place];
    }
    address.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6052 §2.4.
    #[test]
    fn addresses_are_made_as_the_standard_shows() {
        let address = Ipv4Addr::new(192, 0, 2, 33);
        let examples = [
            (4, "2001:db8::", "2001:db8:c000:221::"),
            (5, "2001:db8:100::", "2001:db8:1c0:2:21::"),
            (6, "2001:db8:122::", "2001:db8:122:c000:2:2100::"),
            (7, "2001:db8:122:300::", "2001:db8:122:3c0:0:221::"),
            (8, "2001:db8:122:344::", "2001:db8:122:344:c0:2:2100::"),
            (12, "2001:db8:122:344::", "2001:db8:122:344::192.0.2.33"),
            (12, "64:ff9b::", "64:ff9b::192.0.2.33"),
        ];
        for (length, prefix, expected) in examples {
            let octets = prefix.parse::<Ipv6Addr>().unwrap().octets();
            let expected: Ipv6Addr = expected.parse().unwrap();
            let prefix = Prefix { octets, length };
            assert_eq!(prefix.reach(address), expected, "{prefix:?}");
            for known in KNOWN {
                let found = Prefix::of(prefix.reach(known)).unwrap();
                assert_eq!(found.reach(address), expected, "{prefix:?} by {known}");
            }
        }
    }

    #[test]
    fn what_holds_no_known_address_is_no_prefix() {
        for answer in
            ["2001:db8::1", "::", "64:ff9b::192.0.0.172", "2001:db8:0:0:ff00::192.0.0.170"]
        {
            assert_eq!(Prefix::of(answer.parse().unwrap()), None, "{answer}");
        }
    }
}
