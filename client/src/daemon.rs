//! The client process: one thread that moves packets, datagrams and requests.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::BytesMut;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};
use whimbrel_carrier::udp::RECEIVE_BUFFER;
use whimbrel_carrier::{Transmit, Tuning};
use whimbrel_client_core::plan::PortRange;
use whimbrel_client_core::trouble::Trouble;
use whimbrel_common::config::ClientConfig;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::path::PathKey;
use whimbrel_host::control::{ControlServer, Request, Responder};
use whimbrel_host::metrics::MetricsServer;
use whimbrel_host::service::{self, Order, Orders, Watchdog};
use whimbrel_host::{Alarm, Layout, keeping};

use crate::capture::{Capture, Outcome};
use crate::client::Client;
use crate::control::{self, Events, Grouped, Passed, Running, Target, Welcome};
use crate::devices::Devices;
use crate::groups::Groups;
use crate::host::{self, Host};
use crate::link::{LinkEvent, LinkMonitor, Uplink};
use crate::login::{self, Go};
use crate::manager;
use crate::report::{
    CaptureState, EventKind, FlowReport, NamesReport, PathReport, SessionState, Status,
};
use crate::resolver;
use crate::run::NAMESERVER;
use crate::tun::Tun;
use crate::tunnel::{Failure, Standing, Tunnel};

mod capture;
mod links;
mod metrics;
mod names;
mod nap;
mod plan;
mod reload;
mod runs;

use names::Names;
pub use runs::Purpose;

pub(crate) use links::asked;

/// What the daemon starts with.
#[derive(Debug)]
pub struct Launch {
    /// The validated configuration.
    pub config: ClientConfig,
    /// Where the files are.
    pub layout: Layout,
    /// The client's private key.
    pub key: SecretKey,
    /// Reads the configuration again.
    pub reread: fn(&Layout) -> anyhow::Result<ClientConfig>,
    /// Whose connections are carried.
    pub purpose: Purpose,
}

/// The MTU applications see: that of Ethernet, so that what they send fits most networks should
/// it ever go direct.
const MTU: u16 = 1500;

/// Batches taken from one link before everything else gets its turn.
const RECEIVE_BATCHES: usize = 16;

/// Send calls before everything else gets its turn.
const SEND_CALLS: usize = 64;

/// Runs the client until it is told to stop.
///
/// # Errors
/// It cannot start.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    // Before there is any other thread.
    let stamps = launch.purpose.load_stamps(&launch.config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(launch, Groups::new(stamps)))
}

