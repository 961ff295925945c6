//! What the daemon reports of itself: the JSON documents of `status`, `paths`, `flows` and
//! `events`. Fields are only ever added.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::tunnel::LinkView;

/// A point in time: milliseconds since 1970-01-01 00:00 UTC.
pub type UnixMillis = u64;

/// `whimbrel status --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What the daemon does.
    pub state: SessionState,
    /// The gateway, as configured.
    pub gateway: String,
    /// The session at the gateway; `None` until attached for the first time.
    pub session: Option<String>,
    /// Every path, the active one first.
    pub paths: Vec<PathReport>,
    /// Flows by what they do.
    pub flows: FlowCounts,
    /// What becomes of UDP.
    #[serde(default)]
    pub datagrams: DatagramReport,
    /// Where names are asked.
    #[serde(default)]
    pub names: NamesReport,
    /// Moves since the daemon started.
    pub moves: u64,
    /// The last of them.
    pub last_move: Option<MoveRecord>,
    /// Whether new connections are captured at the moment.
    pub capture: CaptureState,
    /// How often another program removed our routing rules or routes; they came back each time.
    #[serde(default)]
    pub restored: u64,
    /// Seconds until a pause of the capture is over; `None` without one, or if it has no end.
    #[serde(default)]
    pub pause_left_s: Option<u64>,
    /// The version of the running daemon.
    pub version: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Why it is not attached, as a sentence; `None` while it is.
    pub trouble: Option<String>,
    /// The same as one of `name-unknown`, `no-family`, `unreachable`, `forbidden`, `not-ours`,
    /// `wrong-key`, `revoked`, `version`, `busy` or `other`.
    #[serde(default)]
    pub trouble_kind: Option<String>,
    /// Who tells the daemon that the machine sleeps: `delayed` (a login manager that waits for it),
    /// `announced` (one that does not), or `unannounced` (nobody).
    #[serde(default)]
    pub sleep: Option<String>,
    /// Commands of `whimbrel run`, the oldest first.
    #[serde(default)]
    pub runs: Vec<RunReport>,
    /// Why no command can be led by its control group, as a sentence; `None` if it can.
    #[serde(default)]
    pub cgroup_trouble: Option<String>,
}

/// A command of `whimbrel run`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RunReport {
    /// The number of its TUN, which is never used again while the daemon runs; 0 is the host's own.
    pub device: u32,
    /// The program's name.
    pub command: String,
    /// The process it began as; `None` if it is in a namespace the daemon does not see.
    pub pid: Option<i32>,
    /// The user.
    pub uid: u32,
    /// Its connections.
    pub flows: u64,
    /// Seconds since it began.
    pub age_s: u64,
    /// Whether it has ended, with everything it started; its last connections are still served.
    pub ended: bool,
    /// How its connections are told from those of others.
    #[serde(default)]
    pub way: RunWay,
}

/// How the connections of a command are told from those of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunWay {
    /// It has a network of its own, and all of it is carried.
    #[default]
    Namespace,
    /// It has a control group of its own, and new connections from there are carried. They are
    /// counted with those of the host.
    Cgroup,
    /// The same, and they go direct.
    Direct,
}

/// What the daemon does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// It looks for the gateway.
    Connecting,
    /// The gateway carries its flows.
    Attached,
    /// No network reaches the gateway; flows are held.
    Parked,
    /// No network reaches the gateway, and there is nothing to hold.
    Offline,
}

/// What new connections get.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureState {
    /// They are carried.
    On,
    /// They go direct until `resume`, or until the pause is over.
    Paused,
    /// They go direct, because the gateway is out of reach (`capture.offline = "direct"`).
    Direct,
    /// They fail, because the gateway is out of reach (`capture.offline = "block"`).
    Blocked,
    /// They go direct: this daemon serves commands of `whimbrel run` only.
    Commands,
}

