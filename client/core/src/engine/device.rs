//! The device smoltcp sees: one packet in, packets out to a [`PacketSink`].

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::ledger::Ledger;
use super::{DeviceId, PacketSink};
use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP_HEADER};

/// The largest packet either IP version can describe. With it smoltcp builds
/// super-segments for IPv6 too: it refuses to exceed its MTU there, whatever
/// the segmentation capability says.
const MTU: usize = 65535;

/// One flow's view of the wire during one call into smoltcp.
pub(super) struct Port<'a> {
    pub(super) inbound: Option<&'a [u8]>,
    pub(super) device: DeviceId,
    pub(super) ledger: &'a mut Ledger,
    pub(super) sink: &'a mut dyn PacketSink,
}

impl Device for Port<'_> {
    type RxToken<'b>
        = Inbound<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outbound<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        let packet = self.inbound.take()?;
        let outbound =
            Outbound { device: self.device, ledger: &mut *self.ledger, sink: &mut *self.sink };
        Some((Inbound(packet), outbound))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outbound<'_>> {
        Some(Outbound { device: self.device, ledger: &mut *self.ledger, sink: &mut *self.sink })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

fn capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = MTU;
    capabilities.checksum = ChecksumCapabilities::ignored();
    capabilities.segmentation.tcpv4 = NonZeroUsize::new(MTU);
    capabilities.segmentation.tcpv6 = NonZeroUsize::new(MTU);
    capabilities
}

/// A device that only says what it can do, to make an interface with.
pub(super) struct Blueprint;

impl Device for Blueprint {
    type RxToken<'b> = Inbound<'b>;
    type TxToken<'b> = Outbound<'b>;

    fn receive(&mut self, _: Instant) -> Option<(Inbound<'_>, Outbound<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Outbound<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

pub(super) struct Inbound<'a>(&'a [u8]);

impl RxToken for Inbound<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

pub(super) struct Outbound<'a> {
    device: DeviceId,
    ledger: &'a mut Ledger,
    sink: &'a mut dyn PacketSink,
}

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let ledger = self.ledger;
        let segment = segment_size(len, ledger);
        let mut write = Some(write);
        let mut result = None;
        let mut fill = |packet: &mut [u8]| {
            if let Some(write) = write.take() {
                result = Some(write(packet));
                ledger.sent(packet);
            }
        };
        self.sink.send(self.device, len, segment, &mut fill);
        // A sink that lost the packet is a lossy wire: smoltcp retransmits.
        if let Some(write) = write {
            let mut lost = vec![0; len];
            result = Some(write(&mut lost));
            ledger.sent(&lost);
        }
        result.expect("written by the sink or by the lines above")
    }
}

/// The payload of each segment when the packet is a super-segment. smoltcp
/// states it for IPv4 only, so it is derived for both from the MSS of the
/// application's SYN. Packets with data carry no TCP options, and packets with
/// options are far smaller than any MSS.
fn segment_size(len: usize, ledger: &Ledger) -> Option<NonZeroU16> {
    let ip_header = if ledger.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    let payload = len.saturating_sub(ip_header + TCP_HEADER);
    NonZeroU16::new(ledger.mss()).filter(|mss| payload > usize::from(mss.get()))
}

/// Packets that are ready before a sink is at hand: RST, ICMP, and the ACKs
/// smoltcp answers at once.
#[derive(Debug, Default)]
pub(super) struct Replies {
    packets: VecDeque<(DeviceId, Vec<u8>)>,
    /// Replies that found the queue full.
    pub(super) dropped: u64,
}

/// Replies kept between two flushes. A flush follows every batch of at most a
/// few hundred packets, and a packet causes at most one reply.
const REPLY_LIMIT: usize = 4096;

impl Replies {
    pub(super) fn push(&mut self, device: DeviceId, packet: Vec<u8>) {
        if self.packets.len() < REPLY_LIMIT {
            self.packets.push_back((device, packet));
        } else {
            self.dropped += 1;
        }
    }

    pub(super) fn drain_to(&mut self, sink: &mut dyn PacketSink) {
        for (device, packet) in self.packets.drain(..) {
            sink.send(device, packet.len(), None, &mut |buffer| buffer.copy_from_slice(&packet));
        }
    }
}

impl PacketSink for Replies {
    fn send(
        &mut self,
        device: DeviceId,
        len: usize,
        _: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) {
        let mut packet = vec![0; len];
        fill(&mut packet);
        self.push(device, packet);
    }
}
