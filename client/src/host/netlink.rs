//! One netlink connection and the task that serves it.

use std::io;

use rtnetlink::{Error, Handle};
use tokio::task::JoinHandle;

/// A connection to the kernel's routing; its task ends with it.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection in the current network namespace and serves it on the current runtime.
    pub(crate) fn open() -> io::Result<Self> {
        let (mut connection, handle, _) = rtnetlink::new_connection()?;
        // Lets dumps be filtered by table (Linux 4.20); older kernels send everything, and the
        // reader filters again.
        let _filtered = rtnetlink::sys::AsyncSocket::socket_mut(connection.socket_mut())
            .set_netlink_get_strict_chk(true);
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The operating system's error behind a failed request.
pub(crate) fn io_error(error: Error) -> io::Error {
    if let Error::NetlinkError(refusal) = error { refusal.to_io() } else { io::Error::other(error) }
}
