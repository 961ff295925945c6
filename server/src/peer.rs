//! One connected client at the gateway.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Parcels, Path, Reports, Stream, Witness,
};
use whimbrel_common::identity::PublicKey;
use whimbrel_common::path::{Config, Input, Move, PathKey, Paths, Role};
use whimbrel_common::wire::{Control, Limit, WireFlow};

use crate::sessions::Session;
use crate::talk::Caller;

/// A stranger has this many bytes to say who it is: three frames of less than a hundred in all.
pub(crate) const ADMISSION_BYTES: u64 = 4096;

/// A stranger has this long to say who it is.
pub(crate) const ADMISSION: Duration = Duration::from_secs(5);

/// A client at a limit is told this often: it may be there for hours.
const TELL_LIMIT_EVERY: Duration = Duration::from_mins(1);

/// Paths are judged at most this often while traffic flows: a tenth of the shortest silence that
/// matters.
const JUDGE_EVERY: Duration = Duration::from_millis(4);

/// What a stream of the client carries.
#[derive(Debug)]
pub(crate) enum Use {
    /// Its header is not complete.
    Header(BytesMut),
    /// A flow, by the gateway's number.
    Flow(u64),
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    serial: u64,
    pub(crate) key: PublicKey,
    pub(crate) remote: SocketAddr,
    pub(crate) since: Instant,
    /// Set once the key was admitted.
    pub(crate) session: Option<Session>,
    pub(crate) control: Option<ControlStream>,
    pub(crate) greeted: bool,
    /// What it and we can ([`capability`](whimbrel_common::wire::capability)).
    pub(crate) capabilities: u64,
    pub(crate) parcels: Parcels,
    /// They wait for their turn to be received.
    pub(crate) parcels_queued: bool,
    /// It has asked to be enrolled, and to be attached.
    pub(crate) enrolling: bool,
    pub(crate) attaching: bool,
    /// Flows the client said it has, until it has named all.
    pub(crate) holding: BTreeSet<WireFlow>,
    pub(crate) streams: HashMap<Stream, Use>,
    pub(crate) reports: Reports,
    pub(crate) paths: Paths,
    witness: Witness,
    judged: Option<Instant>,
    /// Where the packets of each path came from last.
    remotes: BTreeMap<Path, SocketAddr>,
    /// When it was told of which limit.
    limits_told: BTreeMap<Limit, Instant>,
    /// The last move, until something is acknowledged where it went.
    moving: Option<Move>,
}

impl Peer {
    pub(crate) fn new(caller: Caller, remote: SocketAddr, now: Instant) -> Self {
        let Caller { connection, serial, key } = caller;
        let mut paths = Paths::new(Role::Gateway, Config::new(Role::Gateway));
        paths.handle(Input::Opened { path: PathKey(Path::FIRST.0) }, now);
        Self {
            connection,
            serial,
            key,
            remote,
            since: now,
            session: None,
            control: None,
            greeted: false,
            capabilities: 0,
            parcels: Parcels::default(),
            parcels_queued: false,
            enrolling: false,
            attaching: false,
            holding: BTreeSet::new(),
            streams: HashMap::new(),
            reports: Reports::default(),
            paths,
            witness: Witness::new(now),
            judged: None,
            remotes: BTreeMap::from([(Path::FIRST, remote)]),
            limits_told: BTreeMap::new(),
            moving: None,
        }
    }

    /// Names the connection for questions about it.
    pub(crate) fn caller(&self) -> Caller {
        Caller { connection: self.connection, serial: self.serial, key: self.key }
    }

    /// When something must be done even if nothing arrives.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let admission = self.session.is_none().then(|| self.since + ADMISSION);
        let work = [self.reports.deadline(), self.paths.poll_timeout()];
        work.into_iter().chain([admission]).flatten().min()
    }

    /// Tells the path decisions what is known now. Cheap calls in between do nothing. How many
    /// paths are new or come from another address than before.
    pub(crate) fn judge(&mut self, endpoint: &mut Endpoint, now: Instant) -> u64 {
        let due = self.paths.poll_timeout().is_some_and(|deadline| deadline <= now);
        let recent = self.judged.is_some_and(|judged| now < judged + JUDGE_EVERY);
        if recent && !due {
            return 0;
        }
        let mut readdressed = 0;
        self.judged = Some(now);
        let active = self.paths.active().map(|active| Path(active.0));
        self.witness.note_active(active, now);
        for path in endpoint.paths(self.connection) {
            if let Some(remote) = endpoint.remote(self.connection, path) {
                let before = self.remotes.insert(path, remote);
                readdressed += u64::from(before != Some(remote));
            }
            let sight = self.witness.look(endpoint, self.connection, path, now);
            // The engine's acknowledgement leaves by the active path. If that one is dead, this
            // ping is the only sign the client gets that the backup is alive.
            if sight.heard && active.is_some_and(|active| active != path) {
                endpoint.ping(self.connection, path);
            }
            if let Some(evidence) = sight.evidence {
                self.paths.handle(Input::Evidence { path: PathKey(path.0), evidence }, now);
            }
        }
        self.paths.handle_timeout(now);
        readdressed
    }

    /// A limit holds it back: whoever sits there should know why.
    pub(crate) fn tell_limit(&mut self, limit: Limit, now: Instant) {
        let told = self.limits_told.get(&limit);
        if told.is_some_and(|at| now < *at + TELL_LIMIT_EVERY) {
            return;
        }
        if let Some(control) = self.control.as_mut() {
            self.limits_told.insert(limit, now);
            control.send(&Control::Limited(limit));
        }
    }

    /// Its traffic moved. One move after the other, before anything is acknowledged, is one gap.
    pub(crate) fn note_move(&mut self, step: Move) {
        let before = self.moving.map(|before| before.silent_since.unwrap_or(before.at));
        let silent_since = before.or(step.silent_since);
        self.moving = Some(Move { silent_since, ..step });
    }

    /// The gap of the last move, once it is over.
    pub(crate) fn end_gap(&mut self) -> Option<Duration> {
        let step = self.moving?;
        let path = self.paths.paths().find(|view| view.path == step.to)?;
        let ack = path.evidence.last_ack.filter(|ack| *ack > step.at)?;
        self.moving = None;
        Some(ack.saturating_duration_since(step.silent_since.unwrap_or(step.at)))
    }

    /// A path is gone.
    pub(crate) fn forget_path(&mut self, path: Path, now: Instant) {
        self.witness.forget(path);
        self.remotes.remove(&path);
        self.paths.handle(Input::Closed { path: PathKey(path.0) }, now);
    }

    /// Since when nothing has come from it.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        let heard = self.paths.paths().filter_map(|view| view.evidence.last_receive).max();
        now.saturating_duration_since(heard.unwrap_or(self.since))
    }

    /// The round trip flows of this client are judged by.
    pub(crate) fn rtt(&self) -> Duration {
        let active = self.paths.active();
        self.paths
            .paths()
            .find(|view| Some(view.path) == active)
            .map_or(Duration::from_millis(100), |view| view.evidence.srtt)
    }
}
