//! Which path ought to carry the traffic: wishes, ranks, and the trial a better path undergoes.

use std::time::Instant;

use super::link::Trial;
use super::{Link, MoveReason, PathKey, Paths, Role, State};

/// What a person asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pin {
    path: PathKey,
    /// Not honoured yet: move as soon as the path is warm.
    pending: bool,
}

/// How good a path is to have, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Standing {
    unpinned: bool,
    metered: bool,
    cold: bool,
    rank: u32,
    path: PathKey,
}

impl Paths {
    pub(super) fn standing(&self, path: PathKey) -> Standing {
        let link = self.links.get(&path);
        Standing {
            unpinned: self.pin.is_none_or(|pin| pin.path != path),
            metered: link.is_some_and(|link| link.metered),
            cold: link.is_some_and(|link| link.cold),
            rank: link.map_or(u32::MAX, |link| link.rank),
            path,
        }
    }

    /// Whether the active path answered a moment ago.
    fn is_fresh(&self, now: Instant) -> bool {
        let Some(link) = self.active.and_then(|active| self.links.get(&active)) else {
            return false;
        };
        let recent = self.config.compare_after(&link.evidence, false);
        let acked = link.evidence.last_ack.is_some_and(|ack| now <= ack + recent);
        self.trouble.is_none() && self.is_well() && acked
    }

    pub(super) fn prefer_by_peer(&mut self, path: PathKey, now: Instant) {
        if self.active == Some(path) {
            self.wanted = None;
            return;
        }
        let usable = self.links.get(&path).is_some_and(|link| link.open && link.up)
            && matches!(self.state(path), State::Warm | State::Suspect);
        if !usable || self.active.is_none() {
            // The client's word may overtake the validation of the path it speaks of.
            self.wanted = (self.role == Role::Gateway).then_some(path);
            return;
        }
        let crossing = self.role == Role::Client
            && self
                .left
                .is_some_and(|left| left.path == path && now < left.at + self.config.crossing);
        if crossing && self.is_well() {
            return;
        }
        self.wanted = None;
        // A gateway leaves a path by itself only when nothing it sends there arrives: what is in
        // flight to us is lost, however well our own direction works.
        let gentle = self.role == Role::Gateway && self.is_fresh(now);
        if gentle {
            if let Some(from) = self.active.and_then(|active| self.links.get_mut(&active)) {
                from.strike(&self.config, now);
            }
            self.move_gently(path, MoveReason::PeerAsked, now);
        } else {
            self.force(path, MoveReason::PeerAsked, now);
        }
    }

    pub(super) fn honour_wanted(&mut self, now: Instant) {
        if let Some(path) = self.wanted.take() {
            self.prefer_by_peer(path, now);
        }
    }

    pub(super) fn prefer_by_hand(&mut self, path: PathKey, now: Instant) {
        if !self.links.contains_key(&path) {
            return;
        }
        self.pin = Some(Pin { path, pending: self.active != Some(path) });
        if let Some(link) = self.links.get_mut(&path) {
            link.cooldown_until = None;
        }
        self.tend_openings(now);
        self.honour_pin(now);
    }

    pub(super) fn honour_pin(&mut self, now: Instant) {
        let Some(pin) = self.pin.filter(|pin| pin.pending) else { return };
        if self.active == Some(pin.path) {
            self.pin = Some(Pin { pending: false, ..pin });
        } else if self.state(pin.path) == State::Warm && self.steering.is_none() {
            self.pin = Some(Pin { pending: false, ..pin });
            if self.is_well() {
                self.move_gently(pin.path, MoveReason::Hand, now);
            } else {
                self.force(pin.path, MoveReason::Hand, now);
            }
        }
    }

    pub(super) fn is_pinned(&self, path: PathKey) -> bool {
        self.pin.is_some_and(|pin| pin.path == path)
    }

    /// Back to the best path; what was moved by hand need not dwell.
    pub(super) fn release(&mut self, now: Instant) {
        if self.pin.take().is_some() {
            self.moved_at = None;
        }
        self.tend_openings(now);
    }

