//! `/etc/resolv.conf`, where no service of the host manages names: its servers are replaced by ours,
//! and what was there before is kept in a folder of whoever writes it.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use whimbrel_host::{files, nameservers};

/// Where programs look.
const PLACE: &str = "/etc/resolv.conf";

/// What begins a file of ours.
const MARK: &str = "# Written by Whimbrel, which restores what was here (`whimbrel cleanup`).\n";

/// What begins a file of before that was a link to another.
const LINK: &str = "link ";
/// What begins one that was not.
const TEXT: &str = "text\n";

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct SettingsFile {
    place: PathBuf,
    before: PathBuf,
}

impl SettingsFile {
    /// The host's, whose content of before is kept in the folder `state`.
    pub(crate) fn new(state: &Path) -> Self {
        Self { place: PLACE.into(), before: state.join("resolv.conf.before") }
    }

    /// Another one than the host's.
    #[cfg(test)]
    pub(super) fn at(place: PathBuf, before: PathBuf) -> Self {
        Self { place, before }
    }

    /// Where it is.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Its name in its folder.
    pub(super) fn name(&self) -> &OsStr {
        self.place.file_name().unwrap_or_default()
    }

    /// What it says; nothing if there is none.
    ///
    /// # Errors
    /// A sentence about what to do.
    pub(super) fn read(&self) -> Result<String, String> {
        read(&self.place).map_err(|error| self.explain(&error))
    }

    /// Whether `server` is among those that programs ask.
    ///
    /// # Errors
    /// A sentence about what to do.
    pub(super) fn names(&self, server: Ipv4Addr) -> Result<bool, String> {
        Ok(nameservers::parse(&self.read()?).contains(&IpAddr::V4(server)))
    }

    /// Whether programs ask systemd-resolved, before others if there are any.
    pub(super) fn leads_to_resolved(&self) -> bool {
        let text = fs::read_to_string(&self.place).unwrap_or_default();
        let stubs = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)].map(IpAddr::V4);
        nameservers::parse(&text).first().is_some_and(|first| stubs.contains(first))
    }

    /// Makes `server` the only one. Whether that changed anything.
    ///
    /// # Errors
    /// A sentence about what to do.
    pub(super) fn put(&self, server: Ipv4Addr) -> Result<bool, String> {
        let text = self.read()?;
        if is_ours(&text) {
            return Ok(false);
        }
        let before = match fs::read_link(&self.place) {
            Ok(target) => format!("{LINK}{}\n", target.display()),
            Err(_) => format!("{TEXT}{text}"),
        };
        files::replace(&self.before, &before, 0o600).map_err(|error| format!("{error:#}"))?;
        let ours = format!("{MARK}{}", with_server(&text, server));
        self.write(&ours).map_err(|error| self.explain(&error))?;
        Ok(true)
    }

    /// Puts back what was there before, unless somebody else has written since. Whether it did.
    ///
    /// # Errors
    /// A sentence about what to do.
    pub(crate) fn restore(&self) -> Result<bool, String> {
        let text = self.read()?;
        let before = read(&self.before).unwrap_or_default();
        let ours = is_ours(&text);
        if ours {
            let restored = match (before.strip_prefix(LINK), before.strip_prefix(TEXT)) {
                (Some(target), _) => self.link(Path::new(target.trim_end())),
                (None, Some(text)) => self.write(text),
                // Without a copy an empty file leaves the system's defaults.
                (None, None) => self.write(""),
            };
            restored.map_err(|error| self.explain(&error))?;
        }
        // It may never have been there.
        let _ = fs::remove_file(&self.before);
        Ok(ours)
    }

    /// Replaces the file in one step where that is possible; one that is mounted can only be
    /// written to.
    fn write(&self, text: &str) -> io::Result<()> {
        let fresh = self.place.with_extension("conf.whimbrel");
        let replaced = fill(&fresh, text).and_then(|()| fs::rename(&fresh, &self.place));
        if replaced.is_ok() {
            return Ok(());
        }
        let _ = fs::remove_file(&fresh);
        if self.place.is_symlink() {
            // What it leads to is not ours to write to.
            return replaced;
        }
        fs::write(&self.place, text)
    }

    fn link(&self, target: &Path) -> io::Result<()> {
        let fresh = self.place.with_extension("conf.whimbrel");
        let _ = fs::remove_file(&fresh);
        symlink(target, &fresh)?;
        fs::rename(&fresh, &self.place)
    }

    fn explain(&self, error: &io::Error) -> String {
        let place = self.place.display();
        let denied = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];
        if denied.contains(&error.kind()) {
            format!(
                "{place} cannot be written by this user: start whimbrel-names.socket, use \
                 systemd-resolved, run the daemon as root, or write dns = \"direct\" under [capture]"
            )
        } else {
            format!("{place}: {error}")
        }
    }
}

