//! Which packets of this host go to the TUN, as routing rules and routes in one ordered value.
//!
//! Promises:
//! - only *new* TCP connections of this host are captured: a connecting socket has no source
//!   address yet, an established or listening one has;
//! - of UDP, if it is wanted at all, only what is sent from a port the kernel chose: a server
//!   answers from a port of its own, often without naming an address;
//! - of ICMP, if it is wanted at all, only echo requests;
//! - forwarded packets, multicast and whatever the main table routes more specifically than by a
//!   default route stay as they are;
//! - a plan is a value: computing it twice gives equal plans, and [`diff`] of equal plans is
//!   empty.
//!
//! How a packet is judged, by rule priority (every rule carries `iif lo`: sent by this host):
//!
//! | priority | matches | decision |
//! |---|---|---|
//! | 5400 | our mark | main table: carrier packets never enter the TUN |
//! | 5401 | the mark of commands that go [direct](Way::Direct) | on to 5420 |
//! | 5402 | from the TUN's address | our table: flows captured earlier |
//! | 5403 | from the TUN's address | the table of commands: theirs that ours leaves alone |
//! | 5404 | from the TUN's address | unreachable: never leaks when the TUN is gone |
//! | 5410 | IPv6 from an address of the host | on to 5420: a socket that is already bound |
//! | 5411 | what is new, with the mark of commands that are [carried](Way::Carried) | as 5412 |
//! | 5412 | what is new | main table, without its default routes: the local network |
//! | 5414 | what is new | our table: captured, unless a `throw` route says otherwise |
//! | 5415 | what is new, with that mark | the table of commands: captured, whatever is included |
//! | 5420 | | nothing: where 5401 and 5410 land, so rules of others still apply |
//!
//! Those from 5410 to 5414 are there for TCP, and for UDP and ICMP echo where those are captured too;
//! 5401, 5403, 5411 and 5415 where sockets can be marked at all. A pause takes 5412 and 5414 away.
//! In IPv4 "new" is `from 0.0.0.0/32`. IPv6 rules cannot match the unspecified source, which is
//! why bound sockets are let go by name in 5410.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use whimbrel_common::cidr::Cidr;

/// The routing table of captured traffic.
pub const TABLE: u32 = 5211;

/// The routing table of commands that are carried whatever the host's own configuration includes:
/// everything that is not excluded.
pub const COMMANDS_TABLE: u32 = 5212;

/// The kernel's main table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// The originator number that marks our rules and routes (`RTA_PROTOCOL`, `FRA_PROTOCOL`);
/// unassigned in iproute2's `rt_protos`.
pub const PROTOCOL: u8 = 57;

/// The priorities our rules use: after Tailscale's (5210-5270), before wg-quick's (32764 and up).
pub const PRIORITIES: RangeInclusive<u32> = 5400..=5420;

const CARRIER: u32 = 5400;
const DIRECT_COMMANDS: u32 = 5401;
const CAPTURED: u32 = 5402;
const CAPTURED_BY_COMMANDS: u32 = 5403;
const CAPTURED_STOP: u32 = 5404;
const BOUND: u32 = 5410;
const LOCAL_TO_COMMANDS: u32 = 5411;
const LOCAL_NETWORK: u32 = 5412;
/// The priority of the rules that capture new connections.
pub const CAPTURE: u32 = 5414;
const CAPTURE_COMMANDS: u32 = 5415;
const PAST_CAPTURE: u32 = 5420;

/// Where the new connections of a command lead that keeps the host's network, whatever those of the
/// host do: its sockets carry a mark.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Way {
    /// Around the capture.
    Direct,
    /// Through the gateway.
    Carried,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Carried];

    /// The mark of the sockets: next to that of the carrier's own.
    #[must_use]
    pub fn mark(self, carrier: u32) -> u32 {
        match self {
            Self::Direct => carrier.wrapping_add(1),
            Self::Carried => carrier.wrapping_add(2),
        }
    }
}