/// One path to the gateway. Also a row of `whimbrel paths --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PathReport {
    /// The interface.
    pub link: String,
    /// `absent`, `probing`, `warm`, `active`, `suspect`, `steered`, `draining` or `cooldown`.
    pub state: String,
    /// Smoothed round-trip time in milliseconds; `None` before the first answer.
    pub rtt_ms: Option<f64>,
    /// Congestion window in bytes.
    pub cwnd: u64,
    /// Largest UDP payload that fits, in bytes.
    pub mtu: u16,
    /// Bytes sent on this path.
    pub tx_bytes: u64,
    /// Bytes received on this path.
    pub rx_bytes: u64,
    /// The gateway's address on this path.
    pub remote: Option<SocketAddr>,
    /// Whether the link costs money.
    pub metered: bool,
    /// Whether its network answers for everybody and lets nothing through: it wants a sign-in.
    #[serde(default)]
    pub captive: bool,
    /// `wired`, `wifi`, `tether` or `cellular`; `None` from a daemon that does not say.
    #[serde(default)]
    pub class: Option<String>,
}

impl From<LinkView> for PathReport {
    fn from(link: LinkView) -> Self {
        let path = link.path.as_ref();
        let measured = path.and_then(|path| path.progress).is_some_and(|it| it.last_ack.is_some());
        Self {
            link: link.link,
            state: link.state.to_string(),
            rtt_ms: path
                .filter(|_| measured)
                .map(|path| (path.rtt.as_secs_f64() * 10_000.0).round() / 10.0),
            cwnd: path.map_or(0, |path| path.cwnd),
            mtu: path.map_or(0, |path| path.mtu),
            tx_bytes: link.tx_bytes,
            rx_bytes: link.rx_bytes,
            remote: path.map(|path| path.remote),
            metered: link.metered,
            captive: link.captive,
            class: Some(link.class.to_string()),
        }
    }
}

/// Flows by what they do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FlowCounts {
    /// Open, held ones included.
    pub open: u64,
    /// Waiting for the gateway to be in reach again.
    pub held: u64,
}

/// What becomes of UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DatagramReport {
    /// Whether it is carried.
    pub state: DatagramState,
    /// Sockets of programs that have a port at the gateway, or had one lately.
    pub open: u64,
    /// Datagrams sent to the gateway since the start.
    pub sent: u64,
    /// Datagrams the gateway sent.
    pub received: u64,
    /// Datagrams of either direction that were lost here: too big, too late, or without a way.
    pub dropped: u64,
    /// Whether ICMP echo (`ping`) is carried.
    #[serde(default)]
    pub echoes: DatagramState,
    /// Echo requests sent to the gateway since the start.
    #[serde(default)]
    pub echo_requests: u64,
    /// Replies the gateway sent.
    #[serde(default)]
    pub echo_replies: u64,
}

/// Where names are asked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamesReport {
    /// Of whom.
    pub state: NamesState,
    /// What was told: `systemd-resolved`, `openresolv`, `resolvconf` or `/etc/resolv.conf`.
    pub by: Option<String>,
    /// Why they are not asked of the gateway, as a sentence.
    pub trouble: Option<String>,
}

/// Of whom names are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamesState {
    /// Of whomever the host asks without us.
    #[default]
    Direct,
    /// Of the gateway's own resolver.
    Gateway,
    /// They should be asked of the gateway, and that is not possible; the host asks as before.
    Failed,
}

/// Whether UDP, or ICMP echo, is carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatagramState {
    /// No: it goes direct, as configured (`capture.mode = "tcp"`).
    #[default]
    Off,
    /// It will be, once the gateway was reached for the first time.
    Waiting,
    /// It is.
    Carried,
    /// It should be, and the gateway cannot: it is of an older version, or of ICMP its kernel does
    /// not let it.
    Unsupported,
}

