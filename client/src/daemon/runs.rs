//! Commands that pass their TUN.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tracing::info;
use whimbrel_client_core::engine::DeviceId;
use whimbrel_client_core::plan::Way;
use whimbrel_common::config::ClientConfig;
use whimbrel_host::control::ControlServer;

use super::Daemon;
use crate::control::{Grouped, Passed, Welcome};
use crate::report::{CaptureState, EventKind, RunReport};
use crate::resolver;
use crate::stamps::Stamps;

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
    /// What marks the sockets of commands, or why there is nothing.
    pub(super) fn load_stamps(self, config: &ClientConfig) -> Result<Stamps, String> {
        match self {
            Self::Host => Stamps::load(config.paths.mark),
            Self::Runs { .. } => Err("only the daemon of a host leads commands by their control \
                                      group; this one carries wrapped commands alone"
                .to_owned()),
        }
    }

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
        let uid = owner.uid;
        let device = self.devices.admit(owner, tun, pulse, Instant::now())?;
        self.assign(device, uid);
        // The host's own resolver may be another one than an hour ago.
        self.client.ask(resolver::choose(&self.config.run.resolvers));
        self.client.journal.tell(EventKind::Run, text);
        Ok(Welcome {})
    }

    /// Serves what the process before served.
    pub(super) fn go_on(&mut self, passed: Vec<(String, OwnedFd)>) {
        let restored = self.devices.restore(passed, Instant::now());
        if !restored.is_empty() {
            self.client.ask(resolver::choose(&self.config.run.resolvers));
        }
        for (device, owner) in restored {
            self.assign(device, owner.uid);
            let text = format!("`{}` is carried on", owner.command);
            self.client.journal.tell(EventKind::Run, text);
        }
    }

    /// Where nobody but one user is served, there is nobody to leave room for.
    fn assign(&mut self, device: DeviceId, uid: u32) {
        match self.purpose {
            Purpose::Host => self.client.assign(device, uid),
            Purpose::Runs { .. } => {}
        }
    }

    pub(super) fn admit_group(&mut self, grouped: Grouped) -> Result<Welcome, String> {
        let Grouped { owner, way, folder } = grouped;
        let text = match way {
            Way::Direct => format!("new connections of `{}` go direct", owner.command),
            Way::Carried => format!("`{}` is carried", owner.command),
        };
        self.groups.admit(owner, way, folder, Instant::now())?;
        self.client.journal.tell(EventKind::Run, text);
        Ok(Welcome {})
    }

    /// Every command, those with a TUN first.
    pub(super) fn report_runs(&self) -> Vec<RunReport> {
        let now = Instant::now();
        let mut runs = self.devices.report(|device| self.client.count(device), now);
        runs.append(&mut self.groups.report(now));
        runs
    }

    /// Gives up the TUNs and groups that nobody can use any more.
    pub(super) fn part(&mut self, now: Instant) {
        for owner in self.groups.part() {
            info!(owner.command, "A command is over");
            self.client.journal.tell(EventKind::Run, format!("`{}` is over", owner.command));
        }
        let Self { devices, client, .. } = self;
        for device in devices.overdue(now) {
            client.bury(device, now);
        }
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
