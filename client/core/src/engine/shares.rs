//! How much of the flow table one user's wrapped commands may have, so that no user keeps the host
//! or another user from connecting.

use std::collections::BTreeMap;

use super::table::{Table, Used};
use super::{DeviceId, EngineConfig};

/// The user whose a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u32);

/// Quarters of a limit that one tenant may have, and all of them together: what is left is for
/// devices without a tenant, which is the host's own.
const ONE: usize = 1;
const ALL: usize = 3;

/// Which limit a new flow would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Flows,
    Held,
}

/// The tenants of devices.
#[derive(Debug, Default)]
pub(super) struct Shares {
    tenants: BTreeMap<DeviceId, Tenant>,
}

impl Shares {
    pub(super) fn assign(&mut self, device: DeviceId, tenant: Tenant) {
        self.tenants.insert(device, tenant);
    }

    pub(super) fn release(&mut self, device: DeviceId) {
        self.tenants.remove(&device);
    }

    /// What a device may not have any more of.
    pub(super) fn check(
        &self,
        device: DeviceId,
        table: &Table,
        config: &EngineConfig,
    ) -> Option<Full> {
        let tenant = self.tenants.get(&device)?;
        let (mut own, mut all) = (Used::default(), Used::default());
        for (device, other) in &self.tenants {
            let used = table.used(*device);
            all.add(used);
            if other == tenant {
                own.add(used);
            }
        }
        let full = |own, all, limit: usize| own >= limit * ONE / 4 || all >= limit * ALL / 4;
        if full(own.held, all.held, config.pending_limit) {
            Some(Full::Held)
        } else if full(own.flows, all.flows, config.flow_limit) {
            Some(Full::Flows)
        } else {
            None
        }
    }
}
