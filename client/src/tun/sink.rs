//! Packets on their way from the TCP engine to the host.

use std::num::NonZeroU16;

use tracing::debug;
use whimbrel_client_core::engine::{DeviceId, PacketSink};
use whimbrel_client_core::offload;

use super::{Tun, VNET_HEADER};

/// The largest packet a TUN takes or gives.
pub(crate) const LARGEST_PACKET: usize = 65_536;

/// Packets on their way to the host.
pub(crate) struct TunSink {
    pub(crate) tun: Tun,
    buffer: Vec<u8>,
    failures: u64,
}

impl TunSink {
    pub(crate) fn new(tun: Tun) -> Self {
        Self { tun, buffer: vec![0; VNET_HEADER + LARGEST_PACKET], failures: 0 }
    }
}

impl PacketSink for TunSink {
    fn send(
        &mut self,
        _device: DeviceId,
        len: usize,
        segment: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) {
        let Some((header, packet)) = self.buffer.split_first_chunk_mut::<VNET_HEADER>() else {
            return;
        };
        let Some(packet) = packet.get_mut(..len) else { return };
        fill(packet);
        offload::prepare(header, packet, segment);
        if let Err(error) = self.tun.write(&self.buffer[..VNET_HEADER + len]) {
            // The application's TCP repeats what is missing.
            self.failures += 1;
            debug!(%error, failures = self.failures, "TUN write failed");
        }
    }
}
