//! What the gateway tells of itself and of its clients.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_gateway_core::invites::UnixSeconds;

/// `whimbrel-gateway status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// `running` or `stopped`.
    pub state: String,
    /// The version of the running program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The UDP addresses it listens on.
    pub listen: Vec<SocketAddr>,
    /// Where clients find it.
    pub public: String,
    /// Its public key.
    pub key: String,
    /// Clients that may connect. Filled in from the clients file.
    pub clients: usize,
    /// Clients that are connected.
    pub connected: usize,
    /// Flows open.
    pub flows: u64,
    /// Sessions that wait for their clients.
    #[serde(default)]
    pub parked: Waiting,
    /// What flows keep for those who have not taken it.
    #[serde(default)]
    pub held: Held,
    /// Sessions given up since the start because their client parked too many, or memory was short.
    #[serde(default)]
    pub evicted: u64,
    /// Flows taken over from the process before.
    #[serde(default)]
    pub restored: u64,
    /// Flows since the start for which there was no room to outlive this process.
    #[serde(default)]
    pub unkept: u64,
    /// Whether flows outlive this process: a restart, or its sudden death.
    #[serde(default)]
    pub outlives: bool,
    /// Dials since the start, by what became of them.
    pub dials: Dials,
    /// Datagrams since the start, by what became of them.
    #[serde(default)]
    pub datagrams: Datagrams,
    /// Bytes to clients since the start.
    pub tx_bytes: u64,
    /// Bytes from clients since the start.
    pub rx_bytes: u64,
    /// The threads that carry clients.
    #[serde(default)]
    pub slots: Vec<SlotStatus>,
}

/// What one of the gateway's threads does, and has done since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its number.
    pub slot: u8,
    /// Clients connected to it.
    pub connections: u64,
    /// Flows it has open.
    pub flows: u64,
    /// Datagrams it received.
    pub datagrams: u64,
    /// Those of them for a connection of another slot, which were passed on.
    pub strayed: u64,
    /// Sessions that came to it from another slot, with their flows.
    pub moved_in: u64,
    /// Times a client came from another address or by another path and was still found here.
    pub readdressed: u64,
}

/// Bytes that were read and that nobody has taken yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// So many there are.
    pub bytes: u64,
    /// So many there may be (`limits.memory`).
    pub limit: u64,
}

/// What waits for its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Waiting {
    /// Sessions without a connection.
    pub sessions: u64,
    /// Their flows.
    pub flows: u64,
}

/// What became of the connections that clients asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Dials {
    /// The destination answered.
    pub connected: u64,
    /// It refused, was unreachable, or did not answer.
    pub failed: u64,
    /// The destination policy forbids it.
    pub denied: u64,
    /// The client was over its limits.
    pub limited: u64,
}

/// What became of the clients' UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Datagrams {
    /// Ports that clients have at the moment.
    pub ports: u64,
    /// Sent to destinations.
    pub up: u64,
    /// Sent to clients.
    pub down: u64,
    /// Lost here: no port, no room, or the client was away.
    pub dropped: u64,
    /// The destination policy forbids it.
    pub denied: u64,
    /// From strangers whom no client had spoken to.
    pub unasked: u64,
    /// Whether ICMP echo is carried as well: the machine lets this process ask.
    #[serde(default)]
    pub echoes: bool,
    /// Echo requests sent to destinations.
    #[serde(default)]
    pub echo_requests: u64,
    /// Replies sent to clients.
    #[serde(default)]
    pub echo_replies: u64,
}

impl Datagrams {
    /// Counts these as well.
    pub(crate) fn add(&mut self, other: Self) {
        self.ports += other.ports;
        self.up += other.up;
        self.down += other.down;
        self.dropped += other.dropped;
        self.denied += other.denied;
        self.unasked += other.unasked;
        self.echoes |= other.echoes;
        self.echo_requests += other.echo_requests;
        self.echo_replies += other.echo_replies;
    }
}

/// One row of `whimbrel-gateway clients --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientRow {
    /// What the owner calls it.
    pub name: ClientName,
    /// Its public key; `None` for one that is invited but has not joined.
    pub key: Option<PublicKey>,
    /// `connected`, `away`, `invited` or `expired`.
    pub state: String,
    /// When an open invite expires, in seconds since 1970.
    pub invite_expires: Option<UnixSeconds>,
    /// What it does, while it is connected.
    pub activity: Option<Activity>,
}

/// What a connected client does.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Flows it has open.
    pub flows: u64,
    /// Where its packets come from, the active path first.
    pub addresses: Vec<SocketAddr>,
    /// Bytes to it in this session.
    pub tx_bytes: u64,
    /// Bytes from it in this session.
    pub rx_bytes: u64,
    /// Seconds it has been connected.
    pub connected_s: u64,
    /// Seconds since it was heard last: more than the 20 s after which a client probes at the
    /// latest, if it sleeps, has no network, or is gone.
    #[serde(default)]
    pub silent_s: Option<u64>,
}

impl Activity {
    /// Another connection of the same client.
    pub(crate) fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.addresses.extend(other.addresses);
        self.tx_bytes += other.tx_bytes;
        self.rx_bytes += other.rx_bytes;
        self.connected_s = self.connected_s.max(other.connected_s);
        self.silent_s = [self.silent_s, other.silent_s].into_iter().flatten().min();
    }
}