/// What a plan is computed from.
#[derive(Clone, Debug)]
pub struct CaptureInputs<'a> {
    /// The TUN's interface index.
    pub tun_index: u32,
    /// The TUN's IPv4 address; `None` leaves IPv4 alone.
    pub tun_v4: Option<Ipv4Addr>,
    /// The TUN's IPv6 address; `None` leaves IPv6 alone.
    pub tun_v6: Option<Ipv6Addr>,
    /// Destinations to capture. The longest prefix of `include` and `exclude` wins.
    pub include: &'a [Cidr],
    /// Destinations to leave alone; wins over an equal prefix in `include`.
    pub exclude: &'a [Cidr],
    /// Every IPv6 address of the host; the TUN's own may be among them.
    pub own_v6_addresses: &'a [Ipv6Addr],
    /// The mark on the carrier's sockets (`SO_MARK`).
    pub mark: u32,
    /// Sockets of commands can be marked with a [`Way`].
    pub commands: bool,
    /// The routing table to fill, usually [`TABLE`].
    pub table: u32,
    /// New connections go direct; captured ones stay captured.
    pub paused: bool,
    /// The source ports of UDP to capture: those the kernel chooses (`ip_local_port_range`).
    /// `None` leaves UDP alone.
    pub datagrams: Option<PortRange>,
    /// ICMP echo requests are captured too.
    pub echoes: bool,
}

/// Ports, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// A route in our table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Route {
    /// Where packets go to.
    pub destination: Cidr,
    /// What happens to them.
    pub target: Target,
    /// The table the route is in.
    pub table: u32,
}

/// What a route does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    /// Leave the table: the rules that follow decide.
    Throw,
    /// Send through the interface with this index.
    Device(u32),
}

/// A routing rule. Every rule carries `iif lo`: it applies to packets this host sends, never to
/// packets it forwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rule {
    /// Which family's rules it is among.
    pub family: Family,
    /// Lower goes first.
    pub priority: u32,
    /// Matches this mark only.
    pub mark: Option<u32>,
    /// Matches these source addresses only.
    pub from: Option<Cidr>,
    /// Matches these packets only.
    pub of: Option<Transport>,
    /// What happens to a match.
    pub action: Action,
}

impl Rule {
    /// The TUN's address, if this is the rule that leads captured flows back to it.
    #[must_use]
    pub fn captured(&self) -> Option<IpAddr> {
        let leads = self.priority == CAPTURED && matches!(self.action, Action::Lookup(_));
        self.from.filter(|_| leads).map(|from| from.address())
    }
}

/// Packets by what they carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP from one of these ports.
    Udp(PortRange),
    /// ICMP echo requests of the rule's family.
    Echo,
}

/// Rules cannot match the type of an ICMP message, but the kernel keeps type and code where the
/// destination port of other packets is (`union flowi_uli` of `net/flow.h`).
pub const ECHO_PORT_V4: u16 = 8 << 8;

/// The same for ICMPv6.
pub const ECHO_PORT_V6: u16 = 128 << 8;

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Action {
    /// Look the destination up in a table; without an answer there, the next rule decides.
    Lookup(u32),
    /// The same, ignoring default routes (`suppress_prefixlength 0`).
    LookupSpecific(u32),
    /// Continue at the rule with this priority.
    Goto(u32),
    /// Refuse with "network unreachable".
    Unreachable,
    /// Continue with the next rule.
    Nop,
}

/// The rules and routes capture wants on this host, sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    routes: Vec<Route>,
    rules: Vec<Rule>,
}

impl Plan {
    /// The plan for `inputs`. A family without a TUN address, or without anything to capture,
    /// gets no rule and no route.
    #[must_use]
    pub fn new(inputs: &CaptureInputs<'_>) -> Self {
        let mut routes = routes(inputs);
        let of_host = |family| captures(&routes, family);
        let (v4, v6) = (of_host(Family::V4), of_host(Family::V6));
        let mut rules = Vec::new();
        if let Some(address) = inputs.tun_v4.filter(|_| v4 || inputs.commands) {
            family_rules(inputs, address.into(), v4, &mut rules);
        }
        if let Some(address) = inputs.tun_v6.filter(|_| v6 || inputs.commands) {
            family_rules(inputs, address.into(), v6, &mut rules);
        }
        if inputs.commands {
            routes.extend(routes_of_commands(inputs));
        }
        Self::of(routes, rules)
    }

    /// A plan of exactly these parts, such as what a host has.
    #[must_use]
    pub fn of(mut routes: Vec<Route>, mut rules: Vec<Rule>) -> Self {
        routes.sort_unstable();
        routes.dedup();
        rules.sort_unstable();
        rules.dedup();
        Self { routes, rules }
    }

