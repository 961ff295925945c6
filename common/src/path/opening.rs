//! Links and their paths: coming, being validated, going.

use std::time::Instant;

use super::{Action, Link, MoveReason, PathKey, Paths, Role, State};

impl Paths {
    pub(super) fn link_up(&mut self, path: PathKey, described: Link, now: Instant) {
        let Some(link) = self.links.get_mut(&path) else {
            self.links.insert(path, described);
            self.tend_openings(now);
            self.rescue(now);
            return;
        };
        link.name = described.name;
        link.rank = described.rank;
        link.metered = described.metered;
        link.cold = described.cold;
        if !std::mem::replace(&mut link.up, true) {
            link.broken = None;
            link.last_send_error = None;
            self.link_returned(path, now);
        } else if !self.is_well() && self.probeable(path) {
            self.probe(path, now);
        }
        self.tend_openings(now);
        self.rescue(now);
    }

    fn link_returned(&mut self, path: PathKey, now: Instant) {
        if !self.is_well()
            && let Some(link) = self.links.get_mut(&path)
        {
            link.cooldown_until = None;
        }
        if !self.links[&path].open {
            return;
        }
        if self.active == Some(path) {
            if self.is_trying_to_steer() {
                self.drop_steering(now);
            } else if self.steering.is_none() {
                self.unsteer(path);
            }
            self.restart_trouble(now);
        } else if self.state(path) == State::Draining {
            if let Some(link) = self.links.get_mut(&path) {
                link.retire_at = None;
            }
            self.shift(path, State::Warm, now);
        } else if !self.is_well() {
            self.unsteer_spares(now);
        }
        if self.probeable(path) {
            self.probe(path, now);
        }
    }

    pub(super) fn link_down(&mut self, path: PathKey, reason: MoveReason, now: Instant) {
        let Some(link) = self.links.get_mut(&path) else { return };
        if !std::mem::replace(&mut link.up, false) {
            return;
        }
        link.trial = None;
        if !link.open {
            self.abandon_opening(path, now);
            self.shift(path, State::Absent, now);
        } else if self.active != Some(path) && self.state(path) != State::Steered {
            self.drain(path, now);
        }
        if self.steers_onto(path) {
            self.drop_steering(now);
            self.condemn_active(reason, now);
        } else if self.active == Some(path) && self.steering.is_none() {
            self.condemn_active(reason, now);
        }
        if let Some(trouble) = &mut self.trouble
            && self.active == Some(path)
        {
            trouble.reason = reason;
        }
        self.rescue(now);
    }

    fn drain(&mut self, path: PathKey, now: Instant) {
        if self.role == Role::Client {
            self.shift(path, State::Draining, now);
            self.set_retirement(path, now);
        } else {
            self.shift(path, State::Suspect, now);
        }
    }

    fn abandon_opening(&mut self, path: PathKey, now: Instant) {
        if self.state(path) != State::Probing {
            return;
        }
        if let Some(link) = self.links.get_mut(&path) {
            link.end_path();
            link.strike(&self.config, now);
        }
        self.act(Action::Close { path });
        self.rest(path, now);
    }

    /// The state of a link without a path.
    fn rest(&mut self, path: PathKey, now: Instant) {
        let resting =
            self.links.get(&path).is_some_and(|link| link.up && link.cooldown_until.is_some());
        let to = if resting && self.role == Role::Client { State::Cooldown } else { State::Absent };
        self.shift(path, to, now);
    }

    pub(super) fn opened(&mut self, path: PathKey, now: Instant) {
        let link = self.links.entry(path).or_insert_with(|| Link::unnamed(path, now));
        if link.open {
            return;
        }
        link.begin_path(now);
        if self.active.is_none() {
            // A path that was just validated has a link, whatever was said of it.
            link.up = true;
            self.start_on(path, now);
            self.honour_wanted(now);
            self.tend_openings(now);
            return;
        }
        if !link.up {
            self.drain(path, now);
            return;
        }
        self.shift(path, State::Warm, now);
        if self.role == Role::Gateway {
            self.announce();
        }
        if self.steers_onto(path) {
            let reason = self.trouble.map_or(MoveReason::BlackHole, |trouble| trouble.reason);
            self.force(path, reason, now);
        } else {
            self.rescue(now);
        }
        self.honour_wanted(now);
        self.honour_pin(now);
        if self.trouble.is_some() {
            self.unsettled = Some(now);
        }
    }

    pub(super) fn open_failed(&mut self, path: PathKey, now: Instant) {
        if self.state(path) != State::Probing {
            return;
        }
        if let Some(link) = self.links.get_mut(&path) {
            link.end_path();
            link.strike(&self.config, now);
        }
        self.rest(path, now);
    }

