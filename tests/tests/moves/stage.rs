//! The lab with both daemons up, and what they tell of their moves.

use anyhow::{Context, Result, bail, ensure};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use serde_json::Value;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use toml::Table;
use whimbrel_tests::daemon::{Daemon, edit};
use whimbrel_tests::internet::{Direction, Shape};
use whimbrel_tests::lab::{BOTH, GATEWAY_V4, GATEWAY_V6, Layout, Link, World};
use whimbrel_tests::traffic::{Moment, Program};

use crate::ride::Ride;

/// Whatever takes longer than this on a busy machine with two cores does not happen any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// How often something is looked at while somebody waits for it.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The one-way delay of Wi-Fi.
pub(crate) const WIFI_DELAY: Duration = Duration::from_millis(10);

/// The one-way delay of cellular.
pub(crate) const CELL_DELAY: Duration = Duration::from_millis(30);

/// Both daemons in the lab. Fields drop in this order: daemons before their world.
pub(crate) struct Stage {
    pub(crate) client: Daemon,
    pub(crate) gateway: Daemon,
    _origin: Program,
    pub(crate) world: World,
    told: usize,
}

/// A move as `events --json` tells it.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) reason: String,
    pub(crate) gap_ms: Option<f64>,
    pub(crate) retransmitted: u64,
}

/// Wi-Fi with 20 ms and cellular with 60 ms of round trip, as fast as a busy machine can.
pub(crate) fn layout() -> Layout {
    Layout::standard()
        .with_link("wifi0", |link| {
            (link.up, link.down) = (Shape::line(WIFI_DELAY, 50), Shape::line(WIFI_DELAY, 50));
        })
        .with_link("cell0", |link| {
            (link.up, link.down) = (Shape::line(CELL_DELAY, 30), Shape::line(CELL_DELAY, 30));
        })
}

impl Stage {
    /// Both daemons attached, Wi-Fi active, cellular warm.
    pub(crate) fn raise() -> Result<Self> {
        let mut stage = Self::open(layout(), GATEWAY_V4.into(), |_| {}, |_| Ok(()))?;
        stage.settle("wifi0", "cell0")?;
        Ok(stage)
    }

    /// Both daemons attached: a lab of one's own, the address the gateway tells its clients, what
    /// else the client's configuration says, and what happens before the client starts.
    pub(crate) fn open(
        layout: Layout,
        public: IpAddr,
        client: impl FnOnce(&mut Table),
        before: impl FnOnce(&World) -> Result<()>,
    ) -> Result<Self> {
        let world = World::build(layout)?;
        let origin = world.start_origin()?;
        world.init_gateway(SocketAddr::new(public, 443))?;
        let gateway = world.start_gateway()?;
        world.join_client("laptop")?;
        edit(&world.client_config("laptop"), client)?;
        before(&world)?;
        let client = world.start_client("laptop")?;
        Ok(Self { client, gateway, _origin: origin, world, told: 0 })
    }

    /// Waits until one link carries and the other is ready.
    pub(crate) fn settle(&mut self, active: &str, warm: &str) -> Result<()> {
        self.until(&format!("{active} carries and {warm} is warm"), |stage| {
            let paths = stage.paths()?;
            Ok(state_of(&paths, active) == "active" && state_of(&paths, warm) == "warm")
        })
    }

    /// Waits until one link carries.
    pub(crate) fn until_active(&mut self, active: &str) -> Result<()> {
        self.until(&format!("{active} carries"), |stage| {
            Ok(state_of(&stage.paths()?, active) == "active")
        })
    }