async fn serve(launch: Launch, groups: Groups) -> anyhow::Result<()> {
    let Launch { config, layout, key, reread, purpose } = launch;
    let control = ControlServer::bind(&layout.socket, control::CHANGES, control::TAKES)?;
    let figures =
        config.metrics.0.map(|at| MetricsServer::open(at, control.asker())).transpose()?;
    let (outcomes, host_outcomes) = unbounded_channel();
    let (capture, tun, mark) = match purpose {
        Purpose::Host => {
            // Before anything is removed: another daemon's rules are not ours.
            Host::open()?.refuse_captor().await?;
            let tun = create_tun(&config).await?;
            let capture = Capture::spawn(outcomes).context("cannot start the host thread")?;
            (Some(capture), Some(tun), config.paths.mark)
        }
        // Without a capture there is nothing to keep the carrier's packets out of.
        Purpose::Runs { .. } => (None, None, 0),
    };
    let name = config.capture.interface.as_str().to_owned();
    let (links, link_events) = unbounded_channel();
    let literal = config.gateway.literal().into_iter().collect();
    let named = asked(&config.paths);
    let monitor =
        LinkMonitor::spawn(name, literal, named, links).context("cannot watch the links")?;
    let (announcements, login_news) = unbounded_channel();
    let (login, words) = unbounded_channel();
    monitor.accompany(login::follow(announcements, words));
    let (names, names_reports) = names::begin(&monitor, tun.as_ref(), &layout).await;
    let (networks, network_news) = unbounded_channel();
    monitor.accompany(manager::follow(networks));
    let (portals, portal_news) = unbounded_channel();
    let (resolved, resolutions) = unbounded_channel();
    let (lonely, followed) = watch::channel(BTreeSet::new());
    let resolver = tokio::spawn(resolver::follow(config.gateway.clone(), followed, resolved));
    let tunnel = Tunnel::new(key, config.gateway_key, mark, &Tuning::default())?;
    let now = Instant::now();
    let seed = u64::from_ne_bytes(whimbrel_host::random::bytes()?);
    let mut daemon = Daemon {
        client: Client::new(tunnel, config.capture.offline, config.session.hold, seed, now),
        devices: Devices::new(tun, now),
        groups,
        purpose,
        receive: vec![0; RECEIVE_BUFFER],
        send: Vec::with_capacity(RECEIVE_BUFFER),
        pending: None,
        capture,
        monitor,
        login,
        waits: None,
        names,
        sleep_watch: login::Watch::default(),
        own_v6: None,
        ephemeral: host::ephemeral_ports(),
        uplinks: BTreeMap::new(),
        lonely,
        networks: manager::News::new(),
        portals,
        restored: 0,
        ready: false,
        watchdog: Watchdog::new(now),
        alarm: Alarm::new().context("cannot make a timer")?,
        layout,
        reread,
        config,
        started: now,
        state: None,
        fatal: None,
    };
    daemon.client.carry(daemon.config.capture.mode);
    daemon.client.tunnel.portals.enable(daemon.config.paths.captive_probe);
    daemon.client.journal.tell(EventKind::Started, "the daemon runs");
    info!(gateway = %daemon.config.gateway, "Client runs");
    let inbox = Inbox {
        link_events,
        login_news,
        network_news,
        portal_news,
        resolutions,
        host_outcomes,
        names_reports,
    };
    if matches!(purpose, Purpose::Host) {
        daemon.go_on(keeping::passed());
    }
    purpose.begin()?;
    let outcome = daemon.run(control, inbox).await;
    drop(figures);
    resolver.abort();
    daemon.stop().await?;
    outcome
}

async fn create_tun(config: &ClientConfig) -> anyhow::Result<Tun> {
    let (v4, v6) = (config.capture.address4, config.capture.address6);
    let name = config.capture.interface.as_str();
    let tun = Tun::create(name, MTU, Some((v4, 32)), Some((v6, 128))).await?;
    if !tun.vnet() {
        bail!("this kernel's TUN has no segmentation offload, which Whimbrel needs");
    }
    if v4 != NAMESERVER {
        tun.lead(NAMESERVER).await?;
    }
    Ok(tun)
}

/// What other threads and tasks tell the daemon.
struct Inbox {
    link_events: UnboundedReceiver<LinkEvent>,
    login_news: UnboundedReceiver<login::News>,
    network_news: UnboundedReceiver<manager::News>,
    portal_news: UnboundedReceiver<(PathKey, bool)>,
    resolutions: UnboundedReceiver<Result<Vec<SocketAddr>, String>>,
    host_outcomes: UnboundedReceiver<Outcome>,
    names_reports: UnboundedReceiver<NamesReport>,
}

