//! What files of this host tell.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use whimbrel_client_core::doctor::{Clock, Group, Rights, Room, TunNode, Unit, UnitState};
use whimbrel_host::Layout;
use whimbrel_host::control::{GROUP, group_id};
use whimbrel_host::output::unix_now;

/// `CAP_NET_ADMIN` (capabilities(7), `linux/capability.h`).
const NET_ADMIN: u64 = 1 << 12;

/// Where systemd looks for units of packages and administrators (systemd.unit(5)).
const UNIT_FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(super) fn rights() -> Rights {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let has = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let set = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
        set.is_none_or(|set| set & NET_ADMIN != 0)
    };
    let root = rustix::process::geteuid().is_root();
    Rights { root, capable: has("CapEff:"), possible: has("CapBnd:") }
}

pub(super) fn tun() -> TunNode {
    const NODE: &str = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(NODE) {
        // Root may open everything; the daemon's own user may open what everybody may.
        Ok(_) if is_for_all(Path::new(NODE)) => TunNode::Fine,
        Ok(_) if rustix::process::geteuid().is_root() && group_id(GROUP).is_none() => TunNode::Fine,
        Ok(_) => TunNode::Denied,
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunNode::Missing,
            Some(_) | None => TunNode::Denied,
        },
    }
}

fn is_for_all(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.mode() & 0o006 == 0o006)
}

/// The client's unit, as systemd's folders have it; `None` where systemd does not run.
pub(super) fn unit(state: UnitState) -> Option<Unit> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let installed =
        UNIT_FOLDERS.iter().any(|folder| Path::new(folder).join("whimbrel.service").exists());
    let wanted = "/etc/systemd/system/multi-user.target.wants/whimbrel.service";
    let enabled = Path::new(wanted).symlink_metadata().is_ok();
    Some(Unit { installed, enabled, state })
}

pub(super) fn group() -> Group {
    let Some(group) = group_id(GROUP) else { return Group::Missing };
    let own = rustix::process::getegid().as_raw() == group;
    let further = rustix::process::getgroups().unwrap_or_default();
    let member = own || further.iter().any(|further| further.as_raw() == group);
    if member || rustix::process::geteuid().is_root() { Group::Member } else { Group::Outside }
}

pub(super) fn clock(synchronised: Option<bool>) -> Clock {
    Clock { unix_seconds: unix_now(), synchronised }
}

/// Connections the kernel keeps track of, and how many it can (nf_conntrack-sysctl).
pub(super) fn tracked() -> Option<(u64, u64)> {
    let number = |name: &str| {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    Some((number("count")?, number("max")?))
}

/// Whether IPv6 is switched off for an interface, or for new ones while there is none of that name.
pub(super) fn is_without_v6(interface: &str) -> bool {
    let off = |name: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        std::fs::read_to_string(path).ok().map(|text| text.trim() == "1")
    };
    off(interface).or_else(|| off("default")).unwrap_or(false)
}

/// The room in the folders that are written to, or in those they would be made in.
pub(super) fn rooms(layout: &Layout) -> Vec<Room> {
    let mut rooms: Vec<Room> = Vec::new();
    for path in [&layout.config, &layout.key, &layout.socket] {
        let Some(folder) = path.ancestors().skip(1).find(|folder| folder.is_dir()) else {
            continue;
        };
        let name = folder.display().to_string();
        if rooms.iter().any(|room| room.folder == name) {
            continue;
        }
        if let Ok(about) = rustix::fs::statvfs(folder)
            && about.f_blocks > 0
        {
            let free = about.f_bavail.saturating_mul(about.f_frsize);
            rooms.push(Room { folder: name, free });
        }
    }
    rooms
}
