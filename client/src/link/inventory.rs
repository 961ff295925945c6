//! What the kernel says about interfaces, addresses and routes, and which of them are uplinks.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel has many attributes, and more with each version"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use whimbrel_client_core::links::Class;
use whimbrel_client_core::plan::{Family, MAIN_TABLE};
use whimbrel_common::cidr::Cidr;

use super::{DownReason, LinkEvent, Uplink, traits};
use crate::host::translate::{self, address_of, name_of};

/// One reading of the host.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<(u32, Address)>,
    routes: Vec<Path>,
}

#[derive(Debug)]
struct Link {
    name: String,
    state: Result<(), DownReason>,
    role: Role,
    mtu: u32,
    class: Class,
}

/// What an interface can be to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// A way out if it has an address and a default route.
    Candidate,
    /// The same, but never for having been a way out before.
    Bridge,
    /// A tunnel of another program that a person wants to be used: a way out, whatever leads there.
    Asked,
    /// A tunnel of another program.
    Tunnel,
    /// Loopback, ports of a bridge.
    Other,
    /// Our own TUN.
    Tun,
}

/// An interface that is or could be an uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Surveyed {
    /// What it is or would be.
    pub(crate) uplink: Uplink,
    /// What it lacks; `None` for an uplink.
    pub(crate) missing: Option<Missing>,
    /// Its MTU in bytes.
    pub(crate) mtu: u32,
}

/// What an interface lacks to be an uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Missing {
    /// It is switched off.
    Switch,
    /// It has no carrier.
    Carrier,
    /// It has no address.
    Address,
    /// Nothing leads out through it.
    Route,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Address {
    address: IpAddr,
    usable: bool,
}

#[derive(Debug)]
struct Path {
    index: u32,
    destination: Cidr,
    metric: u32,
}

impl Inventory {
    /// `tun` is our own interface; `asked` are those a person wants to be used.
    pub(super) fn add_link(&mut self, message: &LinkMessage, tun: &str, asked: &[String]) {
        let name = name_of(message).unwrap_or_default();
        let role = match role(message) {
            _ if name == tun => Role::Tun,
            Role::Tunnel if asked.contains(&name) => Role::Asked,
            role => role,
        };
        let (index, state, mtu) = (message.header.index, state(message.header.flags), mtu(message));
        let class = match role {
            Role::Candidate => Class::of(&traits::read(&name, index, kind(message))),
            Role::Bridge | Role::Asked | Role::Tunnel | Role::Other | Role::Tun => Class::Wired,
        };
        self.links.insert(index, Link { name, state, role, mtu, class });
    }

    pub(super) fn add_address(&mut self, message: &AddressMessage) {
        if let Some(address) = address_of(message) {
            let entry = Address { address, usable: is_usable(message, address) };
            self.addresses.insert((message.header.index, entry));
        }
    }

    pub(super) fn add_route(&mut self, family: Family, message: &RouteMessage) {
        let unicast = message.header.kind == RouteType::Unicast;
        if !unicast || translate::table(message) != MAIN_TABLE {
            return;
        }
        let Some(destination) = translate::destination(family, message) else { return };
        let mut metric = 0;
        let mut indices = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(index) => indices.push(*index),
                RouteAttribute::MultiPath(hops) => {
                    indices.extend(hops.iter().map(|hop| hop.interface_index));
                }
                _ => {}
            }
        }
        let paths = indices.into_iter().map(|index| Path { index, destination, metric });
        self.routes.extend(paths);
    }

    /// The uplinks: running, with an address, and with a way out. One that was an uplink before
    /// needs no default route to stay one.
    pub(super) fn uplinks(
        &self,
        before: &BTreeMap<u32, Uplink>,
        gateway: &[IpAddr],
    ) -> BTreeMap<u32, Uplink> {
        let mut uplinks = BTreeMap::new();
        for (&index, link) in &self.links {
            let uplink = self.uplink(index, link, gateway);
            let has_address = !uplink.v4.is_empty() || !uplink.v6.is_empty();
            let way_out = uplink.metric != u32::MAX || uplink.gateway_reachable;
            let suits = match link.role {
                Role::Candidate => way_out || before.contains_key(&index),
                Role::Bridge => way_out,
                Role::Asked => true,
                Role::Tunnel | Role::Other | Role::Tun => false,
            };
            if link.state.is_ok() && has_address && suits {
                uplinks.insert(index, uplink);
            }
        }
        uplinks
    }

    /// Every IPv6 address of the host that a connection can come from, our TUN's excepted.
    pub(super) fn own_v6(&self) -> BTreeSet<Ipv6Addr> {
        let of_host = |index: &u32| self.links.get(index).is_none_or(|l| l.role != Role::Tun);
        let of_host = self.addresses.iter().filter(|(index, _)| of_host(index));
        of_host.filter_map(|(_, entry)| own_v6(entry.address)).collect()
    }

    /// Why `index`, an uplink until this reading, is none any more.
    pub(super) fn reason(&self, index: u32) -> DownReason {
        match self.links.get(&index) {
            None => DownReason::Removed,
            Some(Link { state: Err(reason), .. }) => *reason,
            Some(Link { role: Role::Bridge | Role::Tunnel | Role::Other | Role::Tun, .. }) => {
                DownReason::Unsuitable
            }
            Some(Link { role: Role::Candidate | Role::Asked, .. }) => DownReason::NoAddress,
        }
    }

    /// Every interface that is or could be an uplink, and what is missing.
    pub(super) fn survey(&self, gateway: &[IpAddr]) -> Vec<Surveyed> {
        let uplinks = self.uplinks(&BTreeMap::new(), gateway);
        let of = |(index, link): (&u32, &Link)| {
            let uplink = self.uplink(*index, link, gateway);
            let has_address = !uplink.v4.is_empty() || !uplink.v6.is_empty();
            let missing = match link.state {
                _ if uplinks.contains_key(index) => None,
                Err(DownReason::Disabled) => Some(Missing::Switch),
                Err(_) => Some(Missing::Carrier),
                Ok(()) if !has_address => Some(Missing::Address),
                Ok(()) => Some(Missing::Route),
            };
            let listed = match link.role {
                Role::Candidate | Role::Asked => true,
                Role::Bridge => missing.is_none(),
                Role::Tunnel | Role::Other | Role::Tun => false,
            };
            listed.then_some(Surveyed { uplink, missing, mtu: link.mtu })
        };
        self.links.iter().filter_map(of).collect()
    }

    /// The interfaces that are tunnels of other programs.
    pub(super) fn tunnels(&self) -> impl Iterator<Item = (u32, &str)> {
        let tunnels = self.links.iter().filter(|(_, link)| link.role == Role::Tunnel);
        tunnels.map(|(index, link)| (*index, link.name.as_str()))
    }

    /// The name of an interface.
    pub(super) fn name(&self, index: u32) -> Option<&str> {
        self.links.get(&index).map(|link| link.name.as_str())
    }

    /// Every address with its interface.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.addresses.iter().map(|(index, entry)| (*index, entry.address))
    }

    fn uplink(&self, index: u32, link: &Link, gateway: &[IpAddr]) -> Uplink {
        let mut uplink = Uplink {
            index,
            name: link.name.clone(),
            v4: Vec::new(),
            v6: Vec::new(),
            metric: u32::MAX,
            gateway_reachable: false,
            class: link.class,
        };
        for (_, entry) in self.addresses.iter().filter(|(at, entry)| *at == index && entry.usable) {
            match entry.address {
                IpAddr::V4(v4) => uplink.v4.push(v4),
                IpAddr::V6(v6) => uplink.v6.push(v6),
            }
        }
        for path in self.routes.iter().filter(|path| path.index == index) {
            let has_source = match Family::of(path.destination.address()) {
                Family::V4 => !uplink.v4.is_empty(),
                Family::V6 => !uplink.v6.is_empty(),
            };
            if !has_source {
                continue;
            }
            if path.destination.prefix() == 0 {
                uplink.metric = uplink.metric.min(path.metric);
            }
            uplink.gateway_reachable |= gateway.iter().any(|at| path.destination.contains(*at));
        }
        uplink
    }
}

