//! Whoever may write the settings of this host: what it writes, and how it notices that somebody
//! else did.
//!
//! `resolvconf` is told where it manages them; else `/etc/resolv.conf` is ours for as long as we
//! lead, and what others write there meanwhile is what they get back.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};
use whimbrel_client_core::contest::Contest;

use super::file::{self, SettingsFile};
use super::resolvconf::{Resolvconf, leads};

/// A watch that cannot be kept is replaced by a look as often as this.
const LOOK: Duration = Duration::from_secs(5);

/// Scripts write a few lines one after the other, each within a millisecond or so.
const MOMENT: Duration = Duration::from_millis(20);

/// So many moments at most: who writes for longer is interrupted.
const SETTLING: u32 = 10;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Scribe {
    file: SettingsFile,
    server: Ipv4Addr,
    watch: Option<AsyncFd<OwnedFd>>,
    contest: Contest,
    /// Somebody insists on other settings, which is told once.
    told: bool,
}

impl Scribe {
    /// One that keeps the settings of before in the folder `state`.
    pub(crate) fn new(state: &Path, server: Ipv4Addr) -> Self {
        Self::of(SettingsFile::new(state), server)
    }

    pub(super) fn of(file: SettingsFile, server: Ipv4Addr) -> Self {
        Self { file, server, watch: None, contest: Contest::default(), told: false }
    }

    pub(super) fn file(&self) -> &SettingsFile {
        &self.file
    }

    /// Makes the settings lead to our server. Who does it.
    ///
    /// # Errors
    /// A sentence about what to do.
    pub(super) async fn lead(&mut self) -> Result<&'static str, String> {
        // First, so that nothing is missed.
        self.arm();
        if let Some(resolvconf) = Resolvconf::find(self.file.place()) {
            let text = self.settled().await?;
            if leads(&text, self.server) && text.contains(&self.server.to_string()) {
                return Ok(resolvconf.name());
            }
            resolvconf.add(self.server, &text).await?;
            if leads(&self.file.read()?, self.server) {
                info!(by = resolvconf.name(), "Settings lead to the gateway");
                return Ok(resolvconf.name());
            }
            debug!("resolvconf was told and the settings do not change");
            resolvconf.delete().await?;
        }
        self.settled().await?;
        if self.file.put(self.server)? {
            info!(by = "/etc/resolv.conf", "Settings lead to the gateway");
        }
        Ok("/etc/resolv.conf")
    }

    /// Takes back whatever of the settings is ours, also what another process left. Whether there
    /// was anything.
    ///
    /// # Errors
    /// A sentence about what to do.
    pub(crate) async fn restore(&mut self) -> Result<bool, String> {
        self.watch = None;
        let restored = self.file.restore()?;
        let Some(resolvconf) = Resolvconf::find(self.file.place()) else { return Ok(restored) };
        if !self.file.names(self.server)? {
            return Ok(restored);
        }
        resolvconf.delete().await?;
        if self.file.names(self.server)? {
            // It knows nothing of us any more, as after a power cut.
            resolvconf.update().await?;
        }
        Ok(true)
    }

    /// Waits until settings of ours may not be there any more, and for as long as it is wise to let
    /// others have theirs.
    pub(super) async fn until_changed(&mut self) {
        loop {
            match &self.watch {
                Some(watch) => {
                    if !changed(watch, self.file.name()).await {
                        continue;
                    }
                }
                None => tokio::time::sleep(LOOK).await,
            }
            if self.is_ours() {
                continue;
            }
            let pause = self.contest.pause(Instant::now());
            if !pause.is_zero() {
                if !std::mem::replace(&mut self.told, true) {
                    warn!("Another program keeps writing its own servers to /etc/resolv.conf");
                }
                tokio::time::sleep(pause).await;
            }
            return;
        }
    }

    /// What the file says once nobody is writing it any more: what is half written would be lost, or
    /// given back as half of it later.
    async fn settled(&self) -> Result<String, String> {
        let mut text = self.file.read()?;
        for _ in 0..SETTLING {
            if file::is_ours(&text) {
                break;
            }
            tokio::time::sleep(MOMENT).await;
            let later = self.file.read()?;
            if std::mem::replace(&mut text, later) == text && !text.is_empty() {
                break;
            }
        }
        Ok(text)
    }

    fn is_ours(&self) -> bool {
        self.file.read().is_ok_and(|text| {
            let managed = || Resolvconf::find(self.file.place()).is_some();
            file::is_ours(&text) || (leads(&text, self.server) && managed())
        })
    }

    /// Watches the folder of the file, where others replace it; the file, where they write into it;
    /// and the folder it leads to.
    fn arm(&mut self) {
        let watch = match self.watch.take().map_or_else(open, Ok) {
            Ok(watch) => watch,
            Err(error) => {
                debug!(%error, "Settings cannot be watched");
                return;
            }
        };
        let place = self.file.place();
        let folder = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE;
        let target = place.is_symlink().then(|| std::fs::canonicalize(place).ok()).flatten();
        let folders = [Some(place), target.as_deref()];
        for path in folders.into_iter().flatten().filter_map(Path::parent) {
            // What is not there is not written to.
            let _ = inotify::add_watch(&watch, path, folder);
        }
        let _ =
            inotify::add_watch(&watch, place, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE_SELF);
        self.watch = Some(watch);
    }
}

#[expect(deprecated, reason = "the replacement is unsafe, and the watch owns the descriptor")]
fn open() -> std::io::Result<AsyncFd<OwnedFd>> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    AsyncFd::with_interest(inotify::init(flags)?, Interest::READABLE)
}

/// Waits for news; whether any is about a file of this name, or about the one that is watched.
async fn changed(watch: &AsyncFd<OwnedFd>, name: &OsStr) -> bool {
    let Ok(mut ready) = watch.readable().await else { return true };
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut news = inotify::Reader::new(watch.get_ref(), &mut buffer);
    let mut ours = false;
    while let Ok(event) = news.next() {
        ours |= event.file_name().is_none_or(|file| file.to_bytes() == name.as_encoded_bytes());
    }
    ready.clear_ready();
    ours
}

/// The folder where a service that writes for us keeps the settings of before.
pub(crate) fn service_state() -> PathBuf {
    std::env::var_os("STATE_DIRECTORY").map_or_else(|| SERVICE_STATE.into(), PathBuf::from)
}

/// `StateDirectory=` of systemd/whimbrel-names.service.
pub(crate) const SERVICE_STATE: &str = "/var/lib/whimbrel-names";
