//! How names are looked up inside: through the tunnel, or not at all.
//!
//! A network namespace does not confine sockets with a path: those of resolved, nscd, avahi and the
//! system's bus would look a name up outside. Their folders are covered with an empty one. The files
//! that say how names are looked up are covered with others, in which everything goes to
//! [`NAMESERVER`], which the daemon at the far end of the TUN answers for.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::inotify;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::namespace::Entered;

use crate::dns::file::with_server;

/// The only name server inside, in the network of the TUN's own address.
pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(10, 213, 52, 53);

/// Where files are made before each gets its place: somewhere that every host has, and that is
/// itself again before the command begins.
const WORKSHOPS: [&str; 3] = ["/tmp", "/run", "/mnt"];

/// Folders of sockets behind which somebody looks names up outside.
const COVERED: [&str; 6] = [
    RESOLVED,
    "/run/nscd",
    "/var/run/nscd",
    "/run/avahi-daemon",
    "/run/dbus",
    "/var/lib/sss/pipes",
];

/// Where systemd-resolved has its socket, and its copies of `resolv.conf`.
const RESOLVED: &str = "/run/systemd/resolve";

/// Programs that cannot do inside what they are for where nothing but TCP and names is carried, and
/// the reason.
const UNCARRIED: [(&str, &str); 2] = [
    ("ping", "only TCP and names are carried, ICMP is not; run it outside"),
    ("traceroute", "only TCP and names are carried, ICMP and UDP are not; run it outside"),
];

/// The same where no other user exists: what makes one another user.
const ALONE: [(&str, &str); 4] = [
    ("sudo", "no other user exists in here; run 'sudo whimbrel run -- …' instead"),
    ("su", "no other user exists in here; run 'whimbrel run' as that user instead"),
    ("doas", "no other user exists in here; run 'doas whimbrel run -- …' instead"),
    ("pkexec", "no other user exists in here; run it outside"),
];

/// Covers what would look names up outside, and what is futile where not `all` is carried. Returns
/// the pulse: it becomes readable with the end of this mount namespace.
pub(super) fn confine(entered: Entered, all: bool) -> anyhow::Result<OwnedFd> {
    let resolv = fs::canonicalize("/etc/resolv.conf").ok();
    let resolv_text = resolv.as_deref().and_then(|path| fs::read_to_string(path).ok());
    let resolv_text = with_server(&resolv_text.unwrap_or_default(), NAMESERVER);
    let switch = fs::read_to_string("/etc/nsswitch.conf").ok();

    let workshop = Workshop::open()?;
    let pulse = workshop.feel()?;
    let empty = workshop.folder("empty")?;
    let resolved = workshop.folder("resolved")?;
    let plain = workshop.file("resolv.conf", &resolv_text, 0o644)?;
    for name in ["resolv.conf", "stub-resolv.conf"] {
        workshop.file(&format!("resolved/{name}"), &resolv_text, 0o644)?;
    }
    let mut covered = 0;
    for folder in COVERED.iter().map(Path::new).filter(|folder| folder.is_dir()) {
        cover(folder, if folder == Path::new(RESOLVED) { &resolved } else { &empty })?;
        covered += 1;
    }
    // Among what is covered it is ours already.
    if let Some(resolv) = resolv.filter(|path| !path.starts_with(RESOLVED)) {
        cover(&resolv, &plain)?;
        covered += 1;
    }
    if let Some(switch) = switch {
        let file = workshop.file("nsswitch.conf", &switch_file(&switch), 0o644)?;
        cover(Path::new("/etc/nsswitch.conf"), &file)?;
        covered += 1;
    }
    if covered == 0 {
        bail!("this machine has neither /etc/resolv.conf nor /etc/nsswitch.conf");
    }
    explain_futile(&workshop, entered, all)?;
    Ok(pulse)
}

/// The host's `nsswitch.conf` with hosts looked up in files and by DNS.
fn switch_file(host: &str) -> String {
    let other = host.lines().filter(|line| !line.trim_start().starts_with("hosts:"));
    other.chain(["hosts: files dns"]).flat_map(|line| [line, "\n"]).collect()
}

/// A file system of this namespace alone. It goes on behind what is covered with parts of it.
struct Workshop {
    place: &'static Path,
}

