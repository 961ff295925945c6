//! A client with two links, a gateway, and the network between them, in memory.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_carrier::{
    Connection, Endpoint, Event, Identity, Lost, Path, Read, Role, Stream, Tuning,
};
use whimbrel_common::cid::ServerId;
use whimbrel_common::identity::{PublicKey, SecretKey};

pub(crate) const GATEWAY: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 443);
pub(crate) const ONE_WAY: Duration = Duration::from_millis(10);

/// What either end may wait for more to acknowledge (RFC 9000 §18.2).
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(25);

/// The link of a datagram, by the stand-in address the client's engine knows it by.
pub(crate) fn link(number: u16) -> IpAddr {
    IpAddr::from([0x100, 0, 0, 0, 0, 0, 0, number])
}

pub(crate) fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

pub(crate) fn client(own: u8, gateway: PublicKey) -> Endpoint {
    let identity = Identity { key: key(own), role: Role::Client { gateway } };
    Endpoint::new(&identity, &Tuning::default()).expect("the key is a key")
}

pub(crate) fn gateway(own: u8) -> Endpoint {
    let identity = Identity { key: key(own), role: Role::Gateway { server: ServerId::default() } };
    Endpoint::new(&identity, &Tuning::default()).expect("the key is a key")
}

pub(crate) struct Datagram {
    pub(crate) due: Instant,
    pub(crate) to_gateway: bool,
    pub(crate) link: IpAddr,
    pub(crate) bytes: BytesMut,
}

/// A client with links 1 and 2, a gateway, and what is on its way between them.
pub(crate) struct Pair {
    pub(crate) client: Endpoint,
    pub(crate) gateway: Endpoint,
    pub(crate) now: Instant,
    pub(crate) wire: VecDeque<Datagram>,
    pub(crate) dead: Vec<IpAddr>,
    /// Packets of the first link leave by the second.
    pub(crate) steered: bool,
    /// The port of the first link, as the gateway sees it.
    pub(crate) port: u16,
    /// What the wire takes to the gateway, in bytes per millisecond, and until when it is busy.
    pub(crate) rate: Option<u32>,
    pub(crate) busy_until: Instant,
    /// Bytes that have left for the gateway, and that have arrived there.
    pub(crate) left: usize,
    pub(crate) arrived: usize,
    pub(crate) client_events: Vec<Event>,
    pub(crate) gateway_events: Vec<(Connection, Event)>,
    pub(crate) sent_on: Vec<IpAddr>,
}

impl Pair {
    pub(crate) fn new(client: Endpoint, gateway: Endpoint) -> Self {
        let now = Instant::now();
        Self {
            client,
            gateway,
            now,
            wire: VecDeque::new(),
            dead: Vec::new(),
            steered: false,
            port: 5000,
            rate: None,
            busy_until: now,
            left: 0,
            arrived: 0,
            client_events: Vec::new(),
            gateway_events: Vec::new(),
            sent_on: Vec::new(),
        }
    }

    pub(crate) fn connected() -> (Self, Connection, Connection) {
        let mut pair = Self::new(client(1, key(2).public()), gateway(2));
        let at_client = pair.client.connect(GATEWAY, pair.now).expect("a client may connect");
        pair.run(Duration::from_millis(200));
        let at_gateway = pair
            .gateway_events
            .iter()
            .find_map(|(connection, event)| {
                matches!(event, Event::Connected { .. }).then_some(*connection)
            })
            .expect("the gateway saw the handshake");
        pair.gateway.grant(at_gateway, 100);
        pair.run(Duration::from_millis(50));
        (pair, at_client, at_gateway)
    }

    pub(crate) fn address(&self, link: IpAddr) -> SocketAddr {
        let IpAddr::V6(v6) = link else { unreachable!("links are known by IPv6 stand-ins") };
        let [.., last] = v6.octets();
        let port = if last == 1 { self.port } else { 5000 };
        SocketAddr::new(IpAddr::from([10, 0, last, 2]), port)
    }

    pub(crate) fn exchange(&mut self) {
        let mut buffer = Vec::new();
        while let Some(transmit) = self.client.poll_transmit(self.now, &mut buffer) {
            let own = transmit.source.unwrap_or_else(|| link(1));
            let link = if self.steered && own == link(1) { link(2) } else { own };
            self.sent_on.push(link);
            self.put(true, link, &buffer, transmit.segment);
            buffer.clear();
        }
        while let Some(transmit) = self.gateway.poll_transmit(self.now, &mut buffer) {
            let IpAddr::V4(to) = transmit.destination.ip() else { unreachable!("IPv4 only") };
            let to = link(to.octets()[2].into());
            // A translator drops what comes to a mapping it has forgotten.
            if transmit.destination == self.address(to) {
                self.put(false, to, &buffer, transmit.segment);
            }
            buffer.clear();
        }
    }

    pub(crate) fn put(
        &mut self,
        to_gateway: bool,
        link: IpAddr,
        bytes: &[u8],
        segment: Option<usize>,
    ) {
        if self.dead.contains(&link) {
            return;
        }
        for datagram in bytes.chunks(segment.unwrap_or(bytes.len()).max(1)) {
            let mut due = self.now + ONE_WAY;
            if let Some(rate) = self.rate.filter(|_| to_gateway) {
                let took =
                    Duration::from_millis(1).mul_f64(datagram.len() as f64 / f64::from(rate));
                self.busy_until = self.busy_until.max(self.now) + took;
                self.left += datagram.len();
                due = self.busy_until + ONE_WAY;
            }
            self.wire.push_back(Datagram { due, to_gateway, link, bytes: datagram.into() });
        }
    }

    pub(crate) fn deliver(&mut self) {
        while let Some(at) = self.wire.iter().position(|datagram| datagram.due <= self.now) {
            let Some(datagram) = self.wire.remove(at) else { break };
            if self.dead.contains(&datagram.link) {
                continue;
            }
            if datagram.to_gateway {
                let from = self.address(datagram.link);
                self.arrived += datagram.bytes.len();
                self.gateway.handle_datagram(from, None, None, datagram.bytes, self.now);
            } else {
                let from = GATEWAY;
                let local = Some(datagram.link);
                self.client.handle_datagram(from, local, None, datagram.bytes, self.now);
            }
        }
    }

    /// Lets `span` pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.client.handle_timeout(self.now);
            self.gateway.handle_timeout(self.now);
            self.deliver();
            self.client.advance();
            self.gateway.advance();
            self.exchange();
            self.client_events.extend(std::iter::from_fn(|| self.client.poll_event()).map(|e| e.1));
            self.gateway_events.extend(std::iter::from_fn(|| self.gateway.poll_event()));
            self.now += Duration::from_millis(1);
        }
    }

    pub(crate) fn lost(&self) -> Option<&Lost> {
        self.client_events
            .iter()
            .find_map(|event| if let Event::Lost(reason) = event { Some(reason) } else { None })
    }

    pub(crate) fn open_second_path(&mut self, connection: Connection) -> Path {
        let path = self
            .client
            .open_path(connection, GATEWAY, link(2), self.now)
            .expect("the gateway grants paths");
        self.run(Duration::from_millis(200));
        let opened = |event: &Event| matches!(event, Event::PathOpened(opened) if *opened == path);
        assert!(self.client_events.iter().any(opened), "the path was validated");
        path
    }
}

pub(crate) fn read_all(endpoint: &mut Endpoint, connection: Connection, stream: Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Read::Data(chunk) = endpoint.read(connection, stream, usize::MAX) {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}
