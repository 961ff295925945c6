//! Rules, routes and the rest as the kernel writes them.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel has many attributes, and more with each version"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use whimbrel_client_core::plan::{
    Action, COMMANDS_TABLE, ECHO_PORT_V4, ECHO_PORT_V6, Family, PRIORITIES, PROTOCOL, PortRange,
    Route, Rule, TABLE, Target, Transport,
};
use whimbrel_common::cidr::Cidr;

/// The tables that are ours.
pub(super) const TABLES: [u32; 2] = [TABLE, COMMANDS_TABLE];

/// Whose a rule or route is.
pub(super) enum Ours<T> {
    /// Another program's.
    No,
    /// Ours, and as this version makes them.
    Known(T),
    /// Ours by its number, but of another shape.
    Strange,
}

impl<T> From<Option<T>> for Ours<T> {
    fn from(read: Option<T>) -> Self {
        read.map_or(Self::Strange, Self::Known)
    }
}

pub(super) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    attributes.push(RuleAttribute::Iifname("lo".to_owned()));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix();
        attributes.push(RuleAttribute::Source(from.address()));
    }
    if let Some(mark) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
    }
    match rule.of {
        None => {}
        Some(Transport::Tcp) => attributes.push(RuleAttribute::IpProtocol(IpProtocol::Tcp)),
        Some(Transport::Udp(PortRange { first, last })) => {
            attributes.push(RuleAttribute::IpProtocol(IpProtocol::Udp));
            let ports = RulePortRange { start: first, end: last };
            attributes.push(RuleAttribute::SourcePortRange(ports));
        }
        Some(Transport::Echo) => {
            let (protocol, port) = echo(rule.family);
            attributes.push(RuleAttribute::IpProtocol(protocol));
            let ports = RulePortRange { start: port, end: port };
            attributes.push(RuleAttribute::DestinationPortRange(ports));
        }
    }
    message.header.action = match rule.action {
        Action::Lookup(table) => {
            attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Action::LookupSpecific(table) => {
            attributes.push(RuleAttribute::Table(table));
            attributes.push(RuleAttribute::SuppressPrefixLen(0));
            RuleAction::ToTable
        }
        Action::Goto(priority) => {
            attributes.push(RuleAttribute::Goto(priority));
            RuleAction::Goto
        }
        Action::Unreachable => RuleAction::Unreachable,
        Action::Nop => RuleAction::Nop,
    };
    message
}

/// Whether a rule is ours by its number, whatever its shape.
pub(crate) fn is_our_rule(message: &RuleMessage) -> bool {
    RuleFields::of(message).are_ours()
}

/// What stands for ICMP echo requests in a rule.
fn echo(family: Family) -> (IpProtocol, u16) {
    match family {
        Family::V4 => (IpProtocol::Icmp, ECHO_PORT_V4),
        Family::V6 => (IpProtocol::Other(libc::IPPROTO_ICMPV6), ECHO_PORT_V6),
    }
}

pub(super) fn our_rule(family: Family, message: &RuleMessage) -> Ours<Rule> {
    let fields = RuleFields::of(message);
    if message.header.family != address_family(family) || !fields.are_ours() {
        return Ours::No;
    }
    fields.rule(family, message).into()
}

/// The attributes of a rule that we use, with the kernel's defaults.
#[derive(Default)]
struct RuleFields {
    priority: u32,
    protocol: Option<u8>,
    table: u32,
    source: Option<IpAddr>,
    mark: Option<u32>,
    local: bool,
    protocol_of: Option<IpProtocol>,
    ports: Option<PortRange>,
    destination_ports: Option<PortRange>,
    goto: Option<u32>,
    suppress: Option<u32>,
    unknown: bool,
}

