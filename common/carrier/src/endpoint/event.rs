//! What happens on a connection, in our own words: the engine's events and errors are translated
//! here.

use std::net::SocketAddr;

use noq_proto::{
    ApplicationClose, ConnectionError, Dir, PathEvent, PathId, PathStatus, StreamEvent,
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
    /// There is room for datagrams again.
    DatagramsUnblocked,
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
            noq_proto::Event::DatagramsUnblocked => Some(Event::DatagramsUnblocked),
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
        ConnectionError::TransportError(error) => tls_failure(&error.to_string()),
        ConnectionError::ConnectionClosed(close) => tls_failure(&close.to_string()),
        ConnectionError::VersionMismatch => {
            Lost::NotOurs("it speaks another version of QUIC".into())
        }
        ConnectionError::CidsExhausted => Lost::Failed(reason.to_string()),
    }
}

/// A failed handshake ends in a TLS alert, which the engine tells in words only: RFC 8446 §6.
fn tls_failure(text: &str) -> Lost {
    let lower = text.to_lowercase();
    if ["certificate", "application verification", "access denied", "decrypt"]
        .iter()
        .any(|word| lower.contains(word))
    {
        Lost::Authentication(text.to_owned())
    } else if lower.contains("application protocol") || lower.contains("alpn") {
        Lost::NotOurs(text.to_owned())
    } else {
        Lost::Failed(text.to_owned())
    }
}
