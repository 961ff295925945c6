//! What a lab consists of, as a value.

use crate::internet::Shape;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All hosts of a lab.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The hosts, each with a name of its own.
    pub hosts: Vec<HostLayout>,
    /// Decides every random loss.
    pub seed: u64,
}

/// One host and its links.
#[derive(Clone, Debug)]
pub struct HostLayout {
    /// The host's name.
    pub name: String,
    /// Its links to the Internet.
    pub links: Vec<LinkLayout>,
}

/// What a network hands to a host: an address, the length of its prefix, and the router.
#[derive(Clone, Copy, Debug)]
pub struct Lease<A> {
    /// The host's address.
    pub address: A,
    /// Bits of the prefix.
    pub prefix: u8,
    /// The first router.
    pub router: A,
}

/// One link of one host.
#[derive(Clone, Debug)]
pub struct LinkLayout {
    /// The interface's name.
    pub name: String,
    /// IPv4, if the link has it.
    pub v4: Option<Lease<Ipv4Addr>>,
    /// IPv6, if the link has it.
    pub v6: Option<Lease<Ipv6Addr>>,
    /// Further addresses with the lengths of their prefixes.
    pub further: Vec<(IpAddr, u8)>,
    /// The metric of its default routes.
    pub metric: u32,
    /// The public IPv4 address of its translator; `None`: the host's own address is public.
    pub outside_v4: Option<Ipv4Addr>,
    /// The public IPv6 address of its translator, likewise.
    pub outside_v6: Option<Ipv6Addr>,
    /// What the line does to what the host sends.
    pub up: Shape,
    /// What the line does to what the host receives.
    pub down: Shape,
}

/// The gateway's addresses.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The gateway's IPv6 address.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);
/// Where the origin's services are.
pub const ORIGIN_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 20);
/// Where the origin's services are, IPv6.
pub const ORIGIN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0x20);
/// The same services for connections that Whimbrel leaves alone.
pub const REFERENCE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 20);
/// The same services for connections that Whimbrel leaves alone, IPv6.
pub const REFERENCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x181, 0, 0, 0, 0, 0x20);
/// An address whose routers answer "host unreachable".
pub const UNREACHABLE_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 99);
/// An address whose routers answer "host unreachable", IPv6.
pub const UNREACHABLE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0x99);
/// An address where nothing ever answers.
pub const SILENT_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 98);

impl Layout {
    /// A laptop with Wi-Fi and cellular, both translated; a gateway and an origin with public
    /// addresses. Lines are as fast as the machine until shaped.
    #[must_use]
    pub fn standard() -> Self {
        Self { hosts: vec![laptop(), gateway(), origin()], seed: 1 }
    }

    /// The same with another host.
    #[must_use]
    pub fn with_host(mut self, host: HostLayout) -> Self {
        self.hosts.push(host);
        self
    }

    /// The same with one link changed: `wifi0`, or `gateway/eth0` where a name is not unique.
    ///
    /// # Panics
    /// When there is no such link.
    #[must_use]
    pub fn with_link(mut self, name: &str, change: impl FnOnce(&mut LinkLayout)) -> Self {
        let (host, interface) = split_name(name);
        let hosts = self.hosts.iter_mut().filter(|own| host.is_none_or(|host| own.name == host));
        let mut links = hosts.flat_map(|host| &mut host.links);
        let link = links.find(|link| link.name == interface);
        change(link.unwrap_or_else(|| panic!("the layout has no link {name}")));
        self
    }
}

impl LinkLayout {
    /// A link without any address.
    #[must_use]
    pub fn bare(name: &str, metric: u32) -> Self {
        Self {
            name: name.to_owned(),
            v4: None,
            v6: None,
            further: Vec::new(),
            metric,
            outside_v4: None,
            outside_v6: None,
            up: Shape::default(),
            down: Shape::default(),
        }
    }

    /// A link behind a translator, as at home or on a phone.
    #[must_use]
    pub fn translated(name: &str, v4: Lease<Ipv4Addr>, v6: Lease<Ipv6Addr>, metric: u32) -> Self {
        Self { v4: Some(v4), v6: Some(v6), ..Self::bare(name, metric) }
    }
}

impl<A> Lease<A> {
    /// A lease.
    pub const fn new(address: A, prefix: u8, router: A) -> Self {
        Self { address, prefix, router }
    }
}

/// Splits `host/interface`; the host may be missing.
pub(super) fn split_name(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((host, interface)) => (Some(host), interface),
        None => (None, name),
    }
}

fn laptop() -> HostLayout {
    let wifi = LinkLayout {
        outside_v4: Some(Ipv4Addr::new(203, 0, 113, 10)),
        outside_v6: Some(v6(0x10, 0x10)),
        ..LinkLayout::translated(
            "wifi0",
            Lease::new(Ipv4Addr::new(192, 168, 10, 2), 24, Ipv4Addr::new(192, 168, 10, 1)),
            Lease::new(ula(0x10, 2), 64, ula(0x10, 1)),
            100,
        )
    };
    let cell = LinkLayout {
        outside_v4: Some(Ipv4Addr::new(198, 51, 100, 64)),
        outside_v6: Some(v6(0x64, 0x64)),
        ..LinkLayout::translated(
            "cell0",
            Lease::new(Ipv4Addr::new(10, 64, 0, 2), 24, Ipv4Addr::new(10, 64, 0, 1)),
            Lease::new(ula(0x64, 2), 64, ula(0x64, 1)),
            600,
        )
    };
    HostLayout { name: "laptop".into(), links: vec![wifi, cell] }
}

fn gateway() -> HostLayout {
    let link = LinkLayout::translated(
        "eth0",
        Lease::new(GATEWAY_V4, 24, Ipv4Addr::new(192, 0, 2, 1)),
        Lease::new(GATEWAY_V6, 64, v6(2, 1)),
        100,
    );
    HostLayout { name: "gateway".into(), links: vec![link] }
}

fn origin() -> HostLayout {
    let mut link = LinkLayout::translated(
        "eth0",
        Lease::new(ORIGIN_V4, 24, Ipv4Addr::new(198, 18, 0, 1)),
        Lease::new(ORIGIN_V6, 64, v6(0x18, 1)),
        100,
    );
    link.further = vec![(REFERENCE_V4.into(), 24), (REFERENCE_V6.into(), 64)];
    HostLayout { name: "origin".into(), links: vec![link] }
}

const fn v6(network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host)
}

const fn ula(network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00 + network, 0, 0, 0, 0, 0, 0, host)
}
