//! Commands that pass their TUN.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tracing::info;
use whimbrel_host::control::ControlServer;

use super::Daemon;
use crate::control::{Passed, Welcome};
use crate::report::{CaptureState, EventKind};
use crate::resolver;

/// A daemon that serves commands only goes on for this long after the last of them: one that is
/// run in a loop finds its connection to the gateway again.
const LINGER: Duration = Duration::from_secs(5);

/// Whose connections a daemon carries.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Those of the whole host, and of wrapped commands.
    Host,
    /// Those of wrapped commands, without any privilege, until the last of them is over.
    Runs {
        /// Called once commands can pass their TUN.
        ready: fn() -> std::io::Result<()>,
    },
}

impl Purpose {
    pub(super) fn begin(self) -> anyhow::Result<()> {
        match self {
            Self::Host => Ok(()),
            Self::Runs { ready } => ready().context("nobody waits for the engine any more"),
        }
    }
}

impl Daemon {
    pub(super) fn admit(&mut self, passed: Passed) -> Result<Welcome, String> {
        let Passed { owner, tun, pulse } = passed;
        let text = format!("`{}` is carried", owner.command);
        self.devices.admit(owner, tun, pulse, Instant::now())?;
        // The host's own resolver may be another one than an hour ago.
        self.client.ask(resolver::choose(&self.config.run.resolvers));
        self.client.journal.tell(EventKind::Run, text);
        Ok(Welcome {})
    }

    /// Gives up the TUNs that nobody can use any more.
    pub(super) fn part(&mut self, now: Instant) {
        let Self { devices, client, .. } = self;
        for (device, owner) in devices.part(|device| client.count(device) == 0, now) {
            info!(%device, owner.command, "A command is over");
            client.abandon(device);
            client.journal.tell(EventKind::Run, format!("`{}` is over", owner.command));
        }
    }

    /// What new connections of the host get.
    pub(super) fn capture_state(&self) -> CaptureState {
        match self.purpose {
            Purpose::Host => self.client.capture_state(),
            Purpose::Runs { .. } => CaptureState::Commands,
        }
    }

    /// Refuses what concerns the host's own connections where they are not captured.
    pub(super) fn check_capture(&self) -> Result<(), String> {
        match self.purpose {
            Purpose::Host => Ok(()),
            Purpose::Runs { .. } => Err("only commands of `whimbrel run` are carried here, and \
                                         they have no way but through the gateway"
                .to_owned()),
        }
    }

    /// When there is nothing left to do for good, unless somebody comes.
    pub(super) fn end(&self) -> Option<Instant> {
        match self.purpose {
            Purpose::Host => None,
            Purpose::Runs { .. } => self.devices.empty_since().map(|since| since + LINGER),
        }
    }

    pub(super) fn is_done(&self, control: &ControlServer) -> bool {
        self.end().is_some_and(|end| end <= Instant::now()) && control.is_idle()
    }
}