/// Writes a new file, which is there after a power cut too.
fn fill(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whether we wrote it.
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

/// The text of a `resolv.conf` with one server in place of its own.
pub(crate) fn with_server(text: &str, server: Ipv4Addr) -> String {
    let kept = text.lines().filter(|line| {
        let word = line.split_whitespace().next().unwrap_or_default();
        matches!(word, "search" | "domain" | "options")
    });
    let server = format!("nameserver {server}");
    kept.chain([server.as_str()]).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 213, 52, 53);
    const TEXT: &str = "search lan\nnameserver 192.168.1.1\noptions edns0\n";

    fn settings(folder: &Path) -> SettingsFile {
        SettingsFile::at(folder.join("resolv.conf"), folder.join("before"))
    }

    #[test]
    fn servers_are_replaced_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = settings(folder.path());
        fs::write(&file.place, TEXT).unwrap();
        assert!(file.put(SERVER).unwrap());
        let ours = fs::read_to_string(&file.place).unwrap();
        assert_eq!(nameservers::parse(&ours), [IpAddr::V4(SERVER)]);
        assert!(ours.contains("search lan") && ours.contains("options edns0"), "{ours}");
        assert!(!file.put(SERVER).unwrap(), "it is right already");
        assert!(file.restore().unwrap());
        assert_eq!(fs::read_to_string(&file.place).unwrap(), TEXT);
        assert!(!file.restore().unwrap() && !file.before.exists());
    }

    #[test]
    fn who_is_asked_first_decides_whether_resolved_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = settings(folder.path());
        assert!(!file.leads_to_resolved(), "there is no file");
        fs::write(&file.place, "nameserver 127.0.0.53\noptions edns0 trust-ad\n").unwrap();
        assert!(file.leads_to_resolved());
        // What was left behind by one that was removed.
        fs::write(&file.place, "nameserver 192.168.1.1\nnameserver 127.0.0.53\n").unwrap();
        assert!(!file.leads_to_resolved());
    }

    #[test]
    fn a_link_is_a_link_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = settings(folder.path());
        let managed = folder.path().join("managed");
        fs::write(&managed, TEXT).unwrap();
        symlink("managed", &file.place).unwrap();
        assert!(file.put(SERVER).unwrap());
        assert_eq!(fs::read_to_string(&managed).unwrap(), TEXT, "what it led to is untouched");
        assert!(file.restore().unwrap());
        assert_eq!(fs::read_link(&file.place).unwrap(), Path::new("managed"));
    }

    #[test]
    fn what_somebody_else_wrote_since_is_theirs_and_becomes_the_one_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = settings(folder.path());
        fs::write(&file.place, TEXT).unwrap();
        file.put(SERVER).unwrap();
        fs::write(&file.place, "nameserver 192.168.7.7\n").unwrap();
        assert!(file.put(SERVER).unwrap());
        assert!(file.restore().unwrap());
        assert_eq!(fs::read_to_string(&file.place).unwrap(), "nameserver 192.168.7.7\n");
        file.put(SERVER).unwrap();
        fs::write(&file.place, "nameserver 192.168.8.8\n").unwrap();
        assert!(!file.restore().unwrap());
        assert_eq!(fs::read_to_string(&file.place).unwrap(), "nameserver 192.168.8.8\n");
    }

    #[test]
    fn a_missing_file_and_a_missing_copy_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        let file = settings(folder.path());
        assert!(!file.restore().unwrap());
        assert!(file.put(SERVER).unwrap());
        fs::remove_file(&file.before).unwrap();
        assert!(file.restore().unwrap());
        assert_eq!(fs::read_to_string(&file.place).unwrap(), "");
    }
}
