//! What is known of a host.

use std::net::{Ipv4Addr, Ipv6Addr};

use whimbrel_common::cidr::Cidr;

use crate::plan::Family;
use crate::trouble::Trouble;

/// Everything an examination rests on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The `--config` to repeat in commands, with a leading space; empty for the default one.
    pub option: String,
    /// What whoever asks may do.
    pub rights: Rights,
    /// Configuration and key.
    pub setup: Setup,
    /// The running daemon.
    pub daemon: Daemon,
    /// What a talk with the gateway came to, without a daemon.
    pub reach: Reach,
    /// The client's unit; `None` where there is no systemd.
    pub unit: Option<Unit>,
    /// The device node of TUN.
    pub tun: TunNode,
    /// The group of the control socket.
    pub group: Group,
    /// Who announces sleep.
    pub sleep: Sleep,
    /// The wall clock.
    pub clock: Clock,
    /// The links of this host, uplinks or not.
    pub links: Vec<Link>,
    /// Networks other interfaces of this host lead to, by the main table, and their addresses as
    /// networks of one.
    pub networks: Vec<Network>,
    /// Routing rules that matter; `None` if they cannot be read.
    pub rules: Option<Vec<RuleFact>>,
    /// Tunnels of other programs.
    pub vpns: Vec<Vpn>,
    /// Folders that are written to.
    pub rooms: Vec<Room>,
}

/// What a process may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    /// It is root.
    pub root: bool,
    /// It has `CAP_NET_ADMIN`.
    pub capable: bool,
    /// Root here can have `CAP_NET_ADMIN` (a container may withhold it).
    pub possible: bool,
}

/// Configuration and key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Setup {
    /// There is no configuration.
    Missing {
        /// Where it was looked for.
        file: String,
    },
    /// It cannot be used.
    Wrong {
        /// A sentence with file and line.
        message: String,
    },
    /// It can be used.
    Ready(Settings),
}

/// What of the configuration matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The configuration file.
    pub file: String,
    /// The gateway, as configured.
    pub gateway: String,
    /// Its port.
    pub port: u16,
    /// The TUN's name.
    pub interface: String,
    /// The TUN's IPv4 address.
    pub address4: Ipv4Addr,
    /// The TUN's IPv6 address.
    pub address6: Ipv6Addr,
    /// The firewall mark.
    pub mark: u32,
    /// The client's key.
    pub key: Key,
}

/// The client's key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    /// It can be used.
    Fine,
    /// There is none.
    Missing,
    /// Whoever asks may not look.
    Hidden,
    /// It cannot be used: a sentence.
    Unusable(String),
}

/// The running daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Daemon {
    /// Nobody answers.
    Absent,
    /// Whoever asks may not talk to it.
    Denied,
    /// It is there and does not answer: a sentence.
    Broken(String),
    /// It answers.
    Running(Running),
}

/// What the running daemon says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Running {
    /// What it does.
    pub state: DaemonState,
    /// What keeps it from being attached.
    pub trouble: Option<(Trouble, String)>,
    /// What new connections get.
    pub capture: Capture,
    /// Of whom this host asks names.
    pub names: Names,
    /// The links it uses.
    pub paths: Vec<PathFact>,
    /// Its version.
    pub version: String,
    /// The version of the command that asks.
    pub own_version: String,
}

/// What the daemon does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DaemonState {
    /// It looks for the gateway.
    Connecting,
    /// The gateway carries its flows.
    Attached,
    /// Flows are held.
    Parked,
    /// There is no network.
    Offline,
}

/// What new connections get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capture {
    /// They are carried.
    On,
    /// They go direct, by request.
    Paused,
    /// They go direct, because the gateway is out of reach.
    Direct,
    /// They fail, because the gateway is out of reach.
    Blocked,
}

/// Of whom a host asks names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Names {
    /// Of whom it asked without us.
    Direct,
    /// Of the gateway.
    Gateway,
    /// It should be the gateway, and is not: a sentence.
    Failed(String),
}

/// A link as the daemon uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathFact {
    /// The interface.
    pub link: String,
    /// It carries packets to the gateway and back.
    pub works: bool,
    /// Its network wants a sign-in.
    pub captive: bool,
}

/// What a talk with the gateway came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Nobody asked: a daemon runs, or there is no configuration.
    NotTried,
    /// It proved its key; without a key of one's own nothing more can be asked.
    Proved,
    /// It admits this client.
    Admitted,
    /// It does not.
    Failed(Trouble, String),
}

/// The client's systemd unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unit {
    /// Its file is installed.
    pub installed: bool,
    /// It is started at boot.
    pub enabled: bool,
    /// What systemd says of it now, if it answers.
    pub state: UnitState,
}

/// What systemd says of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnitState {
    /// It does not say.
    Unknown,
    /// Running, or being started.
    Active,
    /// Not started.
    Inactive,
    /// It ended by a failure and is not started again.
    Failed,
}

/// The device node of TUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunNode {
    /// It opens.
    Fine,
    /// There is no node, or no driver behind it.
    Missing,
    /// Whoever asks may not open it.
    Denied,
}

/// The group of the control socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// There is none.
    Missing,
    /// There is, and whoever asks is no member.
    Outside,
    /// Whoever asks is a member, or root.
    Member,
}

/// Who announces that the machine sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// A login manager.
    Announced,
    /// A login manager that does not wait for the daemon.
    Undelayed,
    /// There is a system bus, and no login manager on it.
    NoLogin,
    /// There is no system bus.
    NoBus,
}

/// The wall clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Seconds since 1970.
    pub unix_seconds: u64,
    /// Whether the kernel says that something keeps it right.
    pub synchronised: Option<bool>,
}

/// A link of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What keeps it from being an uplink; `None` if it is one.
    pub trouble: Option<LinkTrouble>,
    /// It has IPv4, and IPv6.
    pub families: [bool; 2],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The effective reverse-path filter: 0 off, 1 strict, 2 loose.
    pub rp_filter: Option<u8>,
    /// The metric of its default route; `None` without one.
    pub metric: Option<u32>,
}

/// What keeps a link from being an uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkTrouble {
    /// Switched off.
    Disabled,
    /// No carrier.
    NoCarrier,
    /// No address.
    NoAddress,
    /// No way out.
    NoRoute,
}

/// A network that an interface of this host leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// The network.
    pub cidr: Cidr,
    /// The interface.
    pub interface: String,
    /// An address of this host itself.
    pub own: bool,
}

/// A routing rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleFact {
    /// Its family.
    pub family: Family,
    /// Its priority.
    pub priority: u32,
    /// Whose, and what it does.
    pub kind: RuleKind,
    /// The mark it matches.
    pub mark: Option<u32>,
}

/// What of a rule matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleKind {
    /// One of ours.
    Ours,
    /// Another program's, which leads packets of every kind to a default route in this table.
    Everything {
        /// The table.
        table: u32,
    },
    /// Another program's.
    Other,
}

/// A tunnel of another program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vpn {
    /// Its interface.
    pub interface: String,
    /// The main table leads nearly everything there by routes more specific than a default route
    /// (`0.0.0.0/1` and `128.0.0.0/1`).
    pub halves: bool,
    /// A default route leads there.
    pub default_route: bool,
}

/// A folder that is written to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Room {
    /// The folder.
    pub folder: String,
    /// Bytes that are free there for its owner.
    pub free: u64,
}
