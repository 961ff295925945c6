//! What is wrong with a host, what of it matters, and what to do about it.
//!
//! [`examine`] turns [`Facts`] into findings, the worst first. It asks nobody: what cannot be known
//! is a fact too, and leads to no finding.

mod facts;
mod gateway;
mod host;
mod network;
mod setup;

#[cfg(test)]
mod tests;

use std::fmt;

pub use facts::{
    Capture, Clock, Daemon, DaemonState, Facts, Group, Key, Link, LinkTrouble, Names, Network,
    PathFact, Reach, Rights, Room, RuleFact, RuleKind, Running, Settings, Setup, Sleep, TunNode,
    Unit, UnitState, Vpn,
};

/// The examination's outcome.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What was looked at and is in order.
    pub fine: Vec<Subject>,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// How bad it is.
    pub weight: Weight,
    /// A sentence or two.
    pub text: String,
    /// What to do, in this order.
    pub remedies: Vec<Remedy>,
}

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Weight {
    /// Connections are not carried.
    Broken,
    /// They are, but something of what Whimbrel promises does not hold.
    Hampered,
    /// Good to know.
    Remark,
}

/// What to do about a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// A command to type.
    Command(String),
    /// A sentence, where no command does it.
    Advice(String),
}

/// What a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Subject {
    /// The configuration file.
    Configuration,
    /// The client's key.
    Key,
    /// The daemon.
    Daemon,
    /// The systemd unit.
    Unit,
    /// `/dev/net/tun`.
    TunDevice,
    /// The capability to change the network.
    Rights,
    /// The addresses of the TUN.
    TunAddress,
    /// Links that lead out.
    Links,
    /// The way to the gateway.
    Gateway,
    /// A network that wants a sign-in.
    Captive,
    /// Of whom names are asked.
    Names,
    /// Routing rules, ours and others'.
    Rules,
    /// Other programs' tunnels.
    Vpn,
    /// Reverse-path filtering.
    ReversePath,
    /// Packet sizes.
    Mtu,
    /// Room on the disk.
    Disk,
    /// The group that may use the control socket.
    Group,
    /// Announcements of sleep.
    Sleep,
    /// The wall clock.
    Clock,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Configuration => "configuration",
            Self::Key => "key",
            Self::Daemon => "daemon",
            Self::Unit => "systemd unit",
            Self::TunDevice => "TUN device",
            Self::Rights => "capabilities",
            Self::TunAddress => "TUN address",
            Self::Links => "links",
            Self::Gateway => "gateway",
            Self::Captive => "captive networks",
            Self::Names => "names",
            Self::Rules => "routing rules",
            Self::Vpn => "other VPNs",
            Self::ReversePath => "reverse-path filter",
            Self::Mtu => "packet size",
            Self::Disk => "disk space",
            Self::Group => "group",
            Self::Sleep => "sleep",
            Self::Clock => "clock",
        })
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Broken => "broken",
            Self::Hampered => "hampered",
            Self::Remark => "remark",
        })
    }
}

impl Report {
    /// Whether nothing needs to be done.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.weight == Weight::Remark)
    }

    /// A subject was looked at: the last call about it decides whether it is in order.
    fn looked_at(&mut self, subject: Subject) {
        if !self.fine.contains(&subject) {
            self.fine.push(subject);
        }
    }

    fn find(
        &mut self,
        subject: Subject,
        weight: Weight,
        text: impl Into<String>,
        remedies: impl Into<Vec<Remedy>>,
    ) {
        let (text, remedies) = (text.into(), remedies.into());
        self.findings.push(Finding { subject, weight, text, remedies });
    }
}

/// Examines a host.
#[must_use]
pub fn examine(facts: &Facts) -> Report {
    let mut report = Report::default();
    setup::examine(facts, &mut report);
    host::examine(facts, &mut report);
    network::examine(facts, &mut report);
    gateway::examine(facts, &mut report);
    // Stable: what was found first among equals is what the rest may follow from.
    report.findings.sort_by_key(|finding| finding.weight);
    let wrong: Vec<Subject> = report.findings.iter().map(|finding| finding.subject).collect();
    report.fine.retain(|subject| !wrong.contains(subject));
    report.fine.sort_unstable();
    report
}

fn run(command: impl Into<String>) -> Remedy {
    Remedy::Command(command.into())
}

fn advise(advice: impl Into<String>) -> Remedy {
    Remedy::Advice(advice.into())
}
