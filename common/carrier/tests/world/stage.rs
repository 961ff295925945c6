//! Everything there is in a run, and how time passes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use whimbrel_carrier::{Endpoint, Identity, Role, Tuning};
use whimbrel_common::cid::ServerId;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::wire::WireFlow;

use crate::GATEWAY;
use crate::chance::Chance;
use crate::client::Client;
use crate::gateway::Gateway;
use crate::journal::Journal;
use crate::network::{Datagram, Network};
use crate::story::{Side, Stories, Story};
use crate::thief::Thief;

/// Time is looked at this often.
const TICK: Duration = Duration::from_millis(1);

/// Steps a run may take: far more than any needs.
const STEPS: u64 = 200_000;

/// An end's own clock, and whether anybody looks at it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Clock {
    /// How far it is ahead.
    pub(crate) ahead: Duration,
    /// The end sleeps until then.
    pub(crate) asleep: Option<Instant>,
}

/// See the [module](self).
pub(crate) struct Stage {
    pub(crate) chance: Chance,
    pub(crate) now: Instant,
    pub(crate) network: Network,
    pub(crate) client: Client,
    pub(crate) gateway: Gateway,
    pub(crate) client_clock: Clock,
    pub(crate) gateway_clock: Clock,
    /// The client's address as the gateway sees it.
    pub(crate) address: SocketAddr,
    pub(crate) stories: Stories,
    pub(crate) thieves: Vec<Thief>,
    /// Programs do all they can at once.
    pub(crate) lively: bool,
    /// Nothing happens any more but what is under way.
    pub(crate) settling: bool,
    steps: u64,
}

/// An endpoint whose choices follow from `chance`.
fn endpoint(key: u8, role: Role, chance: &mut Chance) -> Endpoint {
    let mut seed = [0; 32];
    for chunk in seed.chunks_exact_mut(8) {
        chunk.copy_from_slice(&chance.next().to_le_bytes());
    }
    let identity = Identity { key: SecretKey::from_seed([key; 32]), role };
    let tuning = Tuning { seed: Some(seed), ..Tuning::default() };
    Endpoint::new(&identity, &tuning).expect("the key is a key")
}

/// The client's key, and that of somebody else.
pub(crate) const KEYS: [u8; 2] = [1, 3];

pub(crate) fn client_endpoint(key: u8, chance: &mut Chance) -> Endpoint {
    let gateway = SecretKey::from_seed([2; 32]).public();
    endpoint(key, Role::Client { gateway }, chance)
}

pub(crate) fn gateway_endpoint(chance: &mut Chance) -> Endpoint {
    endpoint(2, Role::Gateway { server: ServerId::default() }, chance)
}

impl Stage {
    pub(crate) fn new(seed: u64, hold: Duration) -> Self {
        let mut chance = Chance::new(seed);
        let now = crate::start();
        let network = Network::new(Chance::new(chance.next()));
        let client = Client::new(client_endpoint(KEYS[0], &mut chance), hold, now);
        let journal = Journal::new(Chance::new(chance.next()));
        let gateway = Gateway::new(gateway_endpoint(&mut chance), hold, journal);
        Self {
            chance,
            now,
            network,
            client,
            gateway,
            client_clock: Clock::default(),
            gateway_clock: Clock::default(),
            address: SocketAddr::from(([10, 0, 1, 2], 5000)),
            stories: Stories::new(),
            thieves: Vec::new(),
            lively: false,
            settling: false,
            steps: 0,
        }
    }

    pub(crate) fn open(&mut self) {
        let flow = WireFlow(self.stories.len() as u64);
        let story = Story::new(Chance::new(self.chance.next()));
        self.stories.insert(flow, story);
        self.client.open(flow);
    }

    /// Lets `span` pass, or less if `until` says so.
    pub(crate) fn run(&mut self, span: Duration, until: impl Fn(&Self) -> bool) {
        let end = self.now + span;
        while self.now < end && !until(self) {
            self.now = self.next().clamp(self.now + TICK, end.max(self.now + TICK));
            self.step();
        }
    }

