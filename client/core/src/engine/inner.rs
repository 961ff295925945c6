//! Two queues in place of an application's TCP.

use bytes::BytesMut;

use super::Read;

/// Bytes that may wait to be fetched.
const ROOM: usize = 128 * 1024;

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) accepted: bool,
    pub(super) sent: BytesMut,
    pub(super) sent_all: bool,
    pub(super) received: BytesMut,
    pub(super) received_all: bool,
}

impl Inner {
    pub(super) fn readable(&self) -> usize {
        if self.accepted { self.sent.len() } else { 0 }
    }

    pub(super) fn read(&mut self, max: usize, into: &mut BytesMut) -> Read {
        let bytes = self.readable().min(max);
        into.extend_from_slice(&self.sent.split_to(bytes));
        Read { bytes, fin: self.accepted && self.sent_all && self.sent.is_empty() }
    }

    pub(super) fn writable(&self) -> usize {
        if self.accepted { ROOM.saturating_sub(self.received.len()) } else { 0 }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let room = self.writable().min(bytes.len());
        self.received.extend_from_slice(&bytes[..room]);
        room
    }
}
