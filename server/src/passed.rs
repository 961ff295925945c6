//! Descriptors the service manager passes (sd_listen_fds(3)).
#![expect(unsafe_code, reason = "the protocol passes descriptors by number")]

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use tracing::{debug, warn};

use crate::keep;

/// What was passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// UDP sockets to serve on.
    pub(crate) sockets: Vec<OwnedFd>,
    /// What a process before asked to be kept, by name.
    pub(crate) kept: Vec<(String, OwnedFd)>,
}

impl Passed {
    /// Takes what was passed. To be called once.
    pub(crate) fn take() -> Self {
        let passed: Vec<(RawFd, String)> = match sd_notify::listen_fds_with_names() {
            Ok(passed) => passed.collect(),
            Err(error) => {
                debug!(%error, "No descriptors were passed");
                return Self::default();
            }
        };
        let mut found = Self::default();
        for (number, name) in passed {
            // SAFETY: the service manager passed this descriptor to this process, nobody else
            // here uses it, and the variables that announce it are read once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            let kind = rustix::net::sockopt::socket_type(&descriptor);
            if name.starts_with(keep::PREFIX) {
                found.kept.push((name, descriptor));
            } else if kind == Ok(rustix::net::SocketType::DGRAM) {
                found.sockets.push(descriptor);
            } else {
                warn!(name, "A descriptor that is no UDP socket was passed");
            }
        }
        found
    }
}
