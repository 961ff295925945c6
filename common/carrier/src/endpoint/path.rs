//! The paths of a connection: opened, chosen, closed, and seen.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use noq_proto::{FourTuple, PathError, PathId, PathStatus, VarInt};
use tracing::debug;

use super::{Connection, Endpoint, Slot};
use crate::observed::{Observed, Progress};

/// Names a path of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub u32);

impl Path {
    /// The path of the handshake.
    pub const FIRST: Self = Self(0);

    pub(super) fn id(self) -> PathId {
        PathId::from(self.0)
    }

    pub(super) fn from_id(id: PathId) -> Self {
        // The engine keeps the number to itself and only displays it.
        Self(id.to_string().parse().unwrap_or(u32::MAX))
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A path cannot be opened now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenPathError {
    /// The peer has not granted another path yet; it does so after older ones are gone.
    #[error("the peer grants no further path yet")]
    NotYet,
    /// The connection cannot have more than one path.
    #[error("{0}")]
    Impossible(String),
}

/// What is known of a path.
#[derive(Debug, Clone, Copy)]
pub struct PathView {
    /// The engine's round trip estimate.
    pub rtt: Duration,
    /// Congestion window, in bytes.
    pub cwnd: u64,
    /// Largest UDP payload, in bytes.
    pub mtu: u16,
    /// UDP payload sent, in bytes.
    pub tx_bytes: u64,
    /// UDP payload received, in bytes.
    pub rx_bytes: u64,
    /// UDP payload deemed lost, in bytes.
    pub lost_bytes: u64,
    /// The peer's address.
    pub remote: SocketAddr,
    /// The local address it was last seen on.
    pub local: Option<IpAddr>,
    /// What its acknowledgements show.
    pub progress: Option<Progress>,
}

/// Frames on a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    /// Received that show life. Unlike bytes they were authenticated: anybody can send bytes, and a
    /// restarted peer answers with packets that mean nothing here.
    pub heard: u64,
    /// Sent that must arrive, on this path or on another.
    pub told: u64,
}

impl Endpoint {
    /// Opens a path to `remote` from `local`, kept as backup until told to carry.
    /// [`Event::PathOpened`] or [`Event::PathClosed`] follows.
    ///
    /// # Errors
    /// [`OpenPathError`] when no path can be opened now.
    ///
    /// [`Event::PathOpened`]: super::Event::PathOpened
    /// [`Event::PathClosed`]: super::Event::PathClosed
    pub fn open_path(
        &mut self,
        connection: Connection,
        remote: SocketAddr,
        local: IpAddr,
        now: Instant,
    ) -> Result<Path, OpenPathError> {
        let slot = self.slot(connection).ok_or_else(lost_connection)?;
        let path = FourTuple::new(remote, Some(local));
        // The engine announces only changes of status: a path opened as backup would count as
        // available at the peer.
        let opened = slot.connection.open_path(path, PathStatus::Available, now);
        let id = opened.map_err(|error| {
            if matches!(error, PathError::MaxPathIdReached | PathError::RemoteCidsExhausted) {
                OpenPathError::NotYet
            } else {
                OpenPathError::Impossible(error.to_string())
            }
        })?;
        let _ = slot.connection.set_path_status(id, PathStatus::Backup);
        Ok(Path::from_id(id))
    }

    /// Makes `path` carry the data and every other path a backup.
    pub fn carry(&mut self, connection: Connection, path: Path, now: Instant) {
        let Some(slot) = self.slot(connection) else { return };
        // The new one first: without any available path all backups would carry.
        let before = slot.connection.set_path_status(path.id(), PathStatus::Available);
        if matches!(before, Ok(PathStatus::Backup))
            && let Some(controller) = slot.connection.congestion_state(path.id())
        {
            Observed::restart(controller);
        }
        for other in slot.connection.paths() {
            if other != path.id() {
                let _ = slot.connection.set_path_status(other, PathStatus::Backup);
            }
        }
        slot.carry_on(path, now);
    }