impl RuleFields {
    fn of(message: &RuleMessage) -> Self {
        let mut fields = Self { table: message.header.table.into(), ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => fields.priority = *priority,
                RuleAttribute::Protocol(protocol) => fields.protocol = Some((*protocol).into()),
                RuleAttribute::Table(table) => fields.table = *table,
                RuleAttribute::Source(source) => fields.source = Some(*source),
                RuleAttribute::FwMark(mark) => fields.mark = Some(*mark),
                RuleAttribute::FwMask(mask) => fields.unknown |= *mask != u32::MAX,
                RuleAttribute::Iifname(name) => fields.local = name == "lo",
                RuleAttribute::IpProtocol(protocol) => fields.protocol_of = Some(*protocol),
                RuleAttribute::SourcePortRange(RulePortRange { start, end }) => {
                    fields.ports = Some(PortRange { first: *start, last: *end });
                }
                RuleAttribute::DestinationPortRange(RulePortRange { start, end }) => {
                    fields.destination_ports = Some(PortRange { first: *start, last: *end });
                }
                RuleAttribute::Goto(priority) => fields.goto = Some(*priority),
                // The kernel reports "suppress nothing" as -1.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                RuleAttribute::SuppressPrefixLen(prefix) => fields.suppress = Some(*prefix),
                RuleAttribute::Destination(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_) => fields.unknown = true,
                _ => {}
            }
        }
        fields
    }

    fn are_ours(&self) -> bool {
        self.protocol == Some(PROTOCOL) && PRIORITIES.contains(&self.priority)
    }

    fn rule(&self, family: Family, message: &RuleMessage) -> Option<Rule> {
        if self.unknown || !self.local || message.header.dst_len != 0 {
            return None;
        }
        let action = match (message.header.action, self.goto, self.suppress) {
            (RuleAction::ToTable, None, None) => Action::Lookup(self.table),
            (RuleAction::ToTable, None, Some(0)) => Action::LookupSpecific(self.table),
            (RuleAction::Goto, Some(priority), None) => Action::Goto(priority),
            (RuleAction::Unreachable, None, None) => Action::Unreachable,
            (RuleAction::Nop, None, None) => Action::Nop,
            _ => return None,
        };
        let from = match self.source {
            Some(source) => Some(Cidr::new(source, message.header.src_len).ok()?),
            None => None,
        };
        let (of_echo, port) = echo(family);
        let to_echo = PortRange { first: port, last: port };
        let of = match (self.protocol_of, self.ports, self.destination_ports) {
            (None, None, None) => None,
            (Some(IpProtocol::Tcp), None, None) => Some(Transport::Tcp),
            (Some(IpProtocol::Udp), Some(ports), None) => Some(Transport::Udp(ports)),
            (Some(protocol), None, Some(ports)) if protocol == of_echo && ports == to_echo => {
                Some(Transport::Echo)
            }
            _ => return None,
        };
        let Self { priority, mark, .. } = *self;
        Some(Rule { family, priority, mark, from, of, action })
    }
}

pub(super) fn route_message(route: &Route) -> RouteMessage {
    let address = route.destination.address();
    let mut message = table_of(Family::of(address), route.table);
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.destination_prefix_length = route.destination.prefix();
    message.attributes.push(RouteAttribute::Destination(address.into()));
    match route.target {
        Target::Throw => {
            message.header.kind = RouteType::Throw;
            message.header.scope = RouteScope::Universe;
        }
        Target::Device(index) => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = RouteScope::Link;
            message.attributes.push(RouteAttribute::Oif(index));
        }
    }
    message
}

/// Whether a route is ours by its number, whatever its shape.
pub(crate) fn is_our_route(message: &RouteMessage) -> bool {
    u8::from(message.header.protocol) == PROTOCOL && TABLES.contains(&table(message))
}

pub(super) fn our_route(family: Family, message: &RouteMessage) -> Ours<Route> {
    if message.header.address_family != address_family(family) || !is_our_route(message) {
        return Ours::No;
    }
    known_route(family, message).into()
}

/// The table a route is in.
pub(crate) fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| message.header.table.into())
}

/// Where a route leads to.
pub(crate) fn destination(family: Family, message: &RouteMessage) -> Option<Cidr> {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let any = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    Cidr::new(attribute.unwrap_or(any), message.header.destination_prefix_length).ok()
}

/// A request for the routes of one table, or the start of a route in it.
pub(crate) fn table_of(family: Family, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// The one interface a route leads through.
pub(crate) fn output_interface(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// The address a message is about, on the side of this host.
pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the other end.
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(address) => found = Some(*address),
            _ => {}
        }
    }
    found
}

/// The name of the interface a message is about.
pub(crate) fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn known_route(family: Family, message: &RouteMessage) -> Option<Route> {
    let destination = destination(family, message)?;
    let device = output_interface(message);
    let target = match (message.header.kind, device) {
        // IPv6 reports the loopback interface for a throw route.
        (RouteType::Throw, _) => Target::Throw,
        (RouteType::Unicast, Some(index)) => Target::Device(index),
        _ => return None,
    };
    Some(Route { destination, target, table: table(message) })
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
