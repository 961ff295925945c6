//! Datagrams of one connection that wait for room, and whose turn it is: theirs or that of the
//! streams.
//!
//! The engine puts its datagrams before everything else, and sends them in their order. So it is
//! given few at a time: as much as the streams send while they have something to send, and whatever
//! fits while they have nothing. What waits meanwhile waits here, by *lane*, which is one sender:
//! lanes are served in turn and a new one first, and a lane that does not drain loses its oldest
//! datagrams at a rate that rises until its sender gives way (FQ-CoDel, RFC 8290).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Bytes that wait at most: 40 ms at 100 Mbit/s.
const MOST: usize = 512 * 1024;

/// What a lane may send in its turn, in bytes: one large packet (RFC 8290 §5.2).
const TURN: i64 = 1500;

/// A wait that is no queue yet (RFC 8289 §4.3 says 5 ms, and no less than a packet takes, which on
/// the slowest links we know, of 1 Mbit/s, is 12 ms).
const TARGET: Duration = Duration::from_millis(15);

/// What waits longer than that for so long is a queue (RFC 8289 §4.2).
const INTERVAL: Duration = Duration::from_millis(100);

/// What has waited so long is lost: by then whoever asked asks again.
const LIFETIME: Duration = Duration::from_secs(1);

/// Datagrams may be ahead of the streams by so much, in bytes, and so a keystroke waits for no more:
/// 5 ms at 10 Mbit/s.
const AHEAD: i64 = 6 * 1024;

/// The engine gets so much at once where streams have nothing to send: what one send call takes.
const BURST: i64 = 46 * 1024;

/// Counted for each datagram beside its bytes: its packet's overhead, or what keeping it takes.
const OVERHEAD: usize = 40;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lanes: HashMap<u64, Lane>,
    /// Lanes that have just begun to wait, and the others, each once in one of them.
    new: VecDeque<u64>,
    old: VecDeque<u64>,
    bytes: usize,
    dropped: u64,
    share: Share,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// Bytes it may send in this turn.
    credit: i64,
    codel: CoDel,
}

/// When a lane must lose something (RFC 8289 §5).
#[derive(Debug, Default)]
struct CoDel {
    /// The wait has been too long if it still is then.
    queue_at: Option<Instant>,
    dropping: bool,
    /// When the next one is dropped.
    next: Option<Instant>,
    /// How many were dropped since it began.
    count: u32,
}

/// How much the engine gets.
#[derive(Debug)]
struct Share {
    /// Bytes that datagrams have sent more than streams, as far as that matters.
    lead: i64,
    /// Bytes it gets at once.
    burst: i64,
}

impl Default for Share {
    fn default() -> Self {
        Self { lead: 0, burst: AHEAD }
    }
}

