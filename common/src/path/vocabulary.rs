use std::fmt;
use std::time::{Duration, Instant};

/// The number of a path: the client's own link number, or the engine's path id at the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey(pub u32);

impl fmt::Display for PathKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Owns the links: opens, steers and closes paths.
    Client,
    /// Opens and steers nothing; prefers and tells, and closes what keeps bytes from arriving.
    Gateway,
}

/// What is known of a path at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// When the oldest packet that demands an acknowledgement was sent since the last
    /// acknowledgement; restarts with every acknowledgement; `None` when nothing is outstanding.
    pub expecting_since: Option<Instant>,
    /// When the last acknowledgement of something sent on this path arrived.
    pub last_ack: Option<Instant>,
    /// When anything last arrived on the link.
    pub last_receive: Option<Instant>,
    /// When the last thing that must arrive was sent or, if later, when anything was acknowledged;
    /// `None` when something sent later than it was acknowledged.
    pub undelivered: Option<Instant>,
    /// Smoothed round trip, the peer's acknowledgement delay (≤ 25 ms) included.
    pub srtt: Duration,
    /// Its mean deviation.
    pub rttvar: Duration,
}

impl Evidence {
    /// Nothing known: an initial round trip of 100 ms, as the engine is configured.
    pub const NONE: Self = Self {
        expecting_since: None,
        last_ack: None,
        last_receive: None,
        undelivered: None,
        srtt: Duration::from_millis(100),
        rttvar: Duration::from_millis(50),
    };
}

/// What a path is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing is open, and nothing is under way.
    Absent,
    /// Being validated.
    Probing,
    /// Validated and kept ready.
    Warm,
    /// Carries the traffic.
    Active,
    /// Owes an answer.
    Suspect,
    /// Its packets leave through another link.
    Steered,
    /// About to be closed.
    Draining,
    /// Its link rests after a failure.
    Cooldown,
}

impl State {
    /// Every state there is.
    pub const ALL: [Self; 8] = [
        Self::Absent,
        Self::Probing,
        Self::Warm,
        Self::Active,
        Self::Suspect,
        Self::Steered,
        Self::Draining,
        Self::Cooldown,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absent => "absent",
            Self::Probing => "probing",
            Self::Warm => "warm",
            Self::Active => "active",
            Self::Suspect => "suspect",
            Self::Steered => "steered",
            Self::Draining => "draining",
            Self::Cooldown => "cooldown",
        })
    }
}

/// Why a link is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// The carrier is lost or the interface was set down.
    Carrier,
    /// The last usable address is gone.
    AddressRemoved,
    /// Sending fails in a way that does not pass.
    SendError,
    /// The interface no longer exists.
    Gone,
}

/// Who wants a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreferredBy {
    /// The other end of the connection.
    Peer,
    /// A person.
    Hand,
}

/// A fact about links, paths or the wishes of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A link can be used; also updates what is known of it.
    LinkUp {
        /// The link.
        path: PathKey,
        /// Its interface name.
        name: String,
        /// Lower is better.
        rank: u32,
        /// Costs money: comes after every link that does not.
        metered: bool,
        /// Keeps no path until one is needed.
        cold: bool,
    },
    /// A link cannot be used.
    LinkDown {
        /// The link.
        path: PathKey,
        /// Why.
        reason: DownReason,
    },
    /// The engine has validated the path: it may carry data.
    Opened {
        /// The path.
        path: PathKey,
    },
    /// The engine could not validate the path.
    OpenFailed {
        /// The path.
        path: PathKey,
    },
    /// The engine's path is gone.
    Closed {
        /// The path.
        path: PathKey,
    },
    /// Sending on the link failed.
    SendError {
        /// The link.
        path: PathKey,
    },
    /// What is known of an open path by now.
    Evidence {
        /// The path.
        path: PathKey,
        /// What is known.
        evidence: Evidence,
    },
    /// Application bytes moved since the last step.
    Activity,
    /// Somebody wants the traffic on `path`.
    Prefer {
        /// The path.
        path: PathKey,
        /// Who.
        by: PreferredBy,
    },
    /// Takes back what was preferred by hand.
    Auto,
    /// The host slept, or the clock jumped.
    Woke,
}

