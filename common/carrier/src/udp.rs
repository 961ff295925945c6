//! UDP sockets with segmentation and receive offload, and without hidden errors.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::task::Context;

use noq_udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::endpoint::Transmit;

/// Bytes one receive call can return: the largest coalesced batch of the kernel.
pub const RECEIVE_BUFFER: usize = 64 * 1024;

/// Kernel socket buffers, in bytes: 8 MiB hold 30 ms at 2 Gbit/s, in which the owner may be busy
/// elsewhere. The kernel clamps it to `net.core.{r,w}mem_max`.
const KERNEL_BUFFER: usize = 8 * 1024 * 1024;

/// A UDP socket that wakes a tokio task.
#[derive(Debug)]
pub struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Datagrams that arrived together: `size` bytes that split every `stride`.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// The peer.
    pub remote: SocketAddr,
    /// The local address they were sent to.
    pub local: Option<IpAddr>,
    /// Bytes received.
    pub size: usize,
    /// Size of each datagram but the last, in bytes.
    pub stride: usize,
    /// ECN bits.
    pub ecn: Option<u8>,
}

impl Port {
    /// Takes over a bound socket. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        // What the kernel grants is enough to work with, only slower.
        let _ = state.set_send_buffer_size((&socket).into(), KERNEL_BUFFER);
        let _ = state.set_recv_buffer_size((&socket).into(), KERNEL_BUFFER);
        Ok(Self { socket: UdpSocket::from_std(socket)?, state })
    }

    /// Whether [`receive`](Self::receive) is worth a call; wakes the task once it is.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        self.socket.poll_recv_ready(cx).is_ready()
    }

    /// Whether [`send`](Self::send) is worth a call; wakes the task once it is.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> bool {
        self.socket.poll_send_ready(cx).is_ready()
    }

    /// Receives one batch into `buffer`.
    ///
    /// # Errors
    /// The socket's error, `WouldBlock` included.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Batch> {
        let mut meta = [RecvMeta::default()];
        self.socket.try_io(Interest::READABLE, || {
            self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(buffer)], &mut meta)
        })?;
        let [meta] = meta;
        Ok(Batch {
            remote: meta.addr,
            local: meta.dst_ip,
            size: meta.len,
            stride: meta.stride.max(1),
            ecn: meta.ecn.map(|ecn| ecn as u8),
        })
    }

    /// Sends one transmit from `source`, or from where the kernel thinks best.
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
        self.socket
            .try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// The socket's error.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
