//! Parcels: what is carried although it need not arrive.
//!
//! A parcel travels in one datagram of the carrier (RFC 9221). One that does not fit follows its
//! length (varint) on the *parcel stream*, whose header is [`FlowHeader::Parcels`]. Both ends say in
//! their hello that they know parcels ([`capability::PARCELS`]); a kind that an end does not know
//! is lost, like any other parcel may be.
//!
//! A parcel is `kind (varint) · fields`, and its end is that of the datagram.
//!
//! [`FlowHeader::Parcels`]: super::FlowHeader::Parcels
//! [`capability::PARCELS`]: super::capability::PARCELS

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Fields, WireError, decode_varint, encode_varint, put_address, put_ip};

/// The largest parcel an end accepts, in bytes: the largest UDP payload and what precedes it.
pub const MAX_PARCEL: usize = 64 * 1024 + 64;

/// Names one source endpoint of the client's programs within a session: an address and a port of
/// UDP, or the identifier of ICMP echo. The gateway gives each a port or an identifier of its own.
/// Numbers only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Association(pub u64);

impl fmt::Display for Association {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Something that need not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parcel {
    /// A UDP datagram.
    Datagram {
        /// The client's end.
        association: Association,
        /// The other end: where to if the client says it, where from if the gateway does.
        remote: SocketAddr,
        /// What it carries.
        payload: Bytes,
    },
    /// Gateway: a datagram did not reach its destination.
    Unreachable {
        /// The client's end.
        association: Association,
        /// The destination.
        remote: SocketAddr,
        /// Why.
        reason: Undelivered,
    },
    /// Client: the association is in use. A gateway that has lost it opens its port again and
    /// lets this address answer.
    Renew {
        /// The client's end.
        association: Association,
        /// The other end.
        remote: SocketAddr,
    },
    /// An ICMP echo: a request if the client says it, the reply if the gateway does. Only for those
    /// who can ([`capability::ECHOES`](super::capability::ECHOES)).
    Echo {
        /// Which one.
        echo: Echo,
        /// Hops it may still make, or might still have made when it arrived at the gateway.
        hops: u8,
        /// What it carries.
        payload: Bytes,
    },
    /// Gateway: instead of its reply this came of a request.
    EchoFailed {
        /// Which one.
        echo: Echo,
        /// Who says so; unspecified for the gateway itself.
        by: IpAddr,
        /// Why.
        reason: Undelivered,
    },
}

/// Names one ICMP echo of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Echo {
    /// The client's end.
    pub association: Association,
    /// The other end.
    pub remote: IpAddr,
    /// Its sequence number.
    pub sequence: u16,
}

/// Why a datagram did not reach its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Undelivered {
    /// No route to the network, or no address of that family at the gateway.
    Network,
    /// No route to the host.
    Host,
    /// Nobody listens there.
    Port,
    /// The gateway's policy forbids the destination.
    Denied,
    /// It has made as many hops as it may.
    Expired,
}

impl Undelivered {
    const ALL: [Self; 5] = [Self::Network, Self::Host, Self::Port, Self::Denied, Self::Expired];

    fn code(self) -> u64 {
        Self::ALL.iter().position(|reason| *reason == self).unwrap_or_default() as u64
    }

    /// An unknown reason is that of a network that does not deliver.
    fn from_code(code: u64) -> Self {
        usize::try_from(code)
            .ok()
            .and_then(|at| Self::ALL.get(at).copied())
            .unwrap_or(Self::Network)
    }
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network-unreachable",
            Self::Host => "host-unreachable",
            Self::Port => "port-unreachable",
            Self::Denied => "denied",
            Self::Expired => "too-many-hops",
        })
    }
}

mod kind {
    pub(super) const DATAGRAM: u64 = 0x00;
    pub(super) const UNREACHABLE: u64 = 0x01;
    pub(super) const RENEW: u64 = 0x02;
    pub(super) const ECHO: u64 = 0x03;
    pub(super) const ECHO_FAILED: u64 = 0x04;
}

/// A parcel as it travels.
#[must_use]
pub fn encode_parcel(parcel: &Parcel) -> Bytes {
    let payload = match parcel {
        Parcel::Datagram { payload, .. } | Parcel::Echo { payload, .. } => payload.len(),
        Parcel::Unreachable { .. } | Parcel::Renew { .. } | Parcel::EchoFailed { .. } => 0,
    };
    let mut out = BytesMut::with_capacity(LONGEST_HEAD + payload);
    match parcel {
        Parcel::Datagram { association, remote, payload } => {
            put_datagram(*association, *remote, payload, &mut out);
        }
        Parcel::Unreachable { association, remote, reason } => {
            put_ends(kind::UNREACHABLE, *association, *remote, &mut out);
            encode_varint(reason.code(), &mut out);
        }
        Parcel::Renew { association, remote } => {
            put_ends(kind::RENEW, *association, *remote, &mut out);
        }
        Parcel::Echo { echo, hops, payload } => put_echo(*echo, *hops, payload, &mut out),
        Parcel::EchoFailed { echo, by, reason } => {
            put_echo_ends(kind::ECHO_FAILED, *echo, &mut out);
            put_ip(*by, &mut out);
            encode_varint(reason.code(), &mut out);
        }
    }
    out.freeze()
}

