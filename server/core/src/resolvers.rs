//! The gateway's own name servers, which answer for its clients: one is asked at a time, and the next
//! one when it is silent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A server that has left a query unanswered for so long is silent. Resolvers of programs ask again
/// after 5 s (resolv.conf(5)), and then it should be another one.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Resolvers {
    servers: Vec<SocketAddr>,
    current: usize,
    /// Since when nothing was answered that was asked.
    asked: Option<Instant>,
}

impl Resolvers {
    /// Asks these from now on, the first one first.
    pub fn set(&mut self, servers: Vec<SocketAddr>) {
        if servers != self.servers {
            *self = Self { servers, ..Self::default() };
        }
    }

    /// Whom to ask; `None` without any.
    pub fn choose(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.asked.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE) {
            self.current += 1;
            self.asked = None;
        }
        self.asked.get_or_insert(now);
        let count = self.servers.len().max(1);
        self.servers.get(self.current % count).copied()
    }

    /// The one that was asked has answered.
    pub fn answered(&mut self) {
        self.asked = None;
    }

    /// The one that was asked is not there.
    pub fn failed(&mut self) {
        self.current += 1;
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary start of a virtual clock")]
    fn start() -> Instant {
        Instant::now()
    }

    fn servers() -> [SocketAddr; 2] {
        ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]
    }

    #[test]
    fn one_is_asked_for_as_long_as_it_answers() {
        let ([first, _], now) = (servers(), start());
        let mut resolvers = Resolvers::default();
        assert_eq!(resolvers.choose(now), None);
        resolvers.set(servers().to_vec());
        for second in 0..20 {
            assert_eq!(resolvers.choose(now + Duration::from_secs(second)), Some(first));
            resolvers.answered();
        }
    }

    #[test]
    fn the_next_is_asked_when_it_is_silent_or_gone() {
        let ([first, second], now) = (servers(), start());
        let mut resolvers = Resolvers::default();
        resolvers.set(servers().to_vec());
        assert_eq!(resolvers.choose(now), Some(first));
        assert_eq!(resolvers.choose(now + PATIENCE / 2), Some(first));
        assert_eq!(resolvers.choose(now + PATIENCE), Some(second));
        resolvers.failed();
        assert_eq!(resolvers.choose(now + PATIENCE), Some(first));
        // The same list again changes nothing.
        resolvers.failed();
        resolvers.set(servers().to_vec());
        assert_eq!(resolvers.choose(now + PATIENCE), Some(second));
    }
}
