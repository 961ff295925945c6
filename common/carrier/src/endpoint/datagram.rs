//! What need not arrive: datagrams inside a connection (RFC 9221).

use bytes::Bytes;
use noq_proto::SendDatagramError;

use super::{Connection, Endpoint};

/// Why a datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSent {
    /// It does not fit a packet of every path.
    TooLarge,
    /// Others wait already; [`Event::DatagramsUnblocked`](super::Event::DatagramsUnblocked) follows.
    Blocked,
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

    /// Queues a datagram. With `force` it takes the place of the oldest that wait.
    ///
    /// # Errors
    /// [`NotSent`]; nothing was queued.
    pub fn send_datagram(
        &mut self,
        connection: Connection,
        datagram: Bytes,
        force: bool,
    ) -> Result<(), NotSent> {
        let slot = self.slot(connection).ok_or(NotSent::Unsupported)?;
        slot.connection.datagrams().send(datagram, force).map_err(|error| match error {
            SendDatagramError::TooLarge => NotSent::TooLarge,
            SendDatagramError::Blocked(_) => NotSent::Blocked,
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => {
                NotSent::Unsupported
            }
        })
    }

    /// The next datagram that came.
    pub fn receive_datagram(&mut self, connection: Connection) -> Option<Bytes> {
        self.slot(connection)?.connection.datagrams().recv()
    }
}
