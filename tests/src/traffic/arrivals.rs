//! When bytes arrived: progress, gaps, the longest gap.

use super::{Event, Moment};
use std::time::Duration;

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Arrivals {
    last: Moment,
    reported: Moment,
    longest: Duration,
    worth_telling: Duration,
}

impl Arrivals {
    pub(super) fn new(worth_telling: Duration) -> Self {
        let now = Moment::now();
        Self { last: now, reported: now, longest: Duration::ZERO, worth_telling }
    }

    /// Something has arrived, which makes so many bytes in all.
    pub(super) fn note(&mut self, bytes: u64) {
        let now = Moment::now();
        self.close_gap(now);
        self.last = now;
        if now.since(self.reported) >= PROGRESS_EVERY {
            self.reported = now;
            Event::Progress { at: now, bytes }.report();
        }
    }

    fn close_gap(&mut self, now: Moment) {
        let gap = now.since(self.last);
        self.longest = self.longest.max(gap);
        if gap >= self.worth_telling {
            Event::Gap { from: self.last, to: now }.report();
        }
    }

    /// Forgives a pause of our own making.
    pub(super) fn resume(&mut self) {
        self.last = Moment::now();
    }

    pub(super) fn last(&self) -> Moment {
        self.last
    }

    /// Reports the end; silence up to it counts as a gap when it ended in failure.
    pub(super) fn end(&mut self, bytes: u64, outcome: Result<(), String>) -> bool {
        let at = Moment::now();
        if outcome.is_err() {
            self.close_gap(at);
        }
        let exact = outcome.is_ok();
        let longest_gap_us = u64::try_from(self.longest.as_micros()).unwrap_or(u64::MAX);
        Event::End { at, bytes, exact, longest_gap_us, error: outcome.err() }.report();
        exact
    }
}