impl Workshop {
    fn open() -> anyhow::Result<Self> {
        let place = WORKSHOPS.map(Path::new).into_iter().find(|place| place.is_dir());
        let place = place.context("this machine has no folder /tmp")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("whimbrel", place, "tmpfs", flags, c"mode=755,size=256k")
            .context("mounting a file system")?;
        Ok(Self { place })
    }

    fn feel(&self) -> anyhow::Result<OwnedFd> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let pulse = inotify::init(flags).context("watching the namespace")?;
        // That the file system ends is told whatever is asked for, and nobody deletes its root.
        inotify::add_watch(&pulse, self.place, inotify::WatchFlags::DELETE_SELF)
            .context("watching the namespace")?;
        Ok(pulse)
    }

    fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.place.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<PathBuf> {
        let path = self.place.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // Without it the command would see the workshop, and nothing worse.
        let _ = unmount(self.place, UnmountFlags::DETACH);
    }
}

fn cover(place: &Path, with: &Path) -> anyhow::Result<()> {
    mount_bind(with, place).with_context(|| format!("covering {}", place.display()))
}

/// Lets programs that need what is not there say so, rather than fail in their own words, or in none.
fn explain_futile(workshop: &Workshop, entered: Entered, all: bool) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let shell = fs::canonicalize("/bin/sh").ok();
    for (name, reason) in futile(entered, all) {
        let found = folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
        let Some(found) = found.and_then(|file| fs::canonicalize(file).ok()) else { continue };
        if !is_itself(&found, name) || Some(&found) == shell.as_ref() {
            continue;
        }
        // ping6 is another name of ping.
        let text = format!(
            "#!/bin/sh\necho \"${{0##*/}}: not inside whimbrel run: {reason}\" >&2\nexit 1\n"
        );
        let word = workshop.file(name, &text, 0o755)?;
        cover(&found, &word)?;
    }
    Ok(())
}

fn futile(entered: Entered, all: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let alone: &[_] = match entered {
        Entered::Alone => &ALONE,
        Entered::Privileged => &[],
    };
    UNCARRIED.iter().filter(move |_| !all).chain(alone).copied()
}

/// Whether the file that a program's name leads to is that program and no other, as `ping4` or
/// `traceroute.db` are. Behind the names of busybox is everything else too.
fn is_itself(file: &Path, name: &str) -> bool {
    file.file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_is_ours_and_the_rest_of_the_file_stays() {
        let host = "# by hand\nnameserver 192.168.1.1\nsearch corp.example lan\noptions edns0\n";
        let inside = with_server(host, NAMESERVER);
        assert_eq!(inside, "search corp.example lan\noptions edns0\nnameserver 10.213.52.53\n");
        assert_eq!(with_server("", NAMESERVER), "nameserver 10.213.52.53\n");
    }

    #[test]
    fn hosts_are_looked_up_in_files_and_by_dns_only() {
        let host = "passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files dns\n";
        assert_eq!(switch_file(host), "passwd: files systemd\nhosts: files dns\n");
    }

    #[test]
    fn a_program_of_many_names_is_not_covered_for_one_of_them() {
        for (file, name) in [
            ("/usr/bin/ping", "ping"),
            ("/bin/ping4", "ping"),
            ("/bin/traceroute.db", "traceroute"),
        ] {
            assert!(is_itself(Path::new(file), name), "{file}");
        }
        for (file, name) in
            [("/bin/busybox", "ping"), ("/bin/busybox", "su"), ("/usr/bin/toybox", "traceroute")]
        {
            assert!(!is_itself(Path::new(file), name), "{file}");
        }
    }

    #[test]
    fn root_keeps_what_needs_other_users_and_hears_what_is_not_carried() {
        let names = |entered, all| futile(entered, all).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(Entered::Privileged, false), ["ping", "traceroute"]);
        assert_eq!(names(Entered::Privileged, true), [""; 0]);
        let alone = ["ping", "traceroute", "sudo", "su", "doas", "pkexec"];
        assert_eq!(names(Entered::Alone, false), alone);
        assert_eq!(names(Entered::Alone, true), alone[2..]);
    }
}
