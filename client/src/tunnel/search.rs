//! Looking for the gateway: over every link and to every address, the first answer wins.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use whimbrel_carrier::Connection;
use whimbrel_common::path::PathKey;

/// A second attempt, over another link or to another address, starts this long after the first:
/// the connection attempt delay of RFC 8305 §8.
const STAGGER: Duration = Duration::from_millis(250);

/// An attempt without an answer is given up after this long; another follows.
const ATTEMPT: Duration = Duration::from_secs(4);

/// Between failed rounds, doubling up to the second; a link that comes up cuts it short.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A gateway that refused us is asked again this rarely: only its owner can change its mind.
const PAUSE_AFTER_DENIAL: Duration = Duration::from_secs(30);

/// One try to reach the gateway.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) connection: Connection,
    pub(super) link: PathKey,
    /// A firewall of this machine lets nothing out.
    pub(super) forbidden: bool,
    until: Instant,
}

/// The attempts under way, and when the next may start.
#[derive(Debug)]
pub(super) struct Search {
    attempts: Vec<Attempt>,
    /// What was tried in this round.
    tried: BTreeSet<(PathKey, SocketAddr)>,
    next: Option<Instant>,
    pause: Duration,
    /// Everything is tried at the same time in this round.
    rush: bool,
}

impl Search {
    pub(super) fn new() -> Self {
        Self {
            attempts: Vec::new(),
            tried: BTreeSet::new(),
            next: None,
            pause: PAUSE.0,
            rush: false,
        }
    }

    /// Something changed: try at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.pause = PAUSE.0;
        self.next = Some(now);
    }

    /// Everything is worth another try.
    pub(super) fn start_over(&mut self, now: Instant) {
        self.tried.clear();
        self.hurry(now);
    }

    /// Everything is worth another try, and there is no time to do it one after the other.
    pub(super) fn rush(&mut self, now: Instant) {
        self.start_over(now);
        self.rush = true;
    }

    /// The gateway said no.
    pub(super) fn rest(&mut self, now: Instant) {
        self.next = Some(now + PAUSE_AFTER_DENIAL);
    }

    /// When an attempt ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.attempts.iter().map(|attempt| attempt.until).min()
    }

    /// When the next attempt may start.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// The link an attempt leaves by.
    pub(super) fn link_of(&self, connection: Connection) -> Option<PathKey> {
        let attempt = self.attempts.iter().find(|attempt| attempt.connection == connection)?;
        Some(attempt.link)
    }

    /// Whether an attempt leaves by this link.
    pub(super) fn uses(&self, link: PathKey) -> bool {
        self.attempts.iter().any(|attempt| attempt.link == link)
    }

    /// An attempt was started.
    pub(super) fn add(&mut self, connection: Connection, link: PathKey, now: Instant) {
        self.attempts.push(Attempt { connection, link, forbidden: false, until: now + ATTEMPT });
    }

    /// The kernel refuses to send over a link.
    pub(super) fn forbid(&mut self, link: PathKey) {
        let by = self.attempts.iter_mut().filter(|attempt| attempt.link == link);
        by.for_each(|attempt| attempt.forbidden = true);
    }

    /// An attempt is over, one way or the other.
    pub(super) fn remove(&mut self, connection: Connection) -> Option<Attempt> {
        let at = self.attempts.iter().position(|attempt| attempt.connection == connection)?;
        Some(self.attempts.swap_remove(at))
    }

    /// All attempts are over.
    pub(super) fn remove_all(&mut self) -> Vec<Attempt> {
        std::mem::take(&mut self.attempts)
    }

    /// Attempts that took too long.
    pub(super) fn remove_expired(&mut self, now: Instant) -> Vec<Attempt> {
        self.attempts.extract_if(.., |attempt| attempt.until <= now).collect()
    }

    /// What to try next, if it is time: the first of `candidates` not tried in this round.
    pub(super) fn choose(
        &mut self,
        candidates: &[(PathKey, SocketAddr)],
        now: Instant,
    ) -> Option<(PathKey, SocketAddr)> {
        if self.next.is_none_or(|at| at > now) {
            return None;
        }
        let fresh = candidates.iter().find(|candidate| !self.tried.contains(candidate)).copied();
        match fresh {
            Some(candidate) => {
                self.tried.insert(candidate);
                self.next = Some(if self.rush { now } else { now + STAGGER });
            }
            None => {
                self.tried.clear();
                self.rush = false;
                self.next = Some(now + self.pause);
                self.pause = (self.pause * 2).min(PAUSE.1);
            }
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_try_everything_and_then_pause_longer_each_time() {
        let candidates: Vec<(PathKey, SocketAddr)> =
            [1, 2].map(|link| (PathKey(link), "192.0.2.1:443".parse().unwrap())).into();
        let (mut search, mut now) = (Search::new(), Instant::now());
        assert_eq!(search.choose(&candidates, now), None, "nobody asked for a search yet");
        search.hurry(now);
        let mut starts = Vec::new();
        let begin = now;
        for _ in 0..4 * 60 * 4 {
            if let Some((link, _)) = search.choose(&candidates, now) {
                starts.push((now - begin, link.0));
            }
            now += Duration::from_millis(250);
        }
        assert_eq!(starts[0], (Duration::ZERO, 1));
        assert_eq!(starts[1], (STAGGER, 2));
        let rounds: Vec<Duration> =
            starts.iter().filter(|(_, link)| *link == 1).map(|(at, _)| *at).collect();
        let gaps: Vec<Duration> = rounds.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted(), "{gaps:?}");
        assert!(gaps.iter().all(|gap| *gap <= 2 * STAGGER + PAUSE.1), "{gaps:?}");
    }

    #[test]
    fn in_a_rush_everything_is_tried_at_once() {
        let candidates: Vec<(PathKey, SocketAddr)> =
            [1, 2, 3].map(|link| (PathKey(link), "192.0.2.1:443".parse().unwrap())).into();
        let (mut search, now) = (Search::new(), Instant::now());
        search.hurry(now);
        assert!(search.choose(&candidates, now).is_some());
        search.rush(now);
        let at_once = std::iter::from_fn(|| search.choose(&candidates, now)).count();
        assert_eq!(at_once, 3, "the one that was tried before, too");
        let next = now + PAUSE.0;
        assert_eq!(search.next(), Some(next), "and then as ever");
        assert!(search.choose(&candidates, next).is_some());
        assert_eq!(search.next(), Some(next + STAGGER));
    }

    #[test]
    fn news_of_a_link_cut_the_pause_short() {
        let candidates = [(PathKey(1), "192.0.2.1:443".parse().unwrap())];
        let (mut search, now) = (Search::new(), Instant::now());
        search.hurry(now);
        assert!(search.choose(&candidates, now).is_some());
        search.rest(now);
        assert_eq!(search.choose(&candidates, now + STAGGER), None);
        search.start_over(now + STAGGER);
        assert!(search.choose(&candidates, now + STAGGER).is_some());
    }
}
