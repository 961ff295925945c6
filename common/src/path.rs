//! Which link carries the traffic, and when it moves.
//!
//! Both ends run [`Paths`]. It does no IO and reads no clock: facts enter as [`Input`]s with the
//! time, orders leave as [`Action`]s, and [`Paths::poll_timeout`] says when to call again.
//!
//! **Promises.** Traffic moves only onto a path that is validated, and away from a silent path only
//! after another one answered while it stayed silent. The last open path is never closed. At most
//! one path is active. A network that lets nothing through never becomes a path.
//!
//! **Life of a path.** `Absent` (nothing open) → `Probing` (being validated) → `Warm` (validated,
//! kept ready) → `Active` (carries the traffic). A path that owes an answer is `Suspect`. After a
//! forced move the old one is `Steered`: its packets leave through the live link, so that what was
//! in flight is recovered at once; then it is closed and its link rests in `Cooldown`. `Draining`
//! is a healthy path, or one whose link is down, about to be closed. A spare path on which something
//! is stuck is closed too, while the active one answers.
//!
//! **Silence** is the absence of acknowledgements for what was sent. Packets that arrive prove
//! nothing about the other direction; they only buy the path a little patience.
//!
//! **What moves the traffic at once:** the link of the active path going down, errors on sending,
//! the peer's word while our own side is silent too. Everything else is compared or earned first.
//!
//! **How to drive it.** In every step: first the [`Input::Evidence`] of all open paths, then other
//! inputs, then [`Paths::handle_timeout`]; then drain [`Paths::poll_action`]. Evidence alone
//! decides nothing, so that no path is judged by news about another.

mod choice;
mod config;
mod link;
mod moves;
mod opening;
mod vocabulary;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

pub use config::Config;
pub use vocabulary::{
    Action, DownReason, Evidence, Input, Move, MoveReason, PathKey, PreferredBy, Role, State, View,
};

use choice::Pin;
use link::Link;
use moves::{Left, Steering};
use watch::Trouble;

/// The paths of one connection, seen from one end.
#[derive(Debug)]
pub struct Paths {
    role: Role,
    config: Config,
    links: BTreeMap<PathKey, Link>,
    /// The path that carries the traffic. Always open.
    active: Option<PathKey>,
    trouble: Option<Trouble>,
    steering: Option<Steering>,
    pin: Option<Pin>,
    /// A path the peer wants that is not open yet.
    wanted: Option<PathKey>,
    left: Option<Left>,
    moved_at: Option<Instant>,
    /// Application bytes moved at this instant, and no probe has followed yet.
    activity: Option<Instant>,
    /// Silence before this instant was our own: the host slept or was not scheduled.
    awake_since: Option<Instant>,
    /// When we asked to be called next.
    promised: Option<Instant>,
    /// Evidence arrived that may decide something.
    unsettled: Option<Instant>,
    actions: VecDeque<Action>,
}

impl Paths {
    /// No links, no paths.
    pub fn new(role: Role, config: Config) -> Self {
        Self {
            role,
            config,
            links: BTreeMap::new(),
            active: None,
            trouble: None,
            steering: None,
            pin: None,
            wanted: None,
            left: None,
            moved_at: None,
            activity: None,
            awake_since: None,
            promised: None,
            unsettled: None,
            actions: VecDeque::new(),
        }
    }

