//! Commands that keep the host's network: each in a control group of its own, whose sockets carry
//! the mark of a [`Way`].
//!
//! Whoever passes a group's folder must own it: the kernel lets nobody put another's process into
//! it then, so what is marked is their own. A group without a process is over; its folder is taken
//! away by whoever made it, systemd as a rule, or here if its name is one of
//! [ours](crate::run::GROUP).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::task::Context;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, inotify, openat, statx, unlinkat};
use tokio::io::unix::AsyncFd;
use tracing::{debug, info};
use whimbrel_client_core::plan::Way;
use whimbrel_host::control::Foreign;

use crate::devices::Owner;
use crate::report::{RunReport, RunWay};
use crate::run::GROUP;
use crate::stamps::Stamps;
use crate::tun::watch;

/// Groups of one user at a time: more than anybody keeps terminals open.
const PER_USER: usize = 64;

/// Groups at a time. Each costs three descriptors.
const ALL: usize = 256;

/// See the [module](self).
pub(crate) struct Groups {
    /// Else a sentence about what is missing.
    stamps: Result<Stamps, String>,
    members: Vec<Group>,
}

struct Group {
    owner: Owner,
    way: Way,
    folder: OwnedFd,
    /// `cgroup.events`, and what tells that it changed.
    events: OwnedFd,
    news: AsyncFd<OwnedFd>,
    since: Instant,
}

impl Groups {
    pub(crate) fn new(stamps: Result<Stamps, String>) -> Self {
        Self { stamps, members: Vec::new() }
    }

    /// Why no command can be led around or through the capture by its group; `None` if it can.
    pub(crate) fn obstacle(&self) -> Option<&str> {
        self.stamps.as_ref().err().map(String::as_str)
    }

    /// Leads what connects from a group.
    ///
    /// # Errors
    /// A sentence about what is wrong with it, about a limit, or about what the daemon lacks.
    pub(crate) fn admit(
        &mut self,
        owner: Owner,
        way: Way,
        folder: Foreign,
        now: Instant,
    ) -> Result<(), String> {
        let stamps = self.stamps.as_ref().map_err(Clone::clone)?;
        let own = self.members.iter().filter(|group| group.owner.uid == owner.uid).count();
        if own >= PER_USER || self.members.len() >= ALL {
            return Err(format!(
                "too many commands: {own} of this user (at most {PER_USER}), {} in all (at most \
                 {ALL}); end some of them first",
                self.members.len()
            ));
        }
        check(folder.as_fd(), owner.uid)?;
        let folder = folder.claim();
        let unreadable = |error: io::Error| format!("the control group cannot be read: {error}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = openat(&folder, "cgroup.events", flags, Mode::empty())
            .map_err(|error| unreadable(error.into()))?;
        let news = follow(&folder, &events).map_err(unreadable)?;
        if !is_populated(&events) {
            return Err("the control group has no process".to_owned());
        }
        stamps.put(way, folder.as_fd())?;
        info!(%way, owner.uid, owner.pid, owner.command, "Leads a command");
        self.members.push(Group { owner, way, folder, events, news, since: now });
        Ok(())
    }

    /// Whether a group may be over; wakes the task once one may be.
    pub(crate) fn poll_news(&self, cx: &mut Context<'_>) -> bool {
        self.members
            .iter()
            .fold(false, |any, group| any | group.news.poll_read_ready(cx).is_ready())
    }

    /// Lets go of groups without a process. Whose they were.
    pub(crate) fn part(&mut self) -> Vec<Owner> {
        let over = self.members.extract_if(.., |group| group.is_over());
        let over: Vec<Group> = over.collect();
        for group in &over {
            if let Ok(stamps) = &self.stamps {
                stamps.take_off(group.way, group.folder.as_fd());
            }
            group.remove();
        }
        over.into_iter().map(|group| group.owner).collect()
    }

    /// The commands, the oldest first.
    pub(crate) fn report(&self, now: Instant) -> Vec<RunReport> {
        let describe = |group: &Group| RunReport {
            device: 0,
            command: group.owner.command.clone(),
            pid: group.owner.pid,
            uid: group.owner.uid,
            flows: 0,
            age_s: now.saturating_duration_since(group.since).as_secs(),
            ended: false,
            way: match group.way {
                Way::Direct => RunWay::Direct,
                Way::Carried => RunWay::Cgroup,
            },
        };
        self.members.iter().map(describe).collect()
    }
}

impl Group {
    /// Looks only when there is news.
    fn is_over(&self) -> bool {
        // Several events; what does not fit is read in the next round.
        let mut buffer = [0; 4096];
        let read = self.news.try_io(tokio::io::Interest::READABLE, |news| {
            rustix::io::read(news, &mut buffer).map_err(io::Error::from)
        });
        read.is_ok() && !is_populated(&self.events)
    }

