//! The head of the gateway process: it owns the files, the control socket, the signals and the word
//! with the service manager, starts the slots and answers them.
//!
//! It is no slot itself: what waits for a disk or asks everybody never stands in the way of a
//! datagram.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};
use whimbrel_common::config::{ConfigError, GatewayConfig};
use whimbrel_common::identity::SecretKey;
use whimbrel_common::wire::{Denial, RESOLVER, SessionId};
use whimbrel_gateway_core::directory::{Directory, SlotNumber, Step};
use whimbrel_gateway_core::invites::RedeemError;
use whimbrel_gateway_core::limits::Usage;
use whimbrel_host::addresses;
use whimbrel_host::control::{ControlServer, Request, Responder};
use whimbrel_host::metrics::MetricsServer;
use whimbrel_host::nameservers;
use whimbrel_host::output::unix_now;
use whimbrel_host::service::{self, Order, Orders, Watchdog};
use whimbrel_host::{Alarm, Layout};

use crate::control::{self, Answer, Facts, Inquiry, Report};
use crate::keep::{Keep, KeptSession, ServiceManager, Store};
use crate::outlet::{NO_ECHOES, echo};
use crate::passed::Passed;
use crate::ports::Listening;
use crate::slot::{self, Inheritance, STRAYS, Start};
use crate::state::{EnrolError, State};
use crate::talk::{Attach, Moved, News, ToHead, ToSlot};
use crate::usage::SharedUsage;
use crate::watch::Watch;

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

/// The clients file is looked at this often even if nobody says that it has changed: where it comes
/// from another machine, the kernel knows of no change.
const RELOAD_EVERY: Duration = Duration::from_mins(1);

/// A slot that is told to stop says goodbye to its clients and is done. One that is not after this
/// hangs, and its clients find out without it.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// The gateway cannot start, or one of its slots failed.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(launch))
}

async fn serve(launch: Launch) -> anyhow::Result<()> {
    let state = State::open(&launch.layout)?;
    let passed = Passed::take();
    let listening = Listening::open(&launch.config.listen, passed.sockets)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let count = listening.slots(launch.config.slots, cores).map_err(|message| {
        let file = launch.layout.config.display().to_string();
        ConfigError { file, line: None, message }
    })?;
    let control = ControlServer::bind(&launch.layout.socket, control::CHANGES, &[])?;
    let figures = launch.config.metrics.0.map(|at| MetricsServer::open(at, control.asker()));
    let _figures = figures.transpose()?;
    let (slots, inboxes) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
    let (tell_head, words) = mpsc::unbounded_channel();
    let mut head = Head {
        facts: Facts {
            public: launch.config.public.clone(),
            key: launch.key.public(),
            listen: listening.addresses(),
            uptime_s: 0,
            outlives: false,
        },
        since: Instant::now(),
        state,
        layout: launch.layout,
        reread: launch.reread,
        slots,
        words,
        directory: Directory::default(),
        gatherings: Vec::new(),
        next: 0,
        watchdog: Watchdog::new(Instant::now()),
        folder: None,
        addresses: Watch::addresses(),
        // Only now: what changes from here on is told.
        own: addresses::own()?,
        reload_at: Instant::now() + RELOAD_EVERY,
        alarm: Alarm::new().context("cannot make a timer")?,
        resolvers: Vec::new(),
        round: None,
        connected: None,
    };
    let kept = head.go_on(passed.kept, count);
    listening.steer(count);
    let (config, key) = (Arc::new(launch.config), launch.key);
    spawn_slots(listening, kept, (&config, &key), &head.own, inboxes, &tell_head)?;
    drop(tell_head);
    head.await_slots().await?;
    head.tell_resolvers();
    let listen: Vec<String> = head.facts.listen.iter().map(ToString::to_string).collect();
    info!(listen = listen.join(", "), slots = count, "Gateway runs");
    if !echo::is_possible() {
        warn!(reason = NO_ECHOES, "Clients cannot ping through this gateway");
    }
    head.announce(0);
    service::ready();
    head.run(control).await
}

