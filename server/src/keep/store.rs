//! Where descriptors are while no process of the gateway has them.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use sd_notify::NotifyState;

/// What the names of our descriptors begin with.
pub(crate) const PREFIX: &str = "keep-";

/// The name of the journal.
pub(super) const JOURNAL: &str = "keep-journal";

/// Keeps descriptors for the next process, which is passed all of them with their names.
pub trait Store: fmt::Debug + Send + Sync {
    /// Stores a duplicate of `descriptor`.
    ///
    /// # Errors
    /// It is not stored.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Gives up everything stored under this name.
    ///
    /// # Errors
    /// It may still be stored.
    fn forget(&self, name: &str) -> io::Result<()>;
}

/// The service manager's store (sd_pid_notify_with_fds(3), `FDSTORE=1`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServiceManager(());

impl ServiceManager {
    /// The one there is to ask. Whether it keeps anything is up to its unit
    /// (`FileDescriptorStoreMax=`); one that does not closes what it is sent.
    pub(crate) fn find() -> Option<Self> {
        std::env::var_os("NOTIFY_SOCKET").map(|_| Self(()))
    }
}

impl Store for ServiceManager {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        // Without FDPOLL=0 the manager would drop a socket whose other end is closed: all of ours.
        let words =
            [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        sd_notify::notify_with_fds(&words, &[descriptor])
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
    }
}