    /// Waits until something is true.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self)? {
            if Instant::now() >= deadline {
                bail!("never: {what}\n{}", self.account());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Waits until the ride has received something that arrived after a moment.
    pub(crate) fn goes_on_after(&mut self, ride: &mut Ride, moment: Moment) -> Result<()> {
        ride.goes_on_after(moment).with_context(|| self.account())
    }

    /// What the client tells of itself, for a test that fails.
    fn account(&mut self) -> String {
        let paths = self.paths().map_or_else(|error| format!("{error:#}"), |it| it.to_string());
        let events = self.client.show(&self.world, "events");
        let events = events.ok().and_then(|it| it.as_array().cloned()).unwrap_or_default();
        let events: Vec<String> = events.iter().map(Value::to_string).collect();
        let log = self.client.process().log();
        let gateway = self.gateway.process().log();
        let events = events.join("\n");
        format!("paths: {paths}\nevents:\n{events}\nlog:\n{log}\ngateway's log:\n{gateway}")
    }

    /// What `paths --json` says.
    pub(crate) fn paths(&self) -> Result<Value> {
        self.client.show(&self.world, "paths")
    }

    /// The moves told since the last call.
    pub(crate) fn new_steps(&mut self) -> Result<Vec<Step>> {
        let events = self.client.show(&self.world, "events")?;
        let events = events.as_array().context("events are no list")?;
        let steps: Vec<Step> = events.iter().filter_map(Step::read).collect();
        let new = steps.get(self.told..).unwrap_or_default().to_vec();
        self.told = steps.len();
        Ok(new)
    }

    /// Waits until every move that was made is told, and forgets them.
    pub(crate) fn catch_up(&mut self) -> Result<Vec<Step>> {
        let (mut steps, mut last) = (Vec::new(), Value::Null);
        self.until("every move is told", |stage| {
            // In this order: `status` is then at least as new.
            steps.extend(stage.new_steps()?);
            let status = stage.client.status(&stage.world)?;
            last = status["last_move"].clone();
            Ok(status["moves"] == stage.told)
        })?;
        for step in &steps {
            tell(&step.to_string());
            step.check()?;
        }
        if let Some(step) = steps.last() {
            let same = last["from"] == step.from.as_str()
                && last["to"] == step.to.as_str()
                && last["reason"] == step.reason.as_str()
                && last["retransmitted_bytes"] == step.retransmitted;
            ensure!(same, "`status` tells {last}, `events` {step:?}");
        }
        Ok(steps)
    }

    /// The ride has to go on over `to` after what happened at `since`, for one of these reasons.
    pub(crate) fn moved(
        &mut self,
        ride: &mut Ride,
        since: Moment,
        (from, to): (&str, &str),
        reasons: &[&str],
    ) -> Result<()> {
        // A busy machine may keep a healthy link silent: other moves may come before and after.
        let mut found = None;
        self.until(&format!("it moves from {from} to {to}, {reasons:?}"), |stage| {
            let steps = stage.catch_up()?;
            found = steps.into_iter().find(|step| {
                step.from == from && step.to == to && reasons.contains(&step.reason.as_str())
            });
            Ok(found.is_some())
        })?;
        let step = found.context("it was found")?;
        let ago = unix_now().saturating_sub(Duration::from_millis(step.at));
        let moved = Moment::now().since(Moment(0)).saturating_sub(ago);
        let moved = Moment(u64::try_from(moved.as_micros()).unwrap_or(u64::MAX));
        self.carries(ride, to)?;
        let after = moved.since(since);
        ride.tell_gaps(&format!("{from} to {to} after {after:.1?} ({})", step.reason), moved)
    }

    /// The ride has to go on, and over this link.
    pub(crate) fn carries(&mut self, ride: &mut Ride, link: &str) -> Result<()> {
        /// Far more than probes would add up to, less than a second of the download.
        const ENOUGH: u64 = 300_000;
        let before = self.world.link(link).count_one(Direction::Down).bytes;
        let deadline = Instant::now() + PATIENCE;
        while self.world.link(link).count_one(Direction::Down).bytes < before + ENOUGH {
            let late = Instant::now() >= deadline;
            ensure!(!late, "{link} does not carry the download\n{}", self.account());
            self.goes_on_after(ride, Moment::now())?;
        }
        self.goes_on_after(ride, Moment::now())?;
        self.no_route_to_the_gateway()
    }

    /// Wherever packets to the gateway go, no route or rule says so: their sockets do.
    pub(crate) fn no_route_to_the_gateway(&self) -> Result<()> {
        let (routes, rules) = self.world.host("laptop").run(|wiring| {
            let rules = [wiring.rules(false), wiring.rules(true)];
            (wiring.routes(), rules)
        });
        let routes = routes?;
        ensure!(!routes.is_empty(), "no routes at all could be read");
        for route in &routes {
            ensure!(!is_host_route(route), "a route to the gateway: {route:?}");
        }
        for rules in rules {
            for rule in rules? {
                let text = format!("{rule:?}");
                let named = [GATEWAY_V4.to_string(), GATEWAY_V6.to_string()];
                ensure!(!named.iter().any(|name| text.contains(name)), "a rule: {text}");
            }
        }
        Ok(())
    }

    /// Waits until a black hole has swallowed something in these directions, and makes sure that
    /// the interface has kept its default route.
    pub(crate) fn swallows(&mut self, link: &str, directions: &[Direction]) -> Result<()> {
        let before = BOTH.map(|direction| self.world.link(link).count_one(direction).swallowed);
        self.until(&format!("{link} swallows packets"), |stage| {
            let link = stage.world.link(link);
            let more = |(direction, before): (&Direction, u64)| {
                !directions.contains(direction) || link.count_one(*direction).swallowed > before
            };
            Ok(BOTH.iter().zip(before).all(more))
        })?;
        ensure!(self.has_default_route(link)?, "{link} has lost its route");
        Ok(())
    }

    /// Whether the host still has an IPv4 default route over a link. IPv6 routes outlive the
    /// addresses they came with.
    pub(crate) fn has_default_route(&self, link: &str) -> Result<bool> {
        let name = link.to_owned();
        self.world.host("laptop").run(move |wiring| {
            let Some(index) = wiring.index(&name)? else { return Ok(false) };
            let over = |route: &RouteMessage| {
                route.header.destination_prefix_length == 0
                    && route.header.address_family == AddressFamily::Inet
                    && route.attributes.contains(&RouteAttribute::Oif(index))
            };
            Ok(wiring.routes()?.iter().any(over))
        })
    }

    /// Ends the ride: every byte is there, and neither daemon has panicked.
    pub(crate) fn end(self, ride: Ride) -> Result<()> {
        let ended = ride.end();
        for name in ["laptop", "gateway"] {
            let log = std::fs::read_to_string(self.world.log(name)).unwrap_or_default();
            ensure!(!log.contains("panicked"), "{name} panicked:\n{log}");
        }
        let Self { mut client, mut gateway, .. } = self;
        let (client, gateway) = (client.process(), gateway.process());
        ended.with_context(|| format!("client:\n{}\ngateway:\n{}", client.log(), gateway.log()))
    }
}

impl Step {
    fn read(event: &Value) -> Option<Self> {
        if event["event"] != "moved" {
            return None;
        }
        let step = &event["move"];
        Some(Self {
            at: step["at"].as_u64()?,
            from: step["from"].as_str()?.to_owned(),
            to: step["to"].as_str()?.to_owned(),
            reason: step["reason"].as_str()?.to_owned(),
            gap_ms: step["gap_ms"].as_f64(),
            retransmitted: step["retransmitted_bytes"].as_u64()?,
        })
    }