fn spawn_slots(
    listening: Listening,
    kept: Vec<Option<Inheritance>>,
    (config, key): (&Arc<GatewayConfig>, &SecretKey),
    own: &[IpAddr],
    inboxes: Vec<mpsc::UnboundedReceiver<ToSlot>>,
    head: &mpsc::UnboundedSender<(SlotNumber, ToHead)>,
) -> anyhow::Result<()> {
    let usage = SharedUsage::new(Usage::new(&config.limits));
    let count = u8::try_from(inboxes.len()).unwrap_or(u8::MAX);
    let (neighbours, strays): (Vec<_>, Vec<_>) =
        inboxes.iter().map(|_| mpsc::channel(STRAYS)).unzip();
    let sockets = listening.split(count);
    let parts = inboxes.into_iter().zip(strays).zip(sockets).zip(kept);
    for (number, (((inbox, strays), sockets), kept)) in (0..count).zip(parts) {
        let start = Start {
            number: SlotNumber(number),
            config: Arc::clone(config),
            key: SecretKey::from_seed(*key.seed()),
            own: own.to_vec(),
            usage: usage.clone(),
            sockets,
            kept,
            inbox,
            head: head.clone(),
            strays,
            neighbours: neighbours.clone(),
        };
        slot::spawn(start).context("cannot start a thread")?;
    }
    Ok(())
}

struct Head {
    facts: Facts,
    since: Instant,
    state: State,
    layout: Layout,
    reread: fn(&Layout) -> anyhow::Result<GatewayConfig>,
    slots: Vec<mpsc::UnboundedSender<ToSlot>>,
    words: mpsc::UnboundedReceiver<(SlotNumber, ToHead)>,
    directory: Directory<Attach>,
    gatherings: Vec<Gathering>,
    /// The number of the next gathering.
    next: u64,
    watchdog: Watchdog,
    /// The clients file is in it, and may be changed by hand.
    folder: Option<Watch>,
    addresses: Watch,
    /// The addresses of this machine, as the slots were told last.
    own: Vec<IpAddr>,
    reload_at: Instant,
    alarm: Alarm,
    /// Whom this machine asks for names, as the slots were told last.
    resolvers: Vec<IpAddr>,
    /// Slots that have yet to say that they go round, and the clients of those that have.
    round: Option<(usize, usize)>,
    /// The number of connected clients that the service manager was told.
    connected: Option<usize>,
}

/// A request that every slot was asked about.
struct Gathering {
    number: u64,
    inquiry: Inquiry,
    responder: Responder,
    missing: usize,
    reports: Vec<Report>,
    ended: usize,
}

enum Wake {
    Word(SlotNumber, ToHead),
    Request(Request, Responder),
    Order(Order),
    /// A file beside that of the clients, or that one.
    Changed,
    /// The addresses of this machine may be others.
    Readdressed,
    Time,
}

impl Head {
    /// Goes on with what a process before left with the service manager. A gateway that cannot
    /// serves new connections all the same.
    fn go_on(&mut self, kept: Vec<(String, OwnedFd)>, slots: u8) -> Vec<Option<Inheritance>> {
        let Some(manager) = ServiceManager::find() else {
            debug!("No service manager: connections end with this process");
            return (0..slots).map(|_| None).collect();
        };
        let store: Arc<dyn Store> = Arc::new(manager);
        match Keep::open(kept, usize::from(slots), &store) {
            Ok(kept) => {
                self.facts.outlives = true;
                let numbers = (0..slots).map(SlotNumber);
                numbers.zip(kept).map(|(slot, kept)| Some(self.introduce(slot, kept))).collect()
            }
            Err(error) => {
                warn!(%error, "Connections will end with this process");
                (0..slots).map(|_| None).collect()
            }
        }
    }

    fn introduce(
        &mut self,
        slot: SlotNumber,
        (keep, sessions): (Keep, Vec<KeptSession>),
    ) -> Inheritance {
        let introduce = |session: KeptSession| {
            let client = self.state.client(&session.key);
            if client.is_some() {
                self.directory.opened(session.id, session.key, slot);
            }
            (session, client)
        };
        (keep, sessions.into_iter().map(introduce).collect())
    }

    /// Waits until every slot is ready.
    async fn await_slots(&mut self) -> anyhow::Result<()> {
        let mut missing = self.slots.len();
        while missing > 0 {
            match self.words.recv().await {
                Some((_, ToHead::Started)) => missing -= 1,
                Some((slot, word)) => self.hear(slot, word)?,
                None => bail!("the gateway's threads ended"),
            }
        }
        Ok(())
    }

    async fn run(&mut self, mut control: ControlServer) -> anyhow::Result<()> {
        let mut orders = Orders::listen()?;
        self.folder = self.layout.clients.parent().map(Watch::folder);
        loop {
            match self.wait(&mut control, &mut orders).await {
                Wake::Word(slot, word) => self.hear(slot, word)?,
                Wake::Request(request, responder) => self.answer(&request, responder),
                Wake::Order(Order::Reload) => self.reload(),
                Wake::Order(Order::Stop) => break,
                Wake::Changed => self.drop_revoked(),
                Wake::Readdressed => {
                    self.tell_own();
                    // Where addresses come from, name servers do.
                    self.tell_resolvers();
                }
                Wake::Time => self.go_round(Instant::now()),
            }
        }
        service::stopping();
        info!("Gateway stops");
        self.stop().await;
        Ok(())
    }

