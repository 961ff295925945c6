//! How often something that others write too is written anew.
//!
//! Whoever manages a host's networks writes its settings after every change, and is answered at
//! once. Another program that insists on its own would be answered for ever: the pauses grow.

use std::time::{Duration, Instant};

/// Answers at once in a row: a change of networks brings several writes (a lease, a route, IPv6).
const FREE: u32 = 8;

/// After so long without a write the next one is the first again.
const CALM: Duration = Duration::from_secs(10);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Contest {
    last: Option<Instant>,
    rounds: u32,
}

impl Contest {
    /// Somebody else has written at `now`. How long to wait before writing anew.
    pub fn pause(&mut self, now: Instant) -> Duration {
        let pause = Self::pause_of(self.rounds);
        // The pause itself is no calm.
        let calm = self.last.is_none_or(|last| now >= last + pause + CALM);
        self.rounds = if calm { 1 } else { self.rounds + 1 };
        self.last = Some(now);
        Self::pause_of(self.rounds)
    }

    fn pause_of(rounds: u32) -> Duration {
        let excess = rounds.saturating_sub(FREE);
        if excess == 0 {
            return Duration::ZERO;
        }
        Duration::from_secs(1).saturating_mul(1 << (excess - 1).min(6)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may choose any start")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_rival_that_insists_is_answered_ever_more_rarely() {
        let (mut contest, mut now) = (Contest::default(), start());
        let mut pauses = Vec::new();
        for _ in 0..17 {
            let pause = contest.pause(now);
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(contest.pause(now + LONGEST + CALM), Duration::ZERO, "after a calm");
    }

    #[test]
    fn changes_of_networks_are_answered_at_once_however_many_there_are() {
        let (mut contest, begin) = (Contest::default(), start());
        for change in 0..100 {
            assert_eq!(contest.pause(begin + CALM * change), Duration::ZERO);
        }
    }
}
