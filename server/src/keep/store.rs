//! The service manager's store of descriptors (sd_pid_notify_with_fds(3), `FDSTORE=1`).

use std::io;
use std::os::fd::BorrowedFd;

use sd_notify::NotifyState;

/// What the names of our descriptors begin with.
pub(crate) const PREFIX: &str = "keep-";

/// The name of the journal.
pub(super) const JOURNAL: &str = "keep-journal";

/// Whether there is a service manager to ask. Whether it keeps anything is up to its unit
/// (`FileDescriptorStoreMax=`); one that does not closes what it is sent.
pub(super) fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Stores a duplicate of `descriptor`, to be passed to the next process.
pub(super) fn keep(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // Without FDPOLL=0 the manager would drop a socket whose other end is closed: all of ours.
    let words = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&words, &[descriptor])
}

/// Gives up everything stored under this name.
pub(super) fn forget(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}
