//! Descriptors the service manager passes (sd_listen_fds(3)).
#![expect(unsafe_code, reason = "the protocol passes descriptors by number")]

use std::os::fd::{FromRawFd as _, OwnedFd};

use tracing::debug;

/// The UDP sockets that were passed, if any.
pub(crate) fn sockets() -> Vec<OwnedFd> {
    let numbers = match sd_notify::listen_fds() {
        Ok(numbers) => numbers,
        Err(error) => {
            debug!(%error, "No descriptors were passed");
            return Vec::new();
        }
    };
    numbers
        .map(|number| {
            // SAFETY: the service manager passed this descriptor to this process, nobody else
            // here uses it, and the variables that announce it are read once.
            unsafe { OwnedFd::from_raw_fd(number) }
        })
        .filter(|socket| {
            rustix::net::sockopt::socket_type(socket) == Ok(rustix::net::SocketType::DGRAM)
        })
        .collect()
}
