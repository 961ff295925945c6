//! Moving the traffic: by force, by choice, by steering the only path.

use std::time::{Duration, Instant};

use super::{Action, Link, Move, MoveReason, PathKey, Paths, Role, State};

/// The active path leaves through a link that has no path of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steering {
    pub(super) onto: PathKey,
    /// Answers after this came through the new link.
    since: Instant,
    probed: bool,
    /// The attempt ends then.
    pub(super) until: Option<Instant>,
    confirmed: bool,
}

/// The path left last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) path: PathKey,
    pub(super) at: Instant,
}

impl Paths {
    /// Leaves the active path, which does not work, for `to`.
    pub(super) fn force(&mut self, to: PathKey, reason: MoveReason, now: Instant) {
        let Some(from) = self.active else { return };
        let silent_since = self.silence_of(from);
        self.unsteer(to);
        let known = self.steering.take().filter(|steering| steering.onto == to);
        self.trouble = None;
        if let Some(link) = self.links.get_mut(&from) {
            link.strike(&self.config, now);
            link.lost_traffic = true;
        }
        match self.role {
            Role::Client => self.steer_all(from, to, known.is_some(), now),
            Role::Gateway if silent_since.is_some() => self.shift(from, State::Suspect, now),
            Role::Gateway => self.shift(from, State::Warm, now),
        }
        self.settle_on(to, now);
        if self.links.get(&from).is_some_and(|link| link.open) {
            self.set_retirement(from, now);
        }
        self.act(Action::Replay { from, silent_since: silent_since.unwrap_or(now) });
        if !known.is_some_and(|steering| steering.confirmed) {
            self.report(Some(from), to, reason, silent_since, now);
        }
    }

    fn silence_of(&self, path: PathKey) -> Option<Instant> {
        match &self.trouble {
            Some(trouble) => Some(trouble.silent_since),
            None => self.links.get(&path)?.evidence.expecting_since,
        }
    }

    /// Sends `from`, and whatever was steered through its link, through the link of `to`.
    fn steer_all(&mut self, from: PathKey, to: PathKey, done: bool, now: Instant) {
        let followers: Vec<PathKey> = self
            .links
            .iter()
            .filter(|(path, link)| {
                link.open && **path != to && (**path == from || link.steered_onto == Some(from))
            })
            .map(|(path, _)| *path)
            .collect();
        for path in followers {
            if !(done && path == from) {
                self.act(Action::Steer { from: path, onto: to });
            }
            if let Some(link) = self.links.get_mut(&path) {
                link.steered_onto = Some(to);
                link.trial = None;
            }
            self.shift(path, State::Steered, now);
        }
    }

    pub(super) fn set_retirement(&mut self, path: PathKey, now: Instant) {
        let live = self.active.and_then(|active| self.links.get(&active)).map(|link| link.evidence);
        let drain = live.map_or(self.config.drain_floor, |live| self.config.drain(&live));
        if self.role == Role::Client
            && let Some(link) = self.links.get_mut(&path)
        {
            link.retire_at = Some(now + drain);
        }
    }

    /// `to` carries from now on.
    fn settle_on(&mut self, to: PathKey, now: Instant) {
        self.act(Action::Carry { path: to });
        self.active = Some(to);
        self.moved_at = Some(now);
        if let Some(link) = self.links.get_mut(&to) {
            link.trial = None;
            link.retire_at = None;
        }
        self.shift(to, State::Active, now);
    }

    fn report(
        &mut self,
        from: Option<PathKey>,
        to: PathKey,
        reason: MoveReason,
        silent_since: Option<Instant>,
        now: Instant,
    ) {
        tracing::debug!(?from, %to, %reason, "traffic moved");
        if let Some(path) = from {
            self.left = Some(Left { path, at: now });
        }
        self.act(Action::Moved(Move { from, to, reason, at: now, silent_since }));
    }

    /// The connection's first path, or the next after all were gone.
    pub(super) fn start_on(&mut self, to: PathKey, now: Instant) {
        self.trouble = None;
        self.steering = None;
        self.settle_on(to, now);
        self.report(None, to, MoveReason::Preferred, None, now);
    }

