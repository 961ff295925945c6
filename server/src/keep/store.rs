//! Where descriptors are while no process of the gateway has them.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use whimbrel_host::keeping;

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
    /// The one there is to ask.
    pub(crate) fn find() -> Option<Self> {
        keeping::is_possible().then_some(Self(()))
    }
}

impl Store for ServiceManager {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        keeping::keep(name, descriptor)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        keeping::forget(name)
    }
}
