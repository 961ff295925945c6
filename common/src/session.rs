//! One flow between the ends: offsets, credit, and what is kept until the peer has taken it.
//!
//! Both ends hold a [`Sender`] and a [`Receiver`] for every flow. Offsets count the bytes of one
//! direction from zero and mean the same on every stream that ever carries the flow.
//!
//! - The sender keeps every byte until the receiver reports it *taken*: handed on for good, to the
//!   application's or the destination's TCP. An acknowledgement of the carrier says less (the bytes
//!   reached the peer's stack) and frees nothing here.
//! - The sender sends up to the receiver's limit and no further, so a reader that stops reading
//!   bounds the memory of its own flow and slows nothing else.
//! - When the stream that carried the flow is gone, both ends go on with a new one from what the
//!   other has taken ([`Sender::rewind`]); what had arrived but was not taken is sent again.
//!
//! Nothing here reads a clock: `now` enters where time matters.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

/// The credit a flow starts with, in bytes: at 20 ms of round trip it allows 26 Mbit/s at once, and
/// it doubles as long as the reader keeps up.
pub const INITIAL_WINDOW: u64 = 64 * 1024;

/// The largest credit of one flow, in bytes: 1 Gbit/s over 64 ms.
pub const MAX_WINDOW: u64 = 8 * 1024 * 1024;

/// What the windows of all flows of one connection may add up to, in bytes. It is spent only by
/// flows whose readers do not read.
pub const BUDGET: u64 = 256 * 1024 * 1024;

/// The window of each of `flows` flows, in bytes, if all of them used theirs.
pub fn share(flows: usize) -> u64 {
    (BUDGET / flows.max(1) as u64).clamp(INITIAL_WINDOW, MAX_WINDOW)
}

/// Progress is reported at the latest this long after it was made. It bounds how long the sender
/// keeps what it need not keep, and how often an interactive flow causes a report.
pub const REPORT_DELAY: Duration = Duration::from_millis(25);

/// A peer broke the rules of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer reports bytes it was never sent.
    #[error("peer took {taken} bytes of which only {sent} were sent")]
    TakenBeyondSent {
        /// The offset the peer reported.
        taken: u64,
        /// The offset sent so far.
        sent: u64,
    },
    /// The peer reports the end of a stream that has not ended.
    #[error("peer took the end of a stream that has not ended")]
    EndBeforeEnd,
    /// The peer sent more than its credit.
    #[error("peer sent up to offset {offset}, beyond its credit of {limit}")]
    BeyondCredit {
        /// The offset reached.
        offset: u64,
        /// The limit it breaks.
        limit: u64,
    },
    /// The peer resumes from an offset that leaves a hole.
    #[error("peer goes on from offset {offset}, but only {received} bytes arrived before")]
    Hole {
        /// The offset the peer wants to go on from.
        offset: u64,
        /// What had been received.
        received: u64,
    },
}

/// The sending half of one direction of a flow.
#[derive(Debug, Default)]
pub struct Sender {
    /// Bytes `[taken, end)`, in the chunks they came in.
    kept: VecDeque<Bytes>,
    taken: u64,
    end: u64,
    /// Offset up to which the current stream was given the bytes.
    sent: u64,
    /// Offset up to which any stream was ever given the bytes: what the peer may have taken.
    reached: u64,
    /// What the receiver has reported; ahead of `taken` while a new stream still repeats it.
    acknowledged: u64,
    limit: u64,
    finished: bool,
    fin_sent: bool,
    /// Any stream was ever finished.
    fin_reached: bool,
    fin_taken: bool,
}

impl Sender {
    /// A direction whose receiver granted `limit` bytes so far.
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// A direction of a process that is gone: `kept` is what its receiver has not taken after
    /// `taken`, and `ended` whether the local side has ended after that. Any of it may have been
    /// sent; how much credit is left is for the receiver to say.
    pub fn restored(taken: u64, kept: Vec<u8>, ended: bool) -> Self {
        let end = taken + kept.len() as u64;
        let kept = Some(Bytes::from(kept)).filter(|kept| !kept.is_empty());
        Self {
            kept: kept.into_iter().collect(),
            taken,
            end,
            sent: taken,
            reached: end,
            acknowledged: taken,
            limit: end,
            finished: ended,
            fin_reached: ended,
            ..Self::default()
        }
    }

