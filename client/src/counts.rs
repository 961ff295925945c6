//! What became of flows since the daemon started.

use std::time::{Duration, Instant};

use whimbrel_common::metrics::Tally;
use whimbrel_common::wire::RefuseReason;

use crate::ferry::{End, Ferry};

/// Refusals for being at a limit are told at most this often: a program that tries again and again
/// would fill the journal.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Bytes of flows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// From applications.
    pub(crate) up: u64,
    /// To applications.
    pub(crate) down: u64,
    /// Sent a second time, by either end.
    pub(crate) replayed: u64,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Of flows that are over.
    past: Bytes,
    /// How flows ended.
    pub(crate) ends: Tally,
    /// Why flows were refused.
    pub(crate) refusals: Tally,
    /// When a limit was told of last.
    told: Option<Instant>,
}

impl Counts {
    /// A flow is over.
    pub(crate) fn over(&mut self, ferry: &Ferry) {
        self.past.add(ferry);
    }

    /// Counts how it ended. Whether a person should hear that a limit was reached.
    pub(crate) fn end(&mut self, end: &End, now: Instant) -> bool {
        self.ends.count(end.name());
        let End::Refused(reason) = end else { return false };
        self.refusals.count(&reason.to_string());
        let long_ago = |told: Instant| now.saturating_duration_since(told) >= TELL_EVERY;
        let tell = *reason == RefuseReason::Limit && self.told.is_none_or(long_ago);
        if tell {
            self.told = Some(now);
        }
        tell
    }

    /// The gateway was out of reach for too long.
    pub(crate) fn refuse_unreached(&mut self) {
        self.ends.count("refused");
        self.refusals.count("gateway-unreachable");
    }

    /// Bytes of all flows, those that are over included.
    pub(crate) fn bytes<'f>(&self, living: impl Iterator<Item = &'f Ferry>) -> Bytes {
        let mut bytes = self.past;
        living.for_each(|ferry| bytes.add(ferry));
        bytes
    }
}

impl End {
    /// What [`name`](Self::name) may be.
    pub(crate) const NAMES: [&str; 5] =
        ["complete", "refused", "reset-by-gateway", "reset-by-application", "protocol"];

    /// How it ended, in a word.
    pub(crate) fn name(&self) -> &'static str {
        let [complete, refused, by_gateway, by_application, protocol] = Self::NAMES;
        match self {
            Self::Complete => complete,
            Self::Refused(_) => refused,
            Self::ByGateway => by_gateway,
            Self::ByApplication => by_application,
            Self::Violation(_) | Self::Wire(_) => protocol,
        }
    }
}

impl Bytes {
    fn add(&mut self, ferry: &Ferry) {
        self.up += ferry.up_bytes;
        self.down += ferry.down_bytes;
        self.replayed += ferry.replayed;
    }
}
