//! The gateway's process: one slot, driven as its thread drives it, and a head that answers it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_carrier::Tuning;
use whimbrel_common::config::{GatewayConfig, HostPort};
use whimbrel_common::identity::{ClientName, SecretKey};
use whimbrel_common::wire::SessionId;
use whimbrel_gateway::control::Report;
use whimbrel_gateway::gateway::Gateway;
use whimbrel_gateway::talk::{Attach, News, SharedUsage};
use whimbrel_gateway_core::clients::Options;
use whimbrel_gateway_core::directory::{Directory, SlotNumber, Step};
use whimbrel_gateway_core::limits::Usage;

use crate::GATEWAY;
use crate::chance::Chance;
use crate::laptop::{CLIENT_KEY, seed};

/// The gateway's key.
pub(crate) const GATEWAY_KEY: [u8; 32] = [2; 32];

/// Flows the client may have at once.
pub(crate) const FLOWS: u32 = 64;

/// Rounds of one moment: far more than any needs.
const ROUNDS: u32 = 10_000;

/// Datagrams that wait for a gateway that stands still: a few megabytes, as its sockets ask for.
const WAITING: usize = 4000;

const SLOT: SlotNumber = SlotNumber(0);

/// See the [module](self).
pub(crate) struct Office {
    pub(crate) gateway: Gateway,
    pub(crate) usage: SharedUsage,
    chance: Chance,
    directory: Directory<Attach>,
    /// What the head has to say, and when the slot hears it.
    words: VecDeque<(Instant, Attach)>,
    inbox: VecDeque<(SocketAddr, BytesMut)>,
    /// News of sockets are late until then.
    pub(crate) deaf_until: Option<Instant>,
    /// Sessions that ended since somebody looked.
    pub(crate) ended: Vec<SessionId>,
    buffer: Vec<u8>,
}

/// What the gateway is configured like.
pub(crate) fn config(hold: Duration, memory: u64) -> GatewayConfig {
    let public: HostPort = "gateway.example:443".parse().expect("a name and a port");
    let mut config = GatewayConfig::new(&public);
    config.egress.allow = vec!["127.0.0.0/8".parse().expect("a range")];
    config.limits.flows_per_client = FLOWS;
    config.limits.memory = memory;
    config.limits.hold = hold;
    config
}

impl Office {
    pub(crate) fn new(chance: &mut Chance, config: &GatewayConfig, now: Instant) -> Self {
        let tuning = Tuning { seed: Some(seed(chance)), ..Tuning::default() };
        let usage = SharedUsage::new(Usage::new(&config.limits));
        let key = SecretKey::from_seed(GATEWAY_KEY);
        let gateway = Gateway::new((SLOT, 1), config, key, [], usage.clone(), tuning, now)
            .expect("the key is a key");
        Self {
            gateway,
            usage,
            chance: Chance::new(chance.next()),
            directory: Directory::default(),
            words: VecDeque::new(),
            inbox: VecDeque::new(),
            deaf_until: None,
            ended: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// A datagram has arrived.
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: BytesMut) {
        if self.inbox.len() < WAITING {
            self.inbox.push_back((from, bytes));
        }
    }

    /// Everything that can be done without waiting; what was sent, and where to.
    pub(crate) fn turn(&mut self, now: Instant) -> Vec<(SocketAddr, BytesMut)> {
        let mut sent = Vec::new();
        while let Some((from, bytes)) = self.inbox.pop_front() {
            self.gateway.handle_datagram(from, Some(GATEWAY.ip()), None, bytes, now);
        }
        self.deaf_until.take_if(|until| *until <= now);
        for _ in 0..ROUNDS {
            let mut busy = false;
            if self.deaf_until.is_none() {
                busy |= self.gateway.handle_sockets().expect("the kernel has news or none");
            }
            while let Some((_, attach)) = self.words.pop_front_if(|(due, _)| *due <= now) {
                let name: ClientName = "laptop".parse().expect("a name");
                self.gateway.attached(&attach, Some((name, Options::default())), None, now);
                busy = true;
            }
            busy |= self.gateway.advance(now);
            while let Some(news) = self.gateway.poll_news() {
                self.decide(news, now);
            }
            busy |= self.transmit(&mut sent, now);
            if !busy {
                return sent;
            }
        }
        panic!("the gateway never rests");
    }

    /// What the head does about what a slot tells it.
    fn decide(&mut self, news: News, now: Instant) {
        match news {
            News::Attach(attach) => {
                let step = match attach.session {
                    Some(session) => self.directory.attach(session, SLOT, attach),
                    None => Some(Step::Attach(SLOT, attach)),
                };
                let Some(Step::Attach(_, attach)) = step else { panic!("there is one slot") };
                let due = now + Duration::from_millis(self.chance.spread(30));
                let due = self.words.back().map_or(due, |(last, _)| due.max(*last));
                self.words.push_back((due, attach));
            }
            News::Opened(session, key) => {
                assert_eq!(key, SecretKey::from_seed(CLIENT_KEY).public());
                self.directory.opened(session, key, SLOT);
            }
            News::Closed(session) => {
                self.directory.closed(session, SLOT);
                self.ended.push(session);
            }
            News::Enrol(..) | News::Housed(..) => panic!("nobody asked for that: {news:?}"),
        }
    }

    /// Whether anything was sent.
    fn transmit(&mut self, sent: &mut Vec<(SocketAddr, BytesMut)>, now: Instant) -> bool {
        let before = sent.len();
        while let Some(transmit) = self.gateway.poll_transmit(now, &mut self.buffer) {
            let size = transmit.segment.unwrap_or(self.buffer.len()).max(1);
            let to = transmit.destination;
            sent.extend(self.buffer.chunks(size).map(|bytes| (to, bytes.into())));
            self.buffer.clear();
        }
        sent.len() > before
    }

    pub(crate) fn report(&self, now: Instant) -> Report {
        self.gateway.report(now)
    }

    /// When something happens next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let word = self.words.front().map(|(due, _)| *due);
        [self.gateway.poll_timeout(), word, self.deaf_until].into_iter().flatten().min()
    }
}
