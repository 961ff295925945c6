//! Descriptors that come from somebody else, and connections on which some may wait.
//!
//! Whoever passes a descriptor decides what happens when its last copy is closed: a TCP socket may
//! linger (`SO_LINGER`), a file of FUSE asks its server first. So a thread of its own closes it, and
//! the connection it came on counts as open until that is done: there are never more of these
//! threads than the connections that are served may bring descriptors.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};

use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

/// The right to a connection; free again once nothing that came on it is left to close.
pub(super) type Slot = Arc<OwnedSemaphorePermit>;

/// The thread does nothing but one system call.
const STACK: usize = 64 << 10;

/// A descriptor whose maker is not to be trusted. Dropping it never waits; asking it anything may.
#[derive(Debug)]
pub struct Foreign {
    held: Option<(OwnedFd, Slot)>,
}

impl Foreign {
    pub(super) fn new(fd: OwnedFd, slot: Slot) -> Self {
        Self { held: Some((fd, slot)) }
    }

    /// The descriptor itself, once it is known to be of a kind whose end waits for nobody.
    #[must_use]
    pub fn claim(mut self) -> OwnedFd {
        self.held.take().expect("only this and dropping it take it").0
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_ref().expect("only claiming and dropping it take it").0.as_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        let (hand, take) = mpsc::channel::<(OwnedFd, Slot)>();
        let thread = std::thread::Builder::new().name("close".to_owned()).stack_size(STACK);
        let left = match thread.spawn(move || drop(take.recv())) {
            Ok(_) => hand.send(held).err().map(|unsent| unsent.0),
            Err(_) => Some(held),
        };
        // Where no thread can be had, an open descriptor is the lesser evil.
        std::mem::forget(left);
    }
}

/// A connection whose peer may have sent descriptors that nobody has read.
pub(super) struct Connection {
    stream: Option<UnixStream>,
    slot: Slot,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, slot: Slot) -> Self {
        Self { stream: Some(stream), slot }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        self.stream.as_ref().expect("only dropping it takes it")
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let stream = self.stream.take().and_then(|stream| stream.into_std().ok());
        if let Some(stream) = stream {
            // The peer need not wait for the thread. It may have hung up before.
            let _ = stream.shutdown(Shutdown::Both);
            drop(Foreign::new(stream.into(), Arc::clone(&self.slot)));
        }
    }
}
