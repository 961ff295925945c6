//! Silence: noticing it, comparing it, waiting it out.

use std::time::{Duration, Instant};

use super::{Action, Evidence, MoveReason, PathKey, Paths, Role, State};

/// The active path does not answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trouble {
    pub(super) reason: MoveReason,
    /// Any later acknowledgement ends it.
    pub(super) silent_since: Instant,
    /// The same, less what we slept through.
    counted_from: Instant,
    /// The comparison asks for answers after this.
    began: Instant,
    pub(super) suspect: bool,
    probes: u32,
    next_probe: Instant,
    summoned: bool,
}

impl Trouble {
    /// Everybody gets a new chance to answer.
    pub(super) fn restart(&mut self, now: Instant) {
        self.counted_from = now;
        self.began = now;
        self.probes = 0;
        self.next_probe = now;
        self.summoned = false;
    }
}

impl Paths {
    pub(super) fn take_evidence(&mut self, path: PathKey, evidence: Evidence, now: Instant) {
        let Some(link) = self.links.get_mut(&path) else { return };
        if !link.open {
            return;
        }
        let before = link.evidence;
        link.record(evidence, &self.config);
        let decisive = link.state == State::Suspect || link.trial.is_some();
        let acked = evidence.last_ack > before.last_ack;
        let received = evidence.last_receive > before.last_receive;
        let freeing = self.active == Some(path) && self.is_anything_stuck(now);
        let decisive = decisive || freeing || self.trouble.is_some() || self.steering.is_some();
        if (acked && decisive) || (received && self.trouble.is_some_and(|trouble| trouble.suspect))
        {
            self.unsettled = Some(now);
        }
        if received && self.trouble.is_some_and(|trouble| trouble.suspect) {
            self.echo(path, now);
        }
    }

    /// A sign of life in an outage: ask at once rather than at the next round.
    fn echo(&mut self, path: PathKey, now: Instant) {
        let quiet = |at: Instant| now >= at + self.config.answer_spacing;
        if self.probeable(path) && self.links[&path].probed.is_none_or(quiet) {
            self.probe(path, now);
        }
    }

    pub(super) fn begin_trouble(
        &mut self,
        path: PathKey,
        silent_since: Instant,
        counted_from: Instant,
        reason: MoveReason,
        now: Instant,
    ) {
        tracing::debug!(%path, %reason, "active path is silent");
        self.trouble = Some(Trouble {
            reason,
            silent_since,
            counted_from,
            began: now,
            suspect: false,
            probes: 0,
            next_probe: now,
            summoned: false,
        });
    }

    /// The active path is suspect from now on, whatever it said before.
    pub(super) fn condemn_active(&mut self, reason: MoveReason, now: Instant) {
        let Some(active) = self.active else { return };
        if self.trouble.is_none_or(|trouble| !trouble.suspect) {
            self.begin_trouble(active, now, now, reason, now);
        }
        self.declare_suspect(now);
    }

