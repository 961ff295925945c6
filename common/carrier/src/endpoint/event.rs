//! What happens on a connection, in our own words: the engine's events and errors are translated
//! here.

use std::net::SocketAddr;

use noq_proto::{
    ApplicationClose, ConnectionError, Dir, PathEvent, PathId, PathStatus, StreamEvent,
    TransportErrorCode,
};
use rustls::pki_types::CertificateDer;
use whimbrel_common::identity::PublicKey;

use super::{Path, Slot, Stream};

/// What happened on a connection.
#[derive(Debug)]
pub enum Event {
    /// The peer proved this key.
    Connected {
        /// The peer's key.
        key: PublicKey,
        /// Its address.
        remote: SocketAddr,
    },
    /// The connection is over; its number may be used again.
    Lost(Lost),
    /// The peer opened streams: [`Endpoint::accept`](super::Endpoint::accept) yields them.
    Opened,
    /// More streams may be opened.
    StreamsAvailable,
    /// A stream may have bytes, its end, or a reset.
    Readable(Stream),
    /// A stream that was blocked may take bytes.
    Writable(Stream),
    /// The peer stopped reading a stream.
    Stopped(Stream, u64),
    /// Datagrams came: [`Endpoint::receive_datagram`](super::Endpoint::receive_datagram) yields them.
    Datagrams,
    /// A path was validated and may carry data.
    PathOpened(Path),
    /// A path is gone, or never came to be.
    PathClosed(Path),
    /// The peer wants a path to carry data, or to be kept as backup.
    PathStatus {
        /// The path.
        path: Path,
        /// Whether it should carry data.
        carry: bool,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The peer closed it with this application code.
    ClosedByPeer(u64),
    /// The peer does not know the connection any more: it was restarted.
    Reset,
    /// Nothing arrived for too long.
    TimedOut,
    /// This end closed it.
    Closed,
    /// The peer's key is not the one expected, or it refused ours.
    Authentication(String),
    /// The peer is not speaking our protocol.
    NotOurs(String),
    /// Anything else, in the engine's words.
    Failed(String),
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClosedByPeer(code) => write!(f, "closed by the peer (code {code})"),
            Self::Reset => f.write_str("the peer was restarted"),
            Self::TimedOut => f.write_str("no answer"),
            Self::Closed => f.write_str("closed"),
            Self::Authentication(what) => write!(f, "wrong key: {what}"),
            Self::NotOurs(what) => write!(f, "not a Whimbrel peer: {what}"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

impl Slot {
    /// What an event of the engine means to the owner, if anything.
    pub(super) fn translate(&mut self, event: noq_proto::Event) -> Option<Event> {
        match event {
            noq_proto::Event::Connected => {
                self.connected = true;
                let key = self.peer_key()?;
                let path = self.connection.network_path(PathId::ZERO).ok()?;
                Some(Event::Connected { key, remote: path.remote() })
            }
            noq_proto::Event::ConnectionLost { reason } => {
                let first = !std::mem::replace(&mut self.lost, true);
                first.then(|| Event::Lost(lost(&reason)))
            }
            noq_proto::Event::Stream(event) => translate_stream(&event),
            noq_proto::Event::Path(event) => translate_path(event),
            noq_proto::Event::DatagramReceived => Some(Event::Datagrams),
            // What waits is handed on whenever the engine sends.
            noq_proto::Event::DatagramsUnblocked => None,
            noq_proto::Event::HandshakeDataReady
            | noq_proto::Event::HandshakeConfirmed
            | noq_proto::Event::NatTraversal(_) => None,
        }
    }

    fn peer_key(&self) -> Option<PublicKey> {
        let identity = self.connection.crypto_session().peer_identity()?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        PublicKey::from_spki(chain.first()?)
    }
}

fn translate_stream(event: &StreamEvent) -> Option<Event> {
    match event {
        StreamEvent::Opened { dir: Dir::Bi } => Some(Event::Opened),
        StreamEvent::Available { dir: Dir::Bi } => Some(Event::StreamsAvailable),
        StreamEvent::Readable { id } => Some(Event::Readable(Stream::from_id(*id))),
        StreamEvent::Writable { id } => Some(Event::Writable(Stream::from_id(*id))),
        StreamEvent::Stopped { id, error_code } => {
            Some(Event::Stopped(Stream::from_id(*id), error_code.into_inner()))
        }
        StreamEvent::Opened { dir: Dir::Uni }
        | StreamEvent::Available { dir: Dir::Uni }
        | StreamEvent::Finished { .. } => None,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the engine may gain events")]
fn translate_path(event: PathEvent) -> Option<Event> {
    match event {
        PathEvent::Established { id, .. } => Some(Event::PathOpened(Path::from_id(id))),
        PathEvent::Abandoned { id, .. } => Some(Event::PathClosed(Path::from_id(id))),
        PathEvent::RemoteStatus { id, status, .. } => Some(Event::PathStatus {
            path: Path::from_id(id),
            carry: status == PathStatus::Available,
        }),
        _ => None,
    }
}

fn lost(reason: &ConnectionError) -> Lost {
    match reason {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            Lost::ClosedByPeer(error_code.into_inner())
        }
        ConnectionError::Reset => Lost::Reset,
        ConnectionError::TimedOut => Lost::TimedOut,
        ConnectionError::LocallyClosed => Lost::Closed,
        ConnectionError::TransportError(error) => failed(error.code, error.to_string()),
        // The words of a peer who has proved nothing yet are anybody's.
        ConnectionError::ConnectionClosed(close) => {
            failed(close.error_code, close.error_code.to_string())
        }
        ConnectionError::VersionMismatch => {
            Lost::NotOurs("it speaks another version of QUIC".into())
        }
        ConnectionError::CidsExhausted => Lost::Failed(reason.to_string()),
    }
}

/// A failed handshake ends in a TLS alert: RFC 9001 §4.8, RFC 8446 §6.
fn failed(code: TransportErrorCode, text: String) -> Lost {
    const BAD_CERTIFICATE: u64 = 0x100 + 42;
    const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;
    const UNKNOWN_CA: u64 = 0x100 + 48;
    const ACCESS_DENIED: u64 = 0x100 + 49;
    const DECRYPT_ERROR: u64 = 0x100 + 51;
    const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
    const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
    match u64::from(code) {
        BAD_CERTIFICATE..=CERTIFICATE_UNKNOWN
        | UNKNOWN_CA
        | ACCESS_DENIED
        | DECRYPT_ERROR
        | CERTIFICATE_REQUIRED => Lost::Authentication(text),
        NO_APPLICATION_PROTOCOL => Lost::NotOurs("it speaks another protocol over QUIC".into()),
        _ => Lost::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use noq_proto::{ConnectionClose, MaybeFrame, VarInt};

    use super::*;

    #[test]
    fn a_peer_is_told_by_its_code_and_its_words_are_dropped() {
        let close = |code: u32| {
            lost(&ConnectionError::ConnectionClosed(ConnectionClose {
                error_code: VarInt::from_u32(code).into(),
                frame_type: MaybeFrame::None,
                reason: b"certificate \x1b[31mhere".as_slice().into(),
            }))
        };
        let handshake_failure = "the cryptographic handshake failed: error 40";
        assert_eq!(close(0x100 + 40), Lost::Failed(handshake_failure.to_owned()));
        let no_protocol = "it speaks another protocol over QUIC";
        assert_eq!(close(0x100 + 120), Lost::NotOurs(no_protocol.to_owned()));
        assert!(matches!(close(0x100 + 49), Lost::Authentication(text) if text.is_ascii()));
    }
}
