//! ICMP echo through sockets that need no privilege (`icmp(7)`): the kernel fills in identifier and
//! checksum, and gives back the replies to them alone. Which groups may have them is a setting of the
//! machine, `net.ipv4.ping_group_range`, for IPv6 as well.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{bounce, message};

/// Bytes before what an echo carries: type, code, checksum, identifier and sequence number.
pub(crate) const HEADER: usize = 8;

/// Types of a request.
const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;

/// A reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Who replies.
    pub(crate) from: IpAddr,
    /// To which request.
    pub(crate) sequence: u16,
    /// Hops it might still have made.
    pub(crate) hops: u8,
    /// Bytes in the buffer, [`HEADER`] included.
    pub(crate) length: usize,
}

/// Whether this process may ask at all, in either family.
pub(crate) fn is_possible() -> bool {
    [true, false].into_iter().any(|v4| open(v4, 0).is_ok())
}

/// A socket with this identifier, or any for zero.
pub(super) fn open(v4: bool, identifier: u16) -> io::Result<UdpSocket> {
    let (domain, protocol, any): (_, _, SocketAddr) = if v4 {
        (Domain::IPV4, Protocol::ICMPV4, (Ipv4Addr::UNSPECIFIED, identifier).into())
    } else {
        (Domain::IPV6, Protocol::ICMPV6, (Ipv6Addr::UNSPECIFIED, identifier).into())
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(protocol))?;
    bounce::keep_errors(socket.as_fd(), v4)?;
    if v4 {
        message::switch_on(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL)?;
    } else {
        message::switch_on(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)?;
    }
    socket.bind(&any.into())?;
    Ok(socket.into())
}

/// Sends a request that may make so many hops.
pub(super) fn send(
    socket: &UdpSocket,
    remote: IpAddr,
    sequence: u16,
    hops: u8,
    payload: &[u8],
) -> io::Result<()> {
    let options = SockRef::from(socket);
    let kind = match remote {
        IpAddr::V4(_) => {
            options.set_ttl_v4(hops.into())?;
            REQUEST_V4
        }
        IpAddr::V6(_) => {
            options.set_unicast_hops_v6(hops.into())?;
            REQUEST_V6
        }
    };
    let [high, low] = sequence.to_be_bytes();
    let mut request = Vec::with_capacity(HEADER + payload.len());
    request.extend_from_slice(&[kind, 0, 0, 0, 0, 0, high, low]);
    request.extend_from_slice(payload);
    socket.send_to(&request, SocketAddr::new(remote, 0)).map(drop)
}

/// Receives a reply; `None` if it is none.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Reply>> {
    let message = message::receive(socket, false, buffer)?;
    if message.length < HEADER {
        return Ok(None);
    }
    let sequence = sequence(buffer);
    let hops = message.hops.unwrap_or_default();
    Ok(Some(Reply { from: message.remote.ip(), sequence, hops, length: message.length }))
}

/// The sequence number in the header of an echo, which must be whole.
pub(crate) fn sequence(header: &[u8]) -> u16 {
    u16::from_be_bytes([header[6], header[7]])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_host_that_is_asked_replies() {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            // A machine may forbid it to this process, and then says so.
            let socket = match open(ip.is_ipv4(), 0) {
                Ok(socket) => socket,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                    continue;
                }
            };
            send(&socket, ip, 515, 64, b"ping").unwrap();
            let (mut buffer, begin) = ([0; 64], Instant::now());
            let reply = loop {
                match receive(socket.as_fd(), &mut buffer) {
                    Ok(reply) => break reply.unwrap(),
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        assert!(begin.elapsed() < Duration::from_secs(10), "no reply from {ip}");
                        std::thread::yield_now();
                    }
                }
            };
            assert_eq!(reply, Reply { from: ip, sequence: 515, hops: 64, length: HEADER + 4 });
            assert_eq!(&buffer[HEADER..reply.length], b"ping");
        }
    }
}
