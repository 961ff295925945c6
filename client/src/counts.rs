//! What became of flows since the daemon started.

use whimbrel_common::metrics::Tally;

use crate::ferry::{End, Ferry};

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
    /// Which limits of the gateway it told of.
    pub(crate) limits: Tally,
}

impl Counts {
    /// A flow is over.
    pub(crate) fn over(&mut self, ferry: &Ferry) {
        self.past.add(ferry);
    }

    /// Counts how it ended.
    pub(crate) fn end(&mut self, end: &End) {
        self.ends.count(end.name());
        if let End::Refused(reason) = end {
            self.refusals.count(&reason.to_string());
        }
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
