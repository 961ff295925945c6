//! Datagrams with what the kernel says about them (`recvmsg(2)`): from the queue of a socket, or from
//! its error queue (`ip(7)`, IP_RECVERR), which tells whom an error is about.
#![expect(unsafe_code, reason = "no crate of ours reads these control messages")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    /// Bytes in the buffer.
    pub(super) length: usize,
    /// Who sent it; in the error queue, whom it was sent to.
    pub(super) remote: SocketAddr,
    /// Hops it might still have made, if that was asked for.
    pub(super) hops: Option<u8>,
    /// What was complained of, in the error queue.
    pub(super) complaint: Option<Complaint>,
}

/// What became of a datagram that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The error number it would have as the answer of a call.
    pub(super) errno: i32,
    /// The type of the ICMP message, if it was one.
    pub(super) icmp: Option<u8>,
    /// Who complained.
    pub(super) by: Option<IpAddr>,
}

/// Switches an option of a socket on.
pub(super) fn switch_on(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = socklen(size_of::<libc::c_int>());
    // SAFETY: the option reads an integer, which outlives the call.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for the control messages of one datagram: an error with an address, and a few integers.
#[repr(align(8))]
struct Control([u8; 256]);

/// Receives the next datagram, or the next error with the datagram it is about. What does not fit
/// the buffer is cut off.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    errors: bool,
    buffer: &mut [u8],
) -> io::Result<Message> {
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = Control([0; 256]);
    let mut header = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: a zeroed header is a valid one: null pointers with zero lengths.
    let header = unsafe { header.assume_init_mut() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = socklen(size_of::<libc::sockaddr_storage>());
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    let flags = if errors { libc::MSG_ERRQUEUE } else { 0 } | libc::MSG_DONTWAIT;
    // SAFETY: every pointer of the header leads to memory of the length beside it, which outlives
    // the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), header, flags) };
    let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: it was zeroed, which is a valid address of no family, before the kernel wrote to it.
    let name = unsafe { name.assume_init_ref() };
    let remote = address(name).ok_or(io::ErrorKind::InvalidData)?;
    let mut message = Message { length, remote, hops: None, complaint: None };
    read_control(header, &mut message);
    Ok(message)
}

fn read_control(header: &libc::msghdr, message: &mut Message) {
    // SAFETY: the kernel filled in the header; its control buffer is still there.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: the kernel's control messages begin with a whole header, at an aligned place.
    while let Some(control) = unsafe { next.as_ref() } {
        match (control.cmsg_level, control.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                message.complaint = complaint(control);
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                let hops = read::<libc::c_int>(control, 0);
                message.hops = hops.and_then(|hops| u8::try_from(hops).ok());
            }
            _ => {}
        }
        // SAFETY: both are of the message that the kernel filled in.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
}

fn complaint(control: &libc::cmsghdr) -> Option<Complaint> {
    let error = read::<libc::sock_extended_err>(control, 0)?;
    let place = size_of::<libc::sock_extended_err>();
    let icmp = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => Some(error.ee_type),
        _ => None,
    };
    // The address of whoever complained follows (SO_EE_OFFENDER), of either family.
    let family = read::<libc::sa_family_t>(control, place).map(i32::from);
    let by = match family {
        Some(libc::AF_INET) => read::<libc::sockaddr_in>(control, place)
            .map(|v4| Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into()),
        Some(libc::AF_INET6) => read::<libc::sockaddr_in6>(control, place)
            .map(|v6| Ipv6Addr::from(v6.sin6_addr.s6_addr).into()),
        Some(_) | None => None,
    };
    Some(Complaint { errno: i32::try_from(error.ee_errno).ok()?, icmp, by })
}

/// What a control message has so many bytes behind its header, if it is long enough. Only for types
/// of which any bytes are a valid one.
fn read<T: Copy>(control: &libc::cmsghdr, at: usize) -> Option<T> {
    let needed = u32::try_from(at + size_of::<T>()).ok()?;
    // SAFETY: computes a length, touches no memory.
    let whole = unsafe { libc::CMSG_LEN(needed) };
    if control.cmsg_len < usize::try_from(whole).ok()? {
        return None;
    }
    // SAFETY: the data of a message follows its header within the buffer.
    let data = unsafe { libc::CMSG_DATA(control) };
    // SAFETY: the message is at least that long.
    let place = unsafe { data.add(at) };
    // SAFETY: as many bytes as needed are there, and any of them are a valid value.
    Some(unsafe { place.cast::<T>().read_unaligned() })
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
