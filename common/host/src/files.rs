//! Key files and state files: written whole or not at all, and kept private.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, Gid, OFlags, Uid};
use whimbrel_common::identity::SecretKey;

/// No configuration, key or client list is larger; a larger file is a mistake.
const LARGEST: u64 = 16 << 20;

/// Reads a private key, which others must not be able to read.
///
/// A credential passed by systemd (under `$CREDENTIALS_DIRECTORY`) is exempt from the check of
/// permissions: systemd guards the folder.
///
/// # Errors
/// No such file, wrong permissions, or no key in it.
pub fn read_key(path: &Path) -> anyhow::Result<SecretKey> {
    let file = File::open(path).with_context(|| cannot("read the key", path))?;
    let mode = file.metadata().with_context(|| cannot("read the key", path))?.mode();
    if mode & 0o077 != 0 && !is_credential(path) {
        bail!(
            "the key {} can be read by others (mode {:03o}); run `chmod 600 {}`, and make a new key \
             if anybody else has an account here",
            path.display(),
            mode & 0o777,
            path.display()
        );
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text).with_context(|| cannot("read the key", path))?;
    SecretKey::from_key_file(&text).with_context(|| cannot("read the key", path))
}

/// Writes a new private key, readable by its owner alone. Never overwrites.
///
/// # Errors
/// The file exists, or cannot be written.
pub fn create_key(path: &Path, key: &SecretKey) -> anyhow::Result<()> {
    create(path, &key.to_key_file(), 0o600)
}

/// Writes a new file with `mode`. Never overwrites.
///
/// # Errors
/// The file exists, or cannot be written.
pub fn create(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(nofollow())
        .open(path)
        .with_context(|| cannot("create", path))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| own_like_folder(&file, path));
    let written = written.and_then(|()| file.sync_all()).and_then(|()| sync_folder(path));
    if written.is_err() {
        // What exists at this point is half a file of our own.
        let _ = std::fs::remove_file(path);
    }
    written.with_context(|| cannot("write", path))
}

/// A new file that is written and not there yet.
#[derive(Debug)]
pub struct Prepared {
    fresh: PathBuf,
    path: PathBuf,
}

/// Writes a new file with `mode` where nobody finds it, so that [`Prepared::publish`] needs no room
/// any more. Dropped without that, it leaves nothing.
///
/// # Errors
/// It cannot be written.
pub fn prepare(path: &Path, text: &str, mode: u32) -> anyhow::Result<Prepared> {
    let (fresh, file) = temporary(path)?;
    let prepared = Prepared { fresh, path: path.to_owned() };
    fill(file, path, text, mode).with_context(|| cannot("write", path))?;
    Ok(prepared)
}

impl Prepared {
    /// Gives the file its name. Never overwrites.
    ///
    /// # Errors
    /// There is such a file by now.
    pub fn publish(self) -> anyhow::Result<()> {
        // The old name goes with the value.
        let named = match std::fs::hard_link(&self.fresh, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            // Not every file system has second names.
            Err(_) if !self.path.exists() => std::fs::rename(&self.fresh, &self.path),
            other => other,
        };
        named.and_then(|()| sync_folder(&self.path)).with_context(|| cannot("create", &self.path))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // A second name of the file, or a file of no use.
        let _ = std::fs::remove_file(&self.fresh);
    }
}

/// Replaces a file in one step: readers see the old text or the new one, also after a crash.
/// Keeps the mode and owner of the file it replaces, else uses `mode` and the folder's owner.
///
/// # Errors
/// The file or its folder cannot be written.
pub fn replace(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let (fresh, file) = temporary(path)?;
    let written = fill(file, path, text, mode).and_then(|()| std::fs::rename(&fresh, path));
    if written.is_err() {
        // The temporary file is ours and useless.
        let _ = std::fs::remove_file(&fresh);
    }
    written.and_then(|()| sync_folder(path)).with_context(|| cannot("write", path))
}

/// The text of a file, or nothing if there is none.
///
/// # Errors
/// It cannot be read, is no UTF-8, or is absurdly large.
pub fn read_if_any(path: &Path) -> anyhow::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| cannot("read", path)),
    };
    let mut text = String::new();
    let count =
        file.take(LARGEST).read_to_string(&mut text).with_context(|| cannot("read", path))?;
    if u64::try_from(count).unwrap_or(u64::MAX) == LARGEST {
        bail!("{} is larger than 16 MiB; this cannot be right", path.display());
    }
    Ok(Some(text))
}

/// Makes a folder, and those above it, unless it exists. New folders get `mode`.
///
/// # Errors
/// It cannot be made.
pub fn ensure_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| cannot("make the folder", path))
}

/// Whether something failed for want of permission, so that another user could do it. A full disk is
/// full for root too.
#[must_use]
pub fn is_denied(error: &anyhow::Error) -> bool {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    error.chain().filter_map(|cause| cause.downcast_ref()).any(denied)
}

/// Held while state files are read, changed and written back; released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock. Every holder does a few small file operations, so the wait is short.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn acquire(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nofollow())
            .open(path)
            .with_context(|| cannot("lock", path))?;
        own_like_folder(&file, path).with_context(|| cannot("lock", path))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .with_context(|| cannot("lock", path))?;
        Ok(Self { _file: file })
    }
}

/// What distinguishes one version of a file from another, to notice an edit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    /// The stamp of a file; `None` while there is none.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let about = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: about.ino(),
            size: about.size(),
            seconds: about.mtime(),
            nanoseconds: about.mtime_nsec(),
        })
    }
}

fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .is_some_and(|folder| !folder.is_empty() && path.starts_with(folder))
}

/// A new empty file in the same folder, private until it is filled.
fn temporary(path: &Path) -> anyhow::Result<(PathBuf, File)> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}.new", u64::from_ne_bytes(crate::random::bytes()?)));
    let fresh = PathBuf::from(name);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nofollow())
        .open(&fresh)
        .with_context(|| cannot("write", path))?;
    Ok((fresh, file))
}

fn fill(mut file: File, path: &Path, text: &str, mode: u32) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    let mode = match std::fs::metadata(path) {
        Ok(old) => {
            give(&file, old.uid(), old.gid())?;
            old.mode() & 0o777
        }
        Err(_) => {
            own_like_folder(&file, path)?;
            mode
        }
    };
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
    file.sync_all()
}

/// Root edits the state of a gateway that runs as another user: what it makes there belongs to
/// that user, or the gateway could not read it.
fn own_like_folder(file: &File, path: &Path) -> io::Result<()> {
    let about = std::fs::metadata(folder(path))?;
    give(file, about.uid(), about.gid())
}

fn give(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    let about = file.metadata()?;
    if !rustix::process::geteuid().is_root() || (about.uid(), about.gid()) == (uid, gid) {
        return Ok(());
    }
    Ok(rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// A rename is on disk once its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn nofollow() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).expect("flags of open(2) fit an int")
}

fn cannot(what: &str, path: &Path) -> String {
    format!("cannot {what} {}", path.display())
}
