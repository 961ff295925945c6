//! A slot: one of the gateway's data threads, which moves datagrams and socket news of its clients
//! and never waits inside. What concerns others it [talks](crate::talk) about.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use anyhow::Context as _;
use bytes::BytesMut;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::debug;
use whimbrel_carrier::udp::{Batch, RECEIVE_BUFFER};
use whimbrel_carrier::{Transmit, Tuning};
use whimbrel_common::cid;
use whimbrel_common::config::GatewayConfig;
use whimbrel_common::identity::SecretKey;
use whimbrel_gateway_core::directory::SlotNumber;
use whimbrel_host::Alarm;

use crate::gateway::Gateway;
use crate::keep::{Keep, KeptSession};
use crate::ports::{Numbered, Place, Ports};
use crate::talk::{Client, ToHead, ToSlot};
use crate::usage::SharedUsage;

/// Batches taken from one socket before everything else gets its turn: 16 × 64 KiB.
const RECEIVE_BATCHES: usize = 16;

/// Send calls before everything else gets its turn: 64 × 32 datagrams.
const SEND_CALLS: usize = 64;

/// Datagrams of other slots that may wait: what one receive call can return, several times over.
/// More are lost, as on a network.
pub(crate) const STRAYS: usize = 256;

/// A datagram that another slot received.
#[derive(Debug)]
pub(crate) struct Stray {
    remote: SocketAddr,
    place: Option<Place>,
    ecn: Option<u8>,
    data: BytesMut,
}

/// What outlives the process, and the sessions of the one before, with whose they are; `None` for
/// a client that is not admitted any more.
pub(crate) type Inheritance = (Keep, Vec<(KeptSession, Option<Client>)>);

/// What a slot begins with.
pub(crate) struct Start {
    pub(crate) number: SlotNumber,
    pub(crate) config: Arc<GatewayConfig>,
    pub(crate) key: SecretKey,
    /// Addresses of this machine, which no client may reach.
    pub(crate) own: Vec<IpAddr>,
    pub(crate) usage: SharedUsage,
    pub(crate) sockets: Vec<Numbered>,
    pub(crate) kept: Option<Inheritance>,
    pub(crate) inbox: mpsc::UnboundedReceiver<ToSlot>,
    pub(crate) head: mpsc::UnboundedSender<(SlotNumber, ToHead)>,
    pub(crate) strays: mpsc::Receiver<Stray>,
    /// Where to pass on what belongs to the slot of this number; its own is not used.
    pub(crate) neighbours: Vec<mpsc::Sender<Stray>>,
}

/// Runs a slot on a thread of its own, until it is told to stop or the head is gone.
///
/// # Errors
/// The system has no more threads.
pub(crate) fn spawn(start: Start) -> io::Result<()> {
    let name = format!("slot-{}", start.number);
    std::thread::Builder::new().name(name).spawn(move || run(start)).map(drop)
}

fn run(start: Start) {
    let farewell = Farewell { head: start.head.clone(), number: start.number, outcome: None };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .context("cannot start a runtime")
        .and_then(|runtime| runtime.block_on(async { Slot::begin(start)?.run().await }));
    farewell.say(outcome);
}

/// Tells the head that the thread ends, whatever it ends by.
struct Farewell {
    head: mpsc::UnboundedSender<(SlotNumber, ToHead)>,
    number: SlotNumber,
    outcome: Option<anyhow::Result<()>>,
}

impl Farewell {
    fn say(mut self, outcome: anyhow::Result<()>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let panicked = || Err(anyhow::anyhow!("it panicked"));
        let outcome = self.outcome.take().unwrap_or_else(panicked);
        // A head that is gone needs no word.
        let _ = self.head.send((self.number, ToHead::Ended(outcome)));
    }
}

struct Slot {
    number: SlotNumber,
    gateway: Gateway,
    ports: Ports,
    inbox: mpsc::UnboundedReceiver<ToSlot>,
    head: mpsc::UnboundedSender<(SlotNumber, ToHead)>,
    strays: mpsc::Receiver<Stray>,
    neighbours: Vec<mpsc::Sender<Stray>>,
    sockets: Watched,
    alarm: Alarm,
    receive: Vec<u8>,
    send: Vec<u8>,
    /// A transmit the kernel had no room for; its bytes are in `send`.
    pending: Option<Transmit>,
    /// Datagrams received, and those of them that belong to other slots.
    datagrams: u64,
    strayed: u64,
    /// Those that another slot was too busy to take.
    strays_lost: u64,
}

enum Wake {
    Io,
    Told(ToSlot),
    Stray(Stray),
    /// The head is gone.
    Alone,
}

