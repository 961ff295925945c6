//! The gateway's UDP sockets, as one place that datagrams come from and go to.
//!
//! Answers must leave from the address and port the question came to. The engine remembers one
//! local IP address for every path, so each pair of socket and local address gets a stand-in
//! address of its own, and is looked up again when a datagram leaves.
//!
//! Where the service manager passes several sockets of one address, each slot has its own of them:
//! socket `n` belongs to slot `n` modulo the number of slots. The kernel knows them by their
//! position, so none is ever closed while others are in use.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;
use std::task::Context;

use anyhow::{Context as _, bail};
use tracing::warn;
use whimbrel_carrier::Transmit;
use whimbrel_carrier::udp::{Batch, Port};

mod steer;

/// The sockets of all slots, by address.
#[derive(Debug)]
pub(crate) struct Listening {
    addresses: Vec<(SocketAddr, Vec<UdpSocket>)>,
}

/// A socket, and the number of its address.
pub(crate) type Numbered = (usize, UdpSocket);

/// Where a datagram came to: the number of an address listened on, and the local address if that
/// one stands for several.
pub(crate) type Place = (usize, Option<IpAddr>);

/// The sockets of one slot, and the stand-ins given out so far.
#[derive(Debug)]
pub(crate) struct Ports {
    ports: Vec<(Port, SocketAddr, usize)>,
    stand_ins: Vec<Place>,
}

impl Listening {
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
        let mut addresses: Vec<(SocketAddr, Vec<UdpSocket>)> = Vec::new();
        for socket in sockets {
            let address = socket.local_addr().context("a passed socket is not a UDP socket")?;
            match addresses.iter_mut().find(|(known, _)| *known == address) {
                Some((_, others)) => others.push(socket),
                None => addresses.push((address, vec![socket])),
            }
        }
        Ok(Self { addresses })
    }

    /// The addresses listened on.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|(address, _)| *address).collect()
    }

    /// How many slots there are to be: as `wanted`, or one for each of `cores`, and no more than
    /// there are sockets of each address.
    ///
    /// # Errors
    /// A sentence about why there cannot be as many as wanted.
    pub(crate) fn slots(&self, wanted: Option<NonZeroU8>, cores: usize) -> Result<u8, String> {
        let counts = self.addresses.iter().map(|(address, sockets)| (sockets.len(), address));
        let (sockets, address) = counts.min().ok_or("there is no socket")?;
        let most = u8::try_from(sockets).unwrap_or(u8::MAX);
        match wanted.map(NonZeroU8::get) {
            None => Ok(u8::try_from(cores).unwrap_or(u8::MAX).clamp(1, most)),
            Some(wanted) if wanted > most => Err(format!(
                "`slots = {wanted}` needs {wanted} sockets of each address, and there is only \
                 {most} of {address}: list its ListenDatagram= {wanted} times in \
                 whimbrel-gateway.socket, with ReusePort=yes, or lower `slots`"
            )),
            Some(wanted) => Ok(wanted),
        }
    }

    /// Has the kernel sort datagrams by slot. Where it does not, slots pass them on to each other.
    pub(crate) fn steer(&self, slots: u8) {
        for (address, sockets) in self.addresses.iter().filter(|(_, sockets)| sockets.len() > 1) {
            if let Err(error) = steer::attach(&sockets[0], slots) {
                warn!(%address, %error, "The kernel does not sort datagrams by slot");
            }
        }
    }

    /// The sockets of each slot.
    pub(crate) fn split(self, slots: u8) -> Vec<Vec<Numbered>> {
        let mut split: Vec<Vec<Numbered>> = (0..slots).map(|_| Vec::new()).collect();
        for (number, (_, sockets)) in self.addresses.into_iter().enumerate() {
            for (socket, slot) in sockets.into_iter().zip((0..usize::from(slots)).cycle()) {
                split[slot].push((number, socket));
            }
        }
        split
    }
}

impl Ports {
    /// Takes over the sockets of a slot. Needs a tokio runtime.
    pub(crate) fn new(sockets: Vec<Numbered>) -> anyhow::Result<Self> {
        let mut ports = Vec::new();
        for (number, socket) in sockets {
            let port = Port::new(socket).context("cannot set up a UDP socket")?;
            let address = port.local_address().context("a passed socket is not a UDP socket")?;
            ports.push((port, address, number));
        }
        Ok(Self { ports, stand_ins: Vec::new() })
    }

    pub(crate) fn count(&self) -> usize {
        self.ports.len()
    }

    /// Whether any socket has something to read; wakes the task once one has.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        self.ports.iter().fold(false, |any, (port, ..)| port.poll_readable(cx) | any)
    }

    /// Whether the socket `transmit` leaves by takes more; wakes the task once it does.
    pub(crate) fn poll_writable(&self, transmit: &Transmit, cx: &mut Context<'_>) -> bool {
        let (at, _) = self.origin(transmit.source);
        self.ports[at].0.poll_writable(cx)
    }

    /// Receives from socket `at`; the batch's local address is a stand-in.
    pub(crate) fn receive(&mut self, at: usize, buffer: &mut [u8]) -> io::Result<Batch> {
        let (port, _, number) = &self.ports[at];
        let batch = port.receive(buffer)?;
        let place = (*number, batch.local);
        let remote = SocketAddr::new(batch.remote.ip().to_canonical(), batch.remote.port());
        Ok(Batch { remote, local: Some(self.stand_in(place)), ..batch })
    }

    /// The stand-in of a place.
    pub(crate) fn stand_in(&mut self, place: Place) -> IpAddr {
        let index = self.stand_ins.iter().position(|known| *known == place).unwrap_or_else(|| {
            self.stand_ins.push(place);
            self.stand_ins.len() - 1
        });
        stand_in(index)
    }

    /// The place a stand-in stands for.
    pub(crate) fn place(&self, stand_in: Option<IpAddr>) -> Option<Place> {
        self.stand_ins.get(index_of(stand_in?)?).copied()
    }

    /// Sends from where the stand-in says.
    pub(crate) fn send(&self, transmit: &Transmit, contents: &[u8]) -> io::Result<()> {
        let (at, source) = self.origin(transmit.source);
        let (port, address, _) = &self.ports[at];
        let destination = match (address, transmit.destination) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            (_, other) => other,
        };
        port.send(&Transmit { destination, ..*transmit }, contents, source)
    }

    /// Any socket of an address sends for it.
    fn origin(&self, source: Option<IpAddr>) -> (usize, Option<IpAddr>) {
        let (number, local) = self.place(source).unwrap_or((0, None));
        let at = self.ports.iter().position(|(_, _, own)| *own == number);
        at.map_or((0, None), |at| (at, local))
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
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(error).with_context(|| {
                format!(
                    "cannot listen on UDP {address} (`listen` in the configuration); ports below \
                     1024 take root, CAP_NET_BIND_SERVICE, or the socket unit"
                )
            })
        }
        result => result.with_context(|| {
            format!("cannot listen on UDP {address} (`listen` in the configuration)")
        }),
    }
}

#[cfg(test)]
mod tests;
