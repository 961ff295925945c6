use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Config, Evidence, PathKey, State};

/// How many signs of life make a rhythm.
const RHYTHM: usize = 5;

/// One link and the path on it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) rank: u32,
    pub(super) metered: bool,
    pub(super) cold: bool,
    pub(super) up: bool,
    /// The engine holds a validated path here.
    pub(super) open: bool,
    pub(super) opened_at: Option<Instant>,
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) evidence: Evidence,
    pub(super) steered_onto: Option<PathKey>,
    pub(super) probed: Option<Instant>,
    /// How long a suspect spare path waits for its next probe.
    pub(super) probe_gap: Duration,
    pub(super) last_send_error: Option<Instant>,
    /// Sending fails for good, since then.
    pub(super) broken: Option<Instant>,
    /// The attempt to open ends then.
    pub(super) open_by: Option<Instant>,
    pub(super) retire_at: Option<Instant>,
    pub(super) cooldown_until: Option<Instant>,
    pub(super) trial: Option<Trial>,
    pub(super) trial_after: Option<Instant>,
    /// The traffic was driven away from here and has not returned.
    pub(super) lost_traffic: bool,
    /// When a comparison began, and when the path first answered in it.
    pub(super) answered: Option<(Instant, Instant)>,
    /// An attempt to steer the path elsewhere brought nothing.
    pub(super) steered_back: bool,
    strikes: u32,
    struck_at: Option<Instant>,
    healed_at: Option<Instant>,
    /// When acknowledgements or other packets arrived lately.
    signs: VecDeque<Instant>,
    /// They have been dense since then.
    dense_since: Option<Instant>,
}

/// A better path earns the traffic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    pub(super) since: Instant,
    pub(super) sent: Instant,
    pub(super) answered: bool,
    pub(super) clean: u32,
}

impl Link {
    pub(super) fn described(
        name: String,
        rank: u32,
        metered: bool,
        cold: bool,
        now: Instant,
    ) -> Self {
        Self {
            name,
            rank,
            metered,
            cold,
            up: true,
            open: false,
            opened_at: None,
            state: State::Absent,
            since: now,
            evidence: Evidence::NONE,
            steered_onto: None,
            probed: None,
            probe_gap: Duration::ZERO,
            last_send_error: None,
            broken: None,
            open_by: None,
            retire_at: None,
            cooldown_until: None,
            trial: None,
            trial_after: None,
            lost_traffic: false,
            answered: None,
            steered_back: false,
            strikes: 0,
            struck_at: None,
            healed_at: None,
            signs: VecDeque::new(),
            dense_since: None,
        }
    }

    /// A path nobody described: the gateway knows no links, only paths.
    pub(super) fn unnamed(path: PathKey, now: Instant) -> Self {
        Self::described(format!("path {path}"), path.0, false, false, now)
    }

    /// Starts afresh with a newly validated path.
    pub(super) fn begin_path(&mut self, now: Instant) {
        self.open = true;
        self.opened_at = Some(now);
        self.evidence = Evidence::NONE;
        self.steered_onto = None;
        self.broken = None;
        self.last_send_error = None;
        self.open_by = None;
        self.retire_at = None;
        self.trial = None;
        self.trial_after = None;
        self.steered_back = false;
        self.healed_at = None;
        self.signs.clear();
        self.dense_since = None;
    }

    pub(super) fn end_path(&mut self) {
        self.open = false;
        self.opened_at = None;
        self.evidence = Evidence::NONE;
        self.steered_onto = None;
        self.retire_at = None;
        self.open_by = None;
        self.trial = None;
        self.answered = None;
    }

    pub(super) fn record(&mut self, evidence: Evidence, config: &Config) {
        let sign = evidence.last_ack.max(evidence.last_receive);
        if let Some(sign) = sign
            && Some(sign) > self.evidence.last_ack.max(self.evidence.last_receive)
        {
            if self.signs.len() == RHYTHM {
                self.signs.pop_front();
            }
            self.signs.push_back(sign);
            let full = self.signs.len() == RHYTHM;
            let dense =
                self.signs.front().is_some_and(|first| sign <= *first + config.dense_within);
            self.dense_since = self.dense_since.or(Some(sign)).filter(|_| dense || !full);
        }
        if evidence.last_ack > self.evidence.last_ack
            && self.broken.is_some_and(|broken| evidence.last_ack > Some(broken))
        {
            self.broken = None;
            self.last_send_error = None;
        }
        self.evidence = evidence;
    }

    /// Since when silence counts, if anything is outstanding.
    pub(super) fn silent_since(&self, awake_since: Option<Instant>) -> Option<Instant> {
        self.evidence
            .expecting_since
            .map(|since| awake_since.map_or(since, |awake| awake.max(since)))
    }

    /// Whether signs of life came so densely that their absence means something at once.
    pub(super) fn is_brisk(&self, silent_since: Instant, config: &Config) -> bool {
        let Some((since, last)) = self.dense_since.zip(self.signs.back().copied()) else {
            return false;
        };
        let dense = last >= since + config.dense_for;
        let unbroken = silent_since <= last + config.dense_within;
        let healed = self.healed_at.is_some_and(|at| silent_since < at + config.heal_memory);
        let receiving = self
            .evidence
            .last_receive
            .is_some_and(|received| received > silent_since + config.one_way_grace);
        dense && unbroken && !healed && !receiving
    }

    /// A silence ended by itself.
    pub(super) fn heal(&mut self, now: Instant) {
        self.healed_at = Some(now);
    }

    /// When the path last answered anything: its validation counts.
    pub(super) fn last_answer(&self) -> Option<Instant> {
        self.evidence.last_ack.max(self.opened_at)
    }

    /// Counts a failure; the link rests before it is opened again or returned to.
    pub(super) fn strike(&mut self, config: &Config, now: Instant) {
        if self.struck_at.is_some_and(|at| now >= at + config.forgiveness) {
            self.strikes = 0;
        }
        self.strikes = self.strikes.saturating_add(1);
        self.struck_at = Some(now);
        self.cooldown_until = Some(now + config.rest(self.strikes));
    }

    /// While nothing works, no failure is held against a link for long.
    pub(super) fn shorten_rest(&mut self, config: &Config) {
        let limit = self.struck_at.map(|at| at + config.outage_rest);
        self.cooldown_until = self.cooldown_until.zip(limit).map(|(until, limit)| until.min(limit));
    }
}
