//! The host's network as it is now, for a person who asks what is wrong with it.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel has many attributes, and more with each version"
)]

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use whimbrel_client_core::doctor::{Link, LinkTrouble, Network, RuleFact, RuleKind, Vpn};
use whimbrel_client_core::plan::{Family, MAIN_TABLE, PRIORITIES, PROTOCOL};
use whimbrel_common::cidr::Cidr;

use super::inventory::{Inventory, Missing, Surveyed};
use super::{is_absent, read};
use crate::host::netlink::{Netlink, io_error};
use crate::host::{Host, translate};

/// What the network of a host looks like.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) links: Vec<Link>,
    pub(crate) networks: Vec<Network>,
    pub(crate) rules: Option<Vec<RuleFact>>,
    pub(crate) captor: Option<String>,
    pub(crate) vpns: Vec<Vpn>,
}

/// Looks at the network namespace of the caller. `tun` is the name of our own interface,
/// `asked` are the tunnels of other programs that are to be used.
pub(crate) async fn survey(
    tun: &str,
    asked: Vec<String>,
    gateway: &[IpAddr],
) -> io::Result<Survey> {
    let netlink = Netlink::open()?;
    let inventory = read(netlink.handle(), tun, asked).await?;
    let mut routes = Vec::new();
    let mut rules = Some(Vec::new());
    for family in [Family::V4, Family::V6] {
        routes.extend(read_routes(&netlink, family).await?);
        match (&mut rules, read_rules(&netlink, family).await) {
            (Some(rules), Ok(found)) => rules.extend(found.into_iter().map(|rule| (family, rule))),
            (rules, _) => *rules = None,
        }
    }
    let defaults: BTreeSet<u32> =
        routes.iter().filter(|route| route.cidr.prefix() == 0).map(|route| route.table).collect();
    Ok(Survey {
        links: inventory.survey(gateway).iter().map(link).collect(),
        networks: networks(&inventory, &routes),
        captor: captor().await,
        rules: rules.map(|rules| rules.iter().map(|it| rule(it.0, &it.1, &defaults)).collect()),
        vpns: vpns(&inventory, &routes),
    })
}

async fn captor() -> Option<String> {
    Host::open().ok()?.captor().await.ok()?
}

#[derive(Debug)]
struct Route {
    table: u32,
    cidr: Cidr,
    index: u32,
}

fn link(surveyed: &Surveyed) -> Link {
    let Surveyed { uplink, missing, mtu } = surveyed;
    Link {
        name: uplink.name.clone(),
        trouble: missing.map(|missing| match missing {
            Missing::Switch => LinkTrouble::Disabled,
            Missing::Carrier => LinkTrouble::NoCarrier,
            Missing::Address => LinkTrouble::NoAddress,
            Missing::Route => LinkTrouble::NoRoute,
        }),
        families: [!uplink.v4.is_empty(), !uplink.v6.is_empty()],
        mtu: *mtu,
        rp_filter: rp_filter(&uplink.name),
        metric: Some(uplink.metric).filter(|metric| *metric != u32::MAX),
    }
}

/// The kernel uses the larger of the interface's value and that for all (ip-sysctl).
fn rp_filter(name: &str) -> Option<u8> {
    let of = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        std::fs::read_to_string(path).ok()?.trim().parse::<u8>().ok()
    };
    Some(of("all")?.max(of(name)?))
}

fn networks(inventory: &Inventory, routes: &[Route]) -> Vec<Network> {
    let name = |index| inventory.name(index).unwrap_or("an interface").to_owned();
    let own = inventory.addresses().filter_map(|(index, address)| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let cidr = Cidr::new(address, bits).ok()?;
        Some(Network { cidr, interface: name(index), own: true })
    });
    let led = routes.iter().filter(|route| route.table == MAIN_TABLE && route.cidr.prefix() > 0);
    let led =
        led.map(|route| Network { cidr: route.cidr, interface: name(route.index), own: false });
    own.chain(led).collect()
}

fn vpns(inventory: &Inventory, routes: &[Route]) -> Vec<Vpn> {
    let through = |index: u32| routes.iter().filter(move |route| route.index == index);
    inventory
        .tunnels()
        .map(|(index, name)| Vpn {
            interface: name.to_owned(),
            halves: through(index).any(|it| it.table == MAIN_TABLE && it.cidr.prefix() == 1),
            default_route: through(index).any(|route| route.cidr.prefix() == 0),
        })
        .filter(|vpn| vpn.halves || vpn.default_route)
        .collect()
}

fn rule(family: Family, message: &RuleMessage, defaults: &BTreeSet<u32>) -> RuleFact {
    let mut table = u32::from(message.header.table);
    let (mut priority, mut mark, mut ours, mut narrow) = (0, None, false, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(is) => priority = *is,
            RuleAttribute::Table(is) => table = *is,
            RuleAttribute::FwMark(is) => mark = Some(*is),
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == PROTOCOL,
            // The kernel reports "suppress nothing" as -1.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::Source(_)
            | RuleAttribute::Destination(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::Iifname(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::SuppressPrefixLen(_) => narrow = true,
            _ => {}
        }
    }
    // "Everything but what has this mark" is everything to us.
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    let leads = message.header.action == RuleAction::ToTable && defaults.contains(&table);
    let everything = leads && !narrow && (mark.is_none() || inverted) && table != MAIN_TABLE;
    let kind = if ours && PRIORITIES.contains(&priority) {
        RuleKind::Ours
    } else if everything {
        RuleKind::Everything { table }
    } else {
        RuleKind::Other
    };
    RuleFact { family, priority, kind, mark: mark.filter(|_| !inverted) }
}

async fn read_routes(netlink: &Netlink, family: Family) -> io::Result<Vec<Route>> {
    // Table 0 stands for every table.
    let request = netlink.handle().route().get(translate::table_of(family, 0));
    let mut messages = std::pin::pin!(request.execute());
    let mut routes = Vec::new();
    loop {
        match messages.try_next().await.map_err(io_error) {
            Ok(Some(message)) => routes.extend(route(family, &message)),
            Ok(None) => return Ok(routes),
            Err(error) if is_absent(&error) => return Ok(routes),
            Err(error) => return Err(error),
        }
    }
}

fn route(family: Family, message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let index = translate::output_interface(message).or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
            _ => None,
        })
    })?;
    let cidr = translate::destination(family, message)?;
    Some(Route { table: translate::table(message), cidr, index })
}

async fn read_rules(netlink: &Netlink, family: Family) -> io::Result<Vec<RuleMessage>> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let rules = netlink.handle().rule().get(version).execute().try_collect().await;
    rules
        .map_err(io_error)
        .or_else(|error| if is_absent(&error) { Ok(Vec::new()) } else { Err(error) })
}