    /// Keeps `path` as a backup.
    pub fn back_up(&mut self, connection: Connection, path: Path) {
        if let Some(slot) = self.slot(connection) {
            let _ = slot.connection.set_path_status(path.id(), PathStatus::Backup);
        }
    }

    /// Sends something on `path` that the peer must acknowledge.
    pub fn ping(&mut self, connection: Connection, path: Path) {
        if let Some(slot) = self.slot(connection) {
            if let Some(controller) = slot.connection.congestion_state(path.id()) {
                Observed::admit_probe(controller);
            }
            let _ = slot.connection.ping_path(path.id());
        }
    }

    /// Closes a path. The last one is never closed.
    pub fn close_path(&mut self, connection: Connection, path: Path, now: Instant) {
        if let Some(slot) = self.slot(connection)
            && let Err(error) = slot.connection.close_path(now, path.id(), VarInt::from_u32(0))
        {
            debug!(%path, %error, "path stays");
        }
    }

    /// The paths of a connection, those being closed included.
    pub fn paths(&self, connection: Connection) -> Vec<Path> {
        self.slots
            .get(connection.0)
            .and_then(Option::as_ref)
            .map(|slot| slot.connection.paths().into_iter().map(Path::from_id).collect())
            .unwrap_or_default()
    }

    /// What is known of a path.
    pub fn path(&mut self, connection: Connection, path: Path) -> Option<PathView> {
        let slot = self.slots.get_mut(connection.0)?.as_mut()?;
        let stats = slot.connection.path_stats(path.id())?;
        let addresses = slot.connection.network_path(path.id()).ok()?;
        Some(PathView {
            rtt: stats.rtt,
            cwnd: stats.cwnd,
            mtu: stats.current_mtu,
            tx_bytes: stats.udp_tx.bytes,
            rx_bytes: stats.udp_rx.bytes,
            lost_bytes: stats.lost_bytes,
            remote: addresses.remote(),
            local: addresses.local_ip(),
            progress: slot.progress(path),
        })
    }

    /// The peer's address on a path.
    pub fn remote(&self, connection: Connection, path: Path) -> Option<SocketAddr> {
        let slot = self.slots.get(connection.0)?.as_ref()?;
        slot.connection.network_path(path.id()).ok().map(|path| path.remote())
    }

    /// The local address the engine uses for a path, once it knows one.
    pub fn local(&self, connection: Connection, path: Path) -> Option<IpAddr> {
        let slot = self.slots.get(connection.0)?.as_ref()?;
        slot.connection.network_path(path.id()).ok().and_then(|path| path.local_ip())
    }

    /// What went over a path so far.
    pub fn frames(&mut self, connection: Connection, path: Path) -> Option<Frames> {
        let slot = self.slots.get_mut(connection.0)?.as_mut()?;
        let stats = slot.connection.path_stats(path.id())?;
        let (rx, tx) = (stats.frame_rx, stats.frame_tx);
        let heard = [
            rx.ping,
            rx.path_acks,
            rx.stream,
            rx.path_challenge,
            rx.path_response,
            rx.path_status_available,
            rx.path_status_backup,
        ];
        let told = [
            tx.crypto,
            tx.stream,
            tx.reset_stream,
            tx.stop_sending,
            tx.max_data,
            tx.max_stream_data,
            tx.max_streams_bidi,
            tx.max_streams_uni,
            tx.max_path_id,
            tx.new_connection_id,
            tx.path_new_connection_id,
            tx.retire_connection_id,
            tx.path_retire_connection_id,
            tx.path_status_available,
            tx.path_status_backup,
            tx.path_abandon,
        ];
        Some(Frames { heard: heard.iter().sum(), told: told.iter().sum() })
    }

    /// What the acknowledgements of a path show.
    pub fn progress(&self, connection: Connection, path: Path) -> Option<Progress> {
        self.slots.get(connection.0)?.as_ref()?.progress(path)
    }
}

impl Slot {
    pub(super) fn progress(&self, path: Path) -> Option<Progress> {
        self.connection.congestion_state(path.id()).and_then(Observed::progress_of)
    }
}

fn lost_connection() -> OpenPathError {
    OpenPathError::Impossible("the connection is gone".into())
}