/// One migration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MoveRecord {
    /// When.
    pub at: UnixMillis,
    /// The link it left; `None` if there was none.
    pub from: Option<String>,
    /// The link it went to.
    pub to: String,
    /// Why.
    pub reason: String,
    /// How long nothing arrived, in milliseconds; `None` while that is not known yet.
    pub gap_ms: Option<f64>,
    /// Bytes that had to be sent again; `None` while that is not known yet.
    pub retransmitted_bytes: Option<u64>,
}

/// A row of `whimbrel flows --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FlowReport {
    /// Its number, which is never used again for the same protocol.
    pub id: u64,
    /// What it carries. A flow of UDP is what one socket of a program sends and receives, one of
    /// ICMP the pings of a program.
    #[serde(default)]
    pub protocol: Transport,
    /// The program's end.
    pub source: SocketAddr,
    /// The far end; of UDP, the last one it sent to.
    pub destination: SocketAddr,
    /// `opening`, `open`, `half-closed`, `held` or `closing`.
    pub state: String,
    /// Bytes from the program.
    pub tx_bytes: u64,
    /// Bytes to the program.
    pub rx_bytes: u64,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// The longest it had to wait while it had something to send or receive, in milliseconds.
    pub stalled_ms_longest: u64,
    /// Moves it lived through.
    pub moves_survived: u64,
    /// Connections to the gateway it lived through: each was lost, or ended with the gateway's
    /// process.
    #[serde(default)]
    pub reconnects_survived: u64,
    /// Bytes sent again, in both directions, because a path or a connection was lost.
    #[serde(default)]
    pub replayed_bytes: u64,
    /// Bytes kept here until the gateway has taken them.
    #[serde(default)]
    pub held_bytes: u64,
}

/// What a flow carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

/// A line of `whimbrel events --json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: UnixMillis,
    /// What.
    pub event: EventKind,
    /// A sentence for people.
    pub text: String,
    /// The link it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The move, for [`EventKind::Moved`].
    #[serde(default, rename = "move", skip_serializing_if = "Option::is_none")]
    pub moved: Option<MoveRecord>,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The daemon runs.
    Started,
    /// The daemon ends.
    Stopped,
    /// The gateway carries our flows.
    Attached,
    /// No network reaches the gateway; flows are held.
    Parked,
    /// The gateway is out of reach: what new connections get.
    Offline,
    /// The gateway refuses us, for instance after `revoke`.
    Refused,
    /// A limit of the gateway holds this client back.
    Limited,
    /// A link came.
    LinkUp,
    /// A link went.
    LinkDown,
    /// A network wants a sign-in.
    Captive,
    /// A path changed its state.
    Path,
    /// Traffic moved to another link.
    Moved,
    /// New connections go direct, on request.
    Paused,
    /// New connections are captured again.
    Resumed,
    /// The machine is about to sleep: the gateway holds what is open.
    Sleep,
    /// The machine slept and is awake again.
    Wake,
    /// A command of `whimbrel run` began or is over.
    Run,
    /// Another program removed our routing rules or routes; they are back.
    Restored,
}

macro_rules! named {
    ($type:ty { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$variant => $name),+
                })
            }
        }
    };
}

named!(SessionState {
    Connecting => "connecting",
    Attached => "attached",
    Parked => "parked",
    Offline => "offline",
});

named!(CaptureState {
    On => "on",
    Paused => "paused",
    Direct => "direct",
    Blocked => "blocked",
    Commands => "commands",
});

named!(Transport {
    Tcp => "tcp",
    Udp => "udp",
    Icmp => "icmp",
});

named!(EventKind {
    Started => "started",
    Stopped => "stopped",
    Attached => "attached",
    Parked => "parked",
    Offline => "offline",
    Refused => "refused",
    Limited => "limited",
    LinkUp => "link-up",
    LinkDown => "link-down",
    Captive => "captive",
    Path => "path",
    Moved => "moved",
    Paused => "paused",
    Resumed => "resumed",
    Sleep => "sleep",
    Wake => "wake",
    Run => "run",
    Restored => "restored",
});

named!(RunWay {
    Namespace => "namespace",
    Cgroup => "cgroup",
    Direct => "direct",
});
