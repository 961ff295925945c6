//! A small network on a virtual clock: links with delay, jitter, loss, queues and ways to die, and
//! just enough of an engine to acknowledge, time out and probe. One tick is one millisecond.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::path::{
    Action, Config, DownReason, Evidence, Input, Move, PathKey, Paths, PreferredBy, Role, State,
};

pub(super) const WIFI: PathKey = PathKey(0);
pub(super) const CELL: PathKey = PathKey(1);
pub(super) const CABLE: PathKey = PathKey(2);

#[derive(Debug, Clone)]
pub(super) struct Wire {
    pub(super) rtt: u64,
    pub(super) jitter: u64,
    /// Per thousand, each way.
    pub(super) loss: u64,
    pub(super) up: bool,
    pub(super) out_dead: bool,
    pub(super) in_dead: bool,
    /// What a queue on the way out adds, in milliseconds.
    pub(super) queue: u64,
    pub(super) rank: u32,
    pub(super) metered: bool,
    pub(super) cold: bool,
    /// The network never lets a path be validated, whatever else works.
    pub(super) captive: bool,
    last_out: u64,
    last_in: u64,
}

impl Wire {
    pub(super) fn new(rtt: u64, rank: u32) -> Self {
        Self {
            rtt,
            jitter: 0,
            loss: 0,
            up: true,
            out_dead: false,
            in_dead: false,
            queue: 0,
            rank,
            metered: false,
            cold: false,
            captive: false,
            last_out: 0,
            last_in: 0,
        }
    }
}

#[derive(Debug, Clone)]
struct Channel {
    steered: Option<PathKey>,
    next: u64,
    unacked: BTreeMap<u64, u64>,
    expecting: Option<u64>,
    /// When data was sent that may not have arrived, later than anything acknowledged.
    told: Option<u64>,
    last_ack: Option<u64>,
    last_receive: Option<u64>,
    /// In microseconds, as `rttvar`.
    srtt: u64,
    rttvar: u64,
    touched: u64,
    backoff: u32,
    /// Changed since the last evidence.
    news: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Idle,
    /// One packet this often.
    Every(u64),
    /// A packet every millisecond while the window (in packets) allows.
    Bulk(usize),
    /// Bulk for so long, then silence for so long.
    Bursts(u64, u64),
    /// The peer sends; we only read.
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    AtPeer { path: PathKey, number: u64, link: PathKey, born: u64 },
    Acked { path: PathKey, number: u64, link: PathKey, born: u64 },
    Data { path: PathKey },
    Validated { path: PathKey },
    Refused { path: PathKey },
}

pub(super) struct Net {
    start: Instant,
    pub(super) tick: u64,
    random: u64,
    pub(super) paths: Paths,
    pub(super) wires: BTreeMap<PathKey, Wire>,
    channels: BTreeMap<PathKey, (u64, Channel)>,
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    pub(super) traffic: Traffic,
    carrier: Option<PathKey>,
    pub(super) log: Vec<(u64, Action)>,
    births: u64,
    answers: BTreeMap<PathKey, u64>,
    moved: bool,
    deadline: Option<Instant>,
}