/// Bytes before a payload at most, and of a parcel without one: kind, association, IPv6 address,
/// sequence number, another address and a reason.
const LONGEST_HEAD: usize = 1 + 8 + 17 + 2 + 17 + 8;

/// A [`Parcel::Datagram`] as it travels, of a payload that is only borrowed.
#[must_use]
pub fn encode_datagram(association: Association, remote: SocketAddr, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(LONGEST_HEAD + payload.len());
    put_datagram(association, remote, payload, &mut out);
    out.freeze()
}

fn put_datagram(association: Association, remote: SocketAddr, payload: &[u8], out: &mut BytesMut) {
    put_ends(kind::DATAGRAM, association, remote, out);
    out.put_slice(payload);
}

/// A [`Parcel::Echo`] as it travels, of a payload that is only borrowed.
#[must_use]
pub fn encode_echo(echo: Echo, hops: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(LONGEST_HEAD + payload.len());
    put_echo(echo, hops, payload, &mut out);
    out.freeze()
}

fn put_echo(echo: Echo, hops: u8, payload: &[u8], out: &mut BytesMut) {
    put_echo_ends(kind::ECHO, echo, out);
    out.put_u8(hops);
    out.put_slice(payload);
}

fn put_echo_ends(kind: u64, echo: Echo, out: &mut BytesMut) {
    encode_varint(kind, out);
    encode_varint(echo.association.0, out);
    put_ip(echo.remote, out);
    out.put_u16(echo.sequence);
}

fn put_ends(kind: u64, association: Association, remote: SocketAddr, out: &mut BytesMut) {
    encode_varint(kind, out);
    encode_varint(association.0, out);
    put_address(remote, out);
}

/// Reads a parcel; `None` for one of a kind that this version does not know.
///
/// # Errors
/// [`WireError`] when the fields are not those of its kind.
pub fn decode_parcel(mut bytes: Bytes) -> Result<Option<Parcel>, WireError> {
    let kind = decode_varint(&mut bytes).ok_or(WireError::Malformed(0))?;
    // The head is short; the payload is not copied.
    let head = BytesMut::from(&bytes[..bytes.len().min(LONGEST_HEAD)]);
    let before = head.len();
    let mut fields = Fields { kind, body: head };
    let parcel = match kind {
        kind::DATAGRAM => {
            let (association, remote) = fields.ends()?;
            bytes.advance(before - fields.body.len());
            return Ok(Some(Parcel::Datagram { association, remote, payload: bytes }));
        }
        kind::ECHO => {
            let (echo, hops) = (fields.echo()?, fields.byte()?);
            bytes.advance(before - fields.body.len());
            return Ok(Some(Parcel::Echo { echo, hops, payload: bytes }));
        }
        kind::UNREACHABLE => {
            let (association, remote) = fields.ends()?;
            let reason = Undelivered::from_code(fields.varint()?);
            Parcel::Unreachable { association, remote, reason }
        }
        kind::RENEW => {
            let (association, remote) = fields.ends()?;
            Parcel::Renew { association, remote }
        }
        kind::ECHO_FAILED => {
            let (echo, by) = (fields.echo()?, fields.ip()?);
            let reason = Undelivered::from_code(fields.varint()?);
            Parcel::EchoFailed { echo, by, reason }
        }
        _ => return Ok(None),
    };
    if bytes.len() > LONGEST_HEAD {
        return Err(WireError::Malformed(kind));
    }
    fields.finish().map(|()| Some(parcel))
}

impl Fields {
    fn ends(&mut self) -> Result<(Association, SocketAddr), WireError> {
        Ok((Association(self.varint()?), self.address()?))
    }

    fn echo(&mut self) -> Result<Echo, WireError> {
        let association = Association(self.varint()?);
        Ok(Echo { association, remote: self.ip()?, sequence: self.number()? })
    }
}

/// Appends an encoded parcel to what goes onto the parcel stream.
pub fn put_parcel(parcel: &[u8], out: &mut BytesMut) {
    encode_varint(parcel.len() as u64, out);
    out.put_slice(parcel);
}

/// Takes the next encoded parcel from the front of what came on the parcel stream; `Ok(None)` when
/// it is not complete yet.
///
/// # Errors
/// [`WireError::TooLarge`].
pub fn take_parcel(input: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    let mut peek = &input[..];
    let Some(length) = decode_varint(&mut peek) else { return Ok(None) };
    let head = input.len() - peek.len();
    match usize::try_from(length) {
        Ok(length) if length <= MAX_PARCEL => {
            if peek.len() < length {
                return Ok(None);
            }
            input.advance(head);
            Ok(Some(input.split_to(length).freeze()))
        }
        Ok(_) | Err(_) => {
            Err(WireError::TooLarge { kind: kind::DATAGRAM, length, limit: MAX_PARCEL })
        }
    }
}

#[cfg(test)]
mod tests;