impl Slot {
    /// Needs a tokio runtime around it.
    fn begin(start: Start) -> anyhow::Result<Self> {
        let slots = u8::try_from(start.neighbours.len()).unwrap_or(u8::MAX);
        let place = (start.number, slots);
        let now = Instant::now();
        let Start { config, key, own, usage, .. } = start;
        let mut gateway = Gateway::new(place, &config, key, own, usage, Tuning::default(), now)?;
        if let Some((keep, sessions)) = start.kept {
            gateway.restore(keep, sessions, now);
        }
        let slot = Self {
            number: start.number,
            sockets: Watched::new(gateway.as_fd().as_raw_fd())?,
            alarm: Alarm::new().context("cannot make a timer")?,
            gateway,
            ports: Ports::new(start.sockets)?,
            inbox: start.inbox,
            head: start.head,
            strays: start.strays,
            neighbours: start.neighbours,
            receive: vec![0; RECEIVE_BUFFER],
            send: Vec::with_capacity(RECEIVE_BUFFER),
            pending: None,
            datagrams: 0,
            strayed: 0,
            strays_lost: 0,
        };
        slot.tell(ToHead::Started);
        Ok(slot)
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let busy = self.turn()?;
            let mut goes_on = true;
            match self.wait(busy).await {
                Wake::Io => {}
                Wake::Told(what) => {
                    goes_on = self.heed(what);
                    while goes_on && let Ok(what) = self.inbox.try_recv() {
                        goes_on = self.heed(what);
                    }
                }
                Wake::Stray(stray) => self.accept(stray),
                Wake::Alone => goes_on = false,
            }
            if !goes_on {
                break;
            }
        }
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
        while let Some(news) = self.gateway.poll_news() {
            self.tell(ToHead::News(news));
        }
        busy |= self.transmit(now);
        Ok(busy)
    }

    fn tell(&self, what: ToHead) {
        // Without a head the inbox ends too, and the thread with it.
        let _ = self.head.send((self.number, what));
    }

    /// Does what the head says. Whether to go on.
    fn heed(&mut self, what: ToSlot) -> bool {
        let now = Instant::now();
        match what {
            ToSlot::Enrolled(caller, outcome) => self.gateway.enrolled(&caller, outcome, now),
            ToSlot::Attach(attach, client, moved) => {
                self.gateway.attached(&attach, client, moved.map(|moved| *moved), now);
            }
            ToSlot::Yield(session, attach) => {
                let moved = self.gateway.hand_over(session, &attach, now);
                // What was said of the session before must be heard before it is gone.
                while let Some(news) = self.gateway.poll_news() {
                    self.tell(ToHead::News(news));
                }
                self.tell(ToHead::Yielded(session, moved.map(Box::new)));
            }
            ToSlot::Left(sockets) => self.gateway.left(sockets),
            ToSlot::CutOff(key, inquiry) => {
                let ended = self.gateway.cut_off(&key, now);
                if let Some(inquiry) = inquiry {
                    self.tell(ToHead::CutOff(inquiry, ended));
                }
            }
            ToSlot::Report(inquiry) => {
                let mut report = Box::new(self.gateway.report(now));
                report.slot.datagrams = self.datagrams;
                report.slot.strayed = self.strayed;
                report.figures = self.gateway.figures();
                report.figures.strays_lost = self.strays_lost;
                self.tell(ToHead::Report(inquiry, report));
            }
            ToSlot::Pulse => self.tell(ToHead::Turned(self.gateway.connected())),
            ToSlot::Resolvers(servers) => self.gateway.resolve_with(servers),
            ToSlot::Own(own) => self.gateway.set_own(own),
            ToSlot::Configure(config) => self.gateway.configure(&config),
            ToSlot::Stop => return false,
        }
        true
    }

    fn receive(&mut self, now: Instant) -> bool {
        let mut busy = false;
        for at in 0..self.ports.count() {
            for batch in 0..RECEIVE_BATCHES {
                match self.ports.receive(at, &mut self.receive) {
                    Ok(arrived) => {
                        self.sort(&arrived, now);
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
        for _ in 0..STRAYS {
            let Ok(stray) = self.strays.try_recv() else { break };
            self.accept(stray);
        }
        busy
    }

    /// Takes what is for this slot, and passes on what is not. The kernel sorts by the first
    /// datagram of those it hands over together, which may be of several connections.
    fn sort(&mut self, arrived: &Batch, now: Instant) {
        for datagram in self.receive[..arrived.size].chunks(arrived.stride) {
            self.datagrams += 1;
            let data = BytesMut::from(datagram);
            let owner = cid::destination(datagram).map(|server| usize::from(server.slot));
            // What names a slot that is not there any more is answered by whoever receives it.
            let other = owner.filter(|slot| *slot != usize::from(self.number.0));
            if let Some(neighbour) = other.and_then(|slot| self.neighbours.get(slot)) {
                self.strayed += 1;
                let place = self.ports.place(arrived.local);
                let stray = Stray { remote: arrived.remote, place, ecn: arrived.ecn, data };
                // A neighbour that is too busy loses it, as a full socket would.
                self.strays_lost += u64::from(neighbour.try_send(stray).is_err());
                continue;
            }
            let Batch { remote, local, ecn, .. } = *arrived;
            self.gateway.handle_datagram(remote, local, ecn, data, now);
        }
    }

    fn accept(&mut self, stray: Stray) {
        let Stray { remote, place, ecn, data } = stray;
        let local = place.map(|place| self.ports.stand_in(place));
        self.gateway.handle_datagram(remote, local, ecn, data, Instant::now());
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

    async fn wait(&mut self, busy: bool) -> Wake {
        let deadline = if busy { Some(Instant::now()) } else { self.gateway.poll_timeout() };
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
            told = self.inbox.recv() => told.map_or(Wake::Alone, Wake::Told),
            Some(stray) = self.strays.recv() => Wake::Stray(stray),
            () = io => Wake::Io,
            () = self.alarm.wait(deadline) => Wake::Io,
        }
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