    async fn wait(&mut self, control: &mut ControlServer, orders: &mut Orders) -> Wake {
        // Before a round is over there is no use in another one.
        let deadline = self.watchdog.deadline().filter(|_| self.round.is_none());
        let deadline = deadline.map_or(self.reload_at, |at| at.min(self.reload_at));
        tokio::select! {
            biased;
            order = orders.next() => Wake::Order(order),
            // Seldom, and it puts itself off: slots with much to say do not starve the watchdog.
            () = self.alarm.wait(Some(deadline)) => Wake::Time,
            // What clients could reach until the slots know it.
            () = self.addresses.changed() => Wake::Readdressed,
            Some((slot, word)) = self.words.recv() => Wake::Word(slot, word),
            (request, responder) = control.next() => Wake::Request(request, responder),
            () = async {
                match &self.folder {
                    Some(folder) => folder.changed().await,
                    None => std::future::pending().await,
                }
            } => Wake::Changed,
        }
    }

    /// Looks after what nobody asks for.
    fn go_round(&mut self, now: Instant) {
        if now >= self.reload_at {
            self.reload_at = now + RELOAD_EVERY;
            self.drop_revoked();
            self.tell_resolvers();
            self.tell_own();
        }
        if self.round.is_none() && self.watchdog.is_due(now) {
            self.round = Some((self.slots.len(), 0));
            self.tell_all(|| ToSlot::Pulse);
        }
    }

    /// Tells the slots whom this machine asks for names, if that has changed.
    fn tell_resolvers(&mut self) {
        let own = nameservers::own();
        if own != self.resolvers {
            debug!(?own, "Name servers");
            let servers: Vec<_> =
                own.iter().map(|server| (*server, RESOLVER.port()).into()).collect();
            self.tell_all(|| ToSlot::Resolvers(servers.clone()));
            self.resolvers = own;
        }
    }

    /// Tells the slots the addresses of this machine, which no client may reach, if they have changed.
    fn tell_own(&mut self) {
        match addresses::own() {
            Ok(own) if own == self.own => {}
            Ok(own) => {
                debug!(?own, "Own addresses");
                self.tell_all(|| ToSlot::Own(own.clone()));
                self.own = own;
            }
            Err(error) => warn!(%error, "The addresses of this machine are taken to be as before"),
        }
    }

    fn tell(&self, slot: SlotNumber, what: ToSlot) {
        if let Some(inbox) = self.slots.get(usize::from(slot.0)) {
            // A slot that is gone has said so, and that ends the process.
            let _ = inbox.send(what);
        }
    }

    fn tell_all(&self, what: impl Fn() -> ToSlot) {
        for inbox in &self.slots {
            let _ = inbox.send(what());
        }
    }

    fn hear(&mut self, slot: SlotNumber, word: ToHead) -> anyhow::Result<()> {
        match word {
            ToHead::Started => {}
            ToHead::News(news) => self.decide(slot, news),
            ToHead::Yielded(session, moved) => {
                let Some((to, attach, next)) = self.directory.yielded(session, moved.is_some())
                else {
                    return Ok(());
                };
                self.attach(to, attach, moved);
                next.into_iter().for_each(|step| self.take(session, step));
            }
            ToHead::CutOff(number, ended) => self.gather(number, None, ended),
            ToHead::Report(number, report) => self.gather(number, Some(*report), 0),
            ToHead::Turned(clients) => self.turned(clients),
            ToHead::Ended(outcome) => {
                outcome.with_context(|| format!("slot {slot} failed"))?;
                bail!("slot {slot} ended");
            }
        }
        Ok(())
    }

    fn decide(&mut self, slot: SlotNumber, news: News) {
        match news {
            News::Enrol(caller, token) => {
                let outcome = self.state.redeem(&token, caller.key, unix_now()).map_err(|error| {
                    warn!(key = %caller.key, %error, "Cannot enrol");
                    denial(&error)
                });
                self.tell(slot, ToSlot::Enrolled(caller, outcome));
            }
            News::Attach(attach) => match attach.session {
                Some(session) => {
                    if let Some(step) = self.directory.attach(session, slot, attach) {
                        self.take(session, step);
                    }
                }
                None => self.attach(slot, attach, None),
            },
            News::Opened(session, key) => {
                self.directory.opened(session, key, slot);
                // It may have been revoked since its attach was answered.
                if self.state.admit(&key).is_none() {
                    self.tell(slot, ToSlot::CutOff(key, None));
                }
            }
            News::Closed(session) => self.directory.closed(session, slot),
            News::Housed(from, sockets) => self.tell(from, ToSlot::Left(sockets)),
        }
    }

