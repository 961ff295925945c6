//! How much one client may use over all its sessions: sessions, flows and ports at once, dials and
//! ports per second, and bytes per second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whimbrel_common::config::Limits;
use whimbrel_common::identity::PublicKey;

use crate::clients::Options;

/// Sessions one client may have: its daemon, wrapped commands, and those that still wait for a client
/// that was killed. Each takes room of what outlives the process, and all clients together have 4096.
pub const MOST_SESSIONS: u32 = 64;

/// Ports one client may have for its datagrams: as many as two sessions may
/// ([`associations::MOST`](crate::associations::MOST)). The kernel has 28,232 to give to programs
/// (`ip-sysctl`, ip_local_port_range), the resolver of this machine among them.
pub const MOST_PORTS: u32 = 2048;

/// Ports one client may open per second, and at once: a session that moves to another slot opens all
/// of its own anew there. They take some ten milliseconds of a core.
const PORTS_PER_SECOND: u32 = 1024;

/// What every client uses at the moment. Entries exist for clients with sessions only.
#[derive(Debug)]
pub struct Usage {
    flows_per_client: u32,
    dials_per_second: u32,
    clients: BTreeMap<PublicKey, ClientUsage>,
}

/// What a client has used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Exceeded {
    /// Its flows.
    #[error("the client has {0} connections open, its limit (limits.flows_per_client)")]
    Flows(u32),
    /// Its dials.
    #[error("the client begins more than {0} connections per second (limits.dials_per_second)")]
    Dials(u32),
    /// Its ports.
    #[error("the client has {0} ports for datagrams open, and may have no more")]
    Ports(u32),
    /// Its new ports.
    #[error("the client opens more than {0} ports for datagrams per second")]
    NewPorts(u32),
}

#[derive(Debug)]
struct ClientUsage {
    sessions: u32,
    flows: u32,
    options: Options,
    most_flows: u32,
    dials: Bucket,
    ports: u32,
    new_ports: Bucket,
}

/// A token bucket: `rate` tokens per second, at most one second's worth saved up.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: u32,
    level: Duration,
    filled: Instant,
}