    /// When something happens next, on a whole tick.
    fn next(&self) -> Instant {
        let of = |clock: Clock, deadline: Option<Instant>| match clock.asleep {
            Some(until) => Some(until),
            None => deadline.and_then(|at| at.checked_sub(clock.ahead)),
        };
        let client = of(self.client_clock, self.client.poll_timeout());
        let gateway = of(self.gateway_clock, self.gateway.poll_timeout());
        let thieves = self.thieves.iter().filter_map(|thief| thief.endpoint.poll_timeout());
        let deadlines = [self.network.next(), client, gateway].into_iter().flatten();
        let next = deadlines.chain(thieves).min().unwrap_or(self.now + Duration::from_secs(1));
        let since = next.saturating_duration_since(self.now).as_micros().div_ceil(1000);
        self.now + TICK * u32::try_from(since).unwrap_or(u32::MAX)
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < STEPS, "the ends never rest");
        for clock in [&mut self.client_clock, &mut self.gateway_clock] {
            clock.asleep.take_if(|until| *until <= self.now);
        }
        if self.lively {
            let sockets = self.stories.values_mut().flat_map(Story::sockets);
            sockets.for_each(|socket| socket.go_on(self.settling));
        }
        self.deliver();
        let mut busy = true;
        while busy {
            self.advance();
            busy = self.exchange();
        }
        self.check();
    }

    fn advance(&mut self) {
        if self.client_clock.asleep.is_none() {
            let now = self.now + self.client_clock.ahead;
            self.client.advance(&mut self.stories, now);
        }
        if self.gateway_clock.asleep.is_none() {
            let now = self.now + self.gateway_clock.ahead;
            self.gateway.advance(&mut self.stories, now);
        }
        for thief in &mut self.thieves {
            thief.advance(self.now);
        }
    }

    fn deliver(&mut self) {
        while let Some(Datagram { from, to, bytes }) = self.network.arrive(self.now) {
            if to == GATEWAY {
                if self.gateway_clock.asleep.is_none() {
                    let now = self.now + self.gateway_clock.ahead;
                    self.gateway.endpoint.handle_datagram(from, None, None, bytes, now);
                }
            } else if to == self.address {
                if self.client_clock.asleep.is_none() {
                    let now = self.now + self.client_clock.ahead;
                    self.client.endpoint.handle_datagram(from, None, None, bytes, now);
                }
            } else if let Some(thief) = self.thieves.iter_mut().find(|thief| thief.address == to) {
                thief.endpoint.handle_datagram(from, None, None, bytes, self.now);
            }
        }
    }

    /// Whether anybody had something to send.
    fn exchange(&mut self) -> bool {
        let mut sent = Vec::new();
        if self.client_clock.asleep.is_none() {
            let now = self.now + self.client_clock.ahead;
            collect(&mut self.client.endpoint, self.address, now, &mut sent);
        }
        if self.gateway_clock.asleep.is_none() {
            let now = self.now + self.gateway_clock.ahead;
            collect(&mut self.gateway.endpoint, GATEWAY, now, &mut sent);
        }
        for thief in &mut self.thieves {
            collect(&mut thief.endpoint, thief.address, self.now, &mut sent);
        }
        let any = !sent.is_empty();
        sent.into_iter().for_each(|datagram| self.network.send(datagram, self.now));
        any
    }

    /// The program of a socket that exists.
    pub(crate) fn with_program(
        &mut self,
        flow: WireFlow,
        side: Side,
        what: impl FnOnce(&mut crate::story::Socket, &mut Chance),
    ) {
        let socket = self.stories.get_mut(&flow).and_then(|story| story.socket(side));
        if let Some(socket) = socket {
            what(socket, &mut self.chance);
        }
    }
}

/// What an endpoint has to send.
fn collect(endpoint: &mut Endpoint, from: SocketAddr, now: Instant, sent: &mut Vec<Datagram>) {
    let mut buffer = Vec::new();
    while let Some(transmit) = endpoint.poll_transmit(now, &mut buffer) {
        let size = transmit.segment.unwrap_or(buffer.len()).max(1);
        let to = transmit.destination;
        sent.extend(buffer.chunks(size).map(|bytes| Datagram { from, to, bytes: bytes.into() }));
        buffer.clear();
    }
}