    /// Leaves the active path, which works, for `to`.
    pub(super) fn move_gently(&mut self, to: PathKey, reason: MoveReason, now: Instant) {
        let Some(from) = self.active.filter(|from| *from != to) else { return };
        self.trouble = None;
        self.steering = None;
        self.unsteer(from);
        self.settle_on(to, now);
        let (cold, dead) = (self.links[&from].cold, self.is_dead(from));
        if self.role == Role::Client && (cold || dead) {
            self.shift(from, State::Draining, now);
            self.set_retirement(from, now);
        } else {
            self.shift(from, State::Warm, now);
        }
        self.report(Some(from), to, reason, None, now);
    }

    /// The active path was closed under us: there is nothing to steer.
    pub(super) fn replace_active(&mut self, gone: PathKey, now: Instant) {
        let silent_since = self.silence_of(gone).unwrap_or(now);
        self.active = None;
        self.trouble = None;
        self.steering = None;
        let alive = |path: &PathKey| !self.is_dead(*path);
        let next = self.open_paths().into_iter().min_by_key(|path| {
            (!alive(path), self.state(*path) != State::Warm, self.standing(*path))
        });
        let Some(to) = next else { return };
        self.unsteer(to);
        self.settle_on(to, now);
        self.act(Action::Replay { from: gone, silent_since });
        self.report(Some(gone), to, MoveReason::LinkDown, None, now);
        if self.is_dead(to) {
            self.condemn_active(MoveReason::LinkDown, now);
            self.rescue(now);
        }
    }

    /// Gives the traffic a link to leave through if it has none.
    pub(super) fn rescue(&mut self, now: Instant) {
        if !self.is_stranded() {
            return;
        }
        let reason = self.trouble.map_or(MoveReason::LinkDown, |trouble| trouble.reason);
        let next = self
            .open_paths()
            .into_iter()
            .filter(|path| self.active != Some(*path) && !self.is_dead(*path))
            .min_by_key(|path| (self.state(*path) != State::Warm, self.standing(*path)));
        if let Some(to) = next {
            self.force(to, reason, now);
            return;
        }
        if self.role == Role::Client
            && let Some(onto) = self.pathless(None)
        {
            self.steer_active(onto, self.config.steer_after, now);
        }
    }

    /// The next link to try that is up and has no path, after `last` in the order of keys.
    fn pathless(&self, last: Option<PathKey>) -> Option<PathKey> {
        let fit = |link: &Link| link.up && !link.open && link.broken.is_none();
        let all = || self.links.iter().filter(|(_, link)| fit(link)).map(|(path, _)| *path);
        last.and_then(|last| all().find(|path| *path > last))
            .or_else(|| all().min_by_key(|path| self.standing(*path)))
    }

    fn steer_active(&mut self, onto: PathKey, trial: Duration, now: Instant) {
        let Some(active) = self.active else { return };
        let dead = self.is_dead(active);
        let echo = self.config.compare_after(&self.links[&active].evidence, false);
        let since = if dead { now } else { now + echo };
        self.act(Action::Steer { from: active, onto });
        self.steering = Some(Steering {
            onto,
            since,
            probed: dead,
            until: Some(since + trial),
            confirmed: false,
        });
        if let Some(link) = self.links.get_mut(&active) {
            link.steered_onto = Some(onto);
        }
        self.shift(active, State::Steered, now);
    }

    /// The last rung for a path that is silent on a link that is up: lend it another link for a
    /// moment. Links whose path is being validated prove themselves without that.
    pub(super) fn try_steering(&mut self, now: Instant) {
        if self.steering_deadline().is_none_or(|at| now < at) {
            return;
        }
        if let Some(onto) = self.pathless(None) {
            self.steer_active(onto, self.config.steer_trial, now);
        }
    }

    pub(super) fn steering_deadline(&self) -> Option<Instant> {
        let trouble = self.trouble.filter(|trouble| trouble.suspect)?;
        let active = self.active?;
        if self.role == Role::Gateway || self.steering.is_some() || self.is_dead(active) {
            return None;
        }
        let onto = self.pathless(None)?;
        if self.links[&onto].state == State::Probing {
            return None;
        }
        let resumed = self.links[&active].since + self.config.steer_spacing;
        let first = trouble.silent_since + self.config.steer_after;
        Some(if self.links[&active].steered_back { resumed } else { first })
    }

