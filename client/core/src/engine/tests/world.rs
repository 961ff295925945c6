//! A second smoltcp as the kernel of the applications, on an in-memory wire
//! and a virtual clock.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Tick;
use smoltcp::wire::{HardwareAddress, IpEndpoint, IpListenEndpoint};

use super::super::{
    Buffers, DeviceId, Engine, EngineConfig, FlowEvent, FlowId, PacketSink, Refusal,
};

pub(super) const DEVICE: DeviceId = DeviceId(7);
pub(super) const HOST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
pub(super) const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
pub(super) const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
pub(super) const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5));
pub(super) const BOTH: [IpAddr; 2] = [FAR_V4, FAR_V6];

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
pub(super) fn origin() -> Instant {
    Instant::now()
}

/// What a source of buffers has given out.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) live: BTreeSet<u32>,
    pub(super) leased: u32,
    pub(super) trimmed: Vec<u32>,
    pub(super) limit: Option<usize>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct SharedPool(Arc<Mutex<Pool>>);

impl SharedPool {
    pub(super) fn lock(&self) -> MutexGuard<'_, Pool> {
        self.0.lock().expect("no test panics while it holds the pool")
    }
}

impl Buffers for SharedPool {
    fn lease(
        &mut self,
        bytes: usize,
    ) -> Option<(u32, SocketBuffer<'static>, SocketBuffer<'static>)> {
        let mut pool = self.lock();
        if pool.limit.is_some_and(|limit| pool.live.len() >= limit) {
            return None;
        }
        pool.leased += 1;
        let lease = pool.leased;
        pool.live.insert(lease);
        Some((lease, SocketBuffer::new(vec![0; bytes]), SocketBuffer::new(vec![0; bytes])))
    }

    fn give_back(&mut self, lease: u32) {
        assert!(self.lock().live.remove(&lease), "lease {lease} is not out");
    }

    fn trim(&mut self, lease: u32) {
        let mut pool = self.lock();
        assert!(pool.live.contains(&lease), "lease {lease} is not out");
        pool.trimmed.push(lease);
    }
}

/// Packets on their way to the host.
#[derive(Debug, Default)]
pub(super) struct Wire {
    pub(super) packets: VecDeque<(DeviceId, Vec<u8>, Option<NonZeroU16>)>,
    /// Give the next writer three bytes, which makes smoltcp panic.
    pub(super) short: bool,
    /// Take packets without having them written.
    pub(super) ignore: bool,
}

impl PacketSink for Wire {
    fn send(
        &mut self,
        device: DeviceId,
        len: usize,
        segment: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) {
        if std::mem::take(&mut self.short) {
            return fill(&mut [0; 3]);
        }
        if self.ignore {
            return;
        }
        let mut packet = vec![0xee; len];
        fill(&mut packet);
        self.packets.push_back((device, packet, segment));
    }
}

pub(super) struct Host {
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    port: Link,
    next_port: u16,
}

#[derive(Default)]
struct Link {
    arrived: VecDeque<Vec<u8>>,
    departed: VecDeque<Vec<u8>>,
    /// Sends super-segments, as Linux does through a TUN with offload.
    large: bool,
}

struct Arrival(Vec<u8>);
struct Departure<'a>(&'a mut VecDeque<Vec<u8>>);

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

impl Device for Link {
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
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum = ChecksumCapabilities::ignored();
        if self.large {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(65535);
        }
        capabilities
    }
}

pub(super) struct World {
    pub(super) origin: Instant,
    pub(super) now: Instant,
    pub(super) engine: Engine,
    pub(super) pool: SharedPool,
    pub(super) host: Host,
    pub(super) wire: Wire,
    pub(super) events: Vec<FlowEvent>,
    /// Packets that are not TCP, as the host would see them.
    pub(super) other: Vec<Vec<u8>>,
    /// Super-segments seen, by IP version and segment size.
    pub(super) supers: BTreeSet<(u8, u16)>,
    /// Lose every n-th packet.
    pub(super) lose_every: Option<u64>,
    /// Lose nothing the host sends.
    pub(super) lose_only_down: bool,
    carried: u64,
}