    pub(super) fn closed(&mut self, path: PathKey, now: Instant) {
        self.open_failed(path, now);
        if !self.links.get(&path).is_some_and(|link| link.open) {
            return;
        }
        self.unsteer(path);
        if let Some(link) = self.links.get_mut(&path) {
            link.end_path();
            link.strike(&self.config, now);
        }
        self.rest(path, now);
        if self.active == Some(path) {
            self.replace_active(path, now);
        }
        if self.active.is_none() {
            self.forget_attempts(now);
        }
    }

    /// The connection is gone, and every attempt to open a path with it.
    fn forget_attempts(&mut self, now: Instant) {
        let probing: Vec<PathKey> = self.links.keys().copied().collect();
        for path in probing {
            if self.state(path) == State::Probing {
                self.open_failed(path, now);
            }
        }
    }

    pub(super) fn open(&mut self, path: PathKey, now: Instant) {
        let Some(link) = self.links.get_mut(&path).filter(|link| link.up && !link.open) else {
            return;
        };
        link.open_by = Some(now + self.config.open_timeout);
        link.cooldown_until = None;
        self.act(Action::Open { path });
        self.shift(path, State::Probing, now);
    }

    /// Whether `path` should have a path and has none. Opening one takes a connection.
    fn lacks_path(&self, path: PathKey) -> bool {
        self.role == Role::Client
            && self.active.is_some()
            && self.links.get(&path).is_some_and(|link| {
                let idle = matches!(link.state, State::Absent | State::Cooldown);
                let needed = !link.cold || self.is_pinned(path);
                link.up && !link.open && idle && needed
            })
    }

    pub(super) fn open_everything(&mut self, now: Instant) {
        let idle = |link: &Link| matches!(link.state, State::Absent | State::Cooldown);
        let closed: Vec<PathKey> = self
            .links
            .iter()
            .filter(|(_, link)| link.up && !link.open && idle(link))
            .map(|(path, _)| *path)
            .collect();
        for path in closed {
            self.open(path, now);
        }
    }

    pub(super) fn tend_openings(&mut self, now: Instant) {
        let all: Vec<PathKey> = self.links.keys().copied().collect();
        let well = self.is_well();
        for path in all {
            let Some(link) = self.links.get_mut(&path) else { continue };
            if !well {
                link.shorten_rest(&self.config);
            }
            if link.cooldown_until.is_some_and(|until| now >= until) {
                link.cooldown_until = None;
            }
            if link.open_by.is_some_and(|by| now >= by) {
                self.abandon_opening(path, now);
            } else if self.lacks_path(path) {
                if self.links[&path].cooldown_until.is_none() {
                    self.open(path, now);
                } else {
                    self.shift(path, State::Cooldown, now);
                }
            }
            self.dismiss_cold(path, now);
        }
    }

    /// A cold link that was opened for nothing is closed again.
    fn dismiss_cold(&mut self, path: PathKey, now: Instant) {
        if self.is_unneeded(path)
            && self.is_well()
            && self.idle_until(path).is_some_and(|until| now >= until)
        {
            self.drain(path, now);
        }
    }

    fn is_unneeded(&self, path: PathKey) -> bool {
        self.role == Role::Client
            && self.active != Some(path)
            && !self.is_pinned(path)
            && self.links.get(&path).is_some_and(|link| link.cold && link.state == State::Warm)
    }

    fn idle_until(&self, path: PathKey) -> Option<Instant> {
        Some(self.links.get(&path)?.since + self.config.dwell)
    }

    pub(super) fn opening_deadline(&self) -> Option<Instant> {
        let deadline = |(path, link): (&PathKey, &Link)| {
            let idle = self.idle_until(*path).filter(|_| self.is_unneeded(*path) && self.is_well());
            [link.open_by, link.cooldown_until, idle].into_iter().flatten().min()
        };
        self.links.iter().filter_map(deadline).min()
    }

    /// Closes what was left long enough ago, unless it might still be needed.
    pub(super) fn retire(&mut self, now: Instant) {
        for path in self.open_paths() {
            if self.links[&path].retire_at.is_none_or(|at| now < at) {
                continue;
            }
            if self.active == Some(path) {
                self.postpone(path, None);
            } else if self.is_well() {
                self.close(path, now);
            } else {
                self.postpone(path, Some(now + self.config.drain_floor));
            }
        }
    }

    fn postpone(&mut self, path: PathKey, at: Option<Instant>) {
        if let Some(link) = self.links.get_mut(&path) {
            link.retire_at = at;
        }
    }

    /// What was in flight there is lost to the engine then, and sent again elsewhere.
    pub(super) fn close(&mut self, path: PathKey, now: Instant) {
        self.act(Action::Close { path });
        self.unsteer(path);
        if let Some(link) = self.links.get_mut(&path) {
            link.end_path();
        }
        self.rest(path, now);
        self.tend_openings(now);
    }

    pub(super) fn retire_deadline(&self) -> Option<Instant> {
        self.links.values().filter(|link| link.open).filter_map(|link| link.retire_at).min()
    }
}
