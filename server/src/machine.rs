//! What the machine has.

use std::fs;

/// The memory of this machine, or of the control group this process is confined to, in bytes.
pub(crate) fn memory() -> u64 {
    let own = rustix::system::sysinfo();
    let machine = own.totalram.saturating_mul(own.mem_unit.into());
    confinement().map_or(machine, |most| most.min(machine))
}

/// `memory.max` of the control group (version 2) this process is in, if it has one.
fn confinement() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let most = fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.max")).ok()?;
    // "max" where there is no limit.
    most.trim().parse().ok()
}
