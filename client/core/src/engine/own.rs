//! What begins here rather than at an application: flows that are like any other to whoever carries
//! them, packets, and whose a device is.

use std::net::SocketAddr;

use bytes::BytesMut;

use super::inner::Inner;
use super::table::{Entry, Key, Stage};
use super::{DeviceId, Engine, FlowEvent, FlowId, Read, Tenant};

/// No TUN: flows of our own belong to nobody's.
const NOWHERE: DeviceId = DeviceId(u32::MAX);

impl Engine {
    /// Begins a flow that sends `request`. It is offered with [`FlowEvent::Open`] as those of
    /// applications are. `None` where a held SYN would be dropped.
    pub fn originate(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        request: &[u8],
    ) -> Option<FlowId> {
        if self.table.len() >= self.config.flow_limit {
            self.stats.dropped.flows_full += 1;
            return None;
        }
        self.last = FlowId(self.last.0 + 1);
        let (flow, device) = (self.last, NOWHERE);
        let key = Key { device, source: source.into(), destination: destination.into() };
        let inner = Stage::Inner(Inner::new(BytesMut::from(request)));
        self.table.insert(Entry::new(flow, key, inner));
        self.stats.opened += 1;
        self.events.push_back(FlowEvent::Open { flow, device, source, destination });
        Some(flow)
    }

    /// What has arrived on a flow of our own, and whether nothing more will; `None` once it is
    /// gone.
    pub fn received(&self, flow: FlowId) -> Option<(&[u8], bool)> {
        match &self.table.flow(flow)?.stage {
            Stage::Inner(inner) => Some((&inner.received, inner.received_all)),
            Stage::Held(_) | Stage::Open(_) => None,
        }
    }

    /// Ends our direction of a flow of our own. What arrives from now on is of no interest. One that
    /// is not accepted yet is reset.
    pub fn hang_up(&mut self, flow: FlowId) {
        let Some(inner) = self.inner_mut(flow) else { return };
        if !inner.accepted {
            return self.reset_inner(flow);
        }
        inner.hung_up = true;
        inner.received.clear();
        self.events.push_back(FlowEvent::Readable { flow });
    }

    /// Sends a packet to the applications of a device, with the next flush.
    pub fn reply(&mut self, device: DeviceId, packet: Vec<u8>) {
        self.replies.push(device, packet);
    }

    /// A device is this user's from now on: its flows count against the user's share of both
    /// limits, a quarter, and all users' together are three quarters at most.
    pub fn assign(&mut self, device: DeviceId, tenant: Tenant) {
        self.shares.assign(device, tenant);
    }

    /// A device is nobody's any more.
    pub fn release(&mut self, device: DeviceId) {
        self.shares.release(device);
    }

    pub(super) fn inner(&self, flow: FlowId) -> Option<&Inner> {
        match &self.table.flow(flow)?.stage {
            Stage::Inner(inner) => Some(inner),
            Stage::Held(_) | Stage::Open(_) => None,
        }
    }

    pub(super) fn inner_mut(&mut self, flow: FlowId) -> Option<&mut Inner> {
        match &mut self.table.flow_mut(flow)?.stage {
            Stage::Inner(inner) => Some(inner),
            Stage::Held(_) | Stage::Open(_) => None,
        }
    }

    pub(super) fn accept_inner(&mut self, flow: FlowId) {
        if let Some(inner) = self.inner_mut(flow) {
            inner.accepted = true;
            self.stats.accepted += 1;
            self.events.push_back(FlowEvent::Readable { flow });
        }
    }

    pub(super) fn read_inner(&mut self, flow: FlowId, max: usize, into: &mut BytesMut) -> Read {
        let Some(inner) = self.inner_mut(flow) else { return Read { bytes: 0, fin: false } };
        let read = inner.read(max, into);
        if inner.is_over() {
            self.end_inner(flow);
        }
        read
    }

    pub(super) fn finish_inner(&mut self, flow: FlowId) {
        let Some(inner) = self.inner_mut(flow) else { return };
        inner.received_all = true;
        if inner.is_over() {
            self.end_inner(flow);
        }
    }

    /// Ends a flow of our own at once. Does nothing for any other.
    pub(super) fn end_inner(&mut self, flow: FlowId) {
        self.drop_inner(flow, |flow| FlowEvent::Closed { flow });
    }

    /// Breaks a flow of our own off. Does nothing for any other.
    pub(super) fn reset_inner(&mut self, flow: FlowId) {
        self.drop_inner(flow, |flow| FlowEvent::Reset { flow });
    }

    fn drop_inner(&mut self, flow: FlowId, event: fn(FlowId) -> FlowEvent) {
        if let Some(slot) = self.inner(flow).and_then(|_| self.table.slot(flow)) {
            self.remove(slot, event);
        }
    }
}