    /// Takes in one fact.
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.notice_stall(now);
        match input {
            Input::LinkUp { path, name, rank, metered, cold } => {
                self.link_up(path, Link::described(name, rank, metered, cold, now), now);
            }
            Input::LinkDown { path, reason } => self.link_down(path, reason.into(), now),
            Input::Opened { path } => self.opened(path, now),
            Input::OpenFailed { path } => self.open_failed(path, now),
            Input::Closed { path } => self.closed(path, now),
            Input::SendError { path } => self.send_error(path, now),
            Input::Evidence { path, evidence } => self.take_evidence(path, evidence, now),
            Input::Activity => self.activity = Some(now),
            Input::Prefer { path, by } => match by {
                PreferredBy::Hand => self.prefer_by_hand(path, now),
                PreferredBy::Peer => self.prefer_by_peer(path, now),
            },
            Input::Auto => self.release(now),
            Input::Woke => self.wake(now),
        }
        self.promise(now);
    }

    /// Does what is due. Calling it early or often does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.notice_stall(now);
        self.unsettled = None;
        self.settle_steering(now);
        self.watch_active(now);
        self.watch_spares(now);
        self.free_stuck(now);
        self.consider_return(now);
        self.tend_openings(now);
        self.retire(now);
        self.keep_alive(now);
        self.promise(now);
    }

    /// The next order, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Paths::handle_timeout`] must be called at the latest. May be in the past: call at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.unsettled,
            self.active_deadline(),
            self.spares_deadline(),
            self.stuck_deadline(),
            self.settle_deadline(),
            self.return_deadline(),
            self.opening_deadline(),
            self.retire_deadline(),
            self.keep_alive_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The path that carries the traffic, if any is open. While it is `Steered`, the link it leaves
    /// through is [`View::steered_onto`].
    pub fn active(&self) -> Option<PathKey> {
        self.active
    }

    /// The state of `path`; `Absent` for one never heard of.
    pub fn state(&self, path: PathKey) -> State {
        self.links.get(&path).map_or(State::Absent, |link| link.state)
    }

    /// Every path ever heard of, in the order of their keys.
    pub fn paths(&self) -> impl Iterator<Item = View<'_>> {
        self.links.iter().map(|(path, link)| View {
            path: *path,
            name: &link.name,
            state: link.state,
            rank: link.rank,
            metered: link.metered,
            cold: link.cold,
            up: link.up,
            since: link.since,
            evidence: link.evidence,
            steered_onto: link.steered_onto,
        })
    }

    fn promise(&mut self, now: Instant) {
        self.promised = self.poll_timeout().map(|at| at.max(now));
    }

    /// A step that comes late means we did not run; what arrived meanwhile is still unread.
    fn notice_stall(&mut self, now: Instant) {
        let late = self.promised.is_some_and(|at| now > at + self.config.stall);
        let recent = self.awake_since.is_some_and(|at| now < at + self.config.stall_spacing);
        if late && !recent {
            self.rise(now);
        }
    }

    /// Silence counts from `now` on; a running comparison starts over.
    fn rise(&mut self, now: Instant) {
        self.awake_since = Some(now);
        if let Some(trouble) = &mut self.trouble {
            trouble.restart(now);
        }
    }

    fn wake(&mut self, now: Instant) {
        self.rise(now);
        for link in self.links.values_mut() {
            link.cooldown_until = None;
            link.probe_gap = self.config.spare_probe;
        }
        if let Some(active) = self.active
            && self.trouble.is_none()
        {
            self.begin_trouble(active, now, now, MoveReason::BlackHole, now);
        }
        self.probe_all(now);
        self.rescue(now);
        self.tend_openings(now);
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn shift(&mut self, path: PathKey, to: State, now: Instant) {
        let Some(link) = self.links.get_mut(&path) else { return };
        let from = std::mem::replace(&mut link.state, to);
        if from != to {
            link.since = now;
            tracing::debug!(%path, link = %link.name, %from, %to, "path changed");
            self.act(Action::StateChanged { path, from, to });
        }
    }

    fn probe(&mut self, path: PathKey, now: Instant) {
        if let Some(link) = self.links.get_mut(&path) {
            link.probed = Some(now);
            self.act(Action::Probe { path });
        }
    }

    /// One probe on every open path that has a link to leave through, those steered away excepted.
    fn probe_all(&mut self, now: Instant) {
        for path in self.open_paths() {
            if self.probeable(path) {
                self.probe(path, now);
            }
        }
    }

    fn probeable(&self, path: PathKey) -> bool {
        self.links.get(&path).is_some_and(|link| match link.steered_onto {
            Some(onto) => self.active == Some(path) && self.is_up(onto),
            None => link.open && link.up,
        })
    }

    fn open_paths(&self) -> Vec<PathKey> {
        self.links.iter().filter(|(_, link)| link.open).map(|(path, _)| *path).collect()
    }

    fn is_up(&self, path: PathKey) -> bool {
        self.links.get(&path).is_some_and(|link| link.up)
    }

    /// Whether `path` cannot leave through its own link, as a fact rather than a suspicion.
    fn is_dead(&self, path: PathKey) -> bool {
        self.links.get(&path).is_none_or(|link| !link.up || link.broken.is_some())
    }

    /// Whether the active path has no link to leave through.
    fn is_stranded(&self) -> bool {
        self.active.is_some_and(|active| match &self.steering {
            Some(steering) => self.is_dead(steering.onto),
            None => self.is_dead(active),
        })
    }

    fn gap_since(from: Instant, gap: Duration) -> Instant {
        from.checked_add(gap).unwrap_or(from)
    }
}
