//! The connection that carries: its control stream, the paths it has open, and the decisions about
//! them. It gathers their evidence; `action` carries out what is decided.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use whimbrel_carrier::{Connection, ControlStream, Endpoint, Path, Progress};
use whimbrel_common::path::{
    Config, Evidence, Input, PathKey, Paths, PreferredBy, Role, State, View,
};

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
    /// The engine's path of each link, and whether it was validated.
    open: BTreeMap<PathKey, (Path, bool)>,
    judged: Option<Instant>,
    /// The path that carries, and since when.
    carries: (Option<PathKey>, Instant),
    /// Frames received on each path, and when their number last changed.
    heard: BTreeMap<Path, (u64, Instant)>,
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
            open: BTreeMap::from([(link, (Path::FIRST, true))]),
            judged: None,
            carries: (None, now),
            heard: BTreeMap::new(),
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
        let view = self.active()?;
        let silent = matches!(view.state, State::Suspect | State::Steered);
        silent.then(|| view.evidence.last_ack.map_or(view.since, |ack| ack.max(view.since)))
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
        self.heard.remove(&path);
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
    }

    fn gather_evidence(&mut self, endpoint: &mut Endpoint, now: Instant) {
        let active = self.paths.active();
        if self.carries.0 != active {
            self.carries = (active, now);
        }
        for (link, (path, validated)) in &self.open {
            let count = endpoint.heard(self.connection, *path).unwrap_or(0);
            let heard = self.heard.entry(*path).or_insert((count, now));
            if heard.0 != count {
                *heard = (count, now);
            }
            let progress = endpoint.progress(self.connection, *path);
            let Some(progress) = progress.filter(|_| *validated) else { continue };
            let active_since = (active == Some(*link)).then_some(self.carries.1);
            let evidence = evidence(&progress, Some(heard.1), active_since);
            self.paths.handle(Input::Evidence { path: *link, evidence }, now);
        }
    }
}

/// What is known of a path, from the acknowledgements of what was sent on it.
///
/// The engine sends acknowledgements on the path that carries data, so those of a backup path are
/// lost with the active one. The gateway answers packets on a backup path by a ping on the same
/// path: there, what arrives on the link is the answer.
fn evidence(
    progress: &Progress,
    last_receive: Option<Instant>,
    active_since: Option<Instant>,
) -> Evidence {
    let (expecting_since, last_ack) = if let Some(active) = active_since {
        // Before it carried, its acknowledgements may have been lost with another path.
        (progress.expecting_since.map(|since| since.max(active)), progress.last_ack)
    } else {
        let unanswered = |since: &Instant| last_receive.is_none_or(|received| received < *since);
        (progress.expecting_since.filter(unanswered), progress.last_ack.max(last_receive))
    };
    Evidence {
        expecting_since,
        last_ack,
        last_receive,
        srtt: progress.srtt,
        rttvar: progress.rttvar,
    }
}
