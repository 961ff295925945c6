//! What need not arrive: parcels of a connection.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use whimbrel_common::wire::{self, Association, FlowHeader, Parcel, WireError};

use crate::endpoint::{Connection, Endpoint, NotSent, Read, Stream, StreamEnd};

/// Bytes that wait for room on the stream at most: 200 ms at 10 Mbit/s.
const WAITING: usize = 256 * 1024;

/// Read from the stream in one call, in bytes.
const PIECE: usize = 64 * 1024;

/// Parcels on their way and arrived: each in a datagram, or on the parcel stream where it is too
/// large for one.
#[derive(Debug, Default)]
pub struct Parcels {
    stream: Option<Stream>,
    output: BytesMut,
    input: BytesMut,
    counts: ParcelCounts,
}

/// What became of parcels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParcelCounts {
    /// Sent in datagrams, unless they were dropped on the way out
    /// ([`Totals::dropped_datagrams`](crate::Totals::dropped_datagrams)).
    pub sent: u64,
    /// Sent on the stream, because they were too large.
    pub streamed: u64,
    /// Received.
    pub received: u64,
    /// Not sent: there was no room on the stream, or no way at all.
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

    /// Sends an [encoded](wire::encode_parcel) parcel of an association.
    pub fn send(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
        association: Association,
        parcel: Bytes,
        now: Instant,
    ) {
        match endpoint.send_datagram(connection, association.0, parcel.clone(), now) {
            Ok(()) => self.counts.sent += 1,
            Err(NotSent::TooLarge) => self.send_on_stream(endpoint, connection, &parcel),
            Err(NotSent::Unsupported) => self.counts.dropped += 1,
        }
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
