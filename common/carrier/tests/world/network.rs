//! What is on its way between the ends: late, twice, out of order, or never.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::chance::Chance;

/// A datagram.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: BytesMut,
}

/// How a network treats datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) delay: Duration,
    /// Up to this much more delay, each datagram its own.
    pub(crate) jitter: Duration,
    /// How many of a thousand datagrams are lost.
    pub(crate) loss: u64,
    /// How many of a thousand arrive twice.
    pub(crate) twice: u64,
}

impl Weather {
    pub(crate) fn fair(chance: &mut Chance) -> Self {
        Self { delay: chance.millis(1, 60), jitter: Duration::ZERO, loss: 0, twice: 0 }
    }

    pub(crate) fn usual(chance: &mut Chance) -> Self {
        Self {
            delay: chance.millis(1, 60),
            jitter: chance.millis(0, 20),
            loss: chance.spread(60),
            twice: chance.spread(60),
        }
    }

    pub(crate) fn foul(chance: &mut Chance) -> Self {
        Self {
            delay: chance.millis(1, 200),
            jitter: chance.millis(0, 1500),
            loss: chance.within(50, 700),
            twice: chance.spread(500),
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Network {
    chance: Chance,
    weather: Weather,
    dead_until: Option<Instant>,
    queue: BTreeMap<(Instant, u64), Datagram>,
    count: u64,
    /// Tells one run from another.
    pub(crate) fingerprint: u64,
}

impl Network {
    pub(crate) fn new(mut chance: Chance) -> Self {
        let weather = Weather::usual(&mut chance);
        Self { chance, weather, dead_until: None, queue: BTreeMap::new(), count: 0, fingerprint: 0 }
    }

    pub(crate) fn turn(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Nothing passes until then.
    pub(crate) fn die_until(&mut self, until: Instant) {
        self.dead_until = Some(until);
    }

    pub(crate) fn heal(&mut self) {
        self.dead_until = None;
    }

    fn is_dead(&self, now: Instant) -> bool {
        self.dead_until.is_some_and(|until| now < until)
    }

    pub(crate) fn send(&mut self, datagram: Datagram, now: Instant) {
        self.fingerprint = self
            .fingerprint
            .rotate_left(5)
            .wrapping_add(datagram.bytes.len() as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if self.is_dead(now) || self.chance.per_mille(self.weather.loss) {
            return;
        }
        if self.chance.per_mille(self.weather.twice) {
            self.put(datagram.clone(), now);
        }
        self.put(datagram, now);
    }

    fn put(&mut self, datagram: Datagram, now: Instant) {
        let jitter = u64::try_from(self.weather.jitter.as_millis()).expect("a second or two");
        let due = now + self.weather.delay + self.chance.millis(0, jitter);
        self.count += 1;
        self.queue.insert((due, self.count), datagram);
    }

    /// The next datagram that has arrived.
    pub(crate) fn arrive(&mut self, now: Instant) -> Option<Datagram> {
        loop {
            let entry = self.queue.first_entry()?;
            if entry.key().0 > now {
                return None;
            }
            let datagram = entry.remove();
            if !self.is_dead(now) {
                return Some(datagram);
            }
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(due, _)| *due)
    }
}
