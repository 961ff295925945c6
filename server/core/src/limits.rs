//! How much one client may use: flows at once, and dials per second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use whimbrel_common::config::Limits;
use whimbrel_common::identity::PublicKey;

use crate::clients::Options;

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
}

#[derive(Debug)]
struct ClientUsage {
    sessions: u32,
    flows: u32,
    most_flows: u32,
    dials: Bucket,
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

    /// Changes the limits of clients that are [allowed](Self::allow) something from now on.
    pub fn reconfigure(&mut self, limits: &Limits) {
        self.flows_per_client = limits.flows_per_client;
        self.dials_per_second = limits.dials_per_second;
    }

    /// Counts a session of a client. Its exceptions count from the next
    /// [`allow`](Self::allow).
    pub fn welcome(&mut self, client: PublicKey, now: Instant) {
        let (most_flows, rate) = (self.flows_per_client, self.dials_per_second);
        let fresh =
            || ClientUsage { sessions: 0, flows: 0, most_flows, dials: Bucket::new(rate, now) };
        self.clients.entry(client).or_insert_with(fresh).sessions += 1;
    }

    /// Sets the limits of a client, with its exceptions. Keeps what it uses already.
    pub fn allow(&mut self, client: &PublicKey, options: &Options, now: Instant) {
        let most_flows = options.flows.unwrap_or(self.flows_per_client);
        let rate = options.dials.unwrap_or(self.dials_per_second);
        let Some(usage) = self.clients.get_mut(client) else { return };
        usage.most_flows = most_flows;
        if usage.dials.rate != rate {
            usage.dials = Bucket::new(rate, now);
        }
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
        usage.allow(&key(1), &Options { flows: Some(3), dials: Some(3) }, now);
        for _ in 0..3 {
            usage.open(&key(1), now).unwrap();
        }
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Flows(3)));
        usage.allow(&key(1), &Options { flows: Some(5), dials: Some(3) }, now);
        assert_eq!(usage.open(&key(1), now), Err(Exceeded::Dials(3)));
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
