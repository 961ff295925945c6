//! The gateway process: one thread that moves datagrams, socket news and requests.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::BytesMut;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};
use whimbrel_carrier::Transmit;
use whimbrel_carrier::udp::RECEIVE_BUFFER;
use whimbrel_common::config::{GatewayConfig, HostPort};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::wire::Denial;
use whimbrel_gateway_core::invites::RedeemError;
use whimbrel_host::Layout;
use whimbrel_host::addresses;
use whimbrel_host::control::{ControlServer, Request, Responder};
use whimbrel_host::output::unix_now;
use whimbrel_host::service::{self, Order, Orders, Watchdog};

use crate::control::{self, Activity, Dials, Running, Status, Waiting};
use crate::gateway::{Ask, Gateway, Question};
use crate::keep::Keep;
use crate::passed::Passed;
use crate::ports::Ports;
use crate::state::{EnrolError, State};

/// What the daemon starts with.
#[derive(Debug)]
pub struct Launch {
    /// The validated configuration.
    pub config: GatewayConfig,
    /// Where the files are.
    pub layout: Layout,
    /// The gateway's private key.
    pub key: SecretKey,
    /// Reads the configuration again.
    pub reread: fn(&Layout) -> anyhow::Result<GatewayConfig>,
}

/// Batches taken from one socket before everything else gets its turn: 16 × 64 KiB.
const RECEIVE_BATCHES: usize = 16;

/// Send calls before everything else gets its turn: 64 × 32 datagrams.
const SEND_CALLS: usize = 64;

/// The clients file is looked at this often, for revocations by hand.
const RELOAD_EVERY: Duration = Duration::from_secs(2);

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// The gateway cannot start.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(launch))
}

async fn serve(launch: Launch) -> anyhow::Result<()> {
    let mut state = State::open(&launch.layout)?;
    let passed = Passed::take();
    let ports = Ports::open(&launch.config.listen, passed.sockets)?;
    let key = launch.key.public();
    let mut gateway = Gateway::new(&launch.config, launch.key, addresses::own()?)?;
    go_on(&mut gateway, passed.kept, &mut state);
    let control = ControlServer::bind(&launch.layout.socket, control::CHANGES)?;
    let mut daemon = Daemon {
        sockets: Watched::new(gateway.as_fd().as_raw_fd())?,
        receive: vec![0; RECEIVE_BUFFER],
        send: Vec::with_capacity(RECEIVE_BUFFER),
        pending: None,
        ports,
        gateway,
        state,
        public: launch.config.public,
        key,
        layout: launch.layout,
        reread: launch.reread,
        watchdog: Watchdog::new(Instant::now()),
        reload_at: Instant::now() + RELOAD_EVERY,
        connected: None,
    };
    let listen: Vec<String> = daemon.ports.addresses().iter().map(ToString::to_string).collect();
    info!(listen = listen.join(", "), "Gateway runs");
    daemon.announce();
    service::ready();
    daemon.run(control).await
}

/// Goes on with what a process before left with the service manager. A gateway that cannot serves
/// new connections all the same.
fn go_on(gateway: &mut Gateway, kept: Vec<(String, OwnedFd)>, state: &mut State) {
    match Keep::open(kept) {
        Ok(Some((keep, sessions))) => {
            let admit = |key: &PublicKey| state.admit(key).map(|name| (name, state.options(key)));
            gateway.restore(keep, sessions, admit, Instant::now());
        }
        Ok(None) => debug!("No service manager: connections end with this process"),
        Err(error) => warn!(%error, "Connections will end with this process"),
    }
}

struct Daemon {
    ports: Ports,
    gateway: Gateway,
    state: State,
    public: HostPort,
    key: PublicKey,
    layout: Layout,
    reread: fn(&Layout) -> anyhow::Result<GatewayConfig>,
    watchdog: Watchdog,
    sockets: Watched,
    receive: Vec<u8>,
    send: Vec<u8>,
    /// A transmit the kernel had no room for; its bytes are in `send`.
    pending: Option<Transmit>,
    reload_at: Instant,
    /// The number of connected clients that the service manager was told.
    connected: Option<usize>,
}

enum Wake {
    Io,
    Request(Request, Responder),
    Order(Order),
}

