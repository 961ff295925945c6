//! Network address and port translation, as a home router or a mobile carrier does it:
//! endpoint-independent mapping, address-and-port-dependent filtering (RFC 4787 §4, §5).

use super::packet::{self, End, Headers, ICMP, ICMPV6, TCP};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long an unused mapping lives.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    /// UDP; the default is 120 s, what Linux gives a flow with traffic both ways.
    pub udp: Duration,
    /// TCP; the default is 2 h, close to the minimum of RFC 5382 §5.
    pub tcp: Duration,
    /// ICMP echo; the default is 30 s, as Linux has it.
    pub echo: Duration,
}

impl Default for Expiry {
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(120),
            tcp: Duration::from_secs(2 * 3600),
            echo: Duration::from_secs(30),
        }
    }
}

type Endpoint = (u8, IpAddr, u16);

#[derive(Debug)]
struct Mapping {
    inside: Endpoint,
    used: Instant,
    remotes: BTreeSet<(IpAddr, u16)>,
}

/// The translation table of one uplink.
#[derive(Debug)]
pub(super) struct Nat {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    expiry: Expiry,
    next_port: u16,
    outside_of: BTreeMap<Endpoint, u16>,
    mappings: BTreeMap<(u8, u16), Mapping>,
}

/// The first outside port; below it lie the ports of services.
const FIRST_PORT: u16 = 20_000;

impl Nat {
    pub(super) fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Self {
        Self {
            v4,
            v6,
            expiry: Expiry::default(),
            next_port: FIRST_PORT,
            outside_of: BTreeMap::new(),
            mappings: BTreeMap::new(),
        }
    }

    pub(super) fn set_expiry(&mut self, expiry: Expiry) {
        self.expiry = expiry;
    }

    /// Forgets every mapping; the next packets get ports that were not in use.
    pub(super) fn forget(&mut self) {
        self.outside_of.clear();
        self.mappings.clear();
    }

    /// Takes other public addresses, as after a new lease, and forgets every mapping.
    pub(super) fn move_to(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        (self.v4, self.v6) = (v4, v6);
        self.forget();
    }

    /// The number of live mappings.
    pub(super) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Rewrites a packet that leaves the uplink. `false`: it cannot be translated, drop it.
    pub(super) fn leave(&mut self, packet: &mut [u8], headers: &mut Headers, now: Instant) -> bool {
        let outside: IpAddr = match headers.source {
            IpAddr::V4(_) => match self.v4 {
                Some(address) => address.into(),
                None => return false,
            },
            IpAddr::V6(_) => match self.v6 {
                Some(address) => address.into(),
                None => return false,
            },
        };
        let (Some(port), Some(remote_port)) = (headers.source_port, headers.destination_port)
        else {
            return false;
        };
        let inside = (headers.protocol, headers.source, port);
        let outside_port = self.outside_port(inside, now);
        let key = (headers.protocol, outside_port);
        let Some(mapping) = self.mappings.get_mut(&key) else { return false };
        mapping.used = now;
        let filter = (headers.destination, filter_port(headers.protocol, remote_port));
        if !mapping.remotes.contains(&filter) {
            mapping.remotes.insert(filter);
        }
        headers.set_address(packet, End::Source, outside);
        headers.set_port(packet, End::Source, outside_port);
        true
    }

    /// Rewrites a packet that arrives for the uplink. `false`: nobody asked for it, drop it.
    pub(super) fn arrive(
        &mut self,
        packet: &mut Vec<u8>,
        headers: &mut Headers,
        now: Instant,
    ) -> bool {
        if let Some((at, quoted)) = packet::quoted(packet, headers) {
            return self.arrive_error(packet, headers, at, quoted);
        }
        let (Some(port), Some(remote_port)) = (headers.destination_port, headers.source_port)
        else {
            return false;
        };
        let key = (headers.protocol, port);
        let lifetime = self.lifetime(headers.protocol);
        let Some(mapping) = self.mappings.get_mut(&key) else { return false };
        let asked = (headers.source, filter_port(headers.protocol, remote_port));
        let fresh = now.duration_since(mapping.used) < lifetime;
        let (_, inside, inside_port) = mapping.inside;
        let same_family = inside.is_ipv4() == headers.destination.is_ipv4();
        if !fresh || !same_family || !mapping.remotes.contains(&asked) {
            return false;
        }
        mapping.used = now;
        headers.set_address(packet, End::Destination, inside);
        headers.set_port(packet, End::Destination, inside_port);
        true
    }

    /// An ICMP error belongs to whoever sent the packet it quotes (RFC 5508 §4).
    fn arrive_error(
        &self,
        packet: &mut Vec<u8>,
        headers: &Headers,
        at: usize,
        quoted: Headers,
    ) -> bool {
        let Some(port) = quoted.source_port else { return false };
        let Some(mapping) = self.mappings.get(&(quoted.protocol, port)) else { return false };
        let (_, inside, inside_port) = mapping.inside;
        if inside.is_ipv4() != headers.source.is_ipv4() {
            return false;
        }
        *packet = packet::requote(packet, headers, (at, quoted), inside, inside_port);
        true
    }