    /// The routes, sorted by destination.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The rules, sorted by family and priority.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether there is neither a rule nor a route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.rules.is_empty()
    }
}

/// One step from a plan to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Take a rule away.
    RemoveRule(Rule),
    /// Put a route in, in place of any route to the same destination.
    PutRoute(Route),
    /// Take a route away.
    RemoveRoute(Route),
    /// Put a rule in.
    AddRule(Rule),
}

/// The steps that turn `current` into `desired`, in an order in which no packet is captured that
/// neither plan captures: what exempts comes before and goes after what captures.
#[must_use]
pub fn diff(current: &Plan, desired: &Plan) -> Vec<Change> {
    let missing = |rule: &&Rule| !current.rules.contains(rule);
    let stale = |rule: &&Rule| !desired.rules.contains(rule);
    let mut removed: Vec<Rule> = current.rules.iter().filter(stale).copied().collect();
    removed.sort_unstable_by_key(|rule| (rule.action == Action::Nop, Reverse(*rule)));
    let mut added: Vec<Rule> = desired.rules.iter().filter(missing).copied().collect();
    added.sort_unstable_by_key(|rule| (rule.action != Action::Nop, *rule));

    let mut put: Vec<Route> =
        desired.routes.iter().filter(|route| !current.routes.contains(route)).copied().collect();
    put.sort_unstable_by_key(|route| route.target);
    let kept = |gone: &Route| {
        desired.routes.iter().any(|r| (r.table, r.destination) == (gone.table, gone.destination))
    };
    let mut dropped: Vec<Route> =
        current.routes.iter().filter(|route| !kept(route)).copied().collect();
    dropped.sort_unstable_by_key(|route| Reverse(route.target));

    let removed = removed.into_iter().map(Change::RemoveRule);
    let put = put.into_iter().map(Change::PutRoute);
    let dropped = dropped.into_iter().map(Change::RemoveRoute);
    removed.chain(put).chain(dropped).chain(added.into_iter().map(Change::AddRule)).collect()
}

fn routes(inputs: &CaptureInputs<'_>) -> Vec<Route> {
    let wanted = |range: &&Cidr| match Family::of(range.address()) {
        Family::V4 => inputs.tun_v4.is_some(),
        Family::V6 => inputs.tun_v6.is_some(),
    };
    let included = inputs.include.iter().map(|range| (range, Target::Device(inputs.tun_index)));
    let excluded = inputs.exclude.iter().map(|range| (range, Target::Throw));
    let beyond_tcp = inputs.datagrams.is_some() || inputs.echoes;
    let several = several().into_iter().filter(|_| beyond_tcp);
    let several: Vec<Cidr> = several.collect();
    let targets: BTreeMap<Cidr, Target> = included
        .chain(excluded)
        .chain(several.iter().map(|range| (range, Target::Throw)))
        .filter(|(range, _)| wanted(range))
        .map(|(range, target)| (*range, target))
        .collect();
    targets
        .into_iter()
        .map(|(destination, target)| Route { destination, target, table: inputs.table })
        .collect()
}

/// Everything is included, and the longest prefix still wins.
fn routes_of_commands(inputs: &CaptureInputs<'_>) -> Vec<Route> {
    let everything = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        .map(|any| Cidr::new(any, 0).expect("a prefix of nothing"));
    let include = [inputs.include, &everything].concat();
    routes(&CaptureInputs { include: &include, table: COMMANDS_TABLE, ..inputs.clone() })
}

