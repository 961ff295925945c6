//! What is on its way between the client and the gateway, over each of the laptop's links: late,
//! twice, out of order, or never.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::chance::Chance;

/// How many links the laptop has.
pub(crate) const LINKS: usize = 2;

/// The direction of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the gateway.
    Up,
    /// To the laptop.
    Down,
}

/// A datagram.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    pub(crate) way: Way,
    /// The laptop's address, as the gateway sees it.
    pub(crate) address: SocketAddr,
    pub(crate) bytes: BytesMut,
}

/// How a link treats datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    delay: Duration,
    /// Up to this much more delay, each datagram its own.
    jitter: Duration,
    /// Of a thousand datagrams so many are lost,
    loss: u64,
    /// so many arrive twice,
    twice: u64,
    /// and so many arrive when nobody waits for them any more.
    stray: u64,
}

impl Weather {
    pub(crate) fn fair(chance: &mut Chance) -> Self {
        Self { delay: chance.millis(1, 60), jitter: Duration::ZERO, loss: 0, twice: 0, stray: 0 }
    }

    pub(crate) fn usual(chance: &mut Chance) -> Self {
        Self {
            delay: chance.millis(1, 60),
            jitter: chance.millis(0, 20),
            loss: chance.spread(60),
            twice: chance.spread(60),
            stray: chance.spread(20),
        }
    }

    pub(crate) fn foul(chance: &mut Chance) -> Self {
        Self {
            delay: chance.millis(1, 200),
            jitter: chance.millis(0, 1500),
            loss: chance.within(50, 700),
            twice: chance.spread(500),
            stray: chance.spread(200),
        }
    }
}

/// One way out of the laptop.
#[derive(Debug)]
struct Link {
    /// Where the gateway sees it. What is sent to an address it had before is lost.
    address: SocketAddr,
    /// Its interface is up.
    up: bool,
    weather: Weather,
    /// Nothing passes until then, up and down.
    dead_until: [Option<Instant>; 2],
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Network {
    chance: Chance,
    links: [Link; LINKS],
    queue: BTreeMap<(Instant, u64), Datagram>,
    count: u64,
    rebound: u16,
}

impl Network {
    pub(crate) fn new(mut chance: Chance) -> Self {
        let link = |at: u8| Link {
            address: ([10, 0, at, 2], 5000).into(),
            up: false,
            weather: Weather::usual(&mut chance),
            dead_until: [None; 2],
        };
        let links = [1, 2].map(link);
        Self { chance, links, queue: BTreeMap::new(), count: 0, rebound: 5000 }
    }

    pub(crate) fn turn(&mut self, link: usize, weather: Weather) {
        self.links[link].weather = weather;
    }

    /// Nothing passes until then.
    pub(crate) fn die_until(&mut self, link: usize, way: Way, until: Instant) {
        self.links[link].dead_until[way as usize] = Some(until);
    }

    /// The interface goes up or down.
    pub(crate) fn switch(&mut self, link: usize, up: bool) {
        self.links[link].up = up;
    }

    pub(crate) fn is_up(&self, link: usize) -> bool {
        self.links[link].up
    }

    /// From here on the gateway sees another address.
    pub(crate) fn rebind(&mut self, link: usize) {
        self.rebound += 1;
        self.links[link].address.set_port(self.rebound);
    }

    pub(crate) fn heal(&mut self) {
        self.links.iter_mut().for_each(|link| link.dead_until = [None; 2]);
    }

    /// The laptop sends by this link.
    pub(crate) fn send_up(&mut self, link: usize, bytes: BytesMut, now: Instant) {
        let address = self.links[link].address;
        self.send(link, Datagram { way: Way::Up, address, bytes }, now);
    }

    /// The gateway sends to this address.
    pub(crate) fn send_down(&mut self, address: SocketAddr, bytes: BytesMut, now: Instant) {
        if let Some(link) = self.link_at(address) {
            self.send(link, Datagram { way: Way::Down, address, bytes }, now);
        }
    }

    /// The link that has this address now.
    pub(crate) fn link_at(&self, address: SocketAddr) -> Option<usize> {
        self.links.iter().position(|link| link.address == address && link.up)
    }

    fn send(&mut self, link: usize, datagram: Datagram, now: Instant) {
        let weather = self.links[link].weather;
        let dead = self.is_dead(link, datagram.way, now);
        if dead || !self.links[link].up || self.chance.per_mille(weather.loss) {
            return;
        }
        if self.chance.per_mille(weather.twice) {
            self.put(&weather, datagram.clone(), now);
        }
        self.put(&weather, datagram, now);
    }

    fn is_dead(&self, link: usize, way: Way, now: Instant) -> bool {
        self.links[link].dead_until[way as usize].is_some_and(|until| now < until)
    }

    fn put(&mut self, weather: &Weather, datagram: Datagram, now: Instant) {
        let jitter = u64::try_from(weather.jitter.as_millis()).expect("a second or two");
        let mut due = now + weather.delay + self.chance.millis(0, jitter);
        if self.chance.per_mille(weather.stray) {
            due += self.chance.millis(500, 12_000);
        }
        self.count += 1;
        self.queue.insert((due, self.count), datagram);
    }

    /// The next datagram that has arrived.
    pub(crate) fn arrive(&mut self, now: Instant) -> Option<Datagram> {
        let entry = self.queue.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(due, _)| *due)
    }
}