    fn declare_suspect(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.suspect = true;
        }
        if let Some(active) = self.active
            && self.steering.is_none()
        {
            self.shift(active, State::Suspect, now);
        }
        self.doubt_steering(now);
        self.unsteer_spares(now);
    }

    pub(super) fn watch_active(&mut self, now: Instant) {
        let Some(active) = self.active else {
            self.trouble = None;
            return;
        };
        let link = &self.links[&active];
        if self.trouble.is_none() {
            let Some(from) = link.silent_since(self.awake_since) else { return };
            let brisk = link.is_brisk(from, &self.config);
            if now < from + self.config.compare_after(&link.evidence, brisk) {
                return;
            }
            let since = link.evidence.expecting_since.unwrap_or(from);
            self.begin_trouble(active, since, from, MoveReason::BlackHole, now);
        } else if self.has_recovered(active) {
            self.end_trouble(active, now);
            return;
        }
        self.pursue(active, now);
    }

    fn has_recovered(&self, active: PathKey) -> bool {
        self.trouble.is_none_or(|trouble| {
            !self.is_stranded()
                && self.links[&active].evidence.last_ack > Some(trouble.silent_since)
        })
    }

    fn end_trouble(&mut self, active: PathKey, now: Instant) {
        let Some(trouble) = self.trouble.take() else { return };
        if trouble.suspect {
            tracing::debug!(path = %active, "active path answers again");
        }
        let brisk_silence = now >= trouble.counted_from + self.config.brisk_floor * 3 / 4;
        if let Some(link) = self.links.get_mut(&active) {
            link.steered_back = false;
            if trouble.suspect || brisk_silence {
                tracing::debug!(path = %active, "silence healed by itself");
                link.heal(now);
            }
        }
        if self.steering.is_none() {
            self.shift(active, State::Active, now);
        }
    }

    /// The silence goes on: probe, suspect, decide.
    fn pursue(&mut self, active: PathKey, now: Instant) {
        let Some(trouble) = self.trouble else { return };
        self.note_answers();
        if now >= trouble.next_probe {
            self.probe_round(now);
        }
        if !trouble.suspect && now >= self.suspect_at(active, &trouble) {
            self.declare_suspect(now);
        }
        if self.trouble.is_some_and(|trouble| trouble.suspect) {
            if let Some(to) = self.answered(now) {
                self.force(to, trouble.reason, now);
                return;
            }
            self.summon(now);
            self.try_steering(now);
        }
    }

    fn suspect_at(&self, active: PathKey, trouble: &Trouble) -> Instant {
        let link = &self.links[&active];
        let brisk = link.is_brisk(trouble.counted_from, &self.config);
        trouble.counted_from + self.config.suspect_after(&link.evidence, brisk)
    }

    fn probe_round(&mut self, now: Instant) {
        let Some(trouble) = &mut self.trouble else { return };
        let round = trouble.probes;
        trouble.probes = round.saturating_add(1);
        trouble.next_probe = now + self.config.probe_gap(trouble.probes);
        let comparing = round < self.config.comparison_probes;
        for path in self.open_paths() {
            // The active path defends itself twice as often as the others have to answer.
            let turn = self.active == Some(path) || !comparing || round.is_multiple_of(2);
            if turn && self.probeable(path) {
                self.probe(path, now);
            }
        }
    }

    /// When the silence of the active path against `spare`'s answer is conclusive.
    fn verdict_at(&self, spare: PathKey) -> Option<Instant> {
        let (trouble, active) = self.trouble.zip(self.active)?;
        let link = self.links.get(&spare)?;
        if !link.open || self.is_dead(spare) || link.steered_onto.is_some() || active == spare {
            return None;
        }
        let (_, answer) = link.answered.filter(|(began, _)| *began == trouble.began)?;
        let own = &self.links[&active].evidence;
        let handicap = (own.srtt + 2 * own.rttvar)
            .saturating_sub(link.evidence.srtt)
            .min(self.config.verdict_patience);
        Some(answer + handicap)
    }

    /// The first answer of every path counts: later ones, to later probes, must not put the verdict
    /// off.
    fn note_answers(&mut self) {
        let Some(began) = self.trouble.map(|trouble| trouble.began) else { return };
        for link in self.links.values_mut().filter(|link| link.open) {
            // An answer this soon can only be to something sent before the comparison.
            let earliest = match link.opened_at {
                Some(at) if at > began => at,
                _ => began + link.evidence.srtt / 4,
            };
            let known = link.answered.is_some_and(|(of, _)| of == began);
            if !known && let Some(answer) = link.last_answer().filter(|at| *at >= earliest) {
                link.answered = Some((began, answer));
            }
        }
    }

    fn answered(&self, now: Instant) -> Option<PathKey> {
        let conclusive = |path: &PathKey| self.verdict_at(*path).is_some_and(|at| now >= at);
        self.open_paths().into_iter().filter(conclusive).min_by_key(|path| self.standing(*path))
    }

    /// Nothing answers: open what has no path, resting and cold links too.
    fn summon(&mut self, now: Instant) {
        if self.role == Role::Gateway || self.has_warm_spare() {
            return;
        }
        let Some(trouble) = self.trouble.as_mut().filter(|trouble| !trouble.summoned) else {
            return;
        };
        trouble.summoned = true;
        self.open_everything(now);
    }

    fn has_warm_spare(&self) -> bool {
        self.links
            .iter()
            .any(|(path, link)| link.state == State::Warm && link.open && !self.is_dead(*path))
    }

    pub(super) fn watch_spares(&mut self, now: Instant) {
        for path in self.open_paths() {
            if self.active == Some(path) {
                continue;
            }
            let link = &self.links[&path];
            match link.state {
                State::Warm => {
                    let overdue = link
                        .silent_since(self.awake_since)
                        .is_some_and(|from| now >= from + self.config.spare_after(&link.evidence));
                    if overdue {
                        self.shift(path, State::Suspect, now);
                        self.set_probe_gap(path, self.config.spare_probe);
                    }
                }
                State::Suspect if link.evidence.last_ack > Some(link.since) => {
                    self.shift(path, State::Warm, now);
                }
                State::Suspect => self.nag(path, now),
                State::Absent
                | State::Probing
                | State::Active
                | State::Steered
                | State::Draining
                | State::Cooldown => {}
            }
        }
    }

    /// When what is on its way over a spare path counts as stuck there: the engine sends it again
    /// only when something later was acknowledged on that path, or when the path is gone.
    fn stuck_at(&self, path: PathKey) -> Option<Instant> {
        let link = self.links.get(&path)?;
        let spare = link.open
            && self.active != Some(path)
            && matches!(link.state, State::Warm | State::Suspect);
        // Not excused by our own sleep: on a busy machine that would put it off for ever, and the
        // active path has to prove itself first anyway.
        let since = link.evidence.undelivered.filter(|_| spare)?;
        Some(since + self.config.spare_after(&link.evidence))
    }

    fn is_anything_stuck(&self, now: Instant) -> bool {
        self.links.keys().any(|path| self.stuck_at(*path).is_some_and(|at| now >= at))
    }

    /// Closes a spare path on which something is stuck, once the active one has proved that it can
    /// carry it.
    pub(super) fn free_stuck(&mut self, now: Instant) {
        for path in self.open_paths() {
            let Some(at) = self.stuck_at(path).filter(|at| now >= *at) else { continue };
            let Some(active) = self.active else { return };
            let link = &self.links[&active];
            if self.is_well() && link.evidence.last_ack > Some(at) {
                tracing::debug!(%path, "closed for what is stuck there");
                self.close(path, now);
            } else if self.must_prove(active, at) {
                self.probe(active, now);
            }
        }
    }

    /// Whether nobody asked the active path for an answer since `at`.
    fn must_prove(&self, active: PathKey, at: Instant) -> bool {
        let link = &self.links[&active];
        let asked = link.probed.max(link.evidence.expecting_since) >= Some(at);
        !asked && self.trouble.is_none() && self.probeable(active)
    }

    pub(super) fn stuck_deadline(&self) -> Option<Instant> {
        let active = self.active?;
        let unproved = |at: &Instant| self.must_prove(active, *at);
        self.links.keys().filter_map(|path| self.stuck_at(*path)).filter(unproved).min()
    }

    /// Asks a suspect spare path again, less and less often.
    fn nag(&mut self, path: PathKey, now: Instant) {
        if self.trouble.is_some() || !self.probeable(path) || now < self.nag_at(path) {
            return;
        }
        let gap = (self.links[&path].probe_gap * 2).min(self.config.keep_alive);
        self.probe(path, now);
        self.set_probe_gap(path, gap.max(self.config.spare_probe));
    }

    fn nag_at(&self, path: PathKey) -> Instant {
        let link = &self.links[&path];
        let from = link.probed.map_or(link.since, |probed| probed.max(link.since));
        Self::gap_since(from, link.probe_gap)
    }

    fn set_probe_gap(&mut self, path: PathKey, gap: Duration) {
        if let Some(link) = self.links.get_mut(&path) {
            link.probe_gap = gap;
        }
    }

    pub(super) fn keep_alive(&mut self, now: Instant) {
        if self.probe_on_silence_at().is_some_and(|at| now >= at) {
            self.activity = None;
            if let Some(active) = self.active.filter(|active| self.probeable(*active)) {
                self.probe(active, now);
            }
        }
        if !self.links.keys().any(|path| self.is_due(*path, now)) {
            return;
        }
        // One wake-up for all: a path that is due soon is probed with the one that is due.
        let soon = now + self.config.keep_alive / 4;
        for path in self.open_paths() {
            if self.is_due(path, soon) {
                self.probe(path, now);
            }
        }
    }

    /// The application was moving bytes and all has gone quiet: someone who only reads would never
    /// learn of a black hole.
    fn probe_on_silence_at(&self) -> Option<Instant> {
        let link = self.links.get(&self.active?)?;
        if self.trouble.is_some() || link.evidence.expecting_since.is_some() {
            return None;
        }
        let last = self.activity?;
        let last = last.max(link.last_answer().unwrap_or(last));
        let last = last.max(link.evidence.last_receive.unwrap_or(last));
        Some(last + self.config.compare_after(&link.evidence, false))
    }

    fn is_due(&self, path: PathKey, by: Instant) -> bool {
        self.keep_alive_at(path).is_some_and(|at| at <= by)
    }

    /// The gateway sends none: only packets from the client's side keep a mapping of its NAT.
    fn keep_alive_at(&self, path: PathKey) -> Option<Instant> {
        if self.role == Role::Gateway || self.trouble.is_some() || !self.probeable(path) {
            return None;
        }
        let link = &self.links[&path];
        if link.state == State::Suspect {
            return None;
        }
        let idle = if link.metered && self.active != Some(path) {
            self.config.keep_alive_metered
        } else {
            self.config.keep_alive
        };
        Some(link.last_answer().max(link.probed)? + idle)
    }

    pub(super) fn active_deadline(&self) -> Option<Instant> {
        let active = self.active?;
        let link = self.links.get(&active)?;
        let Some(trouble) = &self.trouble else {
            let from = link.silent_since(self.awake_since)?;
            let brisk = link.is_brisk(from, &self.config);
            return Some(from + self.config.compare_after(&link.evidence, brisk));
        };
        let anyone = self.links.keys().any(|path| self.probeable(*path));
        let probe = anyone.then_some(trouble.next_probe);
        let verdict = if trouble.suspect {
            self.links.keys().filter_map(|path| self.verdict_at(*path)).min()
        } else {
            Some(self.suspect_at(active, trouble))
        };
        [probe, verdict, self.steering_deadline()].into_iter().flatten().min()
    }

    pub(super) fn spares_deadline(&self) -> Option<Instant> {
        let deadline = |(path, link): (&PathKey, &super::Link)| {
            if !link.open || self.active == Some(*path) {
                return None;
            }
            match link.state {
                State::Warm => Some(
                    link.silent_since(self.awake_since)? + self.config.spare_after(&link.evidence),
                ),
                State::Suspect if self.trouble.is_none() && self.probeable(*path) => {
                    Some(self.nag_at(*path))
                }
                State::Absent
                | State::Probing
                | State::Suspect
                | State::Active
                | State::Steered
                | State::Draining
                | State::Cooldown => None,
            }
        };
        self.links.iter().filter_map(deadline).min()
    }

    pub(super) fn keep_alive_deadline(&self) -> Option<Instant> {
        let idle = self.links.keys().filter_map(|path| self.keep_alive_at(*path)).min();
        [idle, self.probe_on_silence_at()].into_iter().flatten().min()
    }

    pub(super) fn send_error(&mut self, path: PathKey, now: Instant) {
        let window = self.config.send_error_window;
        let Some(link) = self.links.get_mut(&path) else { return };
        let previous = link.last_send_error.replace(now);
        let repeated = previous.is_some_and(|at| {
            now < at + window && link.last_answer().is_none_or(|answer| answer <= at)
        });
        if repeated && link.broken.is_none() {
            link.broken = Some(now);
        }
        let concerns_traffic = match &self.steering {
            Some(steering) => steering.onto == path,
            None => self.active == Some(path),
        };
        if concerns_traffic {
            self.condemn_active(MoveReason::SendError, now);
            if repeated {
                self.rescue(now);
            } else {
                self.probe_all(now);
            }
        } else if self.state(path) == State::Warm {
            self.shift(path, State::Suspect, now);
            self.set_probe_gap(path, self.config.spare_probe);
        }
    }

    pub(super) fn restart_trouble(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.trouble {
            trouble.restart(now);
            trouble.silent_since = now;
        }
    }

    pub(super) fn announce(&mut self) {
        if let Some(path) = self.active {
            self.act(Action::Carry { path });
        }
    }
}
