//! The ground a lab stands on: namespaces of its own, as root or as an ordinary user.

#![expect(unsafe_code, reason = "unshare(2) can tear descriptor tables apart; these flags do not")]

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

static ENTERED: OnceLock<()> = OnceLock::new();

/// Whether the person is root; a user namespace makes everybody look like it.
static ROOT: OnceLock<bool> = OnceLock::new();

/// This host does not let us build a lab. Says why and what to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Denied {
    attempt: &'static str,
    cause: String,
    remedies: Vec<String>,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cannot build the lab: {} failed: {}", self.attempt, self.cause)?;
        writeln!(f, "It needs network namespaces and /dev/net/tun. Any of these helps:")?;
        self.remedies.iter().try_for_each(|remedy| writeln!(f, "  - {remedy}"))
    }
}

/// Moves the process into namespaces of its own, where it may build networks. Call it first in
/// `main`: an ordinary user can do this only while the process has a single thread. Calling it
/// again does nothing.
///
/// # Errors
/// When the host forbids it; the error names the setting to change.
pub fn enter() -> Result<(), Denied> {
    if entered() {
        return Ok(());
    }
    ROOT.get_or_init(|| rustix::process::geteuid().is_root());
    let ours = UnshareFlags::NEWNS | UnshareFlags::NEWNET;
    match unshare(ours) {
        Ok(()) => {}
        Err(Errno::PERM) => become_root(ours)?,
        Err(error) => return Err(denied("unshare", &error)),
    }
    keep_mounts_private().map_err(|error| denied("making mounts private", &error))?;
    try_tun()?;
    ENTERED.get_or_init(|| ());
    Ok(())
}

/// Whether [`enter`] has succeeded in this process.
#[must_use]
pub fn entered() -> bool {
    ENTERED.get().is_some()
}

/// Gives the calling thread a network and a mount namespace of its own, with a private `/run`.
pub(super) fn separate_thread() -> Result<(), Denied> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET)
        .map_err(|error| denied("unshare", &error))?;
    keep_mounts_private().map_err(|error| denied("making mounts private", &error))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(c"tmpfs", c"/run", c"tmpfs", flags, c"mode=755")
        .map_err(|error| denied("mounting a private /run", &error))?;
    // Without it programs that look below /sys/class/net see the wrong interfaces. Some hosts
    // forbid it in user namespaces, and nothing of ours looks there.
    let _ = rustix::mount::mount(c"sysfs", c"/sys", c"sysfs", flags, None);
    Ok(())
}

fn become_root(ours: UnshareFlags) -> Result<(), Denied> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(UnshareFlags::NEWUSER | ours)
        .map_err(|error| denied("creating a user namespace", &error))?;
    let map = |path: &str, line: String| {
        fs::write(path, line).map_err(|error| denied("mapping our user to root", &error))
    };
    map("/proc/self/setgroups", "deny".into())?;
    map("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    map("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

fn keep_mounts_private() -> rustix::io::Result<()> {
    rustix::mount::mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
}

fn try_tun() -> Result<(), Denied> {
    let mut tun = tun::Configuration::default();
    tun.platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    tun::create(&tun).map(drop).map_err(|error| denied("opening /dev/net/tun", &error))
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: none of our flags is CLONE_FILES, so every thread keeps its descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn denied(attempt: &'static str, cause: &dyn fmt::Display) -> Denied {
    Denied { attempt, cause: cause.to_string(), remedies: remedies(&Facts::gather()) }
}

/// The settings that decide whether an ordinary user may build networks.
struct Facts {
    root: bool,
    clone_switch: Option<String>,
    apparmor_switch: Option<String>,
    namespace_limit: Option<String>,
    tun_exists: bool,
    tun_opens: bool,
}

impl Facts {
    fn gather() -> Self {
        let read = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let tun = Path::new("/dev/net/tun");
        Self {
            root: ROOT.get().copied().unwrap_or(false),
            clone_switch: read("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_switch: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            namespace_limit: read("/proc/sys/user/max_user_namespaces"),
            tun_exists: tun.exists(),
            tun_opens: fs::OpenOptions::new().read(true).write(true).open(tun).is_ok(),
        }
    }
}

fn remedies(facts: &Facts) -> Vec<String> {
    let mut remedies = Vec::new();
    if facts.clone_switch.as_deref() == Some("0") {
        remedies.push("sudo sysctl kernel.unprivileged_userns_clone=1".to_owned());
    }
    if facts.apparmor_switch.as_deref() == Some("1") {
        remedies.push("sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0".to_owned());
    }
    if facts.namespace_limit.as_deref() == Some("0") {
        remedies.push("sudo sysctl user.max_user_namespaces=10000".to_owned());
    }
    if !facts.tun_exists {
        let load = "sudo modprobe tun   (in a container: --device /dev/net/tun)";
        remedies.push(load.to_owned());
    } else if !facts.tun_opens {
        remedies.push("sudo chmod 666 /dev/net/tun".to_owned());
    }
    remedies.push(if facts.root {
        "in a container: start it with --privileged, or with --cap-add SYS_ADMIN --cap-add NET_ADMIN --device /dev/net/tun".to_owned()
    } else {
        "run it as root".to_owned()
    });
    remedies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_says_what_to_do() {
        let facts = Facts {
            root: false,
            clone_switch: Some("0".into()),
            apparmor_switch: Some("1".into()),
            namespace_limit: Some("96365".into()),
            tun_exists: true,
            tun_opens: false,
        };
        let cause = "Operation not permitted".to_owned();
        let denied = Denied { attempt: "unshare", cause, remedies: remedies(&facts) };
        let text = denied.to_string();
        for part in [
            "unshare failed: Operation not permitted",
            "kernel.unprivileged_userns_clone=1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
            "chmod 666 /dev/net/tun",
            "run it as root",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("max_user_namespaces"));
    }
}
