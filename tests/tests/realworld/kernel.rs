//! The kernel of the laptop's applications: another smoltcp, whose packets are the client's.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant as Tick;
use smoltcp::wire::{HardwareAddress, IpEndpoint, IpListenEndpoint};
use whimbrel_client_core::engine::{DeviceId, PacketSink};

use crate::story::{Heard, Line};

/// The address applications connect from.
const HOST: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

/// smoltcp takes zero for "at once".
const FIRST_TICK: Tick = Tick::from_millis_const(1000);

/// Where in a packet its protocol stands, that of ICMP, and what an ICMP error has before the TCP
/// header it answers: two IPv6 headers and its own (RFC 8200, RFC 4443).
const PROTOCOL: usize = 6;
const ICMP: u8 = 58;
const QUOTED: usize = 40 + 8 + 40;

/// See the [module](self).
pub(crate) struct Kernel {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    since: Instant,
}

/// What is between the applications' kernel and the client.
#[derive(Default)]
pub(crate) struct Wire {
    arrived: VecDeque<Vec<u8>>,
    departed: VecDeque<Vec<u8>>,
    /// Local ports whose connection was refused by ICMP, which smoltcp does not look at.
    unreachable: Vec<u16>,
    /// The largest packet the kernel sends.
    mtu: usize,
}

impl PacketSink for Wire {
    fn send(
        &mut self,
        _: DeviceId,
        len: usize,
        _: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) {
        let mut packet = vec![0; len];
        fill(&mut packet);
        if packet[PROTOCOL] == ICMP {
            self.unreachable.push(u16::from_be_bytes([packet[QUOTED], packet[QUOTED + 1]]));
        } else {
            self.arrived.push_back(packet);
        }
    }
}

pub(crate) struct Arrival(Vec<u8>);
pub(crate) struct Departure<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Arrival {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Departure<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrival;
    type TxToken<'a> = Departure<'a>;

    fn receive(&mut self, _: Tick) -> Option<(Arrival, Departure<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrival(packet), Departure(&mut self.departed)))
    }

    fn transmit(&mut self, _: Tick) -> Option<Departure<'_>> {
        Some(Departure(&mut self.departed))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

impl Kernel {
    pub(crate) fn new(seed: u64, mtu: usize, now: Instant) -> Self {
        let mut wire = Wire { mtu, ..Wire::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, FIRST_TICK);
        interface.set_any_ip(true);
        let sockets = SocketSet::new(Vec::new());
        Self { interface, sockets, wire, since: now }
    }

    /// An application connects. Its socket keeps `room` bytes in each direction.
    pub(crate) fn connect(&mut self, port: u16, far: SocketAddr, room: usize) -> Descriptor {
        let ring = || SocketBuffer::new(vec![0; room]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let near = IpListenEndpoint { addr: Some(HOST.into()), port };
        socket.connect(self.interface.context(), IpEndpoint::from(far), near).expect("connects");
        let handle = self.sockets.add(socket);
        Descriptor { handle, port, left: VecDeque::new(), ended: false }
    }

    /// The connection of an application.
    pub(crate) fn near<'a>(&'a mut self, descriptor: &'a mut Descriptor) -> Near<'a> {
        Near { socket: self.sockets.get_mut(descriptor.handle), descriptor }
    }

    /// Takes what the client has sent.
    pub(crate) fn poll(&mut self, now: Instant) {
        let tick = FIRST_TICK + now.saturating_duration_since(self.since).into();
        self.interface.poll(tick, &mut self.wire, &mut self.sockets);
    }

    /// Whether the connection from this port was refused by ICMP since the last look.
    pub(crate) fn is_unreachable(&mut self, port: u16) -> bool {
        let before = self.wire.unreachable.len();
        self.wire.unreachable.retain(|unreachable| *unreachable != port);
        self.wire.unreachable.len() < before
    }

    /// The next packet of an application.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        self.wire.departed.pop_front()
    }

    /// Where the client sends packets to.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Whether the client has sent something.
    pub(crate) fn is_stirred(&self) -> bool {
        !self.wire.arrived.is_empty()
    }

    /// When [`poll`](Self::poll) wants to be called.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        let at = self.interface.poll_at(FIRST_TICK, &self.sockets)?;
        Some(self.since + Duration::from(at.max(FIRST_TICK) - FIRST_TICK))
    }
}

/// What an application has of its connection.
#[derive(Debug)]
pub(crate) struct Descriptor {
    handle: SocketHandle,
    pub(crate) port: u16,
    /// What is left to read, once nothing more comes: smoltcp forgets it when TIME-WAIT is over.
    left: VecDeque<u8>,
    /// The end comes after that.
    ended: bool,
}

/// A connection, as its application sees it.
pub(crate) struct Near<'a> {
    socket: &'a mut Socket<'static>,
    descriptor: &'a mut Descriptor,
}

impl Near<'_> {
    /// Saves what smoltcp would forget.
    pub(crate) fn save(&mut self) {
        let over = matches!(self.socket.state(), State::TimeWait | State::Closing | State::LastAck);
        while over && !self.descriptor.ended {
            let left = &mut self.descriptor.left;
            let read = self.socket.recv(|bytes| {
                left.extend(&*bytes);
                (bytes.len(), ())
            });
            self.descriptor.ended = read == Err(RecvError::Finished);
        }
    }
}

impl Line for Near<'_> {
    fn is_asking(&self) -> bool {
        self.socket.state() == State::SynSent
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if self.is_asking() { 0 } else { self.socket.send_slice(bytes).unwrap_or(0) }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Heard {
        let Descriptor { left, ended, .. } = &mut *self.descriptor;
        if !left.is_empty() {
            let count = left.len().min(buffer.len());
            left.drain(..count).zip(buffer).for_each(|(byte, place)| *place = byte);
            return Heard::Bytes(count);
        }
        if *ended {
            return Heard::End;
        }
        match self.socket.recv_slice(buffer) {
            Ok(0) => Heard::Nothing,
            Ok(count) => Heard::Bytes(count),
            Err(RecvError::Finished) => Heard::End,
            Err(RecvError::InvalidState) if self.socket.state() == State::Closed => Heard::Reset,
            Err(RecvError::InvalidState) => Heard::Nothing,
        }
    }

    fn is_reset(&mut self, ended: bool) -> bool {
        // One that has ended its direction may be closed because everything was done: reading tells.
        self.socket.state() == State::Closed && !ended
    }

    fn end(&mut self) {
        self.socket.close();
    }

    fn reset(&mut self) {
        self.socket.abort();
    }
}
