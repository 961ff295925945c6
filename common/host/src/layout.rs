//! Where a program's files are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// Which of the two programs asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// `whimbrel-gateway`.
    Gateway,
    /// `whimbrel`.
    Client,
}

/// The files of one instance.
///
/// By default the configuration is in `/etc/whimbrel/`, keys and state in `/var/lib/whimbrel/`
/// and sockets in `/run/whimbrel/`. With `--config F` all of them are in F's folder and carry
/// F's name, so that instances never meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Which program they belong to.
    pub role: Role,
    /// The configuration file.
    pub config: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The key as a systemd credential, if this process was given one.
    pub credential: Option<PathBuf>,
    /// The folder of the files below and of `key`.
    pub state: PathBuf,
    /// Gateway: who may connect.
    pub clients: PathBuf,
    /// Gateway: invites not yet used up.
    pub invites: PathBuf,
    /// Held while state files are edited.
    pub lock: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The `--config` this layout came from, to be repeated in advice to the user.
    pub given: Option<PathBuf>,
}

impl Role {
    /// `gateway` or `client`: the stem of the default file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Client => "client",
        }
    }
}

impl Layout {
    /// The layout for `--config`, or the default one.
    #[must_use]
    pub fn for_config(config: Option<PathBuf>, role: Role) -> Self {
        match config {
            Some(config) => Self::beside(config, role),
            None => Self::system(role, std::env::var_os("CREDENTIALS_DIRECTORY")),
        }
    }

    /// The layout in the user's own configuration folder (`$XDG_CONFIG_HOME`, `~/.config`), as if
    /// `--config` named a file there. `None` for root, and for who has no home.
    #[must_use]
    pub fn of_user(role: Role) -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            return None;
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let folder =
            absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
        let config = folder.join(format!("whimbrel/{}.toml", role.as_str()));
        Some(Self::beside(config, role))
    }

    /// The layout for `--config`; without it the default one, unless this user may not use that
    /// and has [a configuration of their own](Self::of_user).
    #[must_use]
    pub fn for_user(config: Option<PathBuf>, role: Role) -> Self {
        let layout = Self::for_config(config, role);
        if layout.given.is_some() || access(&layout.socket, Access::WRITE_OK).is_ok() {
            return layout;
        }
        Self::of_user(role).filter(|own| own.config.exists()).unwrap_or(layout)
    }

    /// The private key to read: the credential where there is one.
    #[must_use]
    pub fn key_to_read(&self) -> &Path {
        self.credential.as_deref().unwrap_or(&self.key)
    }

    /// The command line part that leads to this layout again, with a leading space; empty for
    /// the default one.
    #[must_use]
    pub fn option(&self) -> String {
        self.given.as_ref().map_or(String::new(), |path| format!(" --config {}", path.display()))
    }

    fn system(role: Role, credentials: Option<OsString>) -> Self {
        let state = PathBuf::from("/var/lib/whimbrel");
        let name = role.as_str();
        let credential = credentials
            .map(|folder| PathBuf::from(folder).join(format!("{name}.key")))
            .filter(|path| path.exists());
        Self {
            role,
            config: PathBuf::from(format!("/etc/whimbrel/{name}.toml")),
            key: state.join(format!("{name}.key")),
            credential,
            clients: state.join("clients"),
            invites: state.join("invites"),
            lock: state.join(format!("{name}.lock")),
            socket: PathBuf::from(format!("/run/whimbrel/{name}.sock")),
            state,
            given: None,
        }
    }

    fn beside(config: PathBuf, role: Role) -> Self {
        let state = match config.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        let stem = config.file_stem().map_or_else(|| role.as_str().into(), OsString::from);
        let named = |ending: &str| {
            let mut name = stem.clone();
            name.push(ending);
            state.join(name)
        };
        Self {
            role,
            key: named(".key"),
            credential: None,
            clients: named(".clients"),
            invites: named(".invites"),
            lock: named(".lock"),
            socket: named(".sock"),
            given: Some(config.clone()),
            config,
            state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_system_folders() {
        let layout = Layout::system(Role::Gateway, None);
        assert_eq!(layout.config, Path::new("/etc/whimbrel/gateway.toml"));
        assert_eq!(layout.key_to_read(), Path::new("/var/lib/whimbrel/gateway.key"));
        assert_eq!(layout.clients, Path::new("/var/lib/whimbrel/clients"));
        assert_eq!(layout.socket, Path::new("/run/whimbrel/gateway.sock"));
        assert_eq!(layout.option(), "");
    }

    #[test]
    fn config_alone_relocates_everything() {
        let layout = Layout::for_config(Some("/tmp/a/lab.toml".into()), Role::Client);
        for path in [&layout.key, &layout.clients, &layout.invites, &layout.lock, &layout.socket] {
            assert!(path.starts_with("/tmp/a"), "{}", path.display());
            assert!(path.file_name().unwrap().to_str().unwrap().starts_with("lab."));
        }
        assert_eq!(layout.option(), " --config /tmp/a/lab.toml");
    }

    #[test]
    fn a_bare_file_name_means_this_folder() {
        let layout = Layout::for_config(Some("gw.toml".into()), Role::Gateway);
        assert_eq!(layout.state, Path::new("."));
        assert_eq!(layout.key, Path::new("./gw.key"));
    }

    #[test]
    fn a_credential_is_read_instead_of_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::system(Role::Client, Some(folder.path().into()));
        assert_eq!(layout.credential, None);
        std::fs::write(folder.path().join("client.key"), "").unwrap();
        let layout = Layout::system(Role::Client, Some(folder.path().into()));
        assert_eq!(layout.key_to_read(), folder.path().join("client.key"));
    }
}
