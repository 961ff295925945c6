//! The connection that carries: its control stream, the paths it has open, and the decisions about
//! them. It gathers their evidence; `action` carries out what is decided.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use whimbrel_carrier::{Connection, ControlStream, Endpoint, Path, Witness};
use whimbrel_client_core::portal::Portals;
use whimbrel_common::path::{Config, Input, PathKey, Paths, PreferredBy, Role, State, View};

use super::News;
use super::roster::Roster;
use crate::uplinks::Uplinks;

mod action;

/// Paths are judged at most this often while traffic flows: a tenth of the shortest silence that
/// matters.
const JUDGE_EVERY: Duration = Duration::from_millis(4);

/// Without an answer on any link for so long a session counts as parked: a move takes a third of a
/// second.
const PARKED: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) control: ControlStream,
    pub(super) paths: Paths,
    pub(super) attached: bool,
    /// What both ends can.
    pub(super) capabilities: u64,
    /// The engine's path of each link, and whether it was validated.
    open: BTreeMap<PathKey, (Path, bool)>,
    judged: Option<Instant>,
    /// The path that should carry, and since when it is suspect.
    suspect: Option<(PathKey, Instant)>,
    witness: Witness,
    /// Links whose path is to be tried again.
    again: BTreeMap<PathKey, Instant>,
    /// Links without a path of their own, and the link whose path leaves by each.
    lent: BTreeMap<PathKey, PathKey>,
}

/// What of the tunnel decisions are carried out on.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub(super) endpoint: &'a mut Endpoint,
    pub(super) uplinks: &'a mut Uplinks,
    pub(super) gateway: &'a [SocketAddr],
    pub(super) links: &'a Roster,
    pub(super) news: &'a mut VecDeque<News>,
    pub(super) portals: &'a mut Portals,
}

impl Live {
    /// A connection that was made over `link`.
    pub(super) fn new(
        connection: Connection,
        control: ControlStream,
        link: PathKey,
        links: &Roster,
        now: Instant,
    ) -> Self {
        let mut paths = Paths::new(Role::Client, Config::new(Role::Client));
        for (key, described) in links.iter() {
            paths.handle(described.up(key), now);
        }
        // Whatever was decided about links without a connection is void.
        while paths.poll_action().is_some() {}
        paths.handle(Input::Opened { path: link }, now);
        Self {
            connection,
            control,
            paths,
            attached: false,
            capabilities: 0,
            open: BTreeMap::from([(link, (Path::FIRST, true))]),
            judged: None,
            suspect: None,
            witness: Witness::new(now),
            again: BTreeMap::new(),
            lent: BTreeMap::new(),
        }
    }

    /// Whether the path that should carry has been without an answer for [`PARKED`].
    pub(super) fn is_parked(&self, now: Instant) -> bool {
        self.silent_since().is_some_and(|since| now >= since + PARKED)
    }

    /// Since when the path that should carry has been without an answer, if it is suspect.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let (path, since) = self.suspect?;
        let view = self.active().filter(|view| view.path == path)?;
        view.evidence.last_ack.max(Some(since))
    }

    /// When anything was acknowledged last, on whichever path.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.paths.paths().filter_map(|view| view.evidence.last_ack).max()
    }

    /// A path that is steered and then is not, again and again, is as silent as before.
    fn note_suspect(&mut self) {
        let view = self.active();
        let view = view.filter(|view| matches!(view.state, State::Suspect | State::Steered));
        let found = view.map(|view| (view.path, view.since));
        let same = self.suspect.map(|(path, _)| path) == found.map(|(path, _)| path);
        if !same {
            self.suspect = found;
        }
    }

    /// The round trip of the path that carries.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.active().map(|view| view.evidence.srtt)
    }

    fn active(&self) -> Option<View<'_>> {
        let active = self.paths.active()?;
        self.paths.paths().find(|view| view.path == active)
    }

    /// The engine's path of a link.
    pub(super) fn path_of(&self, link: PathKey) -> Option<Path> {
        self.open.get(&link).map(|(path, _)| *path)
    }

    /// The engine's paths.
    pub(super) fn open_paths(&self) -> impl Iterator<Item = Path> {
        self.open.values().map(|(path, _)| *path)
    }

    /// The link whose path leaves by this one, which has none of its own.
    pub(super) fn borrower_of(&self, link: PathKey) -> Option<PathKey> {
        self.lent.get(&link).copied()
    }

    fn link_of(&self, path: Path) -> Option<PathKey> {
        self.open.iter().find(|(_, (open, _))| *open == path).map(|(link, _)| *link)
    }

    /// The engine validated a path.
    pub(super) fn path_opened(&mut self, path: Path, now: Instant) {
        let link = self.open.iter_mut().find(|(_, (open, _))| *open == path);
        if let Some((link, (_, validated))) = link {
            *validated = true;
            self.paths.handle(Input::Opened { path: *link }, now);
        }
    }

    /// The engine gave a path up. Tells whether that leaves the connection without any.
    pub(super) fn path_closed(&mut self, path: Path, now: Instant) -> bool {
        let Some(link) = self.link_of(path) else { return false };
        let validated = self.open.remove(&link).is_some_and(|(_, validated)| validated);
        self.witness.forget(path);
        let input =
            if validated { Input::Closed { path: link } } else { Input::OpenFailed { path: link } };
        self.paths.handle(input, now);
        self.paths.active().is_none()
    }

    /// The gateway wants a path to carry.
    pub(super) fn path_wanted(&mut self, path: Path, now: Instant) {
        if let Some(path) = self.link_of(path) {
            self.paths.handle(Input::Prefer { path, by: PreferredBy::Peer }, now);
        }
    }

    /// When [`judge`](Self::judge) wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let again = self.again.values().min().copied();
        [self.paths.poll_timeout(), again].into_iter().flatten().min()
    }

    /// Tells the path decisions what is known now, and carries them out.
    pub(super) fn judge(&mut self, around: &mut Surroundings<'_>, now: Instant) {
        let due = self.paths.poll_timeout().is_some_and(|deadline| deadline <= now);
        let recent = self.judged.is_some_and(|judged| now < judged + JUDGE_EVERY);
        if due || !recent {
            self.judged = Some(now);
            self.gather_evidence(around.endpoint, now);
            self.paths.handle_timeout(now);
        }
        let due: Vec<PathKey> =
            self.again.iter().filter(|(_, at)| **at <= now).map(|(link, _)| *link).collect();
        for link in due {
            self.again.remove(&link);
            self.open_path(link, around, now);
        }
        while let Some(action) = self.paths.poll_action() {
            self.act(action, around, now);
        }
        self.note_suspect();
    }

    fn gather_evidence(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let active = self.paths.active().and_then(|active| self.path_of(active));
        self.witness.note_active(active, now);
        for (link, (path, validated)) in &self.open {
            let sight = self.witness.look(endpoint, self.connection, *path, now);
            if let Some(evidence) = sight.evidence.filter(|_| *validated) {
                self.paths.handle(Input::Evidence { path: *link, evidence }, now);
            }
        }
    }
}