    /// How many bytes may be [pushed](Self::push) now. Zero blocks the local writer.
    pub fn room(&self) -> usize {
        if self.finished {
            return 0;
        }
        // The peer may grant what it likes; what is kept here is ours to bound.
        let kept = MAX_WINDOW.saturating_sub(self.held());
        usize::try_from(self.limit.saturating_sub(self.end).min(kept)).unwrap_or(usize::MAX)
    }

    /// Accepts bytes from the local side; they count against [`room`](Self::room).
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(chunk.len() <= self.room(), "pushed beyond the credit");
        if !chunk.is_empty() {
            self.end += chunk.len() as u64;
            self.kept.push_back(chunk);
        }
    }

    /// The local side has no more to send.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// The next unsent chunk, for the current stream; [`advance`](Self::advance) tells how much of it
    /// the stream took.
    pub fn unsent(&self) -> Option<Bytes> {
        let mut skip = self.sent - self.taken;
        for chunk in &self.kept {
            let length = chunk.len() as u64;
            if skip < length {
                let at = usize::try_from(skip).expect("less than a chunk's length");
                return Some(chunk.slice(at..));
            }
            skip -= length;
        }
        None
    }

    /// The current stream took `count` bytes of what [`unsent`](Self::unsent) showed.
    pub fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count as u64).min(self.end);
        self.reached = self.reached.max(self.sent);
        self.forget(self.acknowledged.min(self.sent));
    }

    /// Whether the current stream has been given everything and must now be finished.
    pub fn end_due(&self) -> bool {
        self.finished && !self.fin_sent && self.sent == self.end
    }

    /// The current stream was finished.
    pub fn end_sent(&mut self) {
        self.fin_sent = true;
        self.fin_reached = true;
    }

    /// The receiver reports progress and credit. A report that is older than one before is inert.
    ///
    /// # Errors
    /// [`Violation`] when it reports what was never sent.
    pub fn acknowledge(&mut self, taken: u64, limit: u64, fin: bool) -> Result<(), Violation> {
        self.check_reached(taken)?;
        if fin && !(self.fin_reached && taken == self.end) {
            return Err(Violation::EndBeforeEnd);
        }
        self.acknowledged = self.acknowledged.max(taken);
        // The bytes of a stream have no holes: what it has yet to repeat cannot be forgotten.
        self.forget(taken.min(self.sent));
        self.limit = self.limit.max(limit);
        self.fin_taken |= fin;
        Ok(())
    }

    /// Goes on with a new stream, sending again from `offset`: what the receiver has taken, or the
    /// oldest byte kept when that is not known yet.
    ///
    /// # Errors
    /// [`Violation`] when the peer claims to have taken what was never sent.
    pub fn rewind(&mut self, offset: u64) -> Result<(), Violation> {
        self.check_reached(offset)?;
        self.sent = self.sent.max(offset);
        self.forget(offset);
        self.sent = self.taken;
        self.fin_sent = self.fin_taken;
        Ok(())
    }

    fn check_reached(&self, taken: u64) -> Result<(), Violation> {
        if taken > self.reached {
            return Err(Violation::TakenBeyondSent { taken, sent: self.reached });
        }
        Ok(())
    }

    fn forget(&mut self, taken: u64) {
        while self.taken < taken {
            let Some(chunk) = self.kept.front_mut() else { break };
            let length = chunk.len() as u64;
            let drop = (taken - self.taken).min(length);
            if drop == length {
                self.kept.pop_front();
            } else {
                chunk.advance(usize::try_from(drop).expect("less than a chunk's length"));
            }
            self.taken += drop;
        }
    }

    /// Bytes handed to the current stream but not reported taken.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.taken
    }

    /// Bytes kept, sent or not.
    pub fn held(&self) -> u64 {
        self.end - self.taken
    }

    /// Bytes accepted from the local side so far.
    pub fn total(&self) -> u64 {
        self.end
    }

    /// What the receiver has reported taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether something waits for the stream: bytes, or the end.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.end || self.end_due()
    }

    /// Whether the receiver took everything including the end.
    pub fn is_done(&self) -> bool {
        self.fin_taken
    }

    /// Whether the local side has ended this direction.
    pub fn is_finished(&self) -> bool {
        self.finished
    }
}

