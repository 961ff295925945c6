//! What the service manager passes: sockets, and what a process before stored.

use std::os::fd::OwnedFd;

use tracing::warn;
use whimbrel_host::keeping;

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
        let mut found = Self::default();
        for (name, descriptor) in keeping::passed() {
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