impl Daemon {
    async fn run(&mut self, mut control: ControlServer) -> anyhow::Result<()> {
        let mut orders = Orders::listen()?;
        loop {
            let busy = self.turn()?;
            match self.wait(busy, &mut control, &mut orders).await {
                Wake::Io => {}
                Wake::Request(request, responder) => {
                    responder.reply(self.answer(&request));
                }
                Wake::Order(Order::Reload) => self.reload(),
                Wake::Order(Order::Stop) => break,
            }
        }
        service::stopping();
        info!("Gateway stops");
        self.gateway.close(Instant::now());
        self.turn()?;
        Ok(())
    }

    /// One round of everything that can be done without waiting. Whether more could be.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let now = Instant::now();
        let mut busy = self.receive(now);
        busy |= self.gateway.handle_sockets().context("cannot read socket news")?;
        busy |= self.gateway.advance(now);
        while let Some(ask) = self.gateway.poll_ask() {
            self.decide(ask, now);
            busy = true;
        }
        busy |= self.transmit(now);
        if now >= self.reload_at {
            self.reload_at = now + RELOAD_EVERY;
            self.drop_revoked(now);
            self.announce();
        }
        self.watchdog.feed(now);
        Ok(busy)
    }

    /// Reads the configuration and the clients again. What is wrong with them is told, and what was
    /// there before stays.
    fn reload(&mut self) {
        service::reloading();
        match (self.reread)(&self.layout) {
            Ok(config) => {
                self.gateway.configure(&config);
                self.public = config.public;
                info!("The configuration was read again; `listen` changes with the next start");
            }
            Err(error) => warn!(error = format!("{error:#}"), "The configuration stays as it was"),
        }
        self.drop_revoked(Instant::now());
        service::ready();
    }

    /// Tells the service manager how many clients are connected.
    fn announce(&mut self) {
        let connected = connected(&self.gateway);
        if self.connected.replace(connected) != Some(connected) {
            let text = format!("listening, {connected} clients connected");
            service::status(&text);
        }
    }

    fn decide(&mut self, ask: Ask, now: Instant) {
        match ask.question {
            Question::Enrol(token) => {
                let outcome = self.state.redeem(&token, ask.key, unix_now()).map_err(|error| {
                    warn!(key = %ask.key, %error, "Cannot enrol");
                    denial(&error)
                });
                self.gateway.enrolled(ask.connection, outcome, now);
            }
            Question::Attach { session, epoch } => {
                let client =
                    self.state.admit(&ask.key).map(|name| (name, self.state.options(&ask.key)));
                self.gateway.attached(ask.connection, session, epoch, client, now);
            }
        }
    }

    /// Cuts off clients whose key was taken out of the file by hand.
    fn drop_revoked(&mut self, now: Instant) {
        if !self.state.reload() {
            return;
        }
        let keys: Vec<PublicKey> = self
            .gateway
            .peers()
            .filter(|peer| peer.session.is_some())
            .map(|peer| peer.key)
            .collect();
        for key in keys {
            if self.state.admit(&key).is_none() {
                self.gateway.cut_off(&key, now);
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Result<serde_json::Value, String> {
        let mut running = RunningGateway {
            gateway: &mut self.gateway,
            ports: &self.ports,
            public: &self.public,
            key: self.key,
            now: Instant::now(),
        };
        control::answer(request, &mut self.state, &mut running, unix_now())
    }

    fn receive(&mut self, now: Instant) -> bool {
        let mut busy = false;
        for at in 0..self.ports.count() {
            for batch in 0..RECEIVE_BATCHES {
                match self.ports.receive(at, &mut self.receive) {
                    Ok(arrived) => {
                        let bytes = &self.receive[..arrived.size];
                        for datagram in bytes.chunks(arrived.stride) {
                            let data = BytesMut::from(datagram);
                            let (remote, local) = (arrived.remote, arrived.local);
                            self.gateway.handle_datagram(remote, local, arrived.ecn, data, now);
                        }
                        busy |= batch + 1 == RECEIVE_BATCHES;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        // An ICMP error of some earlier datagram: the peer's own timers tell.
                        debug!(%error, "Receive failed");
                    }
                }
            }
        }
        busy
    }

    fn transmit(&mut self, now: Instant) -> bool {
        for _ in 0..SEND_CALLS {
            if self.pending.is_none() {
                self.send.clear();
                self.pending = self.gateway.poll_transmit(now, &mut self.send);
            }
            let Some(transmit) = self.pending else { return false };
            match self.ports.send(&transmit, &self.send) {
                Ok(()) => self.pending = None,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    debug!(to = %transmit.destination, %error, "Send failed");
                    self.pending = None;
                }
            }
        }
        true
    }

    async fn wait(&mut self, busy: bool, control: &mut ControlServer, orders: &mut Orders) -> Wake {
        let deadline = if busy {
            Instant::now()
        } else {
            let others = [self.gateway.poll_timeout(), self.watchdog.deadline()];
            others.into_iter().flatten().fold(self.reload_at, Instant::min)
        };
        let (ports, sockets, pending) = (&self.ports, &self.sockets, &self.pending);
        let io = poll_fn(|cx| {
            let readable = ports.poll_readable(cx);
            let writable =
                pending.as_ref().is_some_and(|transmit| ports.poll_writable(transmit, cx));
            let news = sockets.poll(cx);
            if readable || writable || news { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            biased;
            order = orders.next() => Wake::Order(order),
            (request, responder) = control.next() => Wake::Request(request, responder),
            () = io => Wake::Io,
            () = tokio::time::sleep_until(deadline.into()) => Wake::Io,
        }
    }
}

/// What the control socket sees of the gateway.
struct RunningGateway<'a> {
    gateway: &'a mut Gateway,
    ports: &'a Ports,
    public: &'a HostPort,
    key: PublicKey,
    now: Instant,
}

impl Running for RunningGateway<'_> {
    fn identity(&self) -> (HostPort, PublicKey) {
        (self.public.clone(), self.key)
    }

    fn status(&self) -> Status {
        let stats = self.gateway.stats;
        let parked = self.gateway.parked();
        Status {
            state: "running".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.now.saturating_duration_since(self.gateway.since).as_secs(),
            listen: self.ports.addresses(),
            public: self.public.to_string(),
            key: self.key.to_string(),
            clients: 0,
            connected: connected(self.gateway),
            flows: self.gateway.flow_count() as u64,
            parked: Waiting { sessions: parked.0 as u64, flows: parked.1 as u64 },
            evicted: stats.evicted,
            restored: stats.restored,
            unkept: stats.unkept,
            outlives: self.gateway.outlives(),
            dials: Dials {
                connected: stats.connected,
                failed: stats.failed,
                denied: stats.denied,
                limited: stats.limited,
            },
            tx_bytes: stats.down_bytes,
            rx_bytes: stats.up_bytes,
        }
    }

    fn activity(&self, key: &PublicKey) -> Option<Activity> {
        let peer = self.gateway.peers().find(|peer| peer.key == *key && peer.session.is_some())?;
        let session = peer.session.as_ref()?;
        Some(Activity {
            flows: session.flows.len() as u64,
            addresses: self.gateway.addresses(peer),
            tx_bytes: session.down_bytes,
            rx_bytes: session.up_bytes,
            connected_s: self.now.saturating_duration_since(peer.since).as_secs(),
        })
    }

    fn cut_off(&mut self, key: &PublicKey) -> usize {
        self.gateway.cut_off(key, self.now)
    }
}

fn connected(gateway: &Gateway) -> usize {
    gateway.peers().filter(|peer| peer.session.is_some()).count()
}

fn denial(error: &EnrolError) -> Denial {
    match error {
        EnrolError::Invite(RedeemError::Unknown) => Denial::InviteUnknown,
        EnrolError::Invite(RedeemError::Used) => Denial::InviteUsed,
        EnrolError::Invite(RedeemError::Expired) => Denial::InviteExpired,
        EnrolError::Client(_) => Denial::AlreadyEnrolled,
        EnrolError::Storage(_) => Denial::Busy,
    }
}

/// A descriptor owned by somebody else, watched for reading.
struct Watched(AsyncFd<Borrowed>);

/// The number of a descriptor that outlives its watcher.
struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Watched {
    #[expect(deprecated, reason = "the replacement is unsafe, and the owner is dropped later")]
    fn new(descriptor: RawFd) -> io::Result<Self> {
        AsyncFd::with_interest(Borrowed(descriptor), Interest::READABLE).map(Self)
    }

    fn poll(&self, cx: &mut std::task::Context<'_>) -> bool {
        match self.0.poll_read_ready(cx) {
            Poll::Ready(Ok(mut guard)) => {
                guard.clear_ready();
                true
            }
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }
}
