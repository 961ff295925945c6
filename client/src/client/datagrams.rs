//! UDP of the programs, when it is carried: each datagram is a parcel for the gateway, each parcel
//! of the gateway a packet for the host.
//!
//! Little waits and nothing is repeated but questions to the gateway's resolver: what cannot go now
//! is lost, as on any network.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, warn};
use whimbrel_carrier::{Connection, Parcels, Stream};
use whimbrel_client_core::engine::{DeviceId, PacketSink};
use whimbrel_client_core::packet::{self, Datagram, EchoEnds, Fragments, Unreachable};
use whimbrel_client_core::queries::Queries;
use whimbrel_client_core::udp::{Associations, Protocol, Source};
use whimbrel_common::config::{CaptureMode, Offline};
use whimbrel_common::wire::{self, Association, Parcel, RESOLVER, Undelivered, capability};

use super::Client;
use crate::devices::HOST;
use crate::report::{DatagramReport, DatagramState, EventKind, FlowReport, Transport};

/// Every network carries IPv6 packets of this size (RFC 8200 §5), and programs rely on it: up to
/// there nothing is ever too big.
const CARRIED_ANYWHERE: usize = 1280;

/// A gateway that has lost a port opens it again for those who have sent within this time, which is
/// as long as it keeps one.
const RENEWED: Duration = Duration::from_secs(300);

/// Ports renewed at once at most: as many as a gateway gives to a session.
const MOST_RENEWED: usize = 1024;

/// What both ends must be able to do for ICMP echo.
pub(super) const ECHOES: u64 = capability::PARCELS | capability::ECHOES;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Datagrams {
    pub(super) wanted: bool,
    /// Some gateway was attached since the start; whether it could carry them.
    supported: Option<bool>,
    /// The same for ICMP echo.
    pub(super) echoes_supported: Option<bool>,
    /// Whether the gateway attached last answers queries.
    resolver: bool,
    pub(super) associations: Associations,
    queries: Queries,
    pub(super) fragments: Fragments,
    pub(super) parcels: Parcels,
    /// There may be parcels to read.
    arrived: bool,
    /// Packets for the host.
    pub(super) replies: VecDeque<Reply>,
    pub(super) counts: Counts,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    sent: u64,
    received: u64,
    pub(super) dropped: u64,
    pub(super) malformed: u64,
    pub(super) requests: u64,
    pub(super) replies: u64,
}

#[derive(Debug)]
pub(super) enum Reply {
    Datagram { device: DeviceId, from: SocketAddr, to: SocketAddr, payload: Bytes },
    Echo { device: DeviceId, ends: EchoEnds, hops: u8, payload: Bytes },
    Error { device: DeviceId, packet: Vec<u8> },
}

impl Datagrams {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            wanted: false,
            supported: None,
            echoes_supported: None,
            resolver: false,
            associations: Associations::new(seed),
            queries: Queries::default(),
            fragments: Fragments::default(),
            parcels: Parcels::default(),
            arrived: false,
            replies: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// The connection is gone. What waited on it would come too late on another.
    pub(super) fn detach(&mut self) {
        self.counts.dropped += self.parcels.counts().dropped;
        self.parcels = Parcels::default();
    }

    /// Whether the gateway attached last answers queries.
    pub(super) fn has_resolver(&self) -> bool {
        self.resolver
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.associations.deadline(), self.queries.deadline()].into_iter().flatten().min()
    }

    /// Every endpoint, as a row of the flows.
    pub(super) fn describe(&self, parked: bool, now: Instant) -> impl Iterator<Item = FlowReport> {
        let state = if parked { "held" } else { "open" };
        self.associations.iter().map(move |(association, entry)| FlowReport {
            id: association.0,
            protocol: match entry.source.protocol {
                Protocol::Udp => Transport::Udp,
                Protocol::Echo => Transport::Icmp,
            },
            source: entry.source.address,
            destination: entry.destination,
            state: state.to_owned(),
            tx_bytes: entry.sent_bytes,
            rx_bytes: entry.received_bytes,
            age_s: now.saturating_duration_since(entry.since).as_secs(),
            stalled_ms_longest: 0,
            moves_survived: 0,
            reconnects_survived: 0,
            replayed_bytes: 0,
            held_bytes: 0,
        })
    }

    fn refuse(&mut self, device: DeviceId, datagram: &Datagram<'_>, reason: Unreachable) {
        self.counts.dropped += 1;
        self.replies.push_back(Reply::Error { device, packet: datagram.unreachable(reason) });
    }

    /// The numbers of the `most` endpoints that were used last.
    pub(super) fn latest(&self, most: usize) -> BTreeSet<u64> {
        self.associations.latest().take(most).map(|(association, _)| association.0).collect()
    }
}