    /// Takes the folder away, where nobody else does and this process may.
    fn remove(&self) {
        let link = format!("/proc/self/fd/{}", self.folder.as_raw_fd());
        let path = std::fs::read_link(link).unwrap_or_default();
        let Some(name) =
            path.file_name().filter(|name| name.as_bytes().starts_with(GROUP.as_bytes()))
        else {
            return;
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let removed = openat(&self.folder, "..", flags, Mode::empty())
            .and_then(|parent| unlinkat(parent, Path::new(name), AtFlags::REMOVEDIR));
        if let Err(error) = removed {
            debug!(%error, "Somebody else takes the control group away");
        }
    }
}

/// Whether a folder is a control group, and this user's own. Of a file system that somebody serves, as
/// FUSE, nothing is asked but what the kernel knows.
fn check(folder: BorrowedFd<'_>, uid: u32) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("the descriptor cannot be examined: {error}");
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let about = statx(folder, c"", flags, StatxFlags::TYPE | StatxFlags::UID)
        .map_err(|error| unreadable(error.into()))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(unreadable)?;
    let is_folder = FileType::from_raw_mode(about.stx_mode.into()) == FileType::Directory;
    if !is_folder || !holds_groups(&mounts, about.stx_dev_major, about.stx_dev_minor) {
        return Err("the descriptor is no control group (cgroup v2)".to_owned());
    }
    if uid != 0 && about.stx_uid != uid {
        return Err(format!("the control group belongs to user {}, not to {uid}", about.stx_uid));
    }
    Ok(())
}

/// Whether a device is mounted as control groups of version 2 (proc_pid_mountinfo(5)).
fn holds_groups(mounts: &str, major: u32, minor: u32) -> bool {
    let device = format!("{major}:{minor}");
    mounts.lines().any(|line| {
        let of_device = line.split(' ').nth(2) == Some(device.as_str());
        of_device && line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("cgroup2 "))
    })
}

/// Tells when processes come or go, and when a folder beside this one is taken away: whoever does
/// that as soon as the last process has ended leaves the kernel no time to tell of the end.
fn follow(folder: &OwnedFd, events: &OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let news = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let path = |descriptor: &OwnedFd| format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    inotify::add_watch(&news, path(events), inotify::WatchFlags::MODIFY)?;
    let parent = format!("{}/..", path(folder));
    if let Err(error) = inotify::add_watch(&news, parent, inotify::WatchFlags::DELETE) {
        debug!(%error, "The folder of a control group cannot be watched");
    }
    watch(news)
}

/// Whether a process is in the group or below it. A group that is gone has none.
fn is_populated(events: &OwnedFd) -> bool {
    let mut text = [0; 256];
    let length = rustix::io::pread(events, &mut text, 0).unwrap_or(0);
    text[..length].split(|byte| *byte == b'\n').any(|line| line == b"populated 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_are_known_by_their_device() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(holds_groups(mounts, 0, 27));
        for other in [26, 2, 7] {
            assert!(!holds_groups(mounts, 0, other), "{other}");
        }
    }
}
