//! What the engine is given: limits, buffers and a way out.

use std::num::NonZeroU16;

use smoltcp::socket::tcp::SocketBuffer;

use super::DeviceId;

/// Limits of an [`Engine`](super::Engine).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Held SYNs at most; further ones are dropped, so that the kernel repeats
    /// them after a second.
    pub pending_limit: usize,
    /// Flows at most, held ones included.
    pub flow_limit: usize,
    /// Bytes of buffer each way, 1 to 2^30. It is the largest receive window.
    pub buffer: usize,
}

impl Default for EngineConfig {
    /// 1,024 held SYNs (half of what a 2,000/s burst of connections holds
    /// during one second), 65,536 flows (one source address has no more
    /// ports), 1 MiB each way (10 Gbit/s at the 0.8 ms a batch may take).
    fn default() -> Self {
        Self { pending_limit: 1024, flow_limit: 65_536, buffer: 1 << 20 }
    }
}

/// Where the two ring buffers of a flow come from.
pub trait Buffers {
    /// Two rings of `bytes` each, first the one for receiving, and the number
    /// of the lease. None when there are none left: the flow is reset.
    fn lease(
        &mut self,
        bytes: usize,
    ) -> Option<(u32, SocketBuffer<'static>, SocketBuffer<'static>)>;

    /// The rings of this lease have been dropped.
    fn give_back(&mut self, lease: u32);

    /// Nothing is stored in the rings of this lease at this moment: their pages
    /// may be released, their content may change.
    fn trim(&mut self, lease: u32) {
        let _ = lease;
    }
}

/// The way out to the applications.
pub trait PacketSink {
    /// Sends one IP packet of `len` bytes, which `fill` writes into exactly
    /// that many bytes. With `segment` it is a TCP super-segment, to be cut
    /// into segments with that much payload.
    ///
    /// The checksums of TCP packets are not filled in, those of ICMP are:
    /// [`offload::prepare`](crate::offload::prepare) does what a TUN expects.
    fn send(
        &mut self,
        device: DeviceId,
        len: usize,
        segment: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    );
}