/// Which size of packet its sender is told to keep to, when one of `length` bytes makes a parcel
/// that is larger than the carrier's largest packet by `excess` bytes.
pub(super) fn fitting(length: usize, excess: usize) -> Option<u16> {
    let fits = length.saturating_sub(excess).max(CARRIED_ANYWHERE);
    (excess > 0 && length > fits).then(|| u16::try_from(fits).unwrap_or(u16::MAX))
}

impl Client {
    /// Which protocols are carried from now on.
    pub fn carry(&mut self, mode: CaptureMode) {
        self.datagrams.wanted = match mode {
            CaptureMode::Tcp => false,
            CaptureMode::All => true,
        };
    }

    /// Whether UDP of the host should come here: once a gateway was reached that carries it, and
    /// before that if nothing may go around the gateway.
    #[must_use]
    pub fn captures_datagrams(&self) -> bool {
        self.captures(self.datagrams.supported)
    }

    /// What is captured beyond TCP, by whether the gateway is known to carry it.
    pub(super) fn captures(&self, supported: Option<bool>) -> bool {
        self.datagrams.wanted && supported.unwrap_or(self.offline == Offline::Block)
    }

    fn carries_parcels(&self) -> bool {
        self.datagrams.wanted && self.tunnel.can(capability::PARCELS)
    }

    /// What becomes of UDP.
    #[must_use]
    pub fn datagram_report(&self) -> DatagramReport {
        let state = |supported| match (self.datagrams.wanted, supported) {
            (false, _) => DatagramState::Off,
            (true, None) => DatagramState::Waiting,
            (true, Some(true)) => DatagramState::Carried,
            (true, Some(false)) => DatagramState::Unsupported,
        };
        let (counts, parcels) = (self.datagrams.counts, self.datagrams.parcels.counts());
        DatagramReport {
            state: state(self.datagrams.supported),
            open: self.datagrams.associations.len() as u64,
            sent: counts.sent,
            received: counts.received,
            dropped: counts.dropped
                + counts.malformed
                + parcels.dropped
                + parcels.malformed
                + self.tunnel.endpoint.dropped_datagrams(),
            echoes: state(self.datagrams.echoes_supported),
            echo_requests: counts.requests,
            echo_replies: counts.replies,
        }
    }

    /// A program sent a datagram.
    pub(super) fn take_datagram(&mut self, device: DeviceId, packet: &[u8], now: Instant) {
        let whole;
        let parsed = if Fragments::is_fragment(packet) {
            let Some(complete) = self.datagrams.fragments.take(device, packet, now) else { return };
            whole = complete;
            Datagram::parse(&whole).map(Datagram::from_fragments)
        } else {
            Datagram::parse(packet)
        };
        let datagram = match parsed {
            Ok(datagram) => datagram,
            Err(reason) => {
                debug!(%reason, "A datagram that cannot be read");
                self.datagrams.counts.malformed += 1;
                return;
            }
        };
        let query = device == HOST && datagram.destination() == self.nameserver;
        let Some(connection) = self.tunnel.connection() else {
            if self.given_up {
                self.datagrams.refuse(device, &datagram, Unreachable::Host);
            } else if query {
                // It goes with the next connection.
                self.datagrams.encode(device, &datagram, RESOLVER, true, now);
            } else {
                self.datagrams.counts.dropped += 1;
            }
            return;
        };
        let carried = if query { self.has_resolver() } else { self.carries_parcels() };
        if !carried {
            self.datagrams.refuse(device, &datagram, Unreachable::Prohibited);
            return;
        }
        self.send_datagram(device, &datagram, connection, now);
    }