    fn outside_port(&mut self, inside: Endpoint, now: Instant) -> u16 {
        let lifetime = self.lifetime(inside.0);
        if let Some(port) = self.outside_of.get(&inside).copied() {
            let live = self
                .mappings
                .get(&(inside.0, port))
                .is_some_and(|mapping| now.duration_since(mapping.used) < lifetime);
            if live {
                return port;
            }
            self.mappings.remove(&(inside.0, port));
        }
        self.drop_expired(now);
        let port = self.free_port(inside.0);
        self.outside_of.insert(inside, port);
        let mapping = Mapping { inside, used: now, remotes: BTreeSet::new() };
        self.mappings.insert((inside.0, port), mapping);
        port
    }

    fn free_port(&mut self, protocol: u8) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.mappings.contains_key(&(protocol, port)) {
                return port;
            }
            // 45,000 ports per protocol: as long as one is free this ends; when none is, the
            // oldest mapping makes room.
            if self.mappings.len() >= usize::from(u16::MAX - FIRST_PORT) {
                self.mappings.remove(&(protocol, port));
                return port;
            }
        }
    }

    /// Sweeping is linear, so it waits until the table is worth it.
    fn drop_expired(&mut self, now: Instant) {
        const WORTH_SWEEPING: usize = 1 << 14;
        if self.mappings.len() < WORTH_SWEEPING {
            return;
        }
        let expiry = self.expiry;
        self.mappings.retain(|(protocol, _), mapping| {
            now.duration_since(mapping.used) < expiry.of(*protocol)
        });
        let mappings = &self.mappings;
        self.outside_of.retain(|(protocol, _, _), port| mappings.contains_key(&(*protocol, *port)));
    }

    fn lifetime(&self, protocol: u8) -> Duration {
        self.expiry.of(protocol)
    }
}

impl Expiry {
    fn of(&self, protocol: u8) -> Duration {
        match protocol {
            TCP => self.tcp,
            ICMP | ICMPV6 => self.echo,
            _ => self.udp,
        }
    }
}

/// Echo has one identifier and no remote port.
fn filter_port(protocol: u8, port: u16) -> u16 {
    if matches!(protocol, ICMP | ICMPV6) { 0 } else { port }
}

#[cfg(test)]
mod tests {
    use super::super::packet::build_udp;
    use super::*;

    fn udp(source: &str, destination: &str) -> (Vec<u8>, Headers) {
        let packet = build_udp(source.parse().unwrap(), destination.parse().unwrap(), b"x");
        let headers = Headers::read(&packet).unwrap();
        (packet, headers)
    }

    fn nat() -> Nat {
        Nat::new(Some("203.0.113.1".parse().unwrap()), None)
    }

    fn leave(nat: &mut Nat, source: &str, destination: &str, now: Instant) -> Option<u16> {
        let (mut packet, mut headers) = udp(source, destination);
        nat.leave(&mut packet, &mut headers, now).then(|| headers.source_port.unwrap())
    }

    fn arrive(nat: &mut Nat, source: &str, port: u16, now: Instant) -> bool {
        let (mut packet, mut headers) = udp(source, &format!("203.0.113.1:{port}"));
        nat.arrive(&mut packet, &mut headers, now)
    }

    #[test]
    fn answers_pass_and_strangers_do_not() {
        let (mut nat, now) = (nat(), Instant::now());
        let port = leave(&mut nat, "10.0.0.2:5", "192.0.2.10:443", now).unwrap();
        assert_eq!(leave(&mut nat, "10.0.0.2:5", "192.0.2.11:443", now), Some(port));
        assert!(arrive(&mut nat, "192.0.2.10:443", port, now));
        assert!(!arrive(&mut nat, "192.0.2.10:444", port, now));
        assert!(!arrive(&mut nat, "192.0.2.10:443", port + 1, now));
    }

    #[test]
    fn forgetting_gives_new_ports_and_closes_the_old() {
        let (mut nat, now) = (nat(), Instant::now());
        let port = leave(&mut nat, "10.0.0.2:5", "192.0.2.10:443", now).unwrap();
        nat.forget();
        assert!(!arrive(&mut nat, "192.0.2.10:443", port, now));
        assert_ne!(leave(&mut nat, "10.0.0.2:5", "192.0.2.10:443", now), Some(port));
    }

    #[test]
    fn an_unused_mapping_expires() {
        let (mut nat, now) = (nat(), Instant::now());
        let port = leave(&mut nat, "10.0.0.2:5", "192.0.2.10:443", now).unwrap();
        let later = now + Duration::from_secs(121);
        assert!(!arrive(&mut nat, "192.0.2.10:443", port, later));
        assert_ne!(leave(&mut nat, "10.0.0.2:5", "192.0.2.10:443", later), Some(port));
    }

    #[test]
    fn an_uplink_without_a_family_drops_it() {
        assert_eq!(leave(&mut nat(), "[fd10::2]:5", "[2001:db8::1]:443", Instant::now()), None);
    }
}
