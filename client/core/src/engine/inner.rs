//! Two queues in place of an application's TCP.

use bytes::BytesMut;

use super::Read;

/// Bytes that may wait to be fetched.
const ROOM: usize = 128 * 1024;

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) accepted: bool,
    sent: BytesMut,
    /// Our direction has ended, and with it the interest in the other one.
    pub(super) hung_up: bool,
    /// The end of our direction was read.
    end_read: bool,
    pub(super) received: BytesMut,
    pub(super) received_all: bool,
}

impl Inner {
    /// With this to be sent.
    pub(super) fn new(sent: BytesMut) -> Self {
        Self { sent, ..Self::default() }
    }

    pub(super) fn readable(&self) -> usize {
        if self.accepted { self.sent.len() } else { 0 }
    }

    pub(super) fn read(&mut self, max: usize, into: &mut BytesMut) -> Read {
        let bytes = self.readable().min(max);
        into.extend_from_slice(&self.sent.split_to(bytes));
        let fin = self.accepted && self.hung_up && self.sent.is_empty();
        self.end_read |= fin;
        Read { bytes, fin }
    }

    /// Whether both directions have ended and whoever carries it knows.
    pub(super) fn is_over(&self) -> bool {
        self.end_read && self.received_all
    }

    pub(super) fn writable(&self) -> usize {
        if self.accepted { ROOM.saturating_sub(self.received.len()) } else { 0 }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let room = self.writable().min(bytes.len());
        if !self.hung_up {
            self.received.extend_from_slice(&bytes[..room]);
        }
        room
    }
}
