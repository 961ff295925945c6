//! What the loss of a connection means: in words, for the session, and for trying again.

use whimbrel_carrier::Lost;
use whimbrel_client_core::trouble::Trouble;
use whimbrel_common::wire::{DETACH, Denial};

/// Why the gateway is out of reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) trouble: Trouble,
    /// In words for a person.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(trouble: Trouble, text: impl Into<String>) -> Self {
        Self { trouble, text: text.into() }
    }
}

impl From<&Lost> for Failure {
    fn from(reason: &Lost) -> Self {
        Self::new(trouble(reason), describe(reason))
    }
}

/// What kind of trouble a lost connection is.
pub(crate) fn trouble(reason: &Lost) -> Trouble {
    match reason {
        Lost::ClosedByPeer(code) => match Denial::from_code(*code) {
            Some(Denial::UnknownKey | Denial::Revoked) => Trouble::Revoked,
            Some(Denial::Version) => Trouble::Version,
            Some(Denial::Busy) => Trouble::Busy,
            Some(
                Denial::InviteUnknown
                | Denial::InviteUsed
                | Denial::InviteExpired
                | Denial::Protocol
                | Denial::AlreadyEnrolled,
            )
            | None => Trouble::Other,
        },
        Lost::Reset | Lost::TimedOut => Trouble::Unreachable,
        Lost::Authentication(_) => Trouble::WrongKey,
        Lost::NotOurs(_) => Trouble::NotOurs,
        Lost::Closed | Lost::Failed(_) => Trouble::Other,
    }
}

/// What a person must know of a lost connection.
pub(crate) fn describe(reason: &Lost) -> String {
    match reason {
        Lost::ClosedByPeer(0) => "the gateway stops".to_owned(),
        Lost::ClosedByPeer(DETACH) => "the gateway holds the session".to_owned(),
        Lost::ClosedByPeer(code) => Denial::from_code(*code).map_or_else(
            || format!("the gateway closed the connection (code {code})"),
            |denial| denial.to_string(),
        ),
        Lost::Reset => "the gateway was restarted".to_owned(),
        Lost::TimedOut => "the gateway does not answer".to_owned(),
        Lost::Closed => "closed".to_owned(),
        Lost::Authentication(_) => {
            "what answers at the gateway's address does not have the gateway's key".to_owned()
        }
        Lost::NotOurs(what) => {
            format!("what answers at the gateway's address is no Whimbrel gateway: {what}")
        }
        Lost::Failed(what) => what.clone(),
    }
}

/// Whether the session is over with the connection.
pub(super) fn ends_session(reason: &Lost) -> bool {
    match reason {
        // The gateway said so itself and has closed what belonged to the session, or it broke the
        // rules and is not believed any more.
        Lost::ClosedByPeer(code) => *code != DETACH,
        Lost::Closed => true,
        Lost::Reset
        | Lost::TimedOut
        | Lost::Authentication(_)
        | Lost::NotOurs(_)
        | Lost::Failed(_) => false,
    }
}

/// The gateway itself refuses this client, and only a person can change that. What is said before the
/// gateway has proved its key may be anybody's word on one network.
pub(super) fn denied(reason: &Lost) -> bool {
    match reason {
        Lost::ClosedByPeer(code) => {
            matches!(
                Denial::from_code(*code),
                Some(
                    Denial::UnknownKey
                        | Denial::Revoked
                        | Denial::InviteUnknown
                        | Denial::InviteUsed
                        | Denial::InviteExpired
                        | Denial::Version
                        | Denial::AlreadyEnrolled
                )
            )
        }
        Lost::Authentication(_)
        | Lost::NotOurs(_)
        | Lost::Reset
        | Lost::TimedOut
        | Lost::Closed
        | Lost::Failed(_) => false,
    }
}