    fn take(&mut self, session: SessionId, step: Step<Attach>) {
        match step {
            Step::Attach(slot, attach) => self.attach(slot, attach, None),
            Step::Claim { from, attach } => self.tell(from, ToSlot::Yield(session, attach)),
        }
    }

    fn attach(&mut self, slot: SlotNumber, attach: Attach, moved: Option<Box<Moved>>) {
        let client = self.state.client(&attach.caller.key);
        self.tell(slot, ToSlot::Attach(attach, client, moved));
    }

    fn turned(&mut self, clients: usize) {
        let Some((missing, connected)) = self.round else { return };
        let (missing, connected) = (missing.saturating_sub(1), connected + clients);
        if missing > 0 {
            self.round = Some((missing, connected));
            return;
        }
        // Only a gateway all of whose slots go round is well.
        self.round = None;
        self.watchdog.feed(Instant::now());
        self.announce(connected);
    }

    /// Reads the configuration and the clients again. What is wrong with them is told, and what was
    /// there before stays.
    fn reload(&mut self) {
        service::reloading();
        match (self.reread)(&self.layout) {
            Ok(config) => {
                self.facts.public = config.public.clone();
                let config = Arc::new(config);
                self.tell_all(|| ToSlot::Configure(Arc::clone(&config)));
                info!(
                    "The configuration was read again; `listen`, `slots` and `metrics` change with the next start"
                );
            }
            Err(error) => warn!(error = format!("{error:#}"), "The configuration stays as it was"),
        }
        self.drop_revoked();
        self.tell_resolvers();
        self.tell_own();
        service::ready();
    }

    /// Tells the service manager how many clients are connected.
    fn announce(&mut self, connected: usize) {
        if self.connected.replace(connected) != Some(connected) {
            let text = format!("listening, {connected} clients connected");
            service::status(&text);
        }
    }

    /// Cuts off clients whose key was taken out of the file by hand.
    fn drop_revoked(&mut self) {
        if !self.state.reload() {
            return;
        }
        for key in self.directory.keys() {
            if self.state.admit(&key).is_none() {
                self.tell_all(|| ToSlot::CutOff(key, None));
            }
        }
    }

    fn answer(&mut self, request: &Request, responder: Responder) {
        self.facts.uptime_s = self.since.elapsed().as_secs();
        let inquiry = match control::answer(request, &mut self.state, &self.facts, unix_now()) {
            Ok(Answer::Ask(inquiry)) => inquiry,
            Ok(Answer::Now(value)) => return responder.reply(Ok(value)),
            Err(sentence) => return responder.reply(Err(sentence)),
        };
        let number = self.next;
        self.next += 1;
        match inquiry {
            Inquiry::Status | Inquiry::Clients | Inquiry::Metrics => {
                self.tell_all(|| ToSlot::Report(number))
            }
            Inquiry::CutOff(key) => self.tell_all(|| ToSlot::CutOff(key, Some(number))),
        }
        let (missing, reports, ended) = (self.slots.len(), Vec::new(), 0);
        let gathering = Gathering { number, inquiry, responder, missing, reports, ended };
        self.gatherings.push(gathering);
    }

    /// One slot has told its part.
    fn gather(&mut self, number: u64, report: Option<Report>, ended: usize) {
        let Some(at) = self.gatherings.iter().position(|one| one.number == number) else { return };
        let gathering = &mut self.gatherings[at];
        gathering.reports.extend(report);
        gathering.ended += ended;
        gathering.missing = gathering.missing.saturating_sub(1);
        if gathering.missing > 0 {
            return;
        }
        let Gathering { inquiry, responder, reports, ended, .. } = self.gatherings.swap_remove(at);
        let (state, facts) = (&mut self.state, &self.facts);
        let value = control::conclude(&inquiry, reports, ended, state, facts, unix_now());
        responder.reply(Ok(value));
    }

    /// Lets every slot say goodbye.
    async fn stop(&mut self) {
        self.tell_all(|| ToSlot::Stop);
        let mut missing = self.slots.len();
        let ends = async {
            while missing > 0
                && let Some((slot, word)) = self.words.recv().await
            {
                if let ToHead::Ended(outcome) = word {
                    missing -= 1;
                    if let Err(error) = outcome {
                        warn!(%slot, error = format!("{error:#}"), "A slot failed");
                    }
                }
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, ends).await.is_err() {
            warn!("Not every slot has stopped");
        }
    }
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
