//! What the engine counts.

use crate::packet::Malformed;

/// Totals since the engine was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Packets given to the engine, and their bytes.
    pub packets_in: u64,
    pub bytes_in: u64,
    /// Flows offered by an `Open` event.
    pub opened: u64,
    /// Flows accepted, of those offered.
    pub accepted: u64,
    /// Flows refused by the owner, of those offered.
    pub refused: u64,
    /// Flows the application reset.
    pub reset_by_application: u64,
    /// Flows the owner aborted after accepting them.
    pub aborted: u64,
    /// Flows that ended in order.
    pub closed: u64,
    /// Flows lost because no buffers could be leased.
    pub without_buffers: u64,
    /// Flows whose application never answered the SYN|ACK.
    pub handshakes_expired: u64,
    /// Flows lost to a panic inside the TCP implementation.
    pub panics: u64,
    /// RST sent for segments of no known flow.
    pub strays_reset: u64,
    /// Packets that were dropped, by reason.
    pub dropped: Drops,
}

/// Packets dropped, by reason.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Drops {
    pub truncated: u64,
    pub version: u64,
    pub header_length: u64,
    pub options: u64,
    pub fragment: u64,
    pub extension_header: u64,
    pub protocol: u64,
    pub address: u64,
    pub port: u64,
    pub flags: u64,
    /// RST of no known flow.
    pub stray_reset: u64,
    /// Repeated SYN of a flow that is still held.
    pub duplicate_syn: u64,
    /// Anything but a SYN or a RST for a flow that is still held.
    pub premature: u64,
    /// SYN that found the table of held SYNs full.
    pub pending_full: u64,
    /// SYN that found the flow table full.
    pub flows_full: u64,
    /// Data beyond the buffer it is for.
    pub excess: u64,
    /// Replies (RST, ICMP, ACK) that found their queue full.
    pub replies: u64,
}

impl Drops {
    pub(super) fn count(&mut self, reason: Malformed) {
        let counter = match reason {
            Malformed::Truncated => &mut self.truncated,
            Malformed::Version => &mut self.version,
            Malformed::HeaderLength => &mut self.header_length,
            Malformed::Options => &mut self.options,
            Malformed::Fragment => &mut self.fragment,
            Malformed::ExtensionHeader => &mut self.extension_header,
            Malformed::Protocol => &mut self.protocol,
            Malformed::Address => &mut self.address,
            Malformed::Port => &mut self.port,
            Malformed::Flags => &mut self.flags,
        };
        *counter += 1;
    }

    /// Each reason, as figures name it, and how often it was one.
    pub fn by_reason(&self) -> [(&'static str, u64); 17] {
        let Self {
            truncated,
            version,
            header_length,
            options,
            fragment,
            extension_header,
            protocol,
            address,
            port,
            flags,
            stray_reset,
            duplicate_syn,
            premature,
            pending_full,
            flows_full,
            excess,
            replies,
        } = *self;
        [
            ("truncated", truncated),
            ("version", version),
            ("header-length", header_length),
            ("options", options),
            ("fragment", fragment),
            ("extension-header", extension_header),
            ("protocol", protocol),
            ("address", address),
            ("port", port),
            ("flags", flags),
            ("stray-reset", stray_reset),
            ("duplicate-syn", duplicate_syn),
            ("premature", premature),
            ("pending-full", pending_full),
            ("flows-full", flows_full),
            ("excess", excess),
            ("replies-full", replies),
        ]
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }
}
