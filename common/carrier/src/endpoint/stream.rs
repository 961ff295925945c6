//! The streams of a connection: opened, accepted, read, written, ended and abandoned.

use bytes::Bytes;
use noq_proto::{Dir, FinishError, ReadError, Side, StreamId, WriteError};

use super::{Connection, Endpoint, varint};

/// Names a bidirectional stream of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream(u64);

impl Stream {
    /// The client's first stream, which carries control frames.
    pub const CONTROL: Self = Self(0);

    /// The number of the stream among those its initiator opened.
    pub fn index(self) -> u64 {
        self.0
    }

    fn id(self) -> StreamId {
        StreamId::new(Side::Client, Dir::Bi, self.0)
    }

    pub(super) fn from_id(id: StreamId) -> Self {
        Self(id.index())
    }
}

/// Which streams go first when there is more to send than a path takes. The engine serves those of
/// one urgency in turn, and a less urgent one only when no other has anything to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Whatever has much to send.
    Bulk,
    /// Somebody waits for little: keystrokes, requests, short answers.
    Sparse,
    /// Everything else waits for it: credit, and what a session agrees on.
    Control,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes, in order.
    Data(Bytes),
    /// Nothing yet.
    Blocked,
    /// The end of the stream. The stream's receiving half is gone.
    End,
    /// The peer reset the stream with this code, or it is gone.
    Reset(u64),
}

/// Why a write or finish was not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer stopped reading with this code.
    Stopped(u64),
    /// The stream is gone.
    Gone,
}

impl Endpoint {
    /// Opens a stream; `None` when the peer's limit is reached.
    pub fn open(&mut self, connection: Connection) -> Option<Stream> {
        self.slot(connection)?.connection.streams().open(Dir::Bi).map(Stream::from_id)
    }

    /// The next stream the peer opened.
    pub fn accept(&mut self, connection: Connection) -> Option<Stream> {
        self.slot(connection)?.connection.streams().accept(Dir::Bi).map(Stream::from_id)
    }

    /// Reads at most `max` bytes.
    pub fn read(&mut self, connection: Connection, stream: Stream, max: usize) -> Read {
        let Some(slot) = self.slot(connection) else { return Read::Reset(0) };
        let mut stream = slot.connection.recv_stream(stream.id());
        let Ok(mut chunks) = stream.read(true) else { return Read::Reset(0) };
        let read = match chunks.next(max) {
            Ok(Some(chunk)) => Read::Data(chunk.bytes),
            Ok(None) => Read::End,
            Err(ReadError::Blocked) => Read::Blocked,
            Err(ReadError::Reset(code)) => Read::Reset(code.into_inner()),
        };
        let _transmitted_anyway = chunks.finalize();
        read
    }

    /// Writes as much of `chunk` as the stream takes; zero means that it is blocked and
    /// [`Event::Writable`] will follow.
    ///
    /// # Errors
    /// [`StreamEnd`] when the stream takes nothing any more.
    ///
    /// [`Event::Writable`]: super::Event::Writable
    pub fn write(
        &mut self,
        connection: Connection,
        stream: Stream,
        chunk: Bytes,
    ) -> Result<usize, StreamEnd> {
        let slot = self.slot(connection).ok_or(StreamEnd::Gone)?;
        match slot.connection.send_stream(stream.id()).write_chunks(&mut &mut [chunk][..]) {
            Ok(count) => Ok(count),
            Err(WriteError::Blocked) => Ok(0),
            Err(WriteError::Stopped(code)) => Err(StreamEnd::Stopped(code.into_inner())),
            Err(WriteError::ClosedStream) => Err(StreamEnd::Gone),
        }
    }

    /// Sends what is written on a stream from now on with this urgency. Streams begin as
    /// [`Urgency::Bulk`].
    pub fn rank(&mut self, connection: Connection, stream: Stream, urgency: Urgency) {
        if let Some(slot) = self.slot(connection) {
            // A stream that is gone has nothing to send.
            let _ = slot.connection.send_stream(stream.id()).set_priority(urgency as i32);
        }
    }

    /// Ends the sending half of a stream after what was written.
    ///
    /// # Errors
    /// [`StreamEnd`] when the stream takes nothing any more.
    pub fn finish(&mut self, connection: Connection, stream: Stream) -> Result<(), StreamEnd> {
        let slot = self.slot(connection).ok_or(StreamEnd::Gone)?;
        match slot.connection.send_stream(stream.id()).finish() {
            Ok(()) => Ok(()),
            Err(FinishError::Stopped(code)) => Err(StreamEnd::Stopped(code.into_inner())),
            Err(FinishError::ClosedStream) => Err(StreamEnd::Gone),
        }
    }

    /// Abandons both halves of a stream.
    pub fn abort(&mut self, connection: Connection, stream: Stream, code: u64) {
        if let Some(slot) = self.slot(connection) {
            // Either half may be gone already, which is what was asked for.
            let _ = slot.connection.send_stream(stream.id()).reset(varint(code));
            let _ = slot.connection.recv_stream(stream.id()).stop(varint(code));
        }
    }

    /// Wants nothing more from the peer's half of a stream; what was said on ours still goes out.
    pub fn stop(&mut self, connection: Connection, stream: Stream, code: u64) {
        if let Some(slot) = self.slot(connection) {
            // It may have ended already, which is what was asked for.
            let _ = slot.connection.recv_stream(stream.id()).stop(varint(code));
        }
    }
}