    /// The path that deserves the traffic more than the active one, were it to prove itself.
    fn better(&self) -> Option<PathKey> {
        let active = self.active.filter(|_| {
            self.role == Role::Client && self.trouble.is_none() && self.steering.is_none()
        })?;
        let ready = |path: &PathKey, link: &Link| {
            link.state == State::Warm && !self.is_dead(*path) && link.cooldown_until.is_none()
        };
        let best = self
            .links
            .iter()
            .filter(|(path, link)| link.open && ready(path, link))
            .map(|(path, _)| *path)
            .min_by_key(|path| self.standing(*path))?;
        (self.standing(best) < self.standing(active)).then_some(best)
    }

    pub(super) fn consider_return(&mut self, now: Instant) {
        self.honour_pin(now);
        let better = self.better();
        for (path, link) in &mut self.links {
            if Some(*path) != better {
                link.trial = None;
            }
        }
        let Some(path) = better else { return };
        let Some(trial) = self.links[&path].trial else {
            if self.trial_start(path).is_some_and(|at| now >= at) {
                self.set_trial(
                    path,
                    Some(Trial { since: now, sent: now, answered: false, clean: 0 }),
                );
                self.probe(path, now);
            }
            return;
        };
        self.advance_trial(path, trial, now);
    }

    fn advance_trial(&mut self, path: PathKey, mut trial: Trial, now: Instant) {
        let link = &self.links[&path];
        if !trial.answered && link.evidence.last_ack > Some(trial.sent) {
            trial.answered = true;
            trial.clean = trial.clean.saturating_add(1);
        }
        if !trial.answered {
            if now >= trial.sent + self.config.spare_after(&link.evidence) {
                self.set_trial(path, None);
                if let Some(link) = self.links.get_mut(&path) {
                    link.trial_after = Some(now + self.config.trial_pause);
                }
                return;
            }
        } else if trial.clean >= self.config.clean_probes
            && now >= trial.since + self.config.clean_span
            && self.dwelt_at().is_none_or(|at| now >= at)
        {
            let reason = self.reason_for(path);
            if let Some(link) = self.links.get_mut(&path) {
                link.lost_traffic = false;
            }
            self.move_gently(path, reason, now);
            return;
        } else if now >= trial.sent + self.trial_gap() {
            trial.sent = now;
            trial.answered = false;
            self.probe(path, now);
        }
        self.set_trial(path, Some(trial));
    }

    fn reason_for(&self, to: PathKey) -> MoveReason {
        let metered = |path: PathKey| self.links.get(&path).is_some_and(|link| link.metered);
        if self.is_pinned(to) {
            MoveReason::Hand
        } else if self.links.get(&to).is_some_and(|link| link.lost_traffic) {
            MoveReason::Return
        } else if self.active.is_some_and(metered) && !metered(to) {
            MoveReason::Metered
        } else {
            MoveReason::Preferred
        }
    }

    fn set_trial(&mut self, path: PathKey, trial: Option<Trial>) {
        if let Some(link) = self.links.get_mut(&path) {
            link.trial = trial;
        }
    }

    /// Spreads the clean probes over their span.
    fn trial_gap(&self) -> std::time::Duration {
        self.config.clean_span / self.config.clean_probes.saturating_sub(1).max(1)
    }

    fn dwelt_at(&self) -> Option<Instant> {
        Some(self.moved_at? + self.config.dwell)
    }

    /// So early that the last probe is answered when the dwell is over.
    fn trial_start(&self, path: PathKey) -> Option<Instant> {
        let link = &self.links[&path];
        let span = self.config.dwell.saturating_sub(self.config.clean_span);
        let dwell = self.moved_at.map(|at| at + span);
        link.opened_at.max(dwell).max(link.trial_after)
    }

    pub(super) fn return_deadline(&self) -> Option<Instant> {
        let path = self.better()?;
        let link = &self.links[&path];
        let Some(trial) = link.trial else { return self.trial_start(path) };
        if !trial.answered {
            return Some(trial.sent + self.config.spare_after(&link.evidence));
        }
        let next = trial.sent + self.trial_gap();
        if trial.clean < self.config.clean_probes {
            return Some(next);
        }
        Some(next.min((trial.since + self.config.clean_span).max(self.dwelt_at().unwrap_or(next))))
    }
}