/// The receiving half of one direction of a flow.
#[derive(Debug)]
pub struct Receiver {
    taken: u64,
    window: u64,
    reported: u64,
    limit: u64,
    fin_taken: bool,
    fin_reported: bool,
    /// From where and when on the use of the window is measured.
    mark: u64,
    marked: Option<Instant>,
    /// Bytes of the current stream that were received before and must be skipped.
    skip: u64,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            taken: 0,
            window: INITIAL_WINDOW,
            reported: 0,
            limit: INITIAL_WINDOW,
            fin_taken: false,
            fin_reported: false,
            mark: 0,
            marked: None,
            skip: 0,
        }
    }
}

impl Receiver {
    /// A direction of a process that is gone, which took this much, and maybe the end. What credit
    /// it granted is not known: it cannot have been more than the largest window.
    pub fn restored(taken: u64, ended: bool) -> Self {
        Self { taken, mark: taken, fin_taken: ended, limit: taken + MAX_WINDOW, ..Self::default() }
    }

    /// The credit granted so far: an absolute offset.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes taken so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether the end of the stream was taken.
    pub fn is_done(&self) -> bool {
        self.fin_taken
    }

    /// How many bytes of the current stream must be thrown away before [`take`](Self::take).
    pub fn skip(&self) -> usize {
        usize::try_from(self.skip).unwrap_or(usize::MAX)
    }

    /// `count` bytes of those to [skip](Self::skip) were thrown away.
    pub fn skipped(&mut self, count: usize) {
        self.skip = self.skip.saturating_sub(count as u64);
    }

    /// `count` bytes were handed on for good. `rtt` is the carrier's round trip: credit that is
    /// used up within a few of them is the bottleneck, and doubles.
    ///
    /// # Errors
    /// [`Violation::BeyondCredit`] when the peer sent more than it was allowed to.
    pub fn take(&mut self, count: usize, now: Instant, rtt: Duration) -> Result<(), Violation> {
        let offset = self.taken + count as u64;
        if offset > self.limit {
            return Err(Violation::BeyondCredit { offset, limit: self.limit });
        }
        self.taken = offset;
        let since = *self.marked.get_or_insert(now);
        if self.taken - self.mark >= self.window / 2 {
            // What stands at its limit uses a window in a round trip and the delay of a report.
            if now.saturating_duration_since(since) <= 2 * rtt.max(REPORT_DELAY) {
                self.window = (self.window * 2).min(MAX_WINDOW);
            }
            self.mark = self.taken;
            self.marked = Some(now);
        }
        Ok(())
    }

    /// The end of the stream was handed on.
    pub fn take_end(&mut self) {
        self.fin_taken = true;
    }

    /// Whether a report is worth sending at once: the sender is about to run out of credit, or the
    /// direction is over.
    pub fn report_urgent(&self) -> bool {
        self.limit.saturating_sub(self.taken) <= self.window / 2
            || self.fin_taken != self.fin_reported
    }

    /// Whether there is progress that was not reported.
    pub fn report_due(&self) -> bool {
        self.taken != self.reported || self.fin_taken != self.fin_reported
    }

    /// The report to send: taken, limit, end taken.
    pub fn report(&mut self) -> (u64, u64, bool) {
        self.limit = self.limit.max(self.taken + self.window);
        self.reported = self.taken;
        self.fin_reported = self.fin_taken;
        (self.taken, self.limit, self.fin_taken)
    }

    /// A new stream carries the flow from `offset` on.
    ///
    /// # Errors
    /// [`Violation::Hole`] when bytes between what was taken and `offset` are missing.
    pub fn resume(&mut self, offset: u64) -> Result<(), Violation> {
        if offset > self.taken {
            return Err(Violation::Hole { offset, received: self.taken });
        }
        self.skip = self.taken - offset;
        Ok(())
    }

    /// Keeps the window within a share of memory. Credit already granted stays granted.
    pub fn bound(&mut self, share: u64) {
        self.window = self.window.min(share.max(INITIAL_WINDOW));
    }
}

#[cfg(test)]
mod tests;