impl Usage {
    /// Nobody uses anything yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            flows_per_client: limits.flows_per_client,
            dials_per_second: limits.dials_per_second,
            clients: BTreeMap::new(),
        }
    }

    /// Changes the limits of every client. Flows beyond them stay.
    pub fn reconfigure(&mut self, limits: &Limits) {
        self.flows_per_client = limits.flows_per_client;
        self.dials_per_second = limits.dials_per_second;
        let (flows, dials) = (self.flows_per_client, self.dials_per_second);
        self.clients.values_mut().for_each(|client| client.confine(flows, dials));
    }

    /// Counts a session of a client, unless it has as many as it may. Whether it was counted.
    #[must_use]
    pub fn admit(&mut self, client: PublicKey, now: Instant) -> bool {
        let sessions = self.clients.get(&client).map_or(0, |usage| usage.sessions);
        if sessions < MOST_SESSIONS {
            self.welcome(client, now);
        }
        sessions < MOST_SESSIONS
    }

    /// Counts a session of a client, however many it has. Its exceptions count from the next
    /// [`allow`](Self::allow).
    pub fn welcome(&mut self, client: PublicKey, now: Instant) {
        let (most_flows, rate) = (self.flows_per_client, self.dials_per_second);
        let fresh = || ClientUsage {
            sessions: 0,
            flows: 0,
            options: Options::default(),
            most_flows,
            dials: Bucket::new(rate, now),
            ports: 0,
            new_ports: Bucket::new(PORTS_PER_SECOND, now),
        };
        self.clients.entry(client).or_insert_with(fresh).sessions += 1;
    }

    /// Sets the limits of a client, with its exceptions. Keeps what it uses already.
    pub fn allow(&mut self, client: &PublicKey, options: &Options) {
        let Some(usage) = self.clients.get_mut(client) else { return };
        usage.options = *options;
        usage.confine(self.flows_per_client, self.dials_per_second);
    }

    /// Flows the client may have open.
    #[must_use]
    pub fn most_flows(&self, client: &PublicKey) -> u32 {
        self.clients.get(client).map_or(self.flows_per_client, |usage| usage.most_flows)
    }

    /// Counts one more flow and its dial.
    ///
    /// # Errors
    /// A limit is reached; nothing is counted then.
    pub fn open(&mut self, client: &PublicKey, now: Instant) -> Result<(), Exceeded> {
        let Some(usage) = self.clients.get_mut(client) else { return Err(Exceeded::Flows(0)) };
        if usage.flows >= usage.most_flows {
            return Err(Exceeded::Flows(usage.most_flows));
        }
        if !usage.dials.take(now) {
            return Err(Exceeded::Dials(usage.dials.rate));
        }
        usage.flows += 1;
        Ok(())
    }

    /// Counts a flow that a process before this one had begun: no limit holds it back.
    pub fn resume(&mut self, client: &PublicKey) {
        if let Some(usage) = self.clients.get_mut(client) {
            usage.flows += 1;
        }
    }

    /// Counts one flow less.
    pub fn close(&mut self, client: &PublicKey) {
        if let Some(usage) = self.clients.get_mut(client) {
            usage.flows = usage.flows.saturating_sub(1);
        }
    }

    /// Counts one more port.
    ///
    /// # Errors
    /// A limit is reached; nothing is counted then.
    pub fn open_port(&mut self, client: &PublicKey, now: Instant) -> Result<(), Exceeded> {
        let Some(usage) = self.clients.get_mut(client) else { return Err(Exceeded::Ports(0)) };
        if usage.ports >= MOST_PORTS {
            return Err(Exceeded::Ports(MOST_PORTS));
        }
        if !usage.new_ports.take(now) {
            return Err(Exceeded::NewPorts(PORTS_PER_SECOND));
        }
        usage.ports += 1;
        Ok(())
    }

    /// Counts one port less.
    pub fn close_port(&mut self, client: &PublicKey) {
        if let Some(usage) = self.clients.get_mut(client) {
            usage.ports = usage.ports.saturating_sub(1);
        }
    }

    /// Flows the client has open.
    #[must_use]
    pub fn flows(&self, client: &PublicKey) -> u32 {
        self.clients.get(client).map_or(0, |usage| usage.flows)
    }

    /// A session of a client is over, and its flows were closed.
    pub fn leave(&mut self, client: &PublicKey) {
        if let Some(usage) = self.clients.get_mut(client) {
            usage.sessions = usage.sessions.saturating_sub(1);
            if usage.sessions == 0 {
                self.clients.remove(client);
            }
        }
    }
}

impl ClientUsage {
    fn confine(&mut self, flows: u32, dials: u32) {
        self.most_flows = self.options.flows.unwrap_or(flows);
        // What is saved up is kept as time, and so stays in proportion.
        self.dials.rate = self.options.dials.unwrap_or(dials).max(1);
    }
}

impl Bucket {
    /// A full bucket of `rate` tokens per second, at least one.
    #[must_use]
    pub fn new(rate: u32, now: Instant) -> Self {
        Self { rate: rate.max(1), level: Duration::from_secs(1), filled: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        // The level is kept as the time it takes to fill, so no token is lost to rounding.
        self.level = self.level.saturating_add(gained).min(Duration::from_secs(1));
        let price = Duration::from_secs(1) / self.rate;
        match self.level.checked_sub(price) {
            Some(rest) => {
                self.level = rest;
                true
            }
            None => false,
        }
    }
}

/// How long a client may save up its bandwidth: what it does not use within this is gone.
const SAVED: Duration = Duration::from_millis(20);

/// The least a client may save up, in bytes: one read from a destination.
const LEAST_SAVED: u64 = 64 * 1024;

/// The bandwidth of one client in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// Bytes it may move; less than none when a turn moved more.
    level: i64,
    filled: Instant,
}