    /// Whether what is told can be true.
    fn check(&self) -> Result<()> {
        const LONGEST_MS: f64 = 60_000.0;
        const MOST: u64 = 64 << 20;
        let gap = self.gap_ms.with_context(|| format!("no gap is told: {self:?}"))?;
        ensure!((0.0..LONGEST_MS).contains(&gap), "a gap that cannot be: {self:?}");
        ensure!(self.retransmitted < MOST, "so much was never sent: {self:?}");
        ensure!(self.from != self.to, "no move at all: {self:?}");
        Ok(())
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { at: _, from, to, reason, gap_ms, retransmitted } = self;
        write!(f, "{from} to {to} ({reason}): gap {gap_ms:?} ms, {retransmitted} bytes again")
    }
}

/// A row of `paths --json`.
pub(crate) fn path_of<'a>(paths: &'a Value, link: &str) -> &'a Value {
    let mut rows = paths.as_array().into_iter().flatten();
    rows.find(|row| row["link"] == link).unwrap_or(&Value::Null)
}

/// The state of a path; empty without one.
pub(crate) fn state_of<'a>(paths: &'a Value, link: &str) -> &'a str {
    path_of(paths, link)["state"].as_str().unwrap_or_default()
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Pulls a link's device out. It goes with its last descriptor, maybe while it is being deleted;
/// then the second attempt finds it gone.
pub(crate) fn unplug(link: &Link<'_>) -> Result<()> {
    link.unplug().or_else(|_| link.unplug())
}

/// How long an outage lasts.
pub(crate) fn outage() -> Duration {
    let full = std::env::var_os("WHIMBREL_FULL").is_some_and(|value| value == "1");
    Duration::from_secs(if full { 30 } else { 8 })
}

/// Tells a measurement to whoever runs the tests with `--nocapture`.
pub(crate) fn tell(text: &str) {
    // Whoever listened has gone; the test goes on.
    drop(writeln!(std::io::stderr().lock(), "  {text}"));
}

/// Sets a list in a section of a configuration.
pub(crate) fn list(
    section: &'static str,
    key: &'static str,
    link: &'static str,
) -> impl FnOnce(&mut Table) {
    move |table| whimbrel_tests::daemon::set(table, section, key, &[link])
}

fn is_host_route(route: &RouteMessage) -> bool {
    let to = |address| route.attributes.contains(&RouteAttribute::Destination(address));
    match route.header.destination_prefix_length {
        32 => to(RouteAddress::Inet(GATEWAY_V4)),
        128 => to(RouteAddress::Inet6(GATEWAY_V6)),
        _ => false,
    }
}
