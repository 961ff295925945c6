//! Where clients may connect to: the Internet, not the gateway or its own networks.
//!
//! The rule with the longest prefix decides. Among rules of one length, `deny` of the
//! configuration comes first, then its `allow`, then the defaults below. An IPv6 address that
//! embeds an IPv4 one (mapped, NAT64, 6to4, Teredo) must pass for both. Port 25 is always denied.
//!
//! The caller resolves, checks, and connects to exactly the address that it checked.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use whimbrel_common::cidr::{Cidr, longest_match};
use whimbrel_common::config::Egress;

/// The destination policy of one gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
    own: Vec<IpAddr>,
}

/// A destination that clients may not reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{destination} is denied: {reason}")]
pub struct Denied {
    /// What the client asked for.
    pub destination: SocketAddr,
    /// Why not.
    pub reason: Reason,
}

/// Why a destination is denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// 127.0.0.0/8, `::1`.
    Loopback,
    /// RFC 1918, unique local (RFC 4193) and the former site-local addresses.
    Private,
    /// 100.64.0.0/10 (RFC 6598).
    CarrierNat,
    /// 169.254.0.0/16, fe80::/10: also where clouds serve their metadata.
    LinkLocal,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 198.18.0.0/15 (RFC 2544), 2001:2::/48 (RFC 5180).
    Benchmark,
    /// Unassigned, documentation and special-purpose ranges (RFC 6890 and its registries).
    Reserved,
    /// An address of the gateway.
    OwnAddress,
    /// Port 25: mail between servers, the usual reason why a gateway ends on block lists.
    Mail,
    /// A range in `egress.deny`.
    Rule(Cidr),
}

impl Policy {
    /// The policy of a configuration. Tell it the gateway's addresses with [`Policy::set_own`].
    #[must_use]
    pub fn new(egress: &Egress) -> Self {
        Self { allow: egress.allow.clone(), deny: egress.deny.clone(), own: Vec::new() }
    }

    /// Changes what a configuration says; the gateway's addresses stay.
    pub fn reconfigure(&mut self, egress: &Egress) {
        self.allow.clone_from(&egress.allow);
        self.deny.clone_from(&egress.deny);
    }

    /// Replaces the gateway's own addresses: those of its interfaces, and its public one where
    /// that belongs to a NAT in front of it.
    pub fn set_own(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.own = addresses.into_iter().map(|address| address.to_canonical()).collect();
        self.own.sort_unstable();
        self.own.dedup();
    }

    /// Whether a client may connect to `destination`.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn check(&self, destination: SocketAddr) -> Result<(), Denied> {
        let denied = |reason| Denied { destination, reason };
        if destination.port() == 25 {
            return Err(denied(Reason::Mail));
        }
        let address = destination.ip().to_canonical();
        self.check_address(address).map_err(denied)?;
        if let IpAddr::V6(v6) = address {
            for embedded in embedded(v6).into_iter().flatten() {
                self.check_address(embedded.into()).map_err(denied)?;
            }
        }
        Ok(())
    }

    fn check_address(&self, address: IpAddr) -> Result<(), Reason> {
        let allow = longest_match(&self.allow, address);
        let deny = longest_match(&self.deny, address);
        // `None` is below every prefix, so a missing rule never wins.
        let length = |rule: Option<Cidr>| rule.map(|range| range.prefix());
        if let Some(rule) = deny.filter(|_| length(deny) >= length(allow)) {
            return Err(Reason::Rule(rule));
        }
        match self.default_denial(address) {
            Some((range, reason)) if length(allow) < Some(range.prefix()) => Err(reason),
            Some(_) | None => Ok(()),
        }
    }

    /// The most specific default rule against `address`.
    fn default_denial(&self, address: IpAddr) -> Option<(Cidr, Reason)> {
        if self.own.binary_search(&address).is_ok() {
            return Some((Cidr::host(address), Reason::OwnAddress));
        }
        match address {
            IpAddr::V4(_) => most_specific(DENIED_V4, address),
            // What is behind NAT64 is decided by the IPv4 address it embeds.
            IpAddr::V6(v6) if nat64(v6).is_some() => None,
            IpAddr::V6(_) => most_specific(DENIED_V6, address),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("a loopback address"),
            Self::Private => f.write_str("a private address"),
            Self::CarrierNat => f.write_str("a carrier-grade NAT address"),
            Self::LinkLocal => f.write_str("a link-local or metadata address"),
            Self::Multicast => f.write_str("a multicast address"),
            Self::Benchmark => f.write_str("a benchmarking address"),
            Self::Reserved => f.write_str("a reserved address"),
            Self::OwnAddress => f.write_str("an address of the gateway itself"),
            Self::Mail => f.write_str("port 25, mail between servers"),
            Self::Rule(range) => write!(f, "egress.deny has {range}"),
        }
    }
}

