//! The carrier's sockets: one per uplink and address family, and the map from dead links to live
//! ones.
//!
//! A socket is bound to its interface and carries the mark that keeps it out of the capture; it
//! is never connected and no route is pinned, so nothing holds it to a dead network. The engine
//! knows a link by a stand-in address of its own, because two links may have the same address, and
//! because the answers of a steered path must not look as if they belonged to another.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::Context;

use socket2::{Domain, Protocol, Socket, Type};
use whimbrel_carrier::Transmit;
use whimbrel_carrier::udp::{Batch, Port};
use whimbrel_common::path::PathKey;

/// Every link that is up.
#[derive(Debug, Default)]
pub struct Uplinks {
    links: BTreeMap<PathKey, Uplink>,
    steered: BTreeMap<PathKey, PathKey>,
    /// How often each link got a new stand-in.
    generations: BTreeMap<PathKey, u32>,
    /// Where datagrams without a link of their own leave.
    preferred: Option<PathKey>,
    mark: u32,
}

#[derive(Debug)]
struct Uplink {
    name: String,
    families: Families,
    v4: Option<Port>,
    v6: Option<Port>,
    tx_bytes: u64,
    rx_bytes: u64,
}

/// Which families a link has addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// Sending on a link failed for good.
#[derive(Debug)]
pub struct SendFailed {
    /// The link.
    pub link: PathKey,
    /// What is wrong with it.
    pub error: io::Error,
}

impl Uplinks {
    /// No link yet. `mark` is the firewall mark of every socket; zero sets none.
    pub(crate) fn new(mark: u32) -> Self {
        Self { mark, ..Self::default() }
    }

    /// Opens the sockets of a link that came up, or of families it has gained.
    pub(crate) fn add(&mut self, link: PathKey, name: &str, families: Families) -> io::Result<()> {
        let mark = self.mark;
        let uplink = self.enter(link, name);
        if families.v4 && uplink.v4.is_none() {
            uplink.v4 = Some(open(name, Domain::IPV4, mark)?);
        }
        uplink.families.v4 = families.v4;
        if families.v6 && uplink.v6.is_none() {
            uplink.v6 = Some(open(name, Domain::IPV6, mark)?);
        }
        uplink.families.v6 = families.v6;
        if !families.v4 {
            uplink.v4 = None;
        }
        if !families.v6 {
            uplink.v6 = None;
        }
        Ok(())
    }

    /// Takes in a link without sockets: its owner carries the datagrams that [leave](Self::exit) by
    /// it, and names its [stand-in](Self::stand_in) with those that come in.
    pub fn add_bare(&mut self, link: PathKey, name: &str, families: Families) {
        self.enter(link, name).families = families;
    }

    fn enter(&mut self, link: PathKey, name: &str) -> &mut Uplink {
        self.links.entry(link).or_insert_with(|| Uplink {
            name: name.to_owned(),
            families: Families::default(),
            v4: None,
            v6: None,
            tx_bytes: 0,
            rx_bytes: 0,
        })
    }

    /// Closes the sockets of a link that went down.
    pub(crate) fn remove(&mut self, link: PathKey) {
        self.links.remove(&link);
    }

    /// Whether the link can reach an address of this family.
    pub(crate) fn reaches(&self, link: PathKey, address: IpAddr) -> bool {
        self.links.get(&link).is_some_and(|uplink| uplink.reaches(address))
    }

    /// The interface name of a link.
    pub(crate) fn name(&self, link: PathKey) -> Option<&str> {
        self.links.get(&link).map(|uplink| uplink.name.as_str())
    }

    /// Lets datagrams of `from` leave by `onto`.
    pub(crate) fn steer(&mut self, from: PathKey, onto: PathKey) {
        self.steered.insert(from, onto);
    }

    /// Undoes [`steer`](Self::steer).
    pub(crate) fn unsteer(&mut self, from: PathKey) {
        self.steered.remove(&from);
    }

    /// Forgets everything that concerned one connection.
    pub(crate) fn forget_steering(&mut self) {
        self.steered.clear();
    }

    /// The address the engine knows a link by at the moment.
    #[must_use]
    pub fn stand_in(&self, link: PathKey) -> IpAddr {
        stand_in(link, self.generations.get(&link).copied().unwrap_or(0))
    }

    /// Gives a link a new [stand-in](Self::stand_in). A path whose packets came in here has learnt
    /// the old one, and the engine would take another path from there for validated.
    pub(crate) fn renew_stand_in(&mut self, link: PathKey) {
        let generation = self.generations.entry(link).or_insert(0);
        *generation = generation.wrapping_add(1);
    }

    /// Datagrams without a link of their own leave by this one.
    pub(crate) fn prefer(&mut self, link: PathKey) {
        self.preferred = Some(link);
    }

    /// Bytes of UDP payload sent and received on a link.
    pub(crate) fn traffic(&self, link: PathKey) -> (u64, u64) {
        self.links.get(&link).map_or((0, 0), |uplink| (uplink.tx_bytes, uplink.rx_bytes))
    }

    /// The links, in the order of their keys.
    pub(crate) fn keys(&self) -> Vec<PathKey> {
        self.links.keys().copied().collect()
    }

