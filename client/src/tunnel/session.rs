//! The session: what outlives the connections that carry it, from its first attachment to its end.

use std::time::Duration;

use whimbrel_common::wire::{Control, SessionId};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Session {
    id: Option<SessionId>,
    /// How often a connection asked to carry it.
    epoch: u64,
    hold: Duration,
}

impl Session {
    /// The session's name, from its first attachment to its end.
    pub(super) fn id(&self) -> Option<SessionId> {
        self.id
    }

    /// How long the gateway holds the session's flows without a connection.
    pub(super) fn hold(&self) -> Duration {
        self.hold
    }

    /// What a new connection asks of the gateway: to carry this session, or one that begins.
    pub(super) fn ask(&mut self) -> Control {
        self.epoch += 1;
        Control::Attach { session: self.id, epoch: self.epoch }
    }

    /// The gateway attached a session. Tells whether it is the one there was.
    pub(super) fn attach(&mut self, id: SessionId, hold: Duration) -> bool {
        self.hold = hold;
        self.id.replace(id) == Some(id)
    }

    /// The session is over.
    pub(super) fn end(&mut self) {
        self.id = None;
    }
}
