//! UDP sockets with segmentation and receive offload, and without hidden errors.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll};

use noq_udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::endpoint::Transmit;

/// Bytes one receive call can return: the largest coalesced batch of the kernel.
pub const RECEIVE_BUFFER: usize = 64 * 1024;

/// Kernel socket buffers, in bytes: 8 MiB hold 30 ms at 2 Gbit/s, in which the owner may be busy
/// elsewhere. The kernel clamps it to `net.core.{r,w}mem_max`.
const KERNEL_BUFFER: usize = 8 * 1024 * 1024;

/// A nonblocking UDP socket.
#[derive(Debug)]
pub struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Datagrams that arrived together: `bytes` split every `stride`.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// The peer.
    pub remote: SocketAddr,
    /// The local address they were sent to.
    pub local: Option<IpAddr>,
    /// Bytes received.
    pub size: usize,
    /// Size of each datagram but the last.
    pub stride: usize,
    /// ECN bits.
    pub ecn: Option<u8>,
}

impl Port {
    /// Takes over a bound socket.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        // What the kernel grants is enough to work with, only slower.
        let _ = state.set_send_buffer_size((&socket).into(), KERNEL_BUFFER);
        let _ = state.set_recv_buffer_size((&socket).into(), KERNEL_BUFFER);
        Ok(Self { socket, state })
    }

    /// Receives one batch into `buffer`.
    ///
    /// # Errors
    /// The socket's error, `WouldBlock` included.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Batch> {
        let mut meta = [RecvMeta::default()];
        self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(buffer)], &mut meta)?;
        let [meta] = meta;
        Ok(Batch {
            remote: meta.addr,
            local: meta.dst_ip,
            size: meta.len,
            stride: meta.stride.max(1),
            ecn: meta.ecn.map(|ecn| ecn as u8),
        })
    }

    /// Sends one transmit; `source` overrides the local address.
    ///
    /// # Errors
    /// The socket's error, `WouldBlock` included: what the kernel says about the route is the
    /// fastest news of a dead link.
    pub fn send(
        &self,
        transmit: &Transmit,
        contents: &[u8],
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let transmit = noq_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(EcnCodepoint::from_bits),
            contents: &contents[..transmit.size],
            segment_size: transmit.segment,
            src_ip: source,
        };
        self.state.try_send((&self.socket).into(), &transmit)
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// The socket's error.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A [`Port`] that wakes a tokio task.
#[derive(Debug)]
pub struct AsyncPort {
    port: AsyncFd<Port>,
}

impl AsyncPort {
    /// Registers `port` with the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(port: Port) -> io::Result<Self> {
        Ok(Self { port: AsyncFd::with_interest(port, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Whether [`receive`](Self::receive) is worth a call; wakes the task once it is.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        matches!(self.port.poll_read_ready(cx), Poll::Ready(_))
    }

    /// Whether [`send`](Self::send) is worth a call; wakes the task once it is.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> bool {
        matches!(self.port.poll_write_ready(cx), Poll::Ready(_))
    }

    /// See [`Port::receive`].
    ///
    /// # Errors
    /// The socket's error, `WouldBlock` included.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Batch> {
        self.port.try_io(Interest::READABLE, |port| port.receive(buffer))
    }

    /// See [`Port::send`].
    ///
    /// # Errors
    /// The socket's error, `WouldBlock` included.
    pub fn send(
        &self,
        transmit: &Transmit,
        contents: &[u8],
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        self.port.try_io(Interest::WRITABLE, |port| port.send(transmit, contents, source))
    }

    /// See [`Port::local_address`].
    ///
    /// # Errors
    /// The socket's error.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.port.get_ref().local_address()
    }
}
