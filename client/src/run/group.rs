//! A control group for the process itself, made without privilege where that is possible.
//!
//! systemd gives whoever asks a scope, also in a login session, whose own group belongs to root:
//! `systemd-run --scope` does that for its own process and then becomes the command, which is this
//! program once more. Without systemd a folder is made beside the process's own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use rustix::fs::{Mode, OFlags, open};

/// What the names of our groups begin with; the number of the process follows.
pub(crate) const GROUP: &str = "whimbrel-run-";

/// Attempts to make a folder: another process may take an empty one away.
const ATTEMPTS: usize = 3;

/// Says that systemd is there (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// A group that this process is in, alone.
#[derive(Debug)]
pub(super) struct Group {
    folder: OwnedFd,
    /// Where the process was, and the folder that was made; systemd takes its own away.
    made: Option<(PathBuf, PathBuf)>,
}

impl Group {
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Goes back, where that takes anything.
    pub(super) fn leave(self) {
        if let Some((before, folder)) = self.made {
            // Else an empty folder stays until the next command.
            let _ = join(&before).and_then(|()| fs::remove_dir(folder));
        }
    }
}

/// Moves the process into a group of its own.
///
/// # Errors
/// A host without control groups, or one where this user may have none, and what to do about it.
pub(super) fn enter() -> anyhow::Result<Group> {
    let own = own()?;
    let name = format!("{GROUP}{}", std::process::id());
    let scope = format!("{name}.scope");
    if own.file_name() == Some(OsStr::new(&scope)) {
        return Ok(Group { folder: open_folder(&own)?, made: None });
    }
    if Path::new(SYSTEMD).exists() {
        return Err(ask_systemd(&scope));
    }
    make(&own, &name).map_err(|error| {
        let closed = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        let remedy = if closed.contains(&error.kind()) {
            "; it must be writable for you: run this as root, let somebody delegate it to you \
             (`chown`), or start the container with --cgroupns=private and a writable \
             /sys/fs/cgroup"
        } else {
            ""
        };
        anyhow!("cannot make a control group in {}: {error}{remedy}", own.display())
    })
}

/// The folder of the process's own group.
fn own() -> anyhow::Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.context("this kernel has no control groups (CONFIG_CGROUPS)")?;
    if path.starts_with("..") {
        bail!(
            "this process is in a control group that is not seen from here: it came into this \
             container from outside; start it within, by systemd-run for instance"
        );
    }
    let found = places(&mounts).map(|place| Path::new(place).join(path));
    // What is mounted may be covered by something else.
    found.into_iter().find(|folder| folder.join("cgroup.procs").exists()).context(
        "control groups (cgroup v2) are not mounted: `sudo mount -t cgroup2 none /sys/fs/cgroup`, \
         or boot without systemd.unified_cgroup_hierarchy=0",
    )
}

/// Where version 2 is mounted, whole (proc_pid_mountinfo(5)).
fn places(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (root == "/" && after.starts_with("cgroup2 ")).then_some(place)
    })
}

/// Becomes this program again, in a scope. Returns only if that fails.
fn ask_systemd(scope: &str) -> anyhow::Error {
    let user = rustix::process::geteuid();
    let mut systemd = Command::new("systemd-run");
    if !user.is_root() {
        let runtime = PathBuf::from(format!("/run/user/{user}"));
        if !runtime.join("systemd").exists() {
            return anyhow!(
                "you have no systemd of your own to ask for a control group: log in as this user \
                 rather than by `su`, or let it run always: `sudo loginctl enable-linger {user}`"
            );
        }
        systemd.arg("--user").env("XDG_RUNTIME_DIR", runtime);
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow!(error).context("finding this program"),
    };
    systemd.args(["--scope", "--quiet", "--collect", "--unit", scope, "--"]).arg(program);
    systemd.args(std::env::args_os().skip(1));
    anyhow!(systemd.exec()).context("cannot start systemd-run, which asks for a control group")
}

/// Makes a group beside the process's own and moves into it.
fn make(own: &Path, name: &str) -> io::Result<Group> {
    // A command that was led itself gives way to what it leads otherwise.
    let is_ours = own.file_name().is_some_and(|it| it.as_bytes().starts_with(GROUP.as_bytes()));
    let parent = if is_ours { own.parent().unwrap_or(own) } else { own };
    sweep(parent);
    let folder = parent.join(name);
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        outcome = fs::create_dir(&folder).and_then(|()| join(&folder));
        if !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    if let Err(error) = outcome {
        let _ = fs::remove_dir(&folder);
        return Err(error);
    }
    let opened = open_folder(&folder).map_err(io::Error::other)?;
    Ok(Group { folder: opened, made: Some((own.to_owned(), folder)) })
}

/// Takes away what a daemon that ended before its commands has left.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_bytes().starts_with(GROUP.as_bytes()) {
            // The kernel keeps a folder with a process in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn join(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
}

fn open_folder(folder: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(folder, flags, Mode::empty()).with_context(|| format!("opening {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_version_is_found_wherever_it_is_mounted() {
        let mounts = "\
30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime shared:11 - cgroup cgroup rw,name=systemd
33 24 0:27 /a/part /mnt rw,relatime - cgroup2 cgroup2 rw
";
        assert_eq!(places(mounts).collect::<Vec<_>>(), ["/sys/fs/cgroup/unified"]);
        assert_eq!(places("").count(), 0);
    }
}
