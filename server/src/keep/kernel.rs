//! What the kernel knows about a socket whose process is gone: how far both directions came.
//!
//! `TCP_INFO` counts bytes the destination acknowledged and bytes it sent, the queues hold what is
//! between that and the process (tcp(7), `SIOCOUTQ` and `SIOCINQ`). The SYN and the FINs occupy a
//! sequence number each and are counted with the bytes.
#![expect(unsafe_code, reason = "socket options and ioctls that no library wraps")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The counters move while the destination talks; a pair of equal readings is a consistent one.
const READINGS: usize = 1000;

/// How far a socket came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes the process wrote.
    pub(super) written: u64,
    /// It wrote its end after them.
    pub(super) ended: bool,
    /// Bytes the process read.
    pub(super) read: u64,
    /// It read, or could have read, the destination's end after them.
    pub(super) read_end: bool,
}

/// One reading of the kernel's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    state: u8,
    acknowledged: u64,
    received: u64,
    out_queue: u64,
    in_queue: u64,
}

/// The states of include/net/tcp_states.h.
mod state {
    pub(super) const SYN_SENT: u8 = 2;
    pub(super) const SYN_RECEIVED: u8 = 3;
    pub(super) const FIN_WAIT_1: u8 = 4;
    pub(super) const FIN_WAIT_2: u8 = 5;
    pub(super) const TIME_WAIT: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const CLOSING: u8 = 11;
}

/// How far both directions of `socket` came. `ending`: the process was about to write its end.
///
/// # Errors
/// The connection is broken, or its counters never stand still.
pub(super) fn progress(socket: &OwnedFd, ending: bool) -> Result<Progress, &'static str> {
    let mut before = None;
    for _ in 0..READINGS {
        let counters = Counters::read(socket).map_err(|_| "its socket cannot be read")?;
        if before.replace(counters) == Some(counters) {
            let closed = counters.state == state::CLOSE && ending;
            // A reset closes it too. Elsewhere the option tells of passing trouble as well.
            if closed && rustix::net::sockopt::socket_error(socket) != Ok(Ok(())) {
                return Err("the destination reset it");
            }
            return counters.progress(ending);
        }
    }
    Err("its counters never stand still")
}

/// Resets a connection of which other descriptors exist.
pub(super) fn disconnect(socket: &OwnedFd) {
    // One that is closed already needs no reset.
    let _ = rustix::net::connect_unspec(socket);
}

impl Counters {
    fn progress(self, ending: bool) -> Result<Progress, &'static str> {
        let (ended, peer_ended) = match self.state {
            state::SYN_SENT | state::SYN_RECEIVED => {
                return Ok(Progress { written: 0, ended: false, read: 0, read_end: false });
            }
            state::FIN_WAIT_1 | state::FIN_WAIT_2 => (true, false),
            state::CLOSE_WAIT => (false, true),
            state::CLOSING | state::LAST_ACK | state::TIME_WAIT => (true, true),
            // Closed in good order takes an end of ours.
            state::CLOSE if ending => (true, true),
            state::CLOSE => return Err("the destination reset it"),
            _ => (false, false),
        };
        let said = self.acknowledged + self.out_queue;
        let written = said.checked_sub(1 + u64::from(ended));
        let read = self.received.checked_sub(self.in_queue + u64::from(peer_ended));
        match (written, read) {
            (Some(written), Some(read)) => {
                Ok(Progress { written, ended, read, read_end: peer_ended && self.in_queue == 0 })
            }
            _ => Err("its counters make no sense"),
        }
    }

    fn read(socket: &OwnedFd) -> io::Result<Self> {
        let info = tcp_info(socket)?;
        Ok(Self {
            state: info.tcpi_state,
            acknowledged: info.tcpi_bytes_acked,
            received: info.tcpi_bytes_received,
            out_queue: queue(socket, libc::TIOCOUTQ)?,
            in_queue: queue(socket, libc::FIONREAD)?,
        })
    }
}

fn tcp_info(socket: &OwnedFd) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, and that is the size of `info`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all of it was zeroed, and zero is a value of each of its integers.
    Ok(unsafe { info.assume_init() })
}

fn queue(socket: &OwnedFd, request: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write one integer.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    u64::try_from(bytes).map_err(io::Error::other)
}

/// Makes reads with `MSG_PEEK` go on behind what the one before has seen (`SO_PEEK_OFF`,
/// socket(7)).
pub(super) fn peek_onwards(socket: &OwnedFd) -> io::Result<()> {
    let from: libc::c_int = 0;
    let length = libc::socklen_t::try_from(size_of_val(&from)).map_err(io::Error::other)?;
    // SAFETY: the option takes one integer, which outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const from).cast(),
            length,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
