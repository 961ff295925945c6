//! A user, a network and a mount namespace for the process itself.

#![expect(unsafe_code, reason = "unshare(2) can tear descriptor tables apart; these flags do not")]

use std::fs;

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

/// What the process has become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entered {
    /// It has a user namespace, in which it is the only user: no privilege comes from outside.
    Alone,
    /// It is as privileged as before.
    Privileged,
}

/// Moves the process, which must have a single thread, into namespaces of its own. Users keep
/// their numbers, so files keep their owners.
pub(super) fn enter() -> anyhow::Result<Entered> {
    let ours = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    let entered = match unshare(ours) {
        Ok(()) => Entered::Privileged,
        Err(Errno::PERM) => {
            unshare_user(ours)?;
            Entered::Alone
        }
        Err(error) => return Err(error).context("making a network namespace"),
    };
    // What is mounted outside later appears inside as well, but nothing the other way round.
    mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("keeping mounts apart")?;
    Ok(entered)
}

fn unshare_user(ours: UnshareFlags) -> anyhow::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare(UnshareFlags::NEWUSER | ours).context("making a user namespace")?;
    let write =
        |path: &str, text: String| fs::write(path, text).context("keeping the user's number");
    // The kernel's condition for a group of one's own (user_namespaces(7)).
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{0} {0} 1", uid.as_raw()))?;
    write("/proc/self/gid_map", format!("{0} {0} 1", gid.as_raw()))
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: none of our flags is CLONE_FILES, so every thread keeps its descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