/// An order to the carrier, or news for the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Open and validate a path on this link.
    Open {
        /// The link.
        path: PathKey,
    },
    /// Send something on the path that must be acknowledged, at once.
    Probe {
        /// The path.
        path: PathKey,
    },
    /// Let this path carry the traffic and no other one; tell the peer. May repeat.
    Carry {
        /// The path.
        path: PathKey,
    },
    /// Send the packets of `from` through the link of `onto`, and ping `from` there.
    Steer {
        /// The path whose packets go elsewhere.
        from: PathKey,
        /// The link they leave through.
        onto: PathKey,
    },
    /// Send the packets of `path` through its own link again.
    Unsteer {
        /// The path.
        path: PathKey,
    },
    /// Close the path.
    Close {
        /// The path.
        path: PathKey,
    },
    /// Send the unacknowledged flow bytes again, at once, over the path that carries now.
    Replay {
        /// The path they were sent on.
        from: PathKey,
        /// When its silence began: what was under way then may be lost.
        silent_since: Instant,
    },
    /// The traffic moved.
    Moved(Move),
    /// A path changed its state.
    StateChanged {
        /// The path.
        path: PathKey,
        /// What it was.
        from: State,
        /// What it is.
        to: State,
    },
}

/// One move of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Where it was; `None` for the first path of a connection.
    pub from: Option<PathKey>,
    /// Where it is.
    pub to: PathKey,
    /// Why.
    pub reason: MoveReason,
    /// When.
    pub at: Instant,
    /// Since when the old path owed an answer.
    pub silent_since: Option<Instant>,
}

/// Why the traffic moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MoveReason {
    /// The link went down, or its path was closed under us.
    LinkDown,
    /// The link lost its address.
    AddressRemoved,
    /// Sending failed.
    SendError,
    /// The path was silent while another answered.
    BlackHole,
    /// A link of better rank is there.
    Preferred,
    /// A person asked for it.
    Hand,
    /// The peer asked for it.
    PeerAsked,
    /// A link that costs nothing is there.
    Metered,
    /// A link that had failed works again.
    Return,
}

impl MoveReason {
    /// Every reason there is.
    pub const ALL: [Self; 9] = [
        Self::LinkDown,
        Self::AddressRemoved,
        Self::SendError,
        Self::BlackHole,
        Self::Preferred,
        Self::Hand,
        Self::PeerAsked,
        Self::Metered,
        Self::Return,
    ];
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LinkDown => "link-down",
            Self::AddressRemoved => "address-removed",
            Self::SendError => "send-error",
            Self::BlackHole => "black-hole",
            Self::Preferred => "preferred",
            Self::Hand => "hand",
            Self::PeerAsked => "peer-asked",
            Self::Metered => "metered",
            Self::Return => "return",
        })
    }
}

impl From<DownReason> for MoveReason {
    fn from(reason: DownReason) -> Self {
        match reason {
            DownReason::Carrier | DownReason::Gone => Self::LinkDown,
            DownReason::AddressRemoved => Self::AddressRemoved,
            DownReason::SendError => Self::SendError,
        }
    }
}

/// One path, for people to look at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The path.
    pub path: PathKey,
    /// The interface name; at the gateway `path N`.
    pub name: &'a str,
    /// What it is doing.
    pub state: State,
    /// Lower is better.
    pub rank: u32,
    /// Whether its link costs money.
    pub metered: bool,
    /// Whether its link keeps no path until needed.
    pub cold: bool,
    /// Whether its link is up.
    pub up: bool,
    /// When it entered this state.
    pub since: Instant,
    /// What was last known of it.
    pub evidence: Evidence,
    /// The link its packets leave through, if not its own.
    pub steered_onto: Option<PathKey>,
}
