//! What happened, for the people it happened to.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use whimbrel_common::metrics::{Histogram, Tally};
use whimbrel_common::path::{Move, PathKey, State};

use crate::control::Events;
use crate::report::{Event, EventKind, MoveRecord, UnixMillis};
use crate::trace::Trace;

/// After a move, losses on the old path are noticed within a few round trips: then the bytes sent
/// again are counted.
const SETTLE: Duration = Duration::from_millis(500);

/// A move onto a path that shows nothing for so long is told without its gap.
const UNKNOWN: Duration = Duration::from_secs(5);

/// Events and moves.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) events: Events,
    pub(crate) moves: u64,
    pub(crate) last_move: Option<MoveRecord>,
    /// Whoever wants to know more.
    pub(crate) trace: Trace,
    /// How often what happened.
    pub(crate) kinds: Tally,
    /// Why it moved how often.
    pub(crate) reasons: Tally,
    /// How long nothing arrived at moves.
    pub(crate) gaps: Histogram,
    /// How long the gateway was away before a session went on.
    pub(crate) absences: Histogram,
    /// When the gateway was heard last, while there is no connection.
    left: Option<Instant>,
    open: VecDeque<OpenMove>,
}

/// A move whose cost is not known yet.
#[derive(Debug)]
struct OpenMove {
    record: MoveRecord,
    to: PathKey,
    at: Instant,
    silent_since: Instant,
    replayed: u64,
    lost_before: u64,
    settles: Option<Instant>,
}

impl Journal {
    /// Records an event about nothing in particular.
    pub(crate) fn tell(&mut self, event: EventKind, text: impl Into<String>) {
        self.record(event, text.into(), None);
    }

    /// Records an event about a link.
    pub(crate) fn tell_of(&mut self, event: EventKind, link: &str, text: impl Into<String>) {
        self.record(event, text.into(), Some(link.to_owned()));
    }

    fn record(&mut self, event: EventKind, text: String, link: Option<String>) {
        self.kinds.count(&event.to_string());
        if event != EventKind::Path {
            self.trace.event(event, link.as_deref());
        }
        self.events.record(Event { at: unix_millis(), event, text, link, moved: None });
    }

    /// A path changed its state.
    pub(crate) fn path(&mut self, link: &str, from: State, to: State) {
        self.trace.path(link, from, to);
        self.tell_of(EventKind::Path, link, format!("{link}: {from} to {to}"));
    }

    /// The connection is lost, over which the gateway was heard last at `heard`.
    pub(crate) fn left(&mut self, heard: Instant) {
        self.left.get_or_insert(heard);
    }

    /// There is a connection again, over which the session goes on or does not.
    pub(crate) fn returned(&mut self, resumed: bool, now: Instant) {
        if let Some(heard) = self.left.take().filter(|_| resumed) {
            self.absences.observe(now.saturating_duration_since(heard));
        }
    }

    /// A move began. `replayed` bytes of flows are on their way again already.
    pub(crate) fn moved(
        &mut self,
        step: &Move,
        from: Option<String>,
        to: String,
        replayed: u64,
        lost_before: u64,
    ) {
        self.moves += u64::from(step.from.is_some());
        let reason = step.reason.to_string();
        let record = MoveRecord {
            at: unix_millis(),
            from,
            to,
            reason,
            gap_ms: None,
            retransmitted_bytes: None,
        };
        if step.from.is_none() {
            return;
        }
        self.reasons.count(&step.reason.to_string());
        self.kinds.count(&EventKind::Moved.to_string());
        self.trace.moved(&record, false);
        self.last_move = Some(record.clone());
        self.open.push_back(OpenMove {
            record,
            to: step.to,
            at: step.at,
            silent_since: step.silent_since.unwrap_or(step.at),
            replayed,
            lost_before,
            settles: None,
        });
    }

    /// More bytes were sent again for the last move.
    pub(crate) fn add_replayed(&mut self, bytes: u64) {
        if let Some(step) = self.open.back_mut() {
            step.replayed += bytes;
        }
    }

    /// Completes moves whose cost is known by now. `last_ack` tells when a path last made progress.
    pub(crate) fn settle(
        &mut self,
        now: Instant,
        lost: u64,
        last_ack: impl Fn(PathKey) -> Option<Instant>,
    ) {
        for step in &mut self.open {
            if step.record.gap_ms.is_none()
                && let Some(ack) = last_ack(step.to).filter(|ack| *ack > step.at)
            {
                let gap = ack.saturating_duration_since(step.silent_since);
                self.gaps.observe(gap);
                step.record.gap_ms = Some((gap.as_secs_f64() * 10_000.0).round() / 10.0);
                step.settles = Some(now + SETTLE);
                self.last_move = Some(step.record.clone());
            }
        }
        while let Some(step) = self.open.front() {
            let due = step.settles.unwrap_or(step.at + UNKNOWN);
            if due > now {
                break;
            }
            let Some(mut step) = self.open.pop_front() else { break };
            let lost = lost.saturating_sub(step.lost_before);
            step.record.retransmitted_bytes = Some(step.replayed + lost);
            self.last_move = Some(step.record.clone());
            self.trace.moved(&step.record, true);
            let text = describe(&step.record);
            self.events.record(Event {
                at: step.record.at,
                event: EventKind::Moved,
                text,
                link: Some(step.record.to.clone()),
                moved: Some(step.record),
            });
        }
    }

    /// When [`settle`](Self::settle) wants to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let settles = self.open.front().map(|step| step.settles.unwrap_or(step.at + UNKNOWN));
        [settles, self.trace.deadline()].into_iter().flatten().min()
    }
}

fn describe(record: &MoveRecord) -> String {
    let from = record.from.as_deref().unwrap_or("nowhere");
    let gap = record.gap_ms.map_or_else(String::new, |gap| format!(", gap {gap} ms"));
    let again = record.retransmitted_bytes.unwrap_or(0);
    format!("moved from {from} to {} ({}{gap}, {again} bytes again)", record.to, record.reason)
}

/// The wall clock, for people.
pub(crate) fn unix_millis() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
