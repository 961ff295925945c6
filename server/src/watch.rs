//! Tells when files of a folder or the addresses of this machine change, so that nobody has to look
//! again and again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Changes of one kind; none where the kernel tells of none.
#[derive(Debug)]
pub(crate) struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    /// Watches a folder from now on. Needs a tokio runtime.
    pub(crate) fn folder(folder: &Path) -> Self {
        let watched = watch_folder(folder).inspect_err(|error| {
            let folder = folder.display();
            warn!(%folder, %error, "Changes made by hand are noticed late");
        });
        Self(watched.ok())
    }

    /// Watches the addresses of this network namespace from now on. Needs a tokio runtime.
    pub(crate) fn addresses() -> Self {
        let watched = watch_addresses().inspect_err(|error| {
            warn!(%error, "Changes of this machine's addresses are noticed late");
        });
        Self(watched.ok())
    }

    /// Waits until something has changed. Cancelling the wait loses nothing.
    pub(crate) async fn changed(&self) {
        let Some(watch) = &self.0 else { return std::future::pending().await };
        loop {
            let Ok(mut ready) = watch.readable().await else { return std::future::pending().await };
            // What it was does not matter: whoever asks looks at all there is.
            let mut events = [0; 4096];
            match ready.try_io(|watch| Ok(rustix::io::read(watch.get_ref(), &mut events)?)) {
                Ok(Ok(_)) => return,
                // There were more than it could keep for us.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => return,
                Ok(Err(error)) => {
                    warn!(%error, "Changes are noticed late from now on");
                    return std::future::pending().await;
                }
                // It was not ready after all.
                Err(_) => {}
            }
        }
    }
}

fn watch_folder(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&watch, folder, changes)?;
    ready(watch)
}

fn watch_addresses() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let watch = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, ROUTE)?;
    bind(&watch, &SocketAddrNetlink::new(0, ADDRESSES))?;
    ready(watch)
}

#[expect(deprecated, reason = "the replacement is unsafe, and the watcher owns the descriptor")]
fn ready(watch: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(watch, Interest::READABLE)
}

/// `NETLINK_ROUTE` (netlink(7)), which is number zero.
const ROUTE: Option<Protocol> = None;

/// The groups of addresses of IPv4 and IPv6: `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`
/// (rtnetlink(7)).
const ADDRESSES: u32 = 0x10 | 0x100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_removed_is_noticed() {
        let number = u64::from_ne_bytes(whimbrel_host::random::bytes().unwrap());
        let folder = std::env::temp_dir().join(format!("whimbrel-watch-{number:016x}"));
        std::fs::create_dir(&folder).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watch = Watch::folder(&folder);
            let (file, other) = (folder.join("clients"), folder.join("clients.new"));
            std::fs::write(&file, "one").unwrap();
            watch.changed().await;
            std::fs::write(&other, "two").unwrap();
            std::fs::rename(&other, &file).unwrap();
            watch.changed().await;
            std::fs::remove_file(&file).unwrap();
            watch.changed().await;
        });
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
