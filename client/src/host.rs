//! Makes the host's routing follow a [`Plan`], and takes back everything of ours.
//!
//! Promises:
//! - applying is idempotent, and verified by reading the host back;
//! - what a killed daemon left behind is recognised by its originator number and removed;
//! - a failed first application leaves nothing behind, a failed change leaves what was there;
//! - a host without IPv6, or with IPv6 switched off, works as an IPv4 host.

use std::io;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Error as NetlinkError, IpVersion};
use whimbrel_client_core::plan::{Change, Family, Plan, PortRange, diff};

pub(crate) mod netlink;
pub(crate) mod translate;

use netlink::{Netlink, io_error};

/// Why the host does not follow the plan. Every text says what was tried.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No netlink socket.
    #[error("opening a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// Rules or routes could not be read.
    #[error("reading the host's {what}: {source}")]
    Read {
        /// Rules or routes, of which family.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A rule or route could not be changed.
    #[error("{action}: {source}")]
    Change {
        /// The step, as in `adding rule 5414 …`.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Every step succeeded, and yet the host differs: something else changes it meanwhile.
    #[error("the host's routing differs from what was just set, still needed: {0}")]
    Differs(String),
}

impl HostError {
    /// Whether the kernel refused for lack of a capability (`CAP_NET_ADMIN`).
    #[must_use]
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Open(source) | Self::Read { source, .. } | Self::Change { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::Differs(_) => false,
        }
    }
}

/// The routing of the network namespace it was opened in.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
    applied: Option<Plan>,
}