    /// Confirms an attempt to steer by its acknowledgements, or ends it.
    pub(super) fn settle_steering(&mut self, now: Instant) {
        let Some((active, steering)) = self.active.zip(self.steering) else { return };
        let last_ack = self.links[&active].evidence.last_ack;
        let early = self.trouble.is_some_and(|trouble| last_ack > Some(trouble.silent_since));
        if !steering.confirmed && last_ack > Some(steering.since) {
            self.confirm_steering(active, steering, now);
        } else if !steering.confirmed && early && !self.is_dead(active) {
            // Its own link had answered before the packets of this attempt could be.
            self.drop_steering(now);
        } else if steering.until.is_some_and(|until| now >= until) {
            if steering.confirmed && self.is_well() {
                self.steering = Some(Steering { until: None, ..steering });
            } else {
                self.end_steering(active, steering.onto, now);
            }
        } else if !steering.probed && now >= steering.since {
            self.steering = Some(Steering { probed: true, ..steering });
            self.probe(active, now);
        }
    }

    /// The link that was lent is silent in its turn.
    pub(super) fn doubt_steering(&mut self, now: Instant) {
        let until = now + self.config.steer_after;
        if let Some(steering) = self.steering.as_mut().filter(|steering| steering.confirmed) {
            steering.until = Some(until);
        }
    }

    pub(super) fn settle_deadline(&self) -> Option<Instant> {
        let steering = self.steering.as_ref()?;
        let probe = (!steering.probed).then_some(steering.since);
        [probe, steering.until].into_iter().flatten().min()
    }

    fn end_steering(&mut self, active: PathKey, onto: PathKey, now: Instant) {
        if self.is_dead(active)
            && let Some(next) = self.pathless(Some(onto))
        {
            self.steer_active(next, self.config.steer_after, now);
            return;
        }
        self.drop_steering(now);
        if let Some(link) = self.links.get_mut(&active) {
            link.steered_back = true;
        }
    }

    fn confirm_steering(&mut self, active: PathKey, steering: Steering, now: Instant) {
        let silent_since = self.silence_of(active);
        let reason = self.trouble.map_or(MoveReason::BlackHole, |trouble| trouble.reason);
        self.trouble = None;
        self.steering = Some(Steering { confirmed: true, until: None, ..steering });
        self.moved_at = Some(now);
        if let Some(link) = self.links.get_mut(&active) {
            link.strike(&self.config, now);
            link.lost_traffic = true;
            link.steered_back = false;
        }
        self.report(Some(active), steering.onto, reason, silent_since, now);
        if self.state(steering.onto) != State::Probing {
            self.open(steering.onto, now);
        }
    }

    /// Takes the traffic back from a link that is gone.
    pub(super) fn drop_steering(&mut self, now: Instant) {
        let Some(active) = self.active.filter(|_| self.steering.is_some()) else { return };
        self.steering = None;
        self.unsteer(active);
        self.shift(active, State::Suspect, now);
        if self.probeable(active) {
            self.probe(active, now);
        }
    }

    pub(super) fn steers_onto(&self, path: PathKey) -> bool {
        self.steering.is_some_and(|steering| steering.onto == path)
    }

    pub(super) fn is_trying_to_steer(&self) -> bool {
        self.steering.is_some_and(|steering| !steering.confirmed)
    }

    pub(super) fn unsteer(&mut self, path: PathKey) {
        if let Some(link) = self.links.get_mut(&path)
            && link.steered_onto.take().is_some()
        {
            self.act(Action::Unsteer { path });
        }
    }

    /// Paths left a moment ago may be needed again.
    pub(super) fn unsteer_spares(&mut self, now: Instant) {
        for path in self.open_paths() {
            if self.active != Some(path)
                && self.state(path) == State::Steered
                && !self.is_dead(path)
            {
                self.unsteer(path);
                if let Some(link) = self.links.get_mut(&path) {
                    link.retire_at = None;
                }
                self.shift(path, State::Warm, now);
                self.probe(path, now);
            }
        }
    }

    /// Whether the active path works as far as anyone can tell.
    pub(super) fn is_well(&self) -> bool {
        self.active.is_some()
            && !self.is_stranded()
            && self.trouble.is_none_or(|trouble| !trouble.suspect)
    }
}
