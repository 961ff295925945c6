//! What need not arrive: parcels of a connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use whimbrel_common::wire::{self, FlowHeader, Parcel, WireError};

use crate::endpoint::{Connection, Endpoint, NotSent, Read, Stream, StreamEnd};

/// Bytes that wait for room at most, in datagrams and on the stream each: 200 ms at 10 Mbit/s.
const WAITING: usize = 256 * 1024;

/// What has waited so long is dropped: by then whoever asked asks again.
const LIFETIME: Duration = Duration::from_secs(1);

/// Without any room for so long, something does not fit the path that carries.
const STUCK: Duration = Duration::from_millis(500);

/// Read from the stream in one call, in bytes.
const PIECE: usize = 64 * 1024;

/// Parcels on their way and arrived: each in a datagram, or on the parcel stream where it is too
/// large for one.
///
/// What waits for room is bounded and ages: a datagram that comes too late is worse than none. The
/// engine sends its datagrams in their order; one that was queued for a path with large packets and
/// does not fit the next path would hold up all others, so after half a second without any room
/// they push it out.
#[derive(Debug, Default)]
pub struct Parcels {
    waiting: VecDeque<(Instant, Bytes)>,
    waiting_bytes: usize,
    blocked_since: Option<Instant>,
    stream: Option<Stream>,
    output: BytesMut,
    input: BytesMut,
    counts: ParcelCounts,
}

/// What became of parcels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParcelCounts {
    /// Sent in datagrams.
    pub sent: u64,
    /// Sent on the stream, because they were too large.
    pub streamed: u64,
    /// Received.
    pub received: u64,
    /// Not sent: there was no room for too long, or no way at all.
    pub dropped: u64,
    /// Received, and no parcels.
    pub malformed: u64,
}

impl Parcels {
    /// Opens the parcel stream. Only for a client.
    pub fn open(&mut self, endpoint: &mut Endpoint, connection: Connection) {
        if self.stream.is_none()
            && let Some(stream) = endpoint.open(connection)
        {
            self.stream = Some(stream);
            wire::encode_header(&FlowHeader::Parcels, &mut self.output);
            self.write(endpoint, connection);
        }
    }

    /// Takes over the parcel stream the client opened, with what came behind its header. The one
    /// before, if any.
    pub fn adopt(&mut self, stream: Stream, rest: BytesMut) -> Option<Stream> {
        self.input = rest;
        self.output.clear();
        self.stream.replace(stream)
    }

    /// The parcel stream.
    pub fn stream(&self) -> Option<Stream> {
        self.stream
    }

    /// What became of parcels.
    pub fn counts(&self) -> ParcelCounts {
        self.counts
    }

    /// Sends an [encoded](wire::encode_parcel) parcel, or lets it wait.
    pub fn send(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
        parcel: Bytes,
        now: Instant,
    ) {
        if parcel.len() > endpoint.datagram_room(connection) {
            self.send_on_stream(endpoint, connection, &parcel);
            return;
        }
        self.waiting_bytes += parcel.len();
        self.waiting.push_back((now, parcel));
        while self.waiting_bytes > WAITING {
            self.drop_first();
        }
        self.flush(endpoint, connection, now);
    }

    fn send_on_stream(&mut self, endpoint: &mut Endpoint, connection: Connection, parcel: &Bytes) {
        if self.stream.is_none() || self.output.len() + parcel.len() > WAITING {
            self.counts.dropped += 1;
            return;
        }
        wire::put_parcel(parcel, &mut self.output);
        self.counts.streamed += 1;
        self.write(endpoint, connection);
    }

    fn drop_first(&mut self) {
        if let Some((_, parcel)) = self.waiting.pop_front() {
            self.waiting_bytes -= parcel.len();
            self.counts.dropped += 1;
        }
    }

    /// Hands on what waits: there may be room.
    pub fn flush(&mut self, endpoint: &mut Endpoint, connection: Connection, now: Instant) {
        while let Some((since, parcel)) = self.waiting.front() {
            if now.saturating_duration_since(*since) > LIFETIME {
                self.drop_first();
                continue;
            }
            let stuck = self.blocked_since.is_some_and(|since| now >= since + STUCK);
            let parcel = parcel.clone();
            match endpoint.send_datagram(connection, parcel.clone(), stuck) {
                Ok(()) => {
                    self.blocked_since = None;
                    self.waiting_bytes -= parcel.len();
                    self.waiting.pop_front();
                    self.counts.sent += 1;
                }
                Err(NotSent::Blocked) => {
                    self.blocked_since.get_or_insert(now);
                    return;
                }
                Err(NotSent::TooLarge) => {
                    // A path with smaller packets came since.
                    self.waiting_bytes -= parcel.len();
                    self.waiting.pop_front();
                    self.send_on_stream(endpoint, connection, &parcel);
                }
                Err(NotSent::Unsupported) => self.drop_first(),
            }
        }
    }

    /// When [`flush`](Self::flush) wants to be called although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.blocked_since.filter(|_| !self.waiting.is_empty()).map(|since| since + STUCK)
    }

    /// The stream may have room.
    pub fn write(&mut self, endpoint: &mut Endpoint, connection: Connection) {
        let Some(stream) = self.stream else { return };
        while !self.output.is_empty() {
            match endpoint.write(connection, stream, self.output.clone().freeze()) {
                Ok(0) => return,
                Ok(count) => {
                    let _written = self.output.split_to(count);
                }
                Err(StreamEnd::Stopped(_) | StreamEnd::Gone) => {
                    self.output.clear();
                    self.stream = None;
                }
            }
        }
    }

    /// The next parcel that came, in a datagram or on the stream.
    ///
    /// # Errors
    /// What came on the stream is no parcel: nothing behind it can be read.
    pub fn receive(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
    ) -> Result<Option<Parcel>, WireError> {
        while let Some(bytes) = endpoint.receive_datagram(connection) {
            if let Some(parcel) = self.read(bytes) {
                return Ok(Some(parcel));
            }
        }
        loop {
            while let Some(bytes) = wire::take_parcel(&mut self.input)? {
                if let Some(parcel) = self.read(bytes) {
                    return Ok(Some(parcel));
                }
            }
            let Some(stream) = self.stream else { return Ok(None) };
            match endpoint.read(connection, stream, PIECE) {
                Read::Data(bytes) => self.input.extend_from_slice(&bytes),
                Read::Blocked => return Ok(None),
                Read::End | Read::Reset(_) => {
                    self.stream = None;
                    self.output.clear();
                    return Ok(None);
                }
            }
        }
    }

    fn read(&mut self, bytes: Bytes) -> Option<Parcel> {
        match wire::decode_parcel(bytes) {
            Ok(parcel) => {
                self.counts.received += u64::from(parcel.is_some());
                parcel
            }
            Err(_) => {
                self.counts.malformed += 1;
                None
            }
        }
    }
}