    fn send_datagram(
        &mut self,
        device: DeviceId,
        datagram: &Datagram<'_>,
        connection: Connection,
        now: Instant,
    ) {
        let destination = datagram.destination();
        let query = device == HOST && destination == self.nameserver;
        let remote = if query { RESOLVER } else { destination };
        let (association, parcel) = self.datagrams.encode(device, datagram, remote, query, now);
        let Datagrams { parcels, counts, replies, .. } = &mut self.datagrams;
        let endpoint = &mut self.tunnel.endpoint;
        let excess = parcel.len().saturating_sub(endpoint.best_datagram_room(connection));
        if let Some(fits) = fitting(datagram.packet_length(), excess)
            && datagram.must_stay_whole()
        {
            replies.push_back(Reply::Error { device, packet: datagram.too_big(fits) });
            counts.dropped += 1;
            return;
        }
        counts.sent += 1;
        parcels.send(endpoint, connection, association, parcel, now);
        self.tunnel.activity(now);
    }

    /// The session has a connection.
    pub(super) fn attach_datagrams(&mut self, now: Instant) {
        self.datagrams.detach();
        let supported = self.tunnel.can(capability::PARCELS);
        let before = self.datagrams.supported.replace(supported);
        self.datagrams.echoes_supported = Some(self.tunnel.can(ECHOES));
        self.datagrams.resolver = self.has_resolver();
        if self.datagrams.wanted && !supported && before != Some(false) {
            warn!("The gateway is of an older version and carries no UDP, which goes direct");
            let text = "the gateway carries no UDP, which goes direct: it is of an older version";
            self.journal.tell(EventKind::Refused, text);
        }
        self.open_parcels();
        self.renew_ports(now);
        self.datagrams.queries.moved(now);
    }

    /// What was on its way may be lost. Questions are asked again.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.datagrams.queries.moved(now);
    }

    /// Opens the stream of parcels that are too large for datagrams, as soon as that is possible.
    pub(super) fn open_parcels(&mut self) {
        let usable = self.carries_parcels();
        if let Some(connection) = self.tunnel.connection().filter(|_| usable) {
            self.datagrams.parcels.open(&mut self.tunnel.endpoint, connection);
        }
    }

    /// The gateway may have lost the ports of those who only listen at the moment.
    fn renew_ports(&mut self, now: Instant) {
        let usable = self.tunnel.can(capability::PARCELS);
        let Some(connection) = self.tunnel.connection().filter(|_| usable) else { return };
        let since = now.checked_sub(RENEWED).unwrap_or(now);
        let Datagrams { associations, parcels, .. } = &mut self.datagrams;
        let used = associations.used_since(since).rev();
        let used = used.filter(|(_, entry)| entry.source.protocol == Protocol::Udp);
        for (association, entry) in used.take(MOST_RENEWED) {
            let query = entry.source.device == HOST && entry.destination == self.nameserver;
            let remote = if query { RESOLVER } else { entry.destination };
            let parcel = Parcel::Renew { association, remote };
            let parcel = wire::encode_parcel(&parcel);
            parcels.send(&mut self.tunnel.endpoint, connection, association, parcel, now);
        }
    }

    /// A TUN is gone, and its programs with it.
    pub(super) fn abandon_datagrams(&mut self, device: DeviceId) {
        self.datagrams.associations.remove_device(device);
    }

    /// There may be parcels to read or to send, on a stream if one is named.
    pub(super) fn note_parcels(&mut self, stream: Option<Stream>) {
        self.datagrams.arrived |= stream.is_none() || stream == self.datagrams.parcels.stream();
    }

    /// Hands on what came, either way.
    pub(super) fn advance_datagrams(&mut self, sink: &mut dyn PacketSink, now: Instant) {
        let due = self.datagrams.deadline().is_some_and(|deadline| deadline <= now);
        if due {
            self.datagrams.associations.expire(now);
        }
        if let Some(connection) = self.tunnel.connection()
            && (due || std::mem::take(&mut self.datagrams.arrived))
        {
            let parcels = &mut self.datagrams.parcels;
            parcels.write(&mut self.tunnel.endpoint, connection);
            while let Some((association, parcel)) = self.datagrams.queries.poll(now) {
                debug!("A question without an answer is asked again");
                let parcels = &mut self.datagrams.parcels;
                parcels.send(&mut self.tunnel.endpoint, connection, association, parcel, now);
            }
            self.receive_parcels(connection, now);
        }
        while let Some(reply) = self.datagrams.replies.pop_front() {
            reply.send(sink);
        }
    }

    fn receive_parcels(&mut self, connection: Connection, now: Instant) {
        let mut any = false;
        loop {
            let received = self.datagrams.parcels.receive(&mut self.tunnel.endpoint, connection);
            match received {
                Ok(Some(parcel)) => any |= self.datagrams.deliver(parcel, self.nameserver),
                Ok(None) => break,
                Err(error) => {
                    warn!(%error, "What came on the stream of parcels is none");
                    self.datagrams.detach();
                    break;
                }
            }
        }
        if any {
            self.tunnel.activity(now);
        }
    }
}