/// What has to be told when `before` becomes `after`.
pub(super) fn changes(
    before: &BTreeMap<u32, Uplink>,
    after: &BTreeMap<u32, Uplink>,
    reason: impl Fn(u32) -> DownReason,
) -> Vec<LinkEvent> {
    let gone = before.values().filter(|uplink| !after.contains_key(&uplink.index));
    let mut events: Vec<LinkEvent> = gone
        .map(|uplink| LinkEvent::Down {
            index: uplink.index,
            name: uplink.name.clone(),
            reason: reason(uplink.index),
        })
        .collect();
    for uplink in after.values() {
        match before.get(&uplink.index) {
            None => events.push(LinkEvent::Up(uplink.clone())),
            Some(known) if known != uplink => events.push(LinkEvent::Changed(uplink.clone())),
            Some(_) => {}
        }
    }
    events
}

/// Whether an interface can carry packets, by its flags.
pub(super) fn state(flags: LinkFlags) -> Result<(), DownReason> {
    if !flags.contains(LinkFlags::Up) {
        Err(DownReason::Disabled)
    } else if !flags.contains(LinkFlags::LowerUp | LinkFlags::Running) {
        // Running without carrier is impossible; carrier without running is a Wi-Fi that has
        // not authenticated yet.
        Err(DownReason::NoCarrier)
    } else {
        Ok(())
    }
}

/// `address` if a connection that leaves this machine can come from it.
pub(super) fn own_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(v6) if !v6.is_loopback() && !v6.is_unicast_link_local() => Some(v6),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Addresses that packets can be sent from now: not link-local, not still or fruitlessly being
/// checked for duplicates.
pub(super) fn is_usable(message: &AddressMessage, address: IpAddr) -> bool {
    let low = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(low);
    let waiting =
        flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let local = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => own_v6(v6.into()).is_none(),
    };
    !waiting && !local && !flags.contains(AddressFlags::Dadfailed)
}

fn mtu(message: &LinkMessage) -> u32 {
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    // The kernel tells it of every interface.
    mtu.unwrap_or(u32::MAX)
}

/// The netlink kind of an interface, as the kernel spells it.
fn kind(message: &LinkMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        }),
        _ => None,
    })
}

fn role(message: &LinkMessage) -> Role {
    if message.header.flags.contains(LinkFlags::Loopback) {
        return Role::Other;
    }
    let mut role = Role::Candidate;
    for attribute in &message.attributes {
        match attribute {
            // A port of a bridge or bond has no traffic of its own.
            LinkAttribute::Controller(_) => return Role::Other,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        role = role_of_kind(kind, message.header.link_layer_type);
                    }
                }
            }
            _ => {}
        }
    }
    role
}

fn role_of_kind(kind: &InfoKind, layer: LinkLayerType) -> Role {
    match kind {
        InfoKind::Bridge => Role::Bridge,
        // A TAP is as good as a wire, a TUN is a tunnel of some other program.
        InfoKind::Tun if layer == LinkLayerType::Ether => Role::Candidate,
        InfoKind::Tun
        | InfoKind::Wireguard
        | InfoKind::Xfrm
        | InfoKind::Vti
        | InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::GreTap
        | InfoKind::GreTap6 => Role::Tunnel,
        InfoKind::Ifb | InfoKind::Nlmon => Role::Other,
        _ => Role::Candidate,
    }
}
