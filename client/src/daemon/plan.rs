//! What becomes of the host's rules and routes.

use whimbrel_client_core::plan::{CaptureInputs, Plan, TABLE};
use whimbrel_common::cidr::Cidr;

use super::Daemon;
use crate::report::CaptureState;
use crate::run::NAMESERVER;
use crate::tun::Tun;

impl Daemon {
    /// Makes the host's rules what they should be now.
    pub(super) fn follow_plan(&mut self) {
        let Some(capture) = &mut self.capture else { return };
        let interface = self.devices.host().and_then(Tun::interface);
        let (Some(interface), Some(own_v6)) = (interface, &self.own_v6) else { return };
        let paused = match self.client.capture_state() {
            CaptureState::On | CaptureState::Blocked => false,
            CaptureState::Paused | CaptureState::Direct | CaptureState::Commands => true,
        };
        // The name server inside the TUN is in a range that is left alone as a rule.
        let include =
            [self.config.capture.include.as_slice(), &[Cidr::host(NAMESERVER.into())]].concat();
        let plan = Plan::new(&CaptureInputs {
            tun_index: interface.index,
            tun_v4: interface.v4,
            tun_v6: interface.v6,
            include: &include,
            exclude: &self.config.capture.exclude,
            own_v6_addresses: own_v6,
            mark: self.config.paths.mark,
            commands: self.groups.obstacle().is_none(),
            table: TABLE,
            paused,
            datagrams: self.client.captures_datagrams().then_some(self.ephemeral),
            echoes: self.client.captures_echoes(),
        });
        capture.follow(plan);
    }
}
