//! What routers and hosts say about datagrams that went out. An unconnected socket learns of no other
//! way than its error queue whom an error is about.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use whimbrel_common::wire::Undelivered;

use super::message::{self, Complaint};

/// A datagram that did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounce {
    /// Where it was to go.
    pub(crate) remote: SocketAddr,
    /// Who says so, if somebody else than this kernel does.
    pub(crate) by: Option<IpAddr>,
    /// Why it did not arrive; `None` if that says nothing to the program.
    pub(crate) reason: Option<Undelivered>,
    /// What it began with.
    pub(crate) head: [u8; 8],
}

/// Keeps errors of this socket until they are read.
pub(super) fn keep_errors(socket: BorrowedFd<'_>, v4: bool) -> io::Result<()> {
    if v4 {
        message::switch_on(socket, libc::IPPROTO_IP, libc::IP_RECVERR)
    } else {
        message::switch_on(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    }
}

/// The next error that was kept.
pub(super) fn next_error(socket: BorrowedFd<'_>) -> io::Result<Bounce> {
    let mut head = [0; 8];
    let message = message::receive(socket, true, &mut head)?;
    let (by, reason) = match message.complaint {
        Some(complaint) => (complaint.by, reason(&complaint, message.remote)),
        None => (None, None),
    };
    Ok(Bounce { remote: message.remote, by, reason, head })
}

fn reason(complaint: &Complaint, remote: SocketAddr) -> Option<Undelivered> {
    // Time exceeded (RFC 792, RFC 4443 §3.3).
    let expired = if remote.is_ipv4() { 11 } else { 3 };
    match complaint.errno {
        libc::ECONNREFUSED => Some(Undelivered::Port),
        libc::EHOSTUNREACH if complaint.icmp == Some(expired) => Some(Undelivered::Expired),
        libc::EHOSTUNREACH | libc::EHOSTDOWN => Some(Undelivered::Host),
        libc::ENETUNREACH => Some(Undelivered::Network),
        libc::EACCES | libc::EPERM => Some(Undelivered::Denied),
        // EMSGSIZE: this kernel cuts up what follows.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
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
            let reason = Some(Undelivered::Port);
            assert_eq!(bounce, Bounce { remote, by: Some(ip), reason, head: *b"anybody " });
            assert!(next_error(socket.as_fd()).is_err(), "it is told once");
        }
    }
}
