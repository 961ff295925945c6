//! The gateway's UDP sockets, as one place that datagrams come from and go to.
//!
//! Answers must leave from the address and port the question came to. The engine remembers one
//! local IP address for every path, so each pair of socket and local address gets a stand-in
//! address of its own, and is looked up again when a datagram leaves.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::OwnedFd;
use std::task::Context;

use anyhow::{Context as _, bail};
use whimbrel_carrier::Transmit;
use whimbrel_carrier::udp::{Batch, Port};

/// The sockets, and the stand-ins given out so far.
#[derive(Debug)]
pub(crate) struct Ports {
    ports: Vec<(Port, SocketAddr)>,
    stand_ins: Vec<(usize, Option<IpAddr>)>,
}

impl Ports {
    /// Uses the sockets the service manager passed, or else binds those of the configuration.
    pub(crate) fn open(listen: &[SocketAddr], passed: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let sockets: Vec<UdpSocket> = if passed.is_empty() {
            listen.iter().map(|address| bind(*address)).collect::<anyhow::Result<_>>()?
        } else {
            passed.into_iter().map(UdpSocket::from).collect()
        };
        if sockets.is_empty() {
            bail!("there is no address to listen on: give `listen` at least one");
        }
        let mut ports = Vec::new();
        for socket in sockets {
            let port = Port::new(socket).context("cannot set up a UDP socket")?;
            let address = port.local_address().context("a passed socket is not a UDP socket")?;
            ports.push((port, address));
        }
        Ok(Self { ports, stand_ins: Vec::new() })
    }

    /// The addresses listened on.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|(_, address)| *address).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.ports.len()
    }

    /// Whether any socket has something to read; wakes the task once one has.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        self.ports.iter().fold(false, |any, (port, _)| port.poll_readable(cx) | any)
    }

    /// Whether the socket `transmit` leaves by takes more; wakes the task once it does.
    pub(crate) fn poll_writable(&self, transmit: &Transmit, cx: &mut Context<'_>) -> bool {
        let (at, _) = self.origin(transmit.source);
        self.ports[at].0.poll_writable(cx)
    }

    /// Receives from socket `at`; the batch's local address is a stand-in.
    pub(crate) fn receive(&mut self, at: usize, buffer: &mut [u8]) -> io::Result<Batch> {
        let batch = self.ports[at].0.receive(buffer)?;
        let origin = (at, batch.local);
        let index = self.stand_ins.iter().position(|known| *known == origin).unwrap_or_else(|| {
            self.stand_ins.push(origin);
            self.stand_ins.len() - 1
        });
        let remote = SocketAddr::new(batch.remote.ip().to_canonical(), batch.remote.port());
        Ok(Batch { remote, local: Some(stand_in(index)), ..batch })
    }

    /// Sends from where the stand-in says.
    pub(crate) fn send(&self, transmit: &Transmit, contents: &[u8]) -> io::Result<()> {
        let (at, source) = self.origin(transmit.source);
        let (port, address) = &self.ports[at];
        let destination = match (address, transmit.destination) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            (_, other) => other,
        };
        port.send(&Transmit { destination, ..*transmit }, contents, source)
    }

    fn origin(&self, source: Option<IpAddr>) -> (usize, Option<IpAddr>) {
        source
            .and_then(|address| self.stand_ins.get(index_of(address)?).copied())
            .unwrap_or((0, None))
    }
}

/// 100::/64 is the discard-only prefix (RFC 6666): it can never be a real local address.
fn stand_in(index: usize) -> IpAddr {
    let low = u16::try_from(index).unwrap_or(u16::MAX);
    Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, low).into()
}

fn index_of(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V6(v6) => Some(usize::from(v6.segments()[7])),
        IpAddr::V4(_) => None,
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let try_bind = || -> io::Result<UdpSocket> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    match try_bind() {
        // A host without IPv6 cannot bind the default address, but the same in IPv4 is meant too.
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) =>
        {
            bind(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        result => result.with_context(|| {
            format!("cannot listen on UDP {address} (`listen` in the configuration)")
        }),
    }
}
