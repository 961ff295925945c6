//! DNS as programs send it, for whom UDP leads nowhere: a query that came as a datagram goes on as
//! a message over TCP (RFC 1035 §4.2, RFC 7766), and what comes back becomes a datagram again.
//!
//! Messages are passed on as they are. Only their length is of interest here, and where the
//! question ends, for an answer that is too large for a datagram.

use std::net::{IpAddr, SocketAddr};

use crate::packet::{Datagram, be16, compose_datagram};

/// The port of DNS, over UDP and TCP alike.
pub const PORT: u16 = 53;

/// Bytes of the header of a message.
const HEADER: usize = 12;

/// Bytes of a datagram that everybody takes (RFC 1035 §4.2.1).
const SMALLEST: usize = 512;

/// Bytes of an answer that is sent in one datagram at most, whatever is asked for: the UDP payload
/// of an IPv4 packet of 64 KiB less some.
const LARGEST: usize = 65_000;

/// A query that came as a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Who asks.
    pub source: SocketAddr,
    /// Who is asked.
    pub server: SocketAddr,
    /// The message.
    message: Vec<u8>,
}

impl Query {
    /// The query in an IP packet, if it is one.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let datagram = Datagram::parse(packet).ok()?;
        let (source, server, message) =
            (datagram.source(), datagram.destination(), datagram.payload());
        // A response bit, or less than a question, is no query.
        let asks = server.port() == PORT && message.len() > HEADER && message[2] & 0x80 == 0;
        asks.then(|| Self { source, server, message: message.to_vec() })
    }

    /// The query as it is written to a stream: after its length.
    #[must_use]
    pub fn framed(&self) -> Vec<u8> {
        let length = u16::try_from(self.message.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes(), self.message.as_slice()].concat()
    }

    /// The packet that answers with what a stream has brought so far; `None` while that is less
    /// than a whole message, or an answer to something else.
    #[must_use]
    pub fn answer(&self, stream: &[u8]) -> Option<Vec<u8>> {
        let length = usize::from(be16(stream.get(..2)?, 0));
        let message = stream.get(2..2 + length)?;
        if message.len() < HEADER || message[..2] != self.message[..2] {
            return None;
        }
        if message.len() <= self.room() {
            return Some(compose_datagram(self.server, self.source, message));
        }
        Some(compose_datagram(self.server, self.source, &self.truncated(message)))
    }

    /// The packet that says that the server failed.
    #[must_use]
    pub fn failure(&self) -> Vec<u8> {
        const SERVER_FAILURE: u8 = 2;
        let mut message = self.question_of(&self.message).unwrap_or_default();
        if let Some(header) = message.first_chunk_mut::<HEADER>() {
            header[2] |= 0x80;
            header[3] = 0x80 | SERVER_FAILURE;
        }
        compose_datagram(self.server, self.source, &message)
    }

    /// Bytes of an answer that whoever asks can take (RFC 6891 §6.2.3).
    fn room(&self) -> usize {
        const OPT: u16 = 41;
        let Some(end) = question_end(&self.message) else { return SMALLEST };
        let plain = be16(&self.message, 6) == 0 && be16(&self.message, 8) == 0;
        match self.message.get(end..end + 5) {
            // Nothing stands between the question and the additional section: the root, its
            // type, its class.
            Some(record) if plain && record[0] == 0 && be16(record, 1) == OPT => {
                usize::from(be16(record, 3)).clamp(SMALLEST, LARGEST)
            }
            Some(_) | None => SMALLEST,
        }
    }

    /// An answer without its records: whoever asks comes again over TCP.
    fn truncated(&self, message: &[u8]) -> Vec<u8> {
        const TRUNCATED: u8 = 0x02;
        let mut short = self.question_of(message).unwrap_or_default();
        if let Some(header) = short.first_chunk_mut::<HEADER>() {
            header[2] |= TRUNCATED;
        }
        short
    }

    /// The header and the question of a message; without the question if that makes no sense.
    fn question_of(&self, message: &[u8]) -> Option<Vec<u8>> {
        let end = question_end(message);
        let mut part = message.get(..end.unwrap_or(HEADER))?.to_vec();
        part[4..HEADER].fill(0);
        part[5] = u8::from(end.is_some());
        Some(part)
    }
}

/// Where the only question of a message ends.
fn question_end(message: &[u8]) -> Option<usize> {
    if message.len() < HEADER || be16(message, 4) != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            // A pointer has nothing to point to before the first name.
            label @ 1..=63 => at += 1 + usize::from(label),
            64.. => return None,
        }
    }
    let end = at + 5;
    (end <= message.len()).then_some(end)
}

/// Whether an address is one of the Internet's: a resolver that a gateway can reach.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && b & 0xc0 == 64;
            let benchmark = a == 198 && b & 0xfe == 18;
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared || benchmark)
                && (1..224).contains(&a)
        }
        // Global unicast (RFC 4291 §2.4).
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests;
