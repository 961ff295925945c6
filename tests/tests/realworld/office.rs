//! The gateway's process: one slot, driven as its thread drives it, and a head that answers it. Its
//! place in the service manager's store outlives it.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_carrier::Tuning;
use whimbrel_common::config::{GatewayConfig, HostPort};
use whimbrel_common::identity::{ClientName, SecretKey};
use whimbrel_common::wire::SessionId;
use whimbrel_gateway::control::Report;
use whimbrel_gateway::gateway::Gateway;
use whimbrel_gateway::keep::{Keep, Store};
use whimbrel_gateway::talk::{Attach, News};
use whimbrel_gateway::usage::SharedUsage;
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

/// A service manager's store of descriptors.
#[derive(Debug, Default)]
struct Cupboard(Mutex<Vec<(String, OwnedFd)>>);

impl Cupboard {
    fn open(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.0.lock().expect("nobody panics with it")
    }

    /// What the next process is passed.
    fn pass(&self) -> Vec<(String, OwnedFd)> {
        let kept = self.open();
        let duplicate = |(name, kept): &(String, OwnedFd)| {
            (name.clone(), kept.try_clone().expect("there are descriptors"))
        };
        kept.iter().map(duplicate).collect()
    }
}

impl Store for Cupboard {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.open().push((name.to_owned(), descriptor.try_clone_to_owned()?));
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.open().retain(|(kept, _)| kept != name);
        Ok(())
    }
}

/// Who the client is.
fn introduce() -> (ClientName, Options) {
    ("laptop".parse().expect("a name"), Options::default())
}

/// See the [module](self).
pub(crate) struct Office {
    pub(crate) gateway: Gateway,
    pub(crate) usage: SharedUsage,
    config: GatewayConfig,
    cupboard: Arc<Cupboard>,
    chance: Chance,
    /// What processes before have counted.
    past: Counts,
    pub(crate) restarts: u64,
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

/// What the gateway has done since the beginning.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Dials that came to something.
    pub(crate) dialled: u64,
    pub(crate) evicted: u64,
    pub(crate) restored: u64,
    pub(crate) readdressed: u64,
}

/// A process without anything.
fn start(chance: &mut Chance, config: &GatewayConfig, now: Instant) -> (Gateway, SharedUsage) {
    let tuning = Tuning { seed: Some(seed(chance)), ..Tuning::default() };
    let usage = SharedUsage::new(Usage::new(&config.limits));
    let key = SecretKey::from_seed(GATEWAY_KEY);
    let gateway = Gateway::new((SLOT, 1), config, key, [], usage.clone(), tuning, now);
    (gateway.expect("the key is a key"), usage)
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
    pub(crate) fn new(mut chance: Chance, config: GatewayConfig, now: Instant) -> Self {
        let (gateway, usage) = start(&mut chance, &config, now);
        let mut office = Self {
            gateway,
            usage,
            config,
            cupboard: Arc::default(),
            chance,
            past: Counts::default(),
            restarts: 0,
            directory: Directory::default(),
            words: VecDeque::new(),
            inbox: VecDeque::new(),
            deaf_until: None,
            ended: Vec::new(),
            buffer: Vec::new(),
        };
        office.restore(now);
        office
    }

    /// The process ends, in good order or killed, and another goes on with what the store has. What
    /// it had to say at last, and where to.
    pub(crate) fn restart(&mut self, killed: bool, now: Instant) -> Vec<(SocketAddr, BytesMut)> {
        let mut sent = Vec::new();
        if !killed {
            self.gateway.close(now);
            sent = self.turn(now);
        }
        self.past = self.counts(now);
        self.restarts += 1;
        self.directory = Directory::default();
        self.words.clear();
        (self.gateway, self.usage) = start(&mut self.chance, &self.config, now);
        self.restore(now);
        sent
    }

    fn restore(&mut self, now: Instant) {
        let store: Arc<dyn Store> = Arc::<Cupboard>::clone(&self.cupboard);
        let mut kept = Keep::open(self.cupboard.pass(), 1, &store).expect("shared memory");
        let (keep, sessions) = kept.remove(0);
        for session in &sessions {
            self.directory.opened(session.id, session.key, SLOT);
        }
        let sessions = sessions.into_iter().map(|session| (session, Some(introduce())));
        self.gateway.restore(keep, sessions.collect(), now);
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
                self.gateway.attached(&attach, Some(introduce()), None, now);
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

    /// What was counted, by all processes.
    pub(crate) fn counts(&self, now: Instant) -> Counts {
        let Report { dials, evicted, restored, slot, .. } = self.report(now);
        Counts {
            dialled: self.past.dialled + dials.connected + dials.failed,
            evicted: self.past.evicted + evicted,
            restored: self.past.restored + restored,
            readdressed: self.past.readdressed + slot.readdressed,
        }
    }

    /// When something happens next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let word = self.words.front().map(|(due, _)| *due);
        [self.gateway.poll_timeout(), word, self.deaf_until].into_iter().flatten().min()
    }
}
