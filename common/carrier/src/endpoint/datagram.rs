//! What need not arrive: datagrams inside a connection (RFC 9221).

use std::time::{Duration, Instant};

use bytes::Bytes;
use noq_proto::SendDatagramError;

use super::{Connection, Endpoint, Slot};
use crate::transport::DATAGRAMS_OUT;

/// The engine sends its datagrams in their order. One that was given to it for a path with large
/// packets and does not fit the next path holds up all others, which push it out after so long.
const STUCK: Duration = Duration::from_millis(500);

/// Why a datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSent {
    /// It does not fit a packet of every path.
    TooLarge,
    /// The peer takes none, or the connection is gone.
    Unsupported,
}

impl Endpoint {
    /// Bytes a datagram may have at the moment: it must fit a packet of every path. Zero when the
    /// peer takes none.
    pub fn datagram_room(&mut self, connection: Connection) -> usize {
        let Some(slot) = self.slot(connection) else { return 0 };
        slot.connection.datagrams().max_size().unwrap_or(0)
    }

    /// The same for a path that carries the largest packets we try.
    pub fn best_datagram_room(&mut self, connection: Connection) -> usize {
        let limit = usize::from(self.mtu_limit);
        let Some(slot) = self.slot(connection) else { return 0 };
        let Some(room) = slot.connection.datagrams().max_size() else { return 0 };
        let overhead = usize::from(slot.connection.current_mtu()).saturating_sub(room);
        limit.saturating_sub(overhead).max(room)
    }

    /// Sends a datagram as soon as there is room, or never: those of a `lane`, which is one sender,
    /// wait for each other, and lanes are served in turn.
    ///
    /// # Errors
    /// [`NotSent`]; nothing waits.
    pub fn send_datagram(
        &mut self,
        connection: Connection,
        lane: u64,
        datagram: Bytes,
        now: Instant,
    ) -> Result<(), NotSent> {
        let slot = self.slot(connection).ok_or(NotSent::Unsupported)?;
        let room = slot.connection.datagrams().max_size().ok_or(NotSent::Unsupported)?;
        if datagram.len() > room {
            return Err(NotSent::TooLarge);
        }
        slot.outbox.push(lane, datagram, now);
        Ok(())
    }

    /// The next datagram that came.
    pub fn receive_datagram(&mut self, connection: Connection) -> Option<Bytes> {
        self.slot(connection)?.connection.datagrams().recv()
    }
}

impl Slot {
    /// Gives the engine as many of the datagrams that wait as it should have.
    pub(super) fn hand_on(&mut self, now: Instant) {
        let stuck = self.stuck_since.is_some_and(|since| now >= since + STUCK);
        let room = if stuck { usize::MAX } else { self.outbox.room() };
        while self.datagrams_handed() < room {
            let Some(datagram) = self.outbox.pop(now) else { break };
            let full = self.connection.datagrams().send_buffer_space() < datagram.len();
            let sent = self.connection.datagrams().send(datagram, stuck);
            match sent {
                Ok(()) => {}
                // A path with smaller packets came since. The next one is told of it in time.
                Err(SendDatagramError::TooLarge) => self.datagrams_outgrown += 1,
                Err(
                    SendDatagramError::Blocked(_)
                    | SendDatagramError::UnsupportedByPeer
                    | SendDatagramError::Disabled,
                ) => break,
            }
            if full {
                // It has pushed out what was in the way.
                self.stuck_since = None;
                break;
            }
        }
    }

    /// Bytes of datagrams that the engine has and has not sent.
    pub(super) fn datagrams_handed(&mut self) -> usize {
        DATAGRAMS_OUT - self.connection.datagrams().send_buffer_space().min(DATAGRAMS_OUT)
    }

    /// The engine was asked for something to send: so much came, and so much of its datagrams left.
    pub(super) fn note_sent(&mut self, left: usize, all: usize, now: Instant) {
        self.outbox.note_sent(left, all);
        if left > 0 || self.datagrams_handed() == 0 {
            self.stuck_since = None;
        } else {
            self.stuck_since.get_or_insert(now);
        }
    }

    /// When datagrams that hold up others are pushed out.
    pub(super) fn stuck_until(&self) -> Option<Instant> {
        self.stuck_since.filter(|_| !self.outbox.is_empty()).map(|since| since + STUCK)
    }

    /// Datagrams that were lost before they were sent.
    pub(super) fn datagrams_dropped(&self) -> u64 {
        self.outbox.dropped() + self.datagrams_outgrown
    }
}
