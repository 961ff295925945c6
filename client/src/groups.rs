//! Commands that keep the host's network: each in a control group of its own, whose sockets carry
//! the mark of a [`Way`].
//!
//! Whoever passes a group's folder must own it: the kernel lets nobody put another's process into
//! it then, so what is marked is their own. A group without a process is over; its folder is taken
//! away by whoever made it, systemd as a rule, or here if its name is one of
//! [ours](crate::run::GROUP).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::task::Context;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, fstatfs, inotify, openat, unlinkat};
use tokio::io::unix::AsyncFd;
use tracing::{debug, info};
use whimbrel_client_core::plan::Way;

use crate::devices::Owner;
use crate::report::{RunReport, RunWay};
use crate::run::GROUP;
use crate::stamps::Stamps;
use crate::tun::watch;

/// What `statfs` says of a folder of control groups (`CGROUP2_SUPER_MAGIC`).
const CGROUP2: u64 = 0x6367_7270;

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
        folder: OwnedFd,
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
        check(&folder, owner.uid)?;
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

/// Whether a folder is a control group, and this user's own.
fn check(folder: &OwnedFd, uid: u32) -> Result<(), String> {
    let unreadable = |error| format!("the descriptor cannot be examined: {error}");
    let about = fstat(folder).map_err(unreadable)?;
    let system = fstatfs(folder).map_err(unreadable)?;
    let is_folder = FileType::from_raw_mode(about.st_mode) == FileType::Directory;
    if !is_folder || u64::try_from(system.f_type) != Ok(CGROUP2) {
        return Err("the descriptor is no control group (cgroup v2)".to_owned());
    }
    if uid != 0 && about.st_uid != uid {
        return Err(format!("the control group belongs to user {}, not to {uid}", about.st_uid));
    }
    Ok(())
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
