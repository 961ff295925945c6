//! Descriptors that a service manager holds between two processes of a daemon
//! (sd_pid_notify_with_fds(3), sd_listen_fds(3)).

#![expect(unsafe_code, reason = "the protocol passes descriptors by number")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use sd_notify::NotifyState;
use tracing::debug;

/// Whether there is a service manager to ask. Whether it keeps anything is up to its unit
/// (`FileDescriptorStoreMax=`); one that does not closes what it is sent.
#[must_use]
pub fn is_possible() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Stores a duplicate of `descriptor`. A name is printable ASCII without a colon, 255 octets at most.
///
/// # Errors
/// It is not stored.
pub fn keep(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // Without FDPOLL=0 the manager would drop what has nothing at its other end.
    let words = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&words, &[descriptor])
}

/// Gives up everything stored under this name.
///
/// # Errors
/// It may still be stored.
pub fn forget(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

/// What was passed to this process, with names: sockets, and what a process before had stored. To be
/// called once.
#[must_use]
pub fn passed() -> Vec<(String, OwnedFd)> {
    let passed = match sd_notify::listen_fds_with_names() {
        Ok(passed) => passed,
        Err(error) => {
            debug!(%error, "No descriptors were passed");
            return Vec::new();
        }
    };
    passed
        .map(|(number, name)| {
            // SAFETY: the service manager passed this descriptor to this process, nobody else here
            // uses it, and the variables that announce it are read once.
            (name, unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}
