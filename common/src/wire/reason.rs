//! Why something was refused or ended, and the codes such reasons travel under.

/// Why a gateway does not admit a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denial {
    /// The key is not in the list of clients.
    UnknownKey,
    /// The key was revoked while the session ran.
    Revoked,
    /// The invite is unknown to this gateway.
    InviteUnknown,
    /// The invite was used before.
    InviteUsed,
    /// The invite has expired.
    InviteExpired,
    /// The ends share no version.
    Version,
    /// The peer broke the protocol.
    Protocol,
    /// The gateway has reached a limit.
    Busy,
    /// The key or the name is enrolled already.
    AlreadyEnrolled,
}

impl Denial {
    const ALL: [Self; 9] = [
        Self::UnknownKey,
        Self::Revoked,
        Self::InviteUnknown,
        Self::InviteUsed,
        Self::InviteExpired,
        Self::Version,
        Self::Protocol,
        Self::Busy,
        Self::AlreadyEnrolled,
    ];

    /// The code this denial travels under, in frames and as QUIC application error code.
    pub fn code(self) -> u64 {
        Self::ALL.iter().position(|denial| *denial == self).map_or(0, |at| at as u64 + 1)
    }

    /// The denial that travels under `code`.
    pub fn from_code(code: u64) -> Option<Self> {
        usize::try_from(code).ok()?.checked_sub(1).and_then(|at| Self::ALL.get(at).copied())
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownKey => "the gateway does not know this client's key",
            Self::Revoked => "this client was revoked at the gateway",
            Self::InviteUnknown => {
                "the gateway does not know this invite, or another has replaced it; ask for a new one"
            },
            Self::InviteUsed => "this invite was used before; ask for a new one",
            Self::InviteExpired => "this invite has expired; ask for a new one",
            Self::Version => "client and gateway speak different protocol versions",
            Self::Protocol => "the peer broke the protocol",
            Self::Busy => "the gateway has reached a limit",
            Self::AlreadyEnrolled => "this key or name is enrolled at the gateway already",
        })
    }
}

/// What a gateway allows a client, and the client has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Flows open at once.
    Flows,
    /// Flows begun in a second.
    Dials,
    /// Bytes in a second.
    Bandwidth,
    /// Bytes held for it.
    Buffered,
    /// Bytes held for all clients.
    Memory,
}

impl Limit {
    /// Every limit there is.
    pub const ALL: [Self; 5] =
        [Self::Flows, Self::Dials, Self::Bandwidth, Self::Buffered, Self::Memory];

    /// The code it travels under.
    pub fn code(self) -> u64 {
        Self::ALL.iter().position(|limit| *limit == self).map_or(0, |at| at as u64)
    }

    /// The limit that travels under `code`.
    pub fn from_code(code: u64) -> Option<Self> {
        usize::try_from(code).ok().and_then(|at| Self::ALL.get(at).copied())
    }
}

/// As its key in the gateway's configuration is called.
impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Flows => "flows_per_client",
            Self::Dials => "dials_per_second",
            Self::Bandwidth => "bandwidth_per_client",
            Self::Buffered => "buffered_per_client",
            Self::Memory => "memory",
        })
    }
}

/// Why a flow could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefuseReason {
    /// The destination answered with RST.
    Refused,
    /// No route to the host.
    HostUnreachable,
    /// No route to the network, or no address of that family at the gateway.
    NetworkUnreachable,
    /// The destination did not answer in time.
    TimedOut,
    /// The gateway's policy forbids the destination.
    Denied,
    /// The client has reached its limit of flows or dials.
    Limit,
    /// Anything else that went wrong at the gateway.
    Failed,
}

impl RefuseReason {
    /// Every reason there is.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::HostUnreachable,
        Self::NetworkUnreachable,
        Self::TimedOut,
        Self::Denied,
        Self::Limit,
        Self::Failed,
    ];

    pub(super) fn code(self) -> u64 {
        Self::ALL.iter().position(|reason| *reason == self).unwrap_or(Self::ALL.len() - 1) as u64
    }

    pub(super) fn from_code(code: u64) -> Self {
        usize::try_from(code).ok().and_then(|at| Self::ALL.get(at).copied()).unwrap_or(Self::Failed)
    }
}

impl std::fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::HostUnreachable => "host-unreachable",
            Self::NetworkUnreachable => "network-unreachable",
            Self::TimedOut => "timed-out",
            Self::Denied => "denied",
            Self::Limit => "limit",
            Self::Failed => "failed",
        })
    }
}

/// The application error codes streams are reset and stopped with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamCode {
    /// The TCP connection was reset: the other end must see RST.
    Reset,
    /// The stream was superseded by a resume: it says nothing about the flow.
    Superseded,
}

impl StreamCode {
    /// The code on the wire.
    pub fn code(self) -> u64 {
        match self {
            Self::Reset => 0,
            Self::Superseded => 1,
        }
    }

    /// The meaning of a code; an unknown one is a reset.
    pub fn from_code(code: u64) -> Self {
        if code == Self::Superseded.code() { Self::Superseded } else { Self::Reset }
    }
}