pub(super) fn config(buffer: usize) -> EngineConfig {
    EngineConfig { pending_limit: 64, flow_limit: 1000, buffer }
}

impl World {
    pub(super) fn new(buffer: usize) -> Self {
        Self::with(config(buffer))
    }

    pub(super) fn with(config: EngineConfig) -> Self {
        let origin = origin();
        let pool = SharedPool::default();
        let engine = Engine::new(config, 42, Box::new(pool.clone()), origin);
        Self {
            origin,
            now: origin,
            engine,
            pool,
            host: Host::new(),
            wire: Wire::default(),
            events: Vec::new(),
            other: Vec::new(),
            supers: BTreeSet::new(),
            lose_every: None,
            lose_only_down: false,
            carried: 0,
        }
    }

    pub(super) fn large_host(mut self) -> Self {
        let mut large = Host::new();
        large.port.large = true;
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 99;
        large.interface = Interface::new(config, &mut large.port, Tick::from_secs(1));
        large.interface.set_any_ip(true);
        self.host = large;
        self
    }

    pub(super) fn connect(&mut self, far: IpAddr) -> SocketHandle {
        self.host.connect(SocketAddr::new(far, 80), 1 << 18)
    }

    /// A connection that was offered, accepted and established.
    pub(super) fn established(&mut self, far: IpAddr) -> (SocketHandle, FlowId) {
        let socket = self.connect(far);
        self.run();
        let flow = self.opened();
        self.engine.accept(flow, self.now);
        self.run();
        assert_eq!(self.host.state(socket), State::Established);
        (socket, flow)
    }

    /// The flow of the latest Open event.
    pub(super) fn opened(&self) -> FlowId {
        self.events
            .iter()
            .rev()
            .find_map(|event| match event {
                FlowEvent::Open { flow, .. } => Some(*flow),
                FlowEvent::Readable { .. }
                | FlowEvent::Writable { .. }
                | FlowEvent::Reset { .. }
                | FlowEvent::Closed { .. } => None,
            })
            .expect("a flow was offered")
    }

    pub(super) fn count(&self, event: FlowEvent) -> usize {
        self.events.iter().filter(|seen| **seen == event).count()
    }

    fn lost(&mut self) -> bool {
        self.carried += 1;
        self.lose_every.is_some_and(|every| self.carried.is_multiple_of(every))
    }

    /// One round of everybody. True when a packet moved.
    pub(super) fn round(&mut self) -> bool {
        self.engine.handle_timeout(self.now);
        self.host.poll(self.now.duration_since(self.origin));
        let mut moved = false;
        while let Some(packet) = self.host.port.departed.pop_front() {
            moved = true;
            if self.lose_only_down || !self.lost() {
                self.engine.handle_packet(DEVICE, &packet, self.now);
            }
        }
        self.take_events();
        self.engine.flush(self.now, &mut self.wire);
        self.take_events();
        while let Some((device, packet, segment)) = self.wire.packets.pop_front() {
            moved = true;
            assert_eq!(device, DEVICE);
            self.deliver(packet, segment);
        }
        moved
    }

    fn take_events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
    }

    fn deliver(&mut self, packet: Vec<u8>, segment: Option<NonZeroU16>) {
        let (version, ip_header, protocol) =
            if packet[0] >> 4 == 4 { (4, 20, packet[9]) } else { (6, 40, packet[6]) };
        if protocol != 6 {
            assert_eq!(segment, None);
            self.other.push(packet);
            return;
        }
        let payload = packet.len() - ip_header - usize::from(packet[ip_header + 12] >> 4) * 4;
        let mss = if version == 4 { 1460 } else { 1440 };
        assert_eq!(segment.is_some(), payload > mss, "payload of {payload}");
        if let Some(segment) = segment {
            self.supers.insert((version, segment.get()));
        }
        if !self.lost() {
            self.host.port.arrived.push_back(packet);
        }
    }

    /// Rounds until no packet moves.
    pub(super) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.round() && !self.round() {
                return;
            }
        }
        panic!("the wire does not come to rest");
    }

    /// Lets time pass, stopping wherever somebody wants to be woken.
    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.run();
            let woken = [self.engine.poll_timeout(), self.host.poll_at(self.origin)];
            let next = woken.into_iter().flatten().min().unwrap_or(end);
            self.now = next.max(self.now + Duration::from_millis(1)).min(end);
        }
        self.run();
    }

    pub(super) fn read_all(&mut self, flow: FlowId) -> (Vec<u8>, bool) {
        let mut bytes = BytesMut::new();
        let read = self.engine.read(flow, usize::MAX, &mut bytes);
        assert_eq!(read.bytes, bytes.len());
        (bytes.to_vec(), read.fin)
    }

    pub(super) fn refuse(&mut self, flow: FlowId, refusal: Refusal) {
        self.engine.refuse(flow, refusal, self.now);
        self.run();
    }

    /// Everything the engine ever held is gone.
    pub(super) fn assert_empty(&self) {
        assert!(self.engine.is_empty());
        assert_eq!(self.engine.flows().count(), 0);
        assert!(self.pool.lock().live.is_empty());
        assert_eq!(self.engine.stats().panics, 0);
    }
}