/// First address, prefix length and reason. From the IANA special-purpose registries for IPv4
/// and IPv6, entries that are not globally reachable.
type Range<A> = (A, u8, Reason);

const DENIED_V4: &[Range<Ipv4Addr>] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, Reason::Reserved),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Reason::Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, Reason::CarrierNat),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Reason::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, Reason::LinkLocal),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Reason::Private),
    (Ipv4Addr::new(192, 0, 0, 0), 24, Reason::Reserved),
    (Ipv4Addr::new(192, 0, 2, 0), 24, Reason::Reserved),
    (Ipv4Addr::new(192, 88, 99, 0), 24, Reason::Reserved),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Reason::Private),
    (Ipv4Addr::new(198, 18, 0, 0), 15, Reason::Benchmark),
    (Ipv4Addr::new(198, 51, 100, 0), 24, Reason::Reserved),
    (Ipv4Addr::new(203, 0, 113, 0), 24, Reason::Reserved),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Reason::Multicast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Reason::Reserved),
];

/// Global unicast is 2000::/3 (RFC 4291 §2.4 and the IANA registry of allocations); the first
/// ranges are everything else.
const DENIED_V6: &[Range<Ipv6Addr>] = &[
    (v6(0, 0, 0, 0), 3, Reason::Reserved),
    (v6(0x4000, 0, 0, 0), 2, Reason::Reserved),
    (v6(0x8000, 0, 0, 0), 1, Reason::Reserved),
    (Ipv6Addr::LOCALHOST, 128, Reason::Loopback),
    (v6(0x2001, 0, 0, 0), 23, Reason::Reserved),
    (v6(0x2001, 2, 0, 0), 48, Reason::Benchmark),
    (v6(0x2001, 0xdb8, 0, 0), 32, Reason::Reserved),
    (v6(0x3fff, 0, 0, 0), 20, Reason::Reserved),
    (v6(0xfc00, 0, 0, 0), 7, Reason::Private),
    (v6(0xfe80, 0, 0, 0), 10, Reason::LinkLocal),
    (v6(0xfec0, 0, 0, 0), 10, Reason::Private),
    (v6(0xff00, 0, 0, 0), 8, Reason::Multicast),
];

const fn v6(a: u16, b: u16, c: u16, d: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)
}

fn most_specific<A: Copy + Into<IpAddr>>(
    ranges: &[Range<A>],
    address: IpAddr,
) -> Option<(Cidr, Reason)> {
    ranges
        .iter()
        .filter_map(|&(first, prefix, reason)| {
            let range = Cidr::new(first.into(), prefix).ok()?;
            range.contains(address).then_some((range, reason))
        })
        .max_by_key(|(range, _)| range.prefix())
}

/// The IPv4 addresses that packets to `address` may end at.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let bits = address.octets();
    let at = |i: usize| Ipv4Addr::new(bits[i], bits[i + 1], bits[i + 2], bits[i + 3]);
    match address.segments() {
        // Teredo (RFC 4380 §4): the server, and the client with every bit inverted.
        [0x2001, 0, ..] => [Some(at(4)), Some(Ipv4Addr::from_bits(!at(12).to_bits()))],
        // 6to4 (RFC 3056 §2).
        [0x2002, ..] => [Some(at(2)), None],
        // IPv4-compatible (RFC 4291 §2.5.5.1); mapped ones are IPv4 before they come here.
        [0, 0, 0, 0, 0, 0, ..] => [Some(at(12)), None],
        _ => [nat64(address), None],
    }
}

/// The IPv4 address behind the well-known NAT64 prefix (RFC 6052 §2.1).
fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() else { return None };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}
