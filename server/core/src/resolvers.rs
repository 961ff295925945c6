//! The gateway's own name servers, which answer for its clients: one is asked at a time, and the next
//! one when it is silent.

use std::net::{IpAddr, SocketAddr};
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

    /// Whether it is among those that are asked.
    #[must_use]
    pub fn contains(&self, server: IpAddr) -> bool {
        self.servers.iter().any(|known| known.ip() == server)
    }

    /// Whom to ask; `None` without any.
    pub fn choose(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.asked.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE) {
            self.current += 1;
            self.asked = None;
        }
        self.asked.get_or_insert(now);
        self.current()
    }

    /// This one has answered, which says nothing of another that is asked by now.
    pub fn answered(&mut self, server: SocketAddr) {
        if self.current() == Some(server) {
            self.asked = None;
        }
    }

    /// This one is not there. However many queries tell it, one other server is asked instead.
    pub fn failed(&mut self, server: SocketAddr) {
        if self.current() == Some(server) {
            self.current += 1;
            self.asked = None;
        }
    }

    fn current(&self) -> Option<SocketAddr> {
        let count = self.servers.len().max(1);
        self.servers.get(self.current % count).copied()
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
            resolvers.answered(first);
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
        resolvers.failed(second);
        assert_eq!(resolvers.choose(now + PATIENCE), Some(first));
        // The same list again changes nothing.
        resolvers.failed(first);
        resolvers.set(servers().to_vec());
        assert_eq!(resolvers.choose(now + PATIENCE), Some(second));
    }

    #[test]
    fn two_queries_that_fail_change_over_once() {
        let ([first, second], now) = (servers(), start());
        let mut resolvers = Resolvers::default();
        resolvers.set(servers().to_vec());
        assert_eq!(resolvers.choose(now), Some(first));
        assert_eq!(resolvers.choose(now), Some(first));
        resolvers.failed(first);
        resolvers.failed(first);
        assert_eq!(resolvers.choose(now), Some(second));
    }

    #[test]
    fn an_answer_of_the_last_one_says_nothing_of_the_next() {
        let ([first, second], now) = (servers(), start());
        let mut resolvers = Resolvers::default();
        resolvers.set(servers().to_vec());
        resolvers.choose(now);
        assert_eq!(resolvers.choose(now + PATIENCE), Some(second));
        resolvers.answered(first);
        assert_eq!(resolvers.choose(now + 2 * PATIENCE), Some(first), "the second is silent too");
    }
}