impl Datagrams {
    /// A program's datagram as a parcel for `remote`. A question is asked again if need be.
    fn encode(
        &mut self,
        device: DeviceId,
        datagram: &Datagram<'_>,
        remote: SocketAddr,
        query: bool,
        now: Instant,
    ) -> (Association, Bytes) {
        let (payload, destination) = (datagram.payload(), datagram.destination());
        let source = Source { device, protocol: Protocol::Udp, address: datagram.source() };
        let association = self.associations.send(source, destination, payload.len(), now);
        let parcel = wire::encode_datagram(association, remote, payload);
        if query {
            self.queries.ask(association, payload, parcel.clone(), now);
        }
        (association, parcel)
    }

    /// Whether it was for somebody here.
    fn deliver(&mut self, parcel: Parcel, nameserver: SocketAddr) -> bool {
        let from = |remote| if remote == RESOLVER { nameserver } else { remote };
        match parcel {
            Parcel::Datagram { association, remote, payload } => {
                if remote == RESOLVER {
                    self.queries.answered(association, &payload);
                }
                let remote = from(remote);
                let Some(entry) = self.associations.receive(association, payload.len()) else {
                    self.counts.dropped += 1;
                    return false;
                };
                let Source { device, protocol, address: to } = entry.source;
                if protocol != Protocol::Udp || to.is_ipv4() != remote.is_ipv4() {
                    self.counts.malformed += 1;
                    return false;
                }
                self.counts.received += 1;
                self.replies.push_back(Reply::Datagram { device, from: remote, to, payload });
                true
            }
            Parcel::Unreachable { association, remote, reason } => {
                let remote = from(remote);
                let Some(entry) = self.associations.find(association) else { return false };
                let Source { device, protocol, address } = entry.source;
                if protocol != Protocol::Udp || address.is_ipv4() != remote.is_ipv4() {
                    return false;
                }
                let reason = match reason {
                    Undelivered::Network => Unreachable::NetworkUnknown,
                    Undelivered::Host | Undelivered::Expired => Unreachable::Host,
                    Undelivered::Port => Unreachable::Port,
                    Undelivered::Denied => Unreachable::Prohibited,
                };
                let packet = packet::compose_undelivered(address, remote, reason);
                self.replies.push_back(Reply::Error { device, packet });
                true
            }
            Parcel::Echo { echo, hops, payload } => self.deliver_reply(echo, hops, payload),
            Parcel::EchoFailed { echo, by, reason } => self.deliver_failure(echo, by, reason),
            // Only a client says it.
            Parcel::Renew { .. } => false,
        }
    }
}

impl Reply {
    fn send(self, sink: &mut dyn PacketSink) {
        match self {
            Self::Datagram { device, from, to, payload } => {
                let Some(length) = packet::datagram_length(to, payload.len()) else { return };
                sink.send(device, length, None, &mut |packet| {
                    packet::write_datagram(from, to, &payload, packet);
                });
            }
            Self::Echo { device, ends, hops, payload } => {
                let Some(length) = ends.reply_length(payload.len()) else { return };
                sink.send(device, length, None, &mut |packet| {
                    ends.write_reply(hops, &payload, packet);
                });
            }
            Self::Error { device, packet } => {
                sink.send(device, packet.len(), None, &mut |space| space.copy_from_slice(&packet));
            }
        }
    }
}
