//! What routers and hosts say about datagrams that went out: the error queue of a socket (`ip(7)`,
//! IP_RECVERR). An unconnected socket learns of no other way whom an error is about.
#![expect(unsafe_code, reason = "no crate of ours reads the error queue of a UDP socket")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use whimbrel_common::wire::Undelivered;

/// A datagram that did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounce {
    /// Where it was to go.
    pub(crate) remote: SocketAddr,
    /// Why it did not arrive; `None` if that says nothing to the program.
    pub(crate) reason: Option<Undelivered>,
}

/// Keeps errors of this socket until they are read.
pub(super) fn keep_errors(socket: BorrowedFd<'_>, v4: bool) -> io::Result<()> {
    let (level, name) = if v4 {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    };
    let on: libc::c_int = 1;
    let size = socklen(size_of::<libc::c_int>());
    // SAFETY: the option reads an integer, which outlives the call.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for one control message: `sock_extended_err` and the address of whoever complained.
#[repr(align(8))]
struct Control([u8; 256]);

/// The next error that was kept.
pub(super) fn next_error(socket: BorrowedFd<'_>) -> io::Result<Bounce> {
    // The datagram itself is of no interest.
    let mut payload = [0_u8; 1];
    let mut slice = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = Control([0; 256]);
    let mut message = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: a zeroed header is a valid one: null pointers with zero lengths.
    let message = unsafe { message.assume_init_mut() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = socklen(size_of::<libc::sockaddr_storage>());
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: every pointer of the header leads to memory of the length beside it, which outlives
    // the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), message, flags) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, which is a valid address of no family, before the kernel wrote to it.
    let name = unsafe { name.assume_init_ref() };
    let remote = address(name).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Bounce { remote, reason: reason(message) })
}

fn reason(message: &libc::msghdr) -> Option<Undelivered> {
    // SAFETY: the kernel filled in the header; its control buffer is still there.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: the kernel's control messages begin with a whole header, at an aligned place.
    let header = unsafe { first.as_ref() }?;
    let kind = (header.cmsg_level, header.cmsg_type);
    let of_errors = kind == (libc::IPPROTO_IP, libc::IP_RECVERR)
        || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
    // SAFETY: computes a length, touches no memory.
    let whole = unsafe { libc::CMSG_LEN(socklen(size_of::<libc::sock_extended_err>())) };
    if !of_errors || header.cmsg_len < usize::try_from(whole).unwrap_or(usize::MAX) {
        return None;
    }
    // SAFETY: the data of a message follows its header within the buffer.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: the message is long enough for it, and any bytes are a valid one.
    let error = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
    match i32::try_from(error.ee_errno).ok()? {
        libc::ECONNREFUSED => Some(Undelivered::Port),
        libc::EHOSTUNREACH | libc::EHOSTDOWN => Some(Undelivered::Host),
        libc::ENETUNREACH => Some(Undelivered::Network),
        libc::EACCES | libc::EPERM => Some(Undelivered::Denied),
        // EMSGSIZE: this kernel cuts up what follows.
        _ => None,
    }
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name = &raw const *name;
    // SAFETY: it is a whole `sockaddr_storage`, which begins with the family.
    let family = unsafe { (*name).ss_family };
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: of this family it is an address of IPv4, which is not longer.
            let v4 = unsafe { name.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: of this family it is an address of IPv6, which is not longer.
            let v6 = unsafe { name.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

fn socklen(length: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(length).expect("a struct is smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_port_nobody_listens_at_is_told_with_its_address() {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let socket = UdpSocket::bind((ip, 0)).unwrap();
            keep_errors(socket.as_fd(), ip.is_ipv4()).unwrap();
            assert!(next_error(socket.as_fd()).is_err(), "there is none yet");
            let taken = UdpSocket::bind((ip, 0)).unwrap();
            let remote = taken.local_addr().unwrap();
            drop(taken);
            socket.send_to(b"anybody there?", remote).unwrap();
            // On loopback the answer is there before the call returns.
            let bounce = next_error(socket.as_fd()).unwrap();
            assert_eq!(bounce, Bounce { remote, reason: Some(Undelivered::Port) });
            assert!(next_error(socket.as_fd()).is_err(), "it is told once");
        }
    }
}
