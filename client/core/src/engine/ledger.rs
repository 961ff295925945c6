//! What has been said on the wire, as far as smoltcp keeps it to itself.
//!
//! Three facts are needed outside: where the receive ring ends (smoltcp's own
//! idea of its window can be beyond that), whether out-of-order bytes wait
//! behind an empty receive queue (the pages of the ring must not be released
//! then), and the numbers of segments that the socket will not send itself.

use crate::packet::{IPV4_HEADER, IPV6_HEADER, Numbers, Segment, be16, be32};

const SYN: u8 = 0x02;
const FIN: u8 = 0x01;
const RST: u8 = 0x04;

/// smoltcp's MSS for a peer that states none (RFC 9293 §3.7.1, MUST-15).
const DEFAULT_MSS: u16 = 536;
/// smoltcp's lower bound, the same as Linux' `TCP_MIN_SND_MSS`.
const MINIMUM_MSS: u16 = 48;
/// What fits an IPv4 packet of 65535 bytes; an IPv6 one holds 20 bytes less.
const MAXIMUM_MSS: u16 = 65495;

/// The largest ring of an [`EngineConfig`](super::EngineConfig), in bytes.
const LARGEST_RING: u32 = 1 << 30;

#[derive(Debug, Clone)]
pub(super) struct Ledger {
    v4: bool,
    mss: u16,
    /// Sequence number of the first byte of the receive ring.
    base: u32,
    /// Size of the receive ring, in bytes.
    capacity: u32,
    /// Whether anything was sent.
    started: bool,
    /// The end of the furthest byte that arrived.
    furthest: u32,
    /// The next sequence number of ours, and the last acknowledgment.
    sent: Numbers,
    /// The last window, as it stood in the header.
    window: u16,
}

/// How much of a segment smoltcp may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Take,
    /// Its payload, and its FIN only if all of that was taken.
    TakeApart,
    /// So many bytes of its payload, and no FIN.
    Cut(usize),
}

impl Ledger {
    pub(super) fn new(syn: &Segment<'_>, capacity: usize) -> Self {
        let mss = syn.mss().filter(|mss| *mss != 0).unwrap_or(DEFAULT_MSS);
        let v4 = syn.source().is_ipv4();
        let most = if v4 { MAXIMUM_MSS } else { MAXIMUM_MSS - 20 };
        let base = syn.sequence().wrapping_add(1);
        Self {
            v4,
            mss: mss.clamp(MINIMUM_MSS, most),
            base,
            capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
            started: false,
            furthest: base,
            sent: Numbers { sequence: 0, acknowledgment: Some(base) },
            window: 0,
        }
    }

    pub(super) fn is_ipv4(&self) -> bool {
        self.v4
    }

    pub(super) fn mss(&self) -> u16 {
        self.mss
    }

    /// The numbers of a RST the application accepts.
    pub(super) fn numbers(&self) -> Numbers {
        self.sent
    }

    /// The numbers of our FIN, which was the last thing sent.
    pub(super) fn fin_numbers(&self) -> Numbers {
        Numbers { sequence: self.sent.sequence.wrapping_sub(1), ..self.sent }
    }

    /// The numbers of an ACK from before everything unacknowledged, which is at most one ring.
    pub(super) fn probe_numbers(&self) -> Numbers {
        Numbers { sequence: self.sent.sequence.wrapping_sub(LARGEST_RING + 1), ..self.sent }
    }

    /// The last window, as it stood in the header.
    pub(super) fn window(&self) -> u16 {
        self.window
    }

    /// The application's bytes left the receive ring.
    pub(super) fn read(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).expect("a ring is at most 1 GiB");
        self.base = self.base.wrapping_add(bytes);
    }

    /// Whether nothing waits out of order behind an empty receive queue.
    pub(super) fn is_gapless(&self) -> bool {
        !after(self.furthest, self.base)
    }

    /// smoltcp takes a FIN although it has cut the bytes before it at the edge of its window, and
    /// so would lose them. And that edge can be beyond the ring: the window of the SYN|ACK is not
    /// scaled, but accounted as if it were. Nor does smoltcp mind bytes beyond a FIN, which stands
    /// after `ended` unread bytes.
    pub(super) fn judge(&mut self, segment: &Segment<'_>, ended: Option<usize>) -> Verdict {
        let payload = segment.payload_len();
        if payload == 0 {
            return Verdict::Take;
        }
        let start = segment.sequence();
        let end = start.wrapping_add(u32::try_from(payload).expect("below 64 KiB"));
        let room = ended.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(self.capacity);
        let limit = self.base.wrapping_add(room);
        if !after(limit, start) {
            return Verdict::Cut(0);
        }
        let taken = if after(end, limit) { limit } else { end };
        if after(taken, self.furthest) {
            self.furthest = taken;
        }
        if after(end, limit) {
            return Verdict::Cut(usize::try_from(limit.wrapping_sub(start)).expect("a length"));
        }
        if segment.finishes() { Verdict::TakeApart } else { Verdict::Take }
    }

    /// Whether `queued` unread bytes are all that comes before the end of `segment`.
    pub(super) fn is_whole(&self, segment: &Segment<'_>, queued: usize) -> bool {
        let payload = u32::try_from(segment.payload_len()).expect("below 64 KiB");
        let queued = u32::try_from(queued).expect("a ring is at most 1 GiB");
        segment.sequence().wrapping_add(payload) == self.base.wrapping_add(queued)
    }

    /// Takes note of a packet smoltcp has written. A RST offers no window, and one that answers a
    /// wrong acknowledgment has no number of ours.
    pub(super) fn sent(&mut self, packet: &[u8]) {
        let tcp = &packet[if self.v4 { IPV4_HEADER } else { IPV6_HEADER }..];
        let header = usize::from(tcp[12] >> 4) * 4;
        let flags = tcp[13];
        if flags & RST != 0 {
            return;
        }
        let controls = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let payload = u32::try_from(tcp.len() - header).expect("below 64 KiB");
        let next = be32(tcp, 4).wrapping_add(payload).wrapping_add(controls);
        if !std::mem::replace(&mut self.started, true) || after(next, self.sent.sequence) {
            self.sent.sequence = next;
        }
        self.sent.acknowledgment = Some(be32(tcp, 8));
        self.window = be16(tcp, 14);
    }
}

/// Whether `a` comes after `b` in sequence space (RFC 9293 §3.4).
fn after(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}