impl Host {
    /// Opens the host's routing. Needs a tokio runtime around it, no privilege yet.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn open() -> Result<Self, HostError> {
        let netlink = Netlink::open().map_err(HostError::Open)?;
        Ok(Self { netlink, applied: None })
    }

    /// Makes the host follow `plan` and nothing else of ours. Returns how many changes that
    /// took: 0 when it already did.
    ///
    /// # Errors
    /// The first step the kernel refused. What was applied before is restored; if that was
    /// nothing, or cannot be restored, everything of ours is removed.
    pub async fn apply(&mut self, plan: &Plan) -> Result<usize, HostError> {
        match self.carry_out(plan).await {
            Ok(changes) => {
                self.applied = Some(plan.clone());
                Ok(changes)
            }
            Err(error) => {
                self.fall_back().await;
                Err(error)
            }
        }
    }

    /// Removes every rule and route of ours, whoever left it. Returns how many there were.
    ///
    /// # Errors
    /// The first step the kernel refused; the others were tried all the same.
    pub async fn remove(&mut self) -> Result<usize, HostError> {
        self.applied = None;
        let found = self.read().await?;
        let mut first = self.remove_foreign(&found).await.err();
        let changes = diff(&found.plan, &Plan::default());
        for change in &changes {
            if let Err(error) = self.perform(change).await {
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) => Err(error),
            None => Ok(changes.len() + found.strange_rules.len() + found.strange_routes.len()),
        }
    }

    async fn carry_out(&self, plan: &Plan) -> Result<usize, HostError> {
        let found = self.read().await?;
        self.remove_foreign(&found).await?;
        let changes = diff(&found.plan, plan);
        for change in &changes {
            self.perform(change).await?;
            tracing::debug!(%change, "Host changed");
        }
        let count = changes.len() + found.strange_rules.len() + found.strange_routes.len();
        if count > 0 {
            let left = diff(&self.read().await?.plan, plan);
            if let Some(change) = left.first() {
                return Err(HostError::Differs(change.to_string()));
            }
        }
        Ok(count)
    }

    async fn fall_back(&mut self) {
        if let Some(before) = self.applied.take()
            && self.carry_out(&before).await.is_ok()
        {
            self.applied = Some(before);
            return;
        }
        if let Err(error) = self.remove().await {
            tracing::warn!(%error, "Could not remove all of our rules and routes");
        }
    }

    async fn perform(&self, change: &Change) -> Result<(), HostError> {
        let handle = self.netlink.handle();
        let done = match change {
            Change::AddRule(rule) => {
                let mut request = handle.rule().add();
                *request.message_mut() = translate::rule_message(rule);
                ignore(libc::EEXIST, request.execute().await)
            }
            Change::RemoveRule(rule) => {
                let request = handle.rule().del(translate::rule_message(rule));
                ignore(libc::ENOENT, request.execute().await)
            }
            Change::PutRoute(route) => {
                handle.route().add(translate::route_message(route)).replace().execute().await
            }
            Change::RemoveRoute(route) => {
                let request = handle.route().del(translate::route_message(route));
                ignore(libc::ESRCH, request.execute().await)
            }
        };
        done.map_err(|error| HostError::Change {
            action: change.to_string(),
            source: io_error(error),
        })
    }

    /// Removes what carries our number but reads as nothing this version makes.
    async fn remove_foreign(&self, found: &Found) -> Result<(), HostError> {
        let handle = self.netlink.handle();
        let failed = |action: &str, error| HostError::Change {
            action: action.to_owned(),
            source: io_error(error),
        };
        for rule in &found.strange_rules {
            let request = handle.rule().del(rule.clone());
            ignore(libc::ENOENT, request.execute().await)
                .map_err(|error| failed("removing a rule of another version", error))?;
        }
        for route in &found.strange_routes {
            let request = handle.route().del(route.clone());
            ignore(libc::ESRCH, request.execute().await)
                .map_err(|error| failed("removing a route of another version", error))?;
        }
        Ok(())
    }

    async fn read(&self) -> Result<Found, HostError> {
        let mut rules = Vec::new();
        let mut routes = Vec::new();
        let mut found = Found::default();
        for family in [Family::V4, Family::V6] {
            for message in self.read_rules(family).await? {
                match translate::our_rule(family, &message) {
                    translate::Ours::No => {}
                    translate::Ours::Known(rule) => rules.push(rule),
                    translate::Ours::Strange => found.strange_rules.push(message),
                }
            }
            for message in self.read_routes(family).await? {
                match translate::our_route(family, &message) {
                    translate::Ours::No => {}
                    translate::Ours::Known(route) => routes.push(route),
                    translate::Ours::Strange => found.strange_routes.push(message),
                }
            }
        }
        found.plan = Plan::of(routes, rules);
        Ok(found)
    }

    async fn read_rules(&self, family: Family) -> Result<Vec<RuleMessage>, HostError> {
        let (version, what) = match family {
            Family::V4 => (IpVersion::V4, "IPv4 rules"),
            Family::V6 => (IpVersion::V6, "IPv6 rules"),
        };
        let rules = self.netlink.handle().rule().get(version).execute().try_collect().await;
        without_family(what, rules)
    }

    async fn read_routes(&self, family: Family) -> Result<Vec<RouteMessage>, HostError> {
        let what = match family {
            Family::V4 => "IPv4 routes",
            Family::V6 => "IPv6 routes",
        };
        let mut all = Vec::new();
        for table in translate::TABLES {
            let filter = translate::table_of(family, table);
            let routes = self.netlink.handle().route().get(filter).execute().try_collect().await;
            all.append(&mut without_family(what, routes)?);
        }
        Ok(all)
    }
}

/// The ports this kernel gives to programs that ask for any.
pub(crate) fn ephemeral_ports() -> PortRange {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    text.ok().as_deref().and_then(read_ports).unwrap_or(EPHEMERAL)
}

/// What the kernel chooses from unless it is told otherwise (`ip-sysctl`, ip_local_port_range).
const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };

fn read_ports(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (0 < first && first <= last).then_some(PortRange { first, last })
}

/// What the host has of ours.
#[derive(Default)]
struct Found {
    plan: Plan,
    strange_rules: Vec<RuleMessage>,
    strange_routes: Vec<RouteMessage>,
}

/// A family the kernel was built or booted without has no rules and no routes; a table nobody
/// has used yet does not exist.
fn without_family<T>(
    what: &'static str,
    answer: Result<Vec<T>, NetlinkError>,
) -> Result<Vec<T>, HostError> {
    answer.or_else(|error| {
        let source = io_error(error);
        match source.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT) => Ok(Vec::new()),
            Some(_) | None => Err(HostError::Read { what, source }),
        }
    })
}

fn ignore(errno: i32, answer: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match answer {
        Err(NetlinkError::NetlinkError(refusal)) if refusal.raw_code() == -errno => Ok(()),
        Ok(()) | Err(_) => answer,
    }
}

#[cfg(test)]
pub(crate) mod lab;
#[cfg(test)]
mod tests;