struct Daemon {
    client: Client,
    devices: Devices,
    groups: Groups,
    purpose: Purpose,
    receive: Vec<u8>,
    send: Vec<u8>,
    /// A transmit the kernel had no room for; its bytes are in `send`.
    pending: Option<Transmit>,
    /// `None` where only wrapped commands are served.
    capture: Option<Capture>,
    monitor: LinkMonitor,
    login: UnboundedSender<Go>,
    /// The machine waits for this before it sleeps.
    waits: Option<Go>,
    names: Names,
    /// Who announces its sleep.
    sleep_watch: login::Watch,
    /// `None` until the links were read: capturing without them would take established IPv6
    /// connections for new ones.
    own_v6: Option<Vec<Ipv6Addr>>,
    /// The ports the kernel gives to programs that ask for any.
    ephemeral: PortRange,
    /// The links as they were told last.
    uplinks: BTreeMap<u32, Uplink>,
    /// Those of them that know IPv6 alone.
    lonely: watch::Sender<BTreeSet<String>>,
    /// What the network manager knows of them.
    networks: manager::News,
    /// Where it is told whether a network wants a sign-in.
    portals: UnboundedSender<(PathKey, bool)>,
    /// How often another program removed our rules.
    restored: u64,
    /// The service manager has been told that new connections are captured.
    ready: bool,
    watchdog: Watchdog,
    alarm: Alarm,
    layout: Layout,
    reread: fn(&Layout) -> anyhow::Result<ClientConfig>,
    config: ClientConfig,
    started: Instant,
    state: Option<(SessionState, CaptureState)>,
    fatal: Option<anyhow::Error>,
}

enum Wake {
    Io,
    Link(LinkEvent),
    Login(login::News),
    Networks(manager::News),
    Portal(PathKey, bool),
    Resolved(Result<Vec<SocketAddr>, String>),
    Host(Outcome),
    Names(NamesReport),
    Request(Request, Responder),
    Order(Order),
}

impl Daemon {
    async fn run(&mut self, mut control: ControlServer, mut inbox: Inbox) -> anyhow::Result<()> {
        let mut orders = Orders::listen()?;
        loop {
            let busy = self.turn();
            match self.wait(busy, &mut control, &mut inbox, &mut orders).await {
                Wake::Io => {}
                Wake::Link(event) => self.handle_link(event),
                Wake::Login(news) => self.handle_login(news),
                Wake::Networks(news) => self.handle_networks(news),
                Wake::Portal(link, captive) => self.client.tunnel.portals.learn(link, captive),
                Wake::Resolved(outcome) => self.handle_resolution(outcome),
                Wake::Names(report) => self.handle_names(report),
                Wake::Host(outcome) => self.handle_host(outcome),
                Wake::Request(request, responder) => control::answer(request, responder, self),
                Wake::Order(Order::Reload) => self.reload(),
                Wake::Order(Order::Stop) => return Ok(()),
            }
            if let Some(error) = self.fatal.take() {
                return Err(error);
            }
            if self.is_done(&mut control) {
                return Ok(());
            }
        }
    }

    /// One round of everything that can be done without waiting. Whether more could be.
    fn turn(&mut self) -> bool {
        let now = Instant::now();
        let mut busy = self.receive(now);
        busy |= self.read_packets(now);
        busy |= self.client.advance(&mut self.devices, now);
        busy |= self.transmit(now);
        self.part(now);
        // After the last datagram there is before the machine sleeps.
        self.let_go();
        self.ask_networks();
        self.follow_plan();
        self.wish_names();
        self.announce();
        self.watchdog.feed(now);
        busy
    }

    fn read_packets(&mut self, now: Instant) -> bool {
        let Self { devices, client, .. } = self;
        let read = devices.read(|device, packet| client.handle_packet(device, packet, now));
        read.unwrap_or_else(|error| {
            self.fatal =
                Some(anyhow::Error::new(error).context(
                    "the TUN interface cannot be read; it was removed while the daemon ran",
                ));
            false
        })
    }