/// Addresses of more than one host: they belong to the local network, whatever is included.
fn several() -> [Cidr; 3] {
    let range = |first: IpAddr, prefix| Cidr::new(first, prefix).expect("a prefix that exists");
    [
        range(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        range(Ipv4Addr::BROADCAST.into(), 32),
        range(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    ]
}

fn captures(routes: &[Route], family: Family) -> bool {
    routes.iter().any(|route| {
        Family::of(route.destination.address()) == family
            && matches!(route.target, Target::Device(_))
    })
}

/// The rules of a family. `of_host`: the host's own connections are captured in it.
fn family_rules(inputs: &CaptureInputs<'_>, tun: IpAddr, of_host: bool, rules: &mut Vec<Rule>) {
    let family = Family::of(tun);
    let table = inputs.table;
    let rule =
        |priority, action| Rule { family, priority, mark: None, from: None, of: None, action };
    let captured = Some(Cidr::host(tun));
    rules.push(Rule { mark: Some(inputs.mark), ..rule(CARRIER, Action::Lookup(MAIN_TABLE)) });
    rules.push(Rule { from: captured, ..rule(CAPTURED, Action::Lookup(table)) });
    if inputs.commands {
        // After ours, as for what is new: the kernel keeps with a route what it learnt of a path's
        // largest packets, and must find it again.
        let of_commands = rule(CAPTURED_BY_COMMANDS, Action::Lookup(COMMANDS_TABLE));
        rules.push(Rule { from: captured, ..of_commands });
    }
    rules.push(Rule { from: captured, ..rule(CAPTURED_STOP, Action::Unreachable) });
    let of_host = of_host && !inputs.paused;
    if inputs.commands {
        let direct = Some(Way::Direct.mark(inputs.mark));
        rules.push(Rule { mark: direct, ..rule(DIRECT_COMMANDS, Action::Goto(PAST_CAPTURE)) });
        rules.push(rule(PAST_CAPTURE, Action::Nop));
    } else if !of_host {
        return;
    }
    let datagrams = inputs.datagrams.map(Transport::Udp);
    let echoes = inputs.echoes.then_some(Transport::Echo);
    for of in [Some(Transport::Tcp), datagrams, echoes].into_iter().filter(Option::is_some) {
        let from = match family {
            Family::V4 => Some(Cidr::host(Ipv4Addr::UNSPECIFIED.into())),
            Family::V6 => {
                let bound = inputs.own_v6_addresses.iter().filter(|own| IpAddr::V6(**own) != tun);
                rules.extend(bound.map(|own| Rule {
                    from: Some(Cidr::host((*own).into())),
                    of,
                    ..rule(BOUND, Action::Goto(PAST_CAPTURE))
                }));
                rules.push(rule(PAST_CAPTURE, Action::Nop));
                None
            }
        };
        let new = |priority, action| Rule { from, of, ..rule(priority, action) };
        if inputs.commands {
            let mark = Some(Way::Carried.mark(inputs.mark));
            let local = new(LOCAL_TO_COMMANDS, Action::LookupSpecific(MAIN_TABLE));
            rules.push(Rule { mark, ..local });
            rules.push(Rule { mark, ..new(CAPTURE_COMMANDS, Action::Lookup(COMMANDS_TABLE)) });
        }
        if of_host {
            rules.push(new(LOCAL_NETWORK, Action::LookupSpecific(MAIN_TABLE)));
            rules.push(new(CAPTURE, Action::Lookup(table)));
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Carried => "carried",
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Throw => write!(f, "route throw {} table {}", self.destination, self.table),
            Target::Device(index) => {
                write!(f, "route {} dev #{index} table {}", self.destination, self.table)
            }
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.family == Family::V6 {
            f.write_str("IPv6 ")?;
        }
        write!(f, "rule {}", self.priority)?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark:#x}")?;
        }
        match self.of {
            None => {}
            Some(Transport::Tcp) => f.write_str(" ipproto tcp")?,
            Some(Transport::Udp(PortRange { first, last })) => {
                write!(f, " ipproto udp sport {first}-{last}")?;
            }
            Some(Transport::Echo) => match self.family {
                Family::V4 => write!(f, " ipproto icmp dport {ECHO_PORT_V4}")?,
                Family::V6 => write!(f, " ipproto ipv6-icmp dport {ECHO_PORT_V6}")?,
            },
        }
        match self.action {
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::LookupSpecific(table) => write!(f, " lookup {table} suppress_prefixlength 0"),
            Action::Goto(priority) => write!(f, " goto {priority}"),
            Action::Unreachable => f.write_str(" unreachable"),
            Action::Nop => f.write_str(" nop"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveRule(rule) => write!(f, "removing {rule}"),
            Self::PutRoute(route) => write!(f, "adding {route}"),
            Self::RemoveRoute(route) => write!(f, "removing {route}"),
            Self::AddRule(rule) => write!(f, "adding {rule}"),
        }
    }
}

#[cfg(test)]
mod tests;
