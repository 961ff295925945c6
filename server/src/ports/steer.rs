//! Tells the kernel which socket of a group a datagram belongs to (socket(7),
//! `SO_ATTACH_REUSEPORT_CBPF`).
#![expect(unsafe_code, reason = "a socket option that no library wraps")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use whimbrel_gateway_core::steering;

/// Sorts what comes to the group of `socket` by slot from now on.
pub(super) fn attach(socket: &UdpSocket, slots: u8) -> io::Result<()> {
    let mut program: Vec<libc::sock_filter> = steering::program(slots)
        .into_iter()
        .map(|one| libc::sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k })
        .collect();
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let argument = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&argument)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `argument` and the instructions it points to, which both outlive
    // the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const argument).cast(),
            size,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