impl Meter {
    /// Nothing was moved yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { level: i64::MAX, filled: now }
    }

    /// Bytes that may be moved now, at `rate` bytes per second; zero is no limit.
    ///
    /// # Errors
    /// When something may be moved again.
    pub fn room(&mut self, rate: u64, now: Instant) -> Result<u64, Instant> {
        if rate == 0 {
            self.level = i64::MAX;
            return Ok(u64::MAX);
        }
        let most = (share(rate, SAVED)).max(LEAST_SAVED);
        let gained = share(rate, now.saturating_duration_since(self.filled));
        if gained > 0 {
            self.filled = self.filled.max(now);
        }
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add_unsigned(gained).min(most);
        match u64::try_from(self.level) {
            Ok(room) if room > 0 => Ok(room),
            // Half of what can be saved up: not one packet at a time.
            Ok(_) | Err(_) => {
                let missing = self.level.abs_diff(most / 2);
                Err(now + Duration::from_secs_f64(missing as f64 / rate as f64))
            }
        }
    }

    /// So many bytes were moved.
    pub fn count(&mut self, bytes: u64) {
        self.level = self.level.saturating_sub_unsigned(bytes);
    }
}

/// Streams that lacked bandwidth a moment ago lack it still.
const CONTENDED: Duration = Duration::from_millis(100);

/// The bandwidth of one client in one direction, which its streams and its datagrams share: either
/// may use all of it, and datagrams half while streams lack some.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    all: Meter,
    datagrams: Meter,
    /// When streams lacked some.
    lacked: Option<Instant>,
}

impl Bandwidth {
    /// Nothing was moved yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { all: Meter::new(now), datagrams: Meter::new(now), lacked: None }
    }

    /// Bytes that streams may move, as of [`Meter::room`].
    ///
    /// # Errors
    /// When something may be moved again.
    pub fn room(&mut self, rate: u64, now: Instant) -> Result<u64, Instant> {
        let room = self.all.room(rate, now);
        if room.is_err() {
            self.lacked = Some(now);
        }
        room
    }

    /// The same for datagrams.
    ///
    /// # Errors
    /// When something may be moved again.
    pub fn datagram_room(&mut self, rate: u64, now: Instant) -> Result<u64, Instant> {
        let lacking = self.lacked.is_some_and(|at| now.saturating_duration_since(at) < CONTENDED);
        self.datagrams.room(if lacking { rate.div_ceil(2) } else { rate }, now)
    }

    /// Streams moved so many bytes.
    pub fn count(&mut self, bytes: u64) {
        self.all.count(bytes);
    }

    /// Datagrams moved so many bytes.
    pub fn count_datagrams(&mut self, bytes: u64) {
        self.all.count(bytes);
        self.datagrams.count(bytes);
    }
}