impl Net {
    pub(super) fn new(seed: u64, wires: &[(PathKey, Wire)]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for the virtual clock")]
        let start = Instant::now();
        let mut net = Self {
            start,
            tick: 0,
            random: seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15),
            paths: Paths::new(Role::Client, Config::new(Role::Client)),
            wires: wires.iter().cloned().collect(),
            channels: BTreeMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            traffic: Traffic::Idle,
            carrier: None,
            log: Vec::new(),
            births: 0,
            answers: BTreeMap::new(),
            moved: false,
            deadline: None,
        };
        for path in net.wires.keys().copied().collect::<Vec<_>>() {
            net.announce(path);
        }
        net
    }

    /// Wi-Fi of 20 ms, cellular of 60 ms, both validated, traffic on Wi-Fi.
    pub(super) fn attached() -> Self {
        Self::attached_with(1, Wire::new(20, 0), Wire::new(60, 1))
    }

    pub(super) fn attached_with(seed: u64, wifi: Wire, cell: Wire) -> Self {
        let mut net = Self::new(seed, &[(WIFI, wifi), (CELL, cell)]);
        net.establish(WIFI);
        net.run(2_000);
        net
    }

    /// The handshake succeeds on `path`.
    pub(super) fn establish(&mut self, path: PathKey) {
        self.open(path);
        self.give(Input::Opened { path });
    }

    pub(super) fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.tick)
    }

    pub(super) fn announce(&mut self, path: PathKey) {
        let wire = &self.wires[&path];
        let (rank, metered, cold) = (wire.rank, wire.metered, wire.cold);
        self.give(Input::LinkUp { path, name: format!("if{path}"), rank, metered, cold });
    }

    pub(super) fn up(&mut self, path: PathKey) {
        self.wire(path).up = true;
        self.announce(path);
    }

    pub(super) fn down(&mut self, path: PathKey, reason: DownReason) {
        self.wire(path).up = false;
        self.give(Input::LinkDown { path, reason });
    }

    pub(super) fn black_hole(&mut self, path: PathKey, dead: bool) {
        self.wire(path).out_dead = dead;
        self.wire(path).in_dead = dead;
    }

    pub(super) fn wire(&mut self, path: PathKey) -> &mut Wire {
        self.wires.get_mut(&path).expect("the test made this link")
    }

    pub(super) fn prefer(&mut self, path: PathKey, by: PreferredBy) {
        self.give(Input::Prefer { path, by });
    }

    pub(super) fn give(&mut self, input: Input) {
        self.evidence();
        self.paths.handle(input, self.now());
        self.obey();
        self.deadline = self.paths.poll_timeout();
    }

    fn evidence(&mut self) {
        let now = self.now();
        let start = self.start;
        let at = |tick: u64| start + Duration::from_millis(tick);
        for (path, (_, channel)) in &mut self.channels {
            if !std::mem::take(&mut channel.news) {
                continue;
            }
            let evidence = Evidence {
                expecting_since: channel.expecting.map(at),
                last_ack: channel.last_ack.map(at),
                last_receive: channel.last_receive.map(at),
                undelivered: channel.told.max(channel.told.and(channel.last_ack)).map(at),
                srtt: Duration::from_micros(channel.srtt),
                rttvar: Duration::from_micros(channel.rttvar),
            };
            self.paths.handle(Input::Evidence { path: *path, evidence }, now);
        }
    }

    fn obey(&mut self) {
        let mut idle = true;
        while let Some(action) = self.paths.poll_action() {
            idle = false;
            self.log.push((self.tick, action));
            match action {
                Action::Open { path } => self.validate(path),
                Action::Probe { path } => self.send(path),
                Action::Carry { path } => {
                    assert!(self.channels.contains_key(&path), "carries a path that is not open");
                    self.carrier = Some(path);
                }
                Action::Steer { from, onto } => {
                    self.channel(from).steered = Some(onto);
                    self.channel(from).backoff = 0;
                    self.send(from);
                }
                Action::Unsteer { path } => {
                    if self.channels.contains_key(&path) {
                        self.channel(path).steered = None;
                    }
                }
                Action::Close { path } => {
                    if self.channels.remove(&path).is_some() {
                        assert!(!self.channels.is_empty(), "closed the last open path");
                    }
                    self.events.retain(|_, event| {
                        *event != Event::Validated { path } && *event != Event::Refused { path }
                    });
                }
                Action::Replay { .. } | Action::Moved(_) | Action::StateChanged { .. } => {}
            }
        }
        if idle {
            return;
        }
        let active = self.paths.paths().filter(|view| view.state == State::Active).count();
        assert!(active <= 1, "more than one path is active");
        if let Some(active) = self.paths.active() {
            assert!(self.channels.contains_key(&active), "the active path is not open");
            assert_eq!(self.carrier, Some(active));
        }
    }

    fn validate(&mut self, path: PathKey) {
        let wire = &self.wires[&path];
        let works = wire.up && !wire.out_dead && !wire.in_dead && !wire.captive;
        let event = if works { Event::Validated { path } } else { Event::Refused { path } };
        let delay = if works { wire.rtt } else { 2_000 };
        self.schedule(delay, event);
    }

    fn open(&mut self, path: PathKey) {
        self.births += 1;
        let channel = Channel {
            steered: None,
            next: 0,
            unacked: BTreeMap::new(),
            expecting: None,
            told: None,
            last_ack: None,
            last_receive: Some(self.tick),
            srtt: self.wires[&path].rtt * 1_000,
            rttvar: self.wires[&path].rtt * 500,
            touched: self.tick,
            backoff: 0,
            news: true,
        };
        self.channels.insert(path, (self.births, channel));
    }

    fn channel(&mut self, path: PathKey) -> &mut Channel {
        &mut self.channels.get_mut(&path).expect("ordered on an open path").1
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.serial += 1;
        self.events.insert((self.tick + delay.max(1), self.serial), event);
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    /// Whether the link loses this packet.
    fn loses(&mut self, link: PathKey) -> bool {
        let loss = self.wires[&link].loss;
        self.below(1_000) < loss
    }

    fn send(&mut self, path: PathKey) {
        let tick = self.tick;
        let (born, channel) = self.channels.get_mut(&path).expect("ordered on an open path");
        let number = channel.next;
        channel.next += 1;
        channel.unacked.insert(number, tick);
        channel.expecting.get_or_insert(tick);
        channel.touched = tick;
        channel.news = true;
        let (born, link) = (*born, channel.steered.unwrap_or(path));
        let jitter = self.wires[&link].jitter;
        let jitter = self.below(jitter + 1);
        let lost = self.loses(link);
        let wire = self.wire(link);
        if !wire.up || wire.out_dead || lost {
            return;
        }
        let arrival = (tick + wire.rtt / 2 + wire.queue + jitter).max(wire.last_out);
        wire.last_out = arrival;
        self.schedule(arrival - tick, Event::AtPeer { path, number, link, born });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::AtPeer { path, number, link, born } => {
                if self.wires[&link].out_dead || !self.wires[&link].up {
                    return;
                }
                // Every second packet is acknowledged at once, the others late (RFC 9000 §13.2).
                let answers = self.answers.entry(path).or_default();
                *answers += 1;
                let lone = self.traffic != Traffic::Bulk(0) && *answers % 2 == 1;
                let dense = matches!(self.traffic, Traffic::Bulk(_) | Traffic::Bursts(..));
                let late = if lone { self.below(if dense { 3 } else { 26 }) } else { 0 };
                let jitter = self.wires[&link].jitter;
                let jitter = self.below(jitter + 1);
                if self.loses(link) {
                    return;
                }
                let tick = self.tick;
                let wire = self.wire(link);
                let arrival = (tick + late + wire.rtt / 2 + jitter).max(wire.last_in);
                if late == 0 {
                    wire.last_in = arrival;
                }
                self.schedule(arrival - tick, Event::Acked { path, number, link, born });
            }
            Event::Acked { path, number, link, born } => {
                if self.wires[&link].in_dead || !self.wires[&link].up {
                    return;
                }
                self.acked(path, number, born);
            }
            Event::Data { path } => {
                let tick = self.tick;
                if let Some((_, channel)) = self.channels.get_mut(&path)
                    && !self.wires[&path].in_dead
                    && self.wires[&path].up
                {
                    channel.last_receive = Some(tick);
                    channel.news = true;
                    self.moved = true;
                }
            }
            Event::Validated { path } => {
                self.open(path);
                self.give(Input::Opened { path });
            }
            Event::Refused { path } => self.give(Input::OpenFailed { path }),
        }
    }

    fn acked(&mut self, path: PathKey, number: u64, born: u64) {
        let tick = self.tick;
        let Some((alive, channel)) = self.channels.get_mut(&path) else { return };
        if *alive != born {
            return;
        }
        channel.last_receive = Some(tick);
        channel.news = true;
        let Some(sent) = channel.unacked.remove(&number) else { return };
        channel.unacked.retain(|other, _| *other + 3 > number);
        channel.last_ack = Some(tick);
        channel.told = channel.told.filter(|told| *told > sent);
        channel.touched = tick;
        channel.backoff = 0;
        channel.expecting = (!channel.unacked.is_empty()).then_some(tick);
        let rtt = (tick - sent) * 1_000;
        channel.rttvar = (3 * channel.rttvar + channel.srtt.abs_diff(rtt)) / 4;
        channel.srtt = (7 * channel.srtt + rtt) / 8;
    }

    fn traffic(&mut self) {
        let Some(path) = self.carrier.filter(|path| self.channels.contains_key(path)) else {
            return;
        };
        let outstanding = self.channels[&path].1.unacked.len();
        let due = match self.traffic {
            Traffic::Idle => false,
            Traffic::Every(interval) => self.tick.is_multiple_of(interval) && outstanding < 10,
            Traffic::Bulk(window) => outstanding < window,
            Traffic::Bursts(on, off) => self.tick % (on + off) < on && outstanding < 200,
            Traffic::Read => {
                let wire = &self.wires[&path];
                let alive = wire.up && !wire.in_dead && !wire.out_dead;
                if alive && self.tick.is_multiple_of(2) {
                    let delay = wire.rtt / 2;
                    self.schedule(delay, Event::Data { path });
                }
                false
            }
        };
        if due {
            self.send(path);
            let tick = self.tick;
            self.channel(path).told = Some(tick);
            self.moved = true;
        }
    }

    /// The engine's own probes after a timeout (RFC 9002 §6.2).
    fn time_out(&mut self) {
        let late: Vec<PathKey> = self
            .channels
            .iter()
            .filter(|(_, (_, channel))| {
                let pto = (channel.srtt + 4 * channel.rttvar) / 1_000 + 25;
                !channel.unacked.is_empty()
                    && self.tick >= channel.touched + (pto << channel.backoff.min(10))
            })
            .map(|(path, _)| *path)
            .collect();
        for path in late {
            self.channel(path).backoff += 1;
            self.send(path);
        }
    }

    pub(super) fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.tick += 1;
            while let Some(entry) = self.events.first_entry()
                && entry.key().0 <= self.tick
            {
                let event = entry.remove();
                self.happen(event);
            }
            self.traffic();
            self.time_out();
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now();
        let news = self.moved || self.channels.values().any(|(_, channel)| channel.news);
        if !news && self.deadline.is_none_or(|at| at > now) {
            return;
        }
        self.evidence();
        if std::mem::take(&mut self.moved) {
            self.paths.handle(Input::Activity, now);
        }
        let mut rounds = 0;
        loop {
            self.deadline = self.paths.poll_timeout();
            if self.deadline.is_none_or(|at| at > now) {
                return;
            }
            self.paths.handle_timeout(now);
            self.obey();
            self.evidence();
            rounds += 1;
            assert!(rounds < 20, "never content: {:#?}", self.paths);
        }
    }

    pub(super) fn moves(&self) -> Vec<Move> {
        self.log
            .iter()
            .filter_map(|(_, action)| {
                let Action::Moved(change) = action else { return None };
                change.from.is_some().then_some(*change)
            })
            .collect()
    }

    /// The tick of the first action after `since` that `wanted` accepts.
    pub(super) fn first(&self, since: u64, wanted: impl Fn(&Action) -> bool) -> Option<u64> {
        self.log
            .iter()
            .find(|(tick, action)| *tick >= since && wanted(action))
            .map(|(tick, _)| *tick)
    }

    pub(super) fn carried(&self, since: u64, path: PathKey) -> Option<u64> {
        self.first(since, |action| *action == Action::Carry { path })
    }

    pub(super) fn count(&self, since: u64, wanted: impl Fn(&Action) -> bool) -> usize {
        self.log.iter().filter(|(tick, action)| *tick >= since && wanted(action)).count()
    }

    pub(super) fn acked_after(&self, path: PathKey, tick: u64) -> bool {
        self.channels.get(&path).is_some_and(|(_, channel)| channel.last_ack >= Some(tick))
    }

    /// Runs until the traffic is acknowledged again, and says how long that took.
    pub(super) fn recovery(&mut self, limit: u64) -> u64 {
        let from = self.tick;
        while self.tick < from + limit {
            self.run(1);
            if self.paths.active().is_some_and(|path| self.acked_after(path, from + 1)) {
                break;
            }
        }
        self.tick - from
    }
}