impl Outbox {
    /// A datagram of a lane waits from now on.
    pub(super) fn push(&mut self, lane: u64, datagram: Bytes, now: Instant) {
        let entry = self.lanes.entry(lane).or_insert_with(|| {
            self.new.push_back(lane);
            Lane { credit: TURN, ..Lane::default() }
        });
        let size = datagram.len() + OVERHEAD;
        entry.waiting.push_back((now, datagram));
        entry.bytes += size;
        self.bytes += size;
        if self.bytes > MOST {
            self.shorten();
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Datagrams that were lost here since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The longest lane loses the older half of what it has.
    fn shorten(&mut self) {
        let Some(longest) = self.lanes.values_mut().max_by_key(|lane| lane.bytes) else { return };
        for _ in 0..longest.waiting.len().div_ceil(2) {
            if let Some((_, size)) = longest.take() {
                self.bytes -= size;
                self.dropped += 1;
            }
        }
    }

    /// The next datagram to send.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Bytes> {
        loop {
            let from_new = !self.new.is_empty();
            let number = if from_new { self.new.front() } else { self.old.front() }.copied()?;
            let lane = self.lanes.entry(number).or_default();
            let spent = lane.credit <= 0;
            let taken = if spent {
                lane.credit += TURN;
                None
            } else {
                let (taken, bytes, dropped) = lane.next(now);
                self.bytes -= bytes;
                self.dropped += dropped;
                taken
            };
            if taken.is_some() {
                return taken;
            }
            // Its turn is over. A new lane that is empty waits among the others once, or it would
            // go before them with each datagram.
            let queue = if from_new { &mut self.new } else { &mut self.old };
            queue.pop_front();
            if spent || from_new {
                self.old.push_back(number);
            } else {
                self.lanes.remove(&number);
            }
        }
    }

    /// Bytes that the engine should have of datagrams at the moment.
    pub(super) fn room(&self) -> usize {
        let Share { lead, burst } = self.share;
        if self.is_held() {
            0
        } else if burst > AHEAD {
            usize::try_from(burst).unwrap_or_default()
        } else {
            usize::try_from(AHEAD - lead).unwrap_or_default()
        }
    }

    /// Whether it is the streams' turn.
    pub(super) fn is_held(&self) -> bool {
        self.share.lead >= AHEAD
    }

    /// The engine has sent `all` bytes, so many of them of datagrams.
    pub(super) fn note_sent(&mut self, datagrams: usize, all: usize) {
        let bytes = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let lead = self.share.lead + 2 * bytes(datagrams) - bytes(all);
        self.share.lead = lead.clamp(-AHEAD, 2 * AHEAD);
    }

    /// The path takes nothing at the moment.
    pub(super) fn note_blocked(&mut self) {
        self.share.burst = AHEAD;
    }

    /// The streams have nothing to send, and the path has room.
    pub(super) fn note_idle_streams(&mut self) {
        self.share.lead = 0;
        self.share.burst = (2 * self.share.burst).min(BURST);
    }
}

impl Lane {
    /// The next datagram, the bytes that left the lane for it, and how many were dropped.
    fn next(&mut self, now: Instant) -> (Option<Bytes>, usize, u64) {
        let (mut left, mut dropped) = (0, 0);
        while let Some((since, _)) = self.waiting.front() {
            let waited = now.saturating_duration_since(*since);
            let few = self.bytes <= usize::try_from(TURN).unwrap_or_default();
            let lost = waited > LIFETIME || self.codel.drops(waited, few, now);
            let Some((datagram, size)) = self.take() else { break };
            left += size;
            if !lost {
                self.credit -= i64::try_from(size).unwrap_or(TURN);
                return (Some(datagram), left, dropped);
            }
            dropped += 1;
        }
        self.codel.relax();
        (None, left, dropped)
    }

    fn take(&mut self) -> Option<(Bytes, usize)> {
        let (_, datagram) = self.waiting.pop_front()?;
        let size = datagram.len() + OVERHEAD;
        self.bytes -= size;
        Some((datagram, size))
    }
}

impl CoDel {
    /// Whether what has waited so long is to be dropped; with `few` bytes nothing is.
    fn drops(&mut self, waited: Duration, few: bool, now: Instant) -> bool {
        if waited < TARGET || few {
            self.relax();
            return false;
        }
        let queue_at = *self.queue_at.get_or_insert(now + INTERVAL);
        if now < queue_at {
            return false;
        }
        if self.dropping && self.next.is_some_and(|next| now < next) {
            return false;
        }
        // One that stopped a moment ago goes on nearly as fast as before.
        let recent = self.next.is_some_and(|next| now < next + 8 * INTERVAL);
        self.count = match (self.dropping, recent) {
            (true, _) => self.count.saturating_add(1),
            (false, true) => self.count.saturating_sub(2).max(1),
            (false, false) => 1,
        };
        let from = self.next.filter(|_| self.dropping).unwrap_or(now);
        self.next = Some(from + INTERVAL.div_f64(f64::from(self.count).sqrt()));
        self.dropping = true;
        true
    }

    fn relax(&mut self) {
        self.queue_at = None;
        self.dropping = false;
    }
}

#[cfg(test)]
mod tests;