/// Bytes at `rate` per second in this time.
fn share(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_nanos() / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_common::config::GatewayConfig;

    fn key(seed: u8) -> PublicKey {
        PublicKey::from_bytes([seed; 32])
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary start of a virtual clock")]
    fn start() -> Instant {
        Instant::now()
    }

    fn usage(flows: u32, dials: u32) -> Usage {
        let public = "gw.example.org:443".parse().unwrap();
        let limits = GatewayConfig::new(&public).limits;
        Usage::new(&Limits { flows_per_client: flows, dials_per_second: dials, ..limits })
    }

    #[test]
    fn flows_are_limited_and_given_back() {
        let (mut usage, now) = (usage(2, 100), start());
        usage.welcome(key(1), now);
        usage.open(&key(1), now).unwrap();
        usage.open(&key(1), now).unwrap();
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Flows(2)));
        usage.close(&key(1));
        usage.open(&key(1), now).unwrap();
        assert_eq!(usage.flows(&key(1)), 2);
    }

    /// What streams and datagrams move in ten seconds at 1 MB/s, when either has so much to move in
    /// every millisecond.
    fn moved(streams: u64, datagrams: u64) -> (u64, u64) {
        let begin = start();
        let (mut bandwidth, mut moved) = (Bandwidth::new(begin), (0, 0));
        for step in 0..10_000 {
            let now = begin + Duration::from_millis(step);
            let bytes = bandwidth.room(1_000_000, now).map_or(0, |room| room.min(streams));
            bandwidth.count(bytes);
            moved.0 += bytes;
            if datagrams > 0 && bandwidth.datagram_room(1_000_000, now).is_ok() {
                bandwidth.count_datagrams(datagrams);
                moved.1 += datagrams;
            }
        }
        moved
    }

    #[test]
    fn streams_and_datagrams_share_the_bandwidth_of_a_client() {
        let near = |bytes: u64, wanted: u64| bytes.abs_diff(wanted) < wanted / 10;
        let (streams, datagrams) = moved(5000, 5000);
        assert!(near(streams, 5_000_000) && near(datagrams, 5_000_000), "{streams}, {datagrams}");
        let (streams, datagrams) = moved(5000, 0);
        assert!(near(streams, 10_000_000) && datagrams == 0, "{streams}");
        let (streams, datagrams) = moved(0, 5000);
        assert!(streams == 0 && near(datagrams, 10_000_000), "{datagrams}");
        let (streams, datagrams) = moved(10, 5000);
        assert!(near(streams, 100_000), "little gets through: {streams}");
        assert!(streams + datagrams < 11_000_000, "{streams}, {datagrams}");
    }

    #[test]
    fn without_a_limit_nothing_is_held_back() {
        let (mut bandwidth, now) = (Bandwidth::new(start()), start());
        bandwidth.count_datagrams(1 << 40);
        assert!(bandwidth.datagram_room(0, now).is_ok() && bandwidth.room(0, now).is_ok());
    }

    #[test]
    fn clients_do_not_use_up_each_others_share() {
        let (mut usage, now) = (usage(1, 1), start());
        usage.welcome(key(1), now);
        usage.welcome(key(2), now);
        usage.open(&key(1), now).unwrap();
        usage.open(&key(2), now).unwrap();
        assert_eq!(usage.open(&key(3), now), Err(Exceeded::Flows(0)));
    }

    #[test]
    fn a_client_is_counted_until_its_last_session_is_over() {
        let (mut usage, now) = (usage(2, 100), start());
        usage.welcome(key(1), now);
        usage.welcome(key(1), now);
        usage.open(&key(1), now).unwrap();
        usage.leave(&key(1));
        assert_eq!(usage.flows(&key(1)), 1);
        usage.open(&key(1), now).unwrap();
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Flows(2)), "over both sessions");
        usage.leave(&key(1));
        assert_eq!(usage.flows(&key(1)), 0);
        assert!(usage.open(&key(1), now).is_err());
    }

    #[test]
    fn a_client_has_so_many_sessions_and_no_more() {
        let (mut usage, now) = (usage(2, 100), start());
        for _ in 0..MOST_SESSIONS {
            assert!(usage.admit(key(1), now));
        }
        assert!(!usage.admit(key(1), now));
        assert!(usage.admit(key(2), now), "another client");
        usage.leave(&key(1));
        assert!(usage.admit(key(1), now) && !usage.admit(key(1), now));
    }

    #[test]
    fn ports_are_limited_over_all_sessions_of_a_client() {
        let (mut usage, now) = (usage(2, 100), start());
        assert_eq!(usage.open_port(&key(1), now), Err(Exceeded::Ports(0)), "a stranger");
        usage.welcome(key(1), now);
        usage.welcome(key(1), now);
        usage.welcome(key(2), now);
        for port in 0..MOST_PORTS {
            let seconds = Duration::from_secs(u64::from(port / PORTS_PER_SECOND));
            usage.open_port(&key(1), now + seconds).unwrap();
        }
        let later = now + Duration::from_secs(60);
        assert_eq!(usage.open_port(&key(1), later), Err(Exceeded::Ports(MOST_PORTS)));
        usage.open_port(&key(2), later).unwrap();
        usage.close_port(&key(1));
        usage.open_port(&key(1), later).unwrap();
    }

    #[test]
    fn ports_come_in_a_burst_and_then_at_their_rate() {
        let (mut usage, now) = (usage(2, 100), start());
        usage.welcome(key(1), now);
        for _ in 0..PORTS_PER_SECOND {
            usage.open_port(&key(1), now).unwrap();
            usage.close_port(&key(1));
        }
        assert_eq!(usage.open_port(&key(1), now), Err(Exceeded::NewPorts(PORTS_PER_SECOND)));
        usage.open_port(&key(1), now + Duration::from_millis(1)).unwrap();
    }

    #[test]
    fn dials_come_in_a_burst_and_then_at_their_rate() {
        let (mut usage, now) = (usage(1000, 10), start());
        usage.welcome(key(1), now);
        for _ in 0..10 {
            usage.open(&key(1), now).unwrap();
        }
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Dials(10)));
        usage.open(&key(1), now + Duration::from_millis(100)).unwrap();
        assert!(usage.open(&key(1), now + Duration::from_millis(150)).is_err());
        usage.open(&key(1), now + Duration::from_millis(200)).unwrap();
    }

    #[test]
    fn a_client_may_have_limits_of_its_own() {
        let (mut usage, now) = (usage(1, 1), start());
        usage.welcome(key(1), now);
        usage.allow(&key(1), &Options { flows: Some(3), dials: Some(3) });
        for _ in 0..3 {
            usage.open(&key(1), now).unwrap();
        }
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Flows(3)));
        usage.allow(&key(1), &Options { flows: Some(5), dials: Some(3) });
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Dials(3)));
    }

    #[test]
    fn changed_limits_count_for_who_is_there_already() {
        let (mut usage, now) = (usage(2, 100), start());
        for client in [key(1), key(2)] {
            usage.welcome(client, now);
            usage.open(&client, now).unwrap();
            usage.open(&client, now).unwrap();
        }
        usage.allow(&key(2), &Options { flows: Some(7), dials: None });
        let public = "gw.example.org:443".parse().unwrap();
        let limits = GatewayConfig::new(&public).limits;
        usage.reconfigure(&Limits { flows_per_client: 3, dials_per_second: 100, ..limits });
        usage.open(&key(1), now).unwrap();
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Flows(3)));
        assert_eq!(usage.most_flows(&key(2)), 7, "an exception stays one");
        usage.reconfigure(&Limits { flows_per_client: 1, dials_per_second: 1, ..limits });
        assert_eq!(usage.flows(&key(1)), 3, "nothing is closed");
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Flows(1)));
    }

    #[test]
    fn a_meter_keeps_its_rate() {
        const RATE: u64 = 1_000_000;
        let (now, mut moved) = (start(), 0);
        let mut meter = Meter::new(now);
        for ms in 0..10_000 {
            if let Ok(room) = meter.room(RATE, now + Duration::from_millis(ms)) {
                // A turn may move more than there is room for.
                meter.count(room + 1000);
                moved += room + 1000;
            }
        }
        assert!((9_900_000..=10_100_000).contains(&moved), "{moved}");
    }

    #[test]
    fn a_meter_says_when_it_goes_on() {
        let now = start();
        let mut meter = Meter::new(now);
        let room = meter.room(1_000_000, now).unwrap();
        assert_eq!(room, LEAST_SAVED);
        meter.count(room);
        let at = meter.room(1_000_000, now).unwrap_err();
        assert!(at > now && at < now + Duration::from_millis(50), "{:?}", at - now);
        assert!(meter.room(1_000_000, at).is_ok());
    }

    #[test]
    fn without_a_rate_there_is_no_limit() {
        let now = start();
        let mut meter = Meter::new(now);
        meter.count(u64::MAX);
        assert_eq!(meter.room(0, now), Ok(u64::MAX));
    }

    #[test]
    fn a_bucket_keeps_its_rate_over_odd_intervals() {
        let now = start();
        let mut bucket = Bucket::new(300, now);
        let taken = (0..=10_000).filter(|ms| bucket.take(now + Duration::from_millis(*ms))).count();
        assert!((3290..=3301).contains(&taken), "{taken}");
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing_away() {
        let now = start();
        let mut bucket = Bucket::new(2, now + Duration::from_secs(5));
        assert!(bucket.take(now) && bucket.take(now));
        assert!(!bucket.take(now));
        assert!(!bucket.take(now + Duration::from_secs(5)));
    }
}