impl Host {
    fn new() -> Self {
        let mut port = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 4711;
        let mut interface = Interface::new(config, &mut port, Tick::from_secs(1));
        interface.set_any_ip(true);
        Self { interface, sockets: SocketSet::new(Vec::new()), port, next_port: 40_000 }
    }

    pub(super) fn connect(&mut self, far: SocketAddr, buffer: usize) -> SocketHandle {
        self.next_port = if self.next_port == u16::MAX { 1024 } else { self.next_port + 1 };
        let port = self.next_port;
        self.connect_from(port, far, buffer)
    }

    pub(super) fn connect_from(
        &mut self,
        port: u16,
        far: SocketAddr,
        buffer: usize,
    ) -> SocketHandle {
        let ring = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let own = if far.is_ipv4() { HOST_V4 } else { HOST_V6 };
        let near = IpListenEndpoint { addr: Some(own.into()), port };
        socket.connect(self.interface.context(), IpEndpoint::from(far), near).expect("connects");
        self.sockets.add(socket)
    }

    pub(super) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn state(&mut self, handle: SocketHandle) -> State {
        self.socket(handle).state()
    }

    pub(super) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) -> usize {
        self.socket(handle).send_slice(bytes).unwrap_or(0)
    }

    pub(super) fn receive(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 65536];
        while let Ok(length @ 1..) = self.socket(handle).recv_slice(&mut chunk) {
            bytes.extend_from_slice(&chunk[..length]);
        }
        bytes
    }

    fn poll(&mut self, elapsed: Duration) {
        let tick = Tick::from_secs(1) + elapsed.into();
        self.interface.poll(tick, &mut self.port, &mut self.sockets);
    }

    fn poll_at(&mut self, origin: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(Tick::from_secs(1), &self.sockets)?;
        let second = Tick::from_secs(1);
        Some(origin + Duration::from(at.max(second) - second))
    }
}

/// Bytes that differ at every offset within reach.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

/// A hand-made segment of the application.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledgment: u32,
    pub(super) window: u16,
    pub(super) options: &'a [u8],
    pub(super) payload: &'a [u8],
}

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

impl Raw<'_> {
    pub(super) fn new(far: IpAddr) -> Self {
        let own = if far.is_ipv4() { HOST_V4 } else { HOST_V6 };
        Self {
            source: SocketAddr::new(own, 5000),
            destination: SocketAddr::new(far, 80),
            flags: SYN,
            sequence: 1000,
            acknowledgment: 0,
            window: 65535,
            options: &[2, 4, 5, 180, 3, 3, 7, 0],
            payload: &[],
        }
    }

    pub(super) fn packet(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let length = u16::try_from(header + self.payload.len()).expect("fits");
        let mut packet = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
                ip[2..4].copy_from_slice(&(length + 20).to_be_bytes());
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
                ip[4..6].copy_from_slice(&length.to_be_bytes());
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            _ => panic!("one family"),
        };
        packet.extend(self.source.port().to_be_bytes());
        packet.extend(self.destination.port().to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledgment.to_be_bytes());
        packet.push(u8::try_from(header / 4).expect("fits") << 4);
        packet.push(self.flags);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(self.options);
        packet.extend(self.payload);
        packet
    }
}