    /// Whether any socket has something to read; wakes the task once one has.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        self.ports().fold(false, |any, port| port.poll_readable(cx) | any)
    }

    /// Whether the socket `transmit` leaves by takes more; wakes the task once it does.
    pub(crate) fn poll_writable(
        &self,
        transmit: &Transmit,
        fallback: Option<PathKey>,
        cx: &mut Context<'_>,
    ) -> bool {
        let exit = self.way(transmit, fallback);
        let port = exit.and_then(|link| self.links.get(&link)?.port(transmit.destination.ip()));
        port.is_none_or(|port| port.poll_writable(cx))
    }

    fn ports(&self) -> impl Iterator<Item = &Port> {
        self.links.values().flat_map(|uplink| [&uplink.v4, &uplink.v6]).flatten()
    }

    /// Receives a batch on a link, first of IPv4, then of IPv6. Its local address is the link's
    /// stand-in.
    pub(crate) fn receive(&mut self, link: PathKey, buffer: &mut [u8]) -> io::Result<Batch> {
        let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
        let uplink = self.links.get_mut(&link).ok_or_else(would_block)?;
        let receive = |port: &Option<Port>, buffer: &mut [u8]| match port {
            Some(port) => port.receive(buffer),
            None => Err(would_block()),
        };
        let batch = match receive(&uplink.v4, buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => receive(&uplink.v6, buffer),
            other => other,
        }?;
        uplink.rx_bytes += batch.size as u64;
        Ok(Batch { local: Some(self.stand_in(link)), ..batch })
    }

    /// Sends by the link the datagrams belong to, or the one that one is steered onto. Datagrams
    /// that name no link leave by `fallback`.
    pub(crate) fn send(
        &mut self,
        transmit: &Transmit,
        contents: &[u8],
        fallback: Option<PathKey>,
    ) -> Result<(), SendFailed> {
        let Some(link) = self.exit(transmit, fallback)? else { return Ok(()) };
        let Some(uplink) = self.links.get_mut(&link) else { return Ok(()) };
        if let Some(port) = uplink.port(transmit.destination.ip()) {
            port.send(transmit, contents, None).map_err(|error| SendFailed { link, error })?;
            uplink.tx_bytes += transmit.size as u64;
        }
        Ok(())
    }

    /// The link that datagrams leave by: the one they belong to, or the one that one is steered
    /// onto. Those that name no link leave by `fallback`; `None` if there is nothing they could.
    ///
    /// # Errors
    /// The link is not up, or has no address of this family.
    pub fn exit(
        &self,
        transmit: &Transmit,
        fallback: Option<PathKey>,
    ) -> Result<Option<PathKey>, SendFailed> {
        let Some(link) = self.way(transmit, fallback) else { return Ok(None) };
        let wrong = match self.links.get(&link) {
            None => io::ErrorKind::NetworkDown,
            Some(uplink) if !uplink.reaches(transmit.destination.ip()) => {
                io::ErrorKind::NetworkUnreachable
            }
            Some(_) => return Ok(Some(link)),
        };
        Err(SendFailed { link, error: wrong.into() })
    }

    fn way(&self, transmit: &Transmit, fallback: Option<PathKey>) -> Option<PathKey> {
        let own = transmit.source.and_then(link_of).or(fallback).or(self.preferred)?;
        Some(self.steered.get(&own).copied().unwrap_or(own))
    }
}

impl Uplink {
    fn reaches(&self, remote: IpAddr) -> bool {
        match remote {
            IpAddr::V4(_) => self.families.v4,
            IpAddr::V6(_) => self.families.v6,
        }
    }

    fn port(&self, remote: IpAddr) -> Option<&Port> {
        match remote {
            IpAddr::V4(_) => self.v4.as_ref(),
            IpAddr::V6(_) => self.v6.as_ref(),
        }
    }
}

/// An address for the engine to know a link by, from the discard-only prefix (RFC 6666).
fn stand_in(link: PathKey, generation: u32) -> IpAddr {
    let halves = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    };
    let ((age, of_age), (high, low)) = (halves(generation), halves(link.0));
    Ipv6Addr::new(0x100, 0, 0, 0, age, of_age, high, low).into()
}

/// The link a stand-in belongs to.
pub(crate) fn link_of(address: IpAddr) -> Option<PathKey> {
    match address {
        IpAddr::V6(v6) => {
            let [.., high, low] = v6.segments();
            Some(PathKey((u32::from(high) << 16) | u32::from(low)))
        }
        IpAddr::V4(_) => None,
    }
}

fn open(interface: &str, domain: Domain, mark: u32) -> io::Result<Port> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    let any: SocketAddr = if domain == Domain::IPV4 {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        socket.set_only_v6(true)?;
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    socket.bind(&any.into())?;
    Port::new(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_in_leads_back_to_its_link() {
        for link in [PathKey(0), PathKey(2), PathKey(70_000), PathKey(u32::MAX)] {
            assert_eq!(link_of(stand_in(link, 0)), Some(link));
            assert_eq!(link_of(stand_in(link, 70_001)), Some(link));
            assert_ne!(stand_in(link, 0), stand_in(link, 70_001));
        }
    }
}
