//! What is known of the paths of a connection, as the decisions about them want it told.
//!
//! The engine sends acknowledgements on the path that carries data, so those of a backup path are
//! lost with the active one. The gateway therefore answers packets on a backup path by a ping on the
//! same path: there, what arrives is the answer.

use std::collections::BTreeMap;
use std::time::Instant;

use whimbrel_common::path::Evidence;

use crate::endpoint::{Connection, Endpoint, Frames, Path};
use crate::observed::Progress;

/// Looks at the paths of one connection again and again, and remembers what it saw.
#[derive(Debug)]
pub struct Witness {
    /// The path that carries, and since when.
    carries: (Option<Path>, Instant),
    seen: BTreeMap<Path, Seen>,
}

/// What [`Witness::look`] found.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// What is known of the path, once the engine sends on it.
    pub evidence: Option<Evidence>,
    /// The peer was heard on it since the last look.
    pub heard: bool,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    frames: Frames,
    /// When the peer was heard last.
    heard_at: Instant,
    /// When something that must arrive was sent last, unless something sent later has arrived: the
    /// engine then finds out by itself what was lost before.
    told_at: Option<Instant>,
}

impl Witness {
    /// Nothing was seen yet.
    pub fn new(now: Instant) -> Self {
        Self { carries: (None, now), seen: BTreeMap::new() }
    }

    /// `active` carries the data.
    pub fn note_active(&mut self, active: Option<Path>, now: Instant) {
        if self.carries.0 != active {
            self.carries = (active, now);
        }
    }

    /// Looks at one path.
    pub fn look(
        &mut self,
        endpoint: &mut Endpoint,
        connection: Connection,
        path: Path,
        now: Instant,
    ) -> Sight {
        let frames = endpoint.frames(connection, path).unwrap_or_default();
        let first = Seen { frames, heard_at: now, told_at: (frames.told > 0).then_some(now) };
        let seen = self.seen.entry(path).or_insert(first);
        let heard = seen.frames.heard != frames.heard;
        if heard {
            seen.heard_at = now;
        }
        if seen.frames.told != frames.told {
            seen.told_at = Some(now);
        }
        seen.frames = frames;
        let active = (self.carries.0 == Some(path)).then_some(self.carries.1);
        let progress = endpoint.progress(connection, path);
        let pending = |told: &Instant| {
            progress.is_some_and(|progress| {
                progress.expecting_since.is_some() && progress.newest_acked_sent < Some(*told)
            })
        };
        seen.told_at = seen.told_at.filter(pending);
        Sight { evidence: progress.map(|progress| seen.evidence(&progress, active)), heard }
    }

    /// A path is gone.
    pub fn forget(&mut self, path: Path) {
        self.seen.remove(&path);
    }
}

impl Seen {
    fn evidence(&self, progress: &Progress, active_since: Option<Instant>) -> Evidence {
        let (expecting_since, last_ack) = if let Some(active) = active_since {
            // Before it carried, its acknowledgements may have been lost with another path.
            (progress.expecting_since.map(|since| since.max(active)), progress.last_ack)
        } else {
            let since = progress.expecting_since.filter(|since| self.heard_at < *since);
            (since, progress.last_ack.max(Some(self.heard_at)))
        };
        let undelivered = self.told_at.max(self.told_at.and(progress.last_ack));
        Evidence {
            expecting_since,
            last_ack,
            last_receive: Some(self.heard_at),
            undelivered,
            srtt: progress.srtt,
            rttvar: progress.rttvar,
        }
    }
}