    fn receive(&mut self, now: Instant) -> bool {
        let mut busy = false;
        for link in self.client.tunnel.uplinks.keys() {
            for round in 0..RECEIVE_BATCHES {
                let batch = match self.client.tunnel.uplinks.receive(link, &mut self.receive) {
                    Ok(batch) => batch,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        // An ICMP error of some earlier datagram, or a link going down.
                        debug!(%link, %error, "Receive failed");
                        break;
                    }
                };
                for datagram in self.receive[..batch.size].chunks(batch.stride) {
                    let data = BytesMut::from(datagram);
                    let tunnel = &mut self.client.tunnel;
                    tunnel.handle_datagram(batch.remote, batch.local, batch.ecn, data, now);
                }
                busy |= round + 1 == RECEIVE_BATCHES;
            }
        }
        busy
    }

    fn transmit(&mut self, now: Instant) -> bool {
        let tunnel = &mut self.client.tunnel;
        for _ in 0..SEND_CALLS {
            if self.pending.is_none() {
                self.send.clear();
                self.pending = tunnel.poll_transmit(now, &mut self.send);
            }
            let Some(transmit) = self.pending else { return false };
            let fallback = tunnel.fallback(&transmit);
            match tunnel.uplinks.send(&transmit, &self.send, fallback) {
                Ok(()) => self.pending = None,
                Err(failed) if failed.error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(failed) => {
                    // An oversized probe of the path's MTU says nothing about the link.
                    if failed.error.raw_os_error() != Some(libc::EMSGSIZE) {
                        tunnel.send_failed(&failed, now);
                    }
                    self.pending = None;
                }
            }
        }
        true
    }

    async fn wait(
        &mut self,
        busy: bool,
        control: &mut ControlServer,
        inbox: &mut Inbox,
        orders: &mut Orders,
    ) -> Wake {
        let now = Instant::now();
        let deadlines = [
            self.client.poll_timeout(),
            self.watchdog.deadline(),
            self.devices.deadline(),
            self.end_check(now),
        ];
        let deadline = if busy { Some(now) } else { deadlines.into_iter().flatten().min() };
        let Self { client, devices, groups, pending, alarm, .. } = self;
        let tunnel = &client.tunnel;
        let io = poll_fn(|cx| {
            let packets = devices.poll_readable(cx) | groups.poll_news(cx);
            let datagrams = tunnel.uplinks.poll_readable(cx);
            let room = pending.as_ref().is_some_and(|transmit| {
                tunnel.uplinks.poll_writable(transmit, tunnel.fallback(transmit), cx)
            });
            if packets || datagrams || room { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            biased;
            order = orders.next() => Wake::Order(order),
            Some(event) = inbox.link_events.recv() => Wake::Link(event),
            Some(news) = inbox.login_news.recv() => Wake::Login(news),
            Some(news) = inbox.network_news.recv() => Wake::Networks(news),
            Some((link, captive)) = inbox.portal_news.recv() => Wake::Portal(link, captive),
            Some(outcome) = inbox.host_outcomes.recv() => Wake::Host(outcome),
            Some(report) = inbox.names_reports.recv() => Wake::Names(report),
            Some(outcome) = inbox.resolutions.recv() => Wake::Resolved(outcome),
            (request, responder) = control.next() => Wake::Request(request, responder),
            () = io => Wake::Io,
            () = alarm.wait(deadline) => Wake::Io,
        }
    }

    fn handle_resolution(&mut self, outcome: Result<Vec<SocketAddr>, String>) {
        match outcome {
            Ok(addresses) => {
                let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
                self.monitor.set_gateway(ips);
                self.client.tunnel.set_gateway(addresses, Instant::now());
            }
            Err(reason) => {
                warn!(reason, "Cannot resolve the gateway's name");
                self.client.tunnel.last_failure = Some(Failure::new(Trouble::NameUnknown, reason));
            }
        }
    }

    /// Tells the service manager what state the daemon is in.
    fn announce(&mut self) {
        let state = (self.session_state(), self.capture_state());
        if self.state.replace(state) != Some(state) {
            let text = format!("{}, capture {}", state.0, state.1);
            service::status(&text);
        }
    }

    fn session_state(&self) -> SessionState {
        match self.client.tunnel.standing(Instant::now()) {
            Standing::Attached => SessionState::Attached,
            Standing::Parked => SessionState::Parked,
            Standing::Connecting => SessionState::Connecting,
            Standing::Offline => SessionState::Offline,
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        service::stopping();
        info!("Client stops");
        // While the name server inside the TUN still answers.
        self.names.give_back().await;
        let now = Instant::now();
        // New connections first: none may be caught between the rules and the end.
        let removed = match self.capture.take() {
            Some(capture) => capture.remove().await,
            None => Ok(()),
        };
        self.client.stop(&mut self.devices, now);
        let tunnel = &mut self.client.tunnel;
        tunnel.advance(now);
        self.send.clear();
        while let Some(transmit) = tunnel.poll_transmit(now, &mut self.send) {
            let fallback = tunnel.fallback(&transmit);
            if let Err(failed) = tunnel.uplinks.send(&transmit, &self.send, fallback) {
                debug!(error = %failed.error, "Farewell not sent");
            }
            self.send.clear();
        }
        removed.inspect_err(|error| error!(%error, "Capture rules stay behind"))
    }
}

impl Running for Daemon {
    fn status(&mut self) -> Status {
        let mut links = self.client.tunnel.links();
        links.sort_by_key(|link| !link.active);
        let paths = links.into_iter().map(PathReport::from).collect();
        let attached = self.client.tunnel.standing(Instant::now()) == Standing::Attached;
        let failure = self.client.tunnel.last_failure.clone().filter(|_| !attached);
        Status {
            state: self.session_state(),
            gateway: self.config.gateway.to_string(),
            session: self.client.tunnel.session().map(|session| session.to_string()),
            paths,
            flows: self.client.flow_counts(),
            datagrams: self.client.datagram_report(),
            names: self.names.report.clone(),
            moves: self.client.journal.moves,
            last_move: self.client.journal.last_move.clone(),
            capture: self.capture_state(),
            restored: self.restored,
            pause_left_s: self.client.pause_left(Instant::now()).map(|left| left.as_secs()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            trouble_kind: failure.as_ref().map(|failure| failure.trouble.to_string()),
            trouble: failure.map(|failure| failure.text),
            sleep: Some(self.sleep_watch.to_string()),
            runs: self.report_runs(),
            cgroup_trouble: self.groups.obstacle().map(str::to_owned),
        }
    }

    fn flows(&self, most: Option<usize>) -> Vec<FlowReport> {
        self.client.flows(most, Instant::now())
    }

    fn metrics(&mut self) -> String {
        metrics::write(self)
    }

    fn trace(&mut self, responder: Responder) {
        let session = self.client.tunnel.session().map(|session| session.to_string());
        self.client.journal.trace.follow(responder, session);
    }

    fn events(&mut self) -> &mut Events {
        &mut self.client.journal.events
    }

    fn relocate(&mut self, to: Target) -> Result<String, String> {
        let now = Instant::now();
        match to {
            Target::Auto => {
                self.client.tunnel.prefer(None, now)?;
                Ok("the best link is chosen automatically again".to_owned())
            }
            Target::Link(name) => {
                let link =
                    self.client.tunnel.link_named(name.as_str()).ok_or_else(|| {
                        match self.client.tunnel.link_names().join(", ") {
                            known if known.is_empty() => "no link is up at the moment".to_owned(),
                            known => {
                                format!("there is no link {name} that is up; there is: {known}")
                            }
                        }
                    })?;
                self.client.tunnel.prefer(Some(link), now)?;
                Ok(format!(
                    "moving to {name}; traffic stays there while it works, until \
                     `whimbrel move --auto`"
                ))
            }
        }
    }

    fn run(&mut self, passed: Passed) -> Result<Welcome, String> {
        self.admit(passed)
    }

    fn lead(&mut self, grouped: Grouped) -> Result<Welcome, String> {
        self.admit_group(grouped)
    }

    fn pause(&mut self, duration: Option<Duration>) -> Result<String, String> {
        self.check_capture()?;
        self.client.pause(duration.map(|duration| Instant::now() + duration));
        self.follow_plan();
        Ok("new connections go direct; those already carried go on".to_owned())
    }

    fn resume(&mut self) -> Result<String, String> {
        self.check_capture()?;
        self.client.resume();
        self.follow_plan();
        Ok("new connections are captured again".to_owned())
    }
}
