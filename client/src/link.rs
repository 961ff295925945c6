//! The uplinks of this host, as they come and go.
//!
//! Promises:
//! - bad news (carrier lost, interface switched off or removed, address removed) is passed on
//!   from the kernel's message itself, without delay;
//! - good news is gathered for at most 50 ms, then the whole host is read again: the kernel does
//!   not announce every consequence of a change (deleting an interface announces none of the
//!   routes that go with it);
//! - lost messages cost a new reading, never a wrong picture;
//! - an idle host is not woken.
//!
//! The monitor lives on a thread of its own and ends with its [`LinkMonitor`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use whimbrel_client_core::links::Class;
use whimbrel_client_core::plan::{Family, MAIN_TABLE};

use crate::host::netlink::{Netlink, io_error};
use crate::host::translate::{self, address_of};

mod inventory;
pub(crate) mod survey;
mod traits;
mod wake;

use inventory::Inventory;
use wake::Sleep;

/// Good news is read once the host has been quiet this long: a DHCP client sets address and
/// routes within a few milliseconds.
const QUIET: Duration = Duration::from_millis(10);

/// Good news waits no longer than this, however much goes on.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// After a failure of netlink itself. It is local, so this is a lack of memory or descriptors.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes of messages the kernel may queue for us; the default of 212,992 overflows when a
/// container host starts.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A way out of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Its IPv4 addresses, link-local ones excepted.
    pub v4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses, link-local and not yet usable ones excepted.
    pub v6: Vec<Ipv6Addr>,
    /// The best metric of its default routes in the main table; `u32::MAX` without any.
    pub metric: u32,
    /// Whether the main table leads to one of the gateway's addresses through it.
    pub gateway_reachable: bool,
    /// What kind of network it is.
    pub class: Class,
}

/// What the monitor tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// An interface has become an uplink.
    Up(Uplink),
    /// An uplink has other addresses or routes than told before.
    Changed(Uplink),
    /// An uplink is none any more.
    Down {
        /// Interface index.
        index: u32,
        /// Interface name.
        name: String,
        /// What is missing.
        reason: DownReason,
    },
    /// All IPv6 addresses connections of this host may come from, sorted: those still being
    /// checked for duplicates included, loopback, link-local and the TUN's excepted. Told once at
    /// the start, then on each change.
    OwnAddresses(Vec<Ipv6Addr>),
    /// Rules or routes of ours were removed, by us or by another program.
    Stripped,
    /// The machine was asleep for this long.
    Woke {
        /// Time spent in suspend.
        asleep: Duration,
    },
}

/// Why an uplink is none any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DownReason {
    /// Switched off.
    Disabled,
    /// No carrier: cable out, Wi-Fi not associated or not authenticated.
    NoCarrier,
    /// Its last address was removed.
    NoAddress,
    /// The interface is gone.
    Removed,
    /// It has become a port of a bridge, or a bridge without a default route.
    Unsuitable,
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "interface down",
            Self::NoCarrier => "no carrier",
            Self::NoAddress => "address removed",
            Self::Removed => "interface removed",
            Self::Unsuitable => "no uplink any more",
        })
    }
}

/// The monitor's thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct LinkMonitor {
    orders: Option<UnboundedSender<Order>>,
    runtime: tokio::runtime::Handle,
    thread: Option<JoinHandle<()>>,
}

impl LinkMonitor {
    /// Watches the network namespace of the calling thread. `tun` is the name of our own
    /// interface, `gateway` the addresses a link without a default route must lead to, `asked` the
    /// tunnels of other programs that are to be used.
    ///
    /// # Errors
    /// No thread, or no netlink socket.
    pub fn spawn(
        tun: String,
        gateway: Vec<IpAddr>,
        asked: Vec<String>,
        events: UnboundedSender<LinkEvent>,
    ) -> io::Result<Self> {
        let (sender, orders) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sleep = {
            let _entered = runtime.enter();
            Sleep::watch()?
        };
        let handle = runtime.handle().clone();
        let watch = Watch { asked, ..Watch::new(tun, gateway, events) };
        let thread = std::thread::Builder::new()
            .name("links".to_owned())
            .spawn(move || runtime.block_on(watch.run(orders, sleep)))?;
        Ok(Self { orders: Some(sender), runtime: handle, thread: Some(thread) })
    }

    /// Runs something else that waits a lot on the same thread, and ends it with the monitor.
    pub(crate) fn accompany(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Replaces the gateway's addresses.
    pub fn set_gateway(&self, addresses: Vec<IpAddr>) {
        self.order(Order::Gateway(addresses));
    }

    /// Replaces the tunnels of other programs that are to be used.
    pub fn set_asked(&self, names: Vec<String>) {
        self.order(Order::Asked(names));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // Without a receiver the thread has ended, and so has everybody's interest.
            let _ended = orders.send(order);
        }
    }
}

impl Drop for LinkMonitor {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The link monitor had panicked");
        }
    }
}

/// What the monitor is told.
#[derive(Debug)]
enum Order {
    Gateway(Vec<IpAddr>),
    Asked(Vec<String>),
}

/// The picture the receiver has, and what it takes to keep it true.
struct Watch {
    tun: String,
    gateway: Vec<IpAddr>,
    asked: Vec<String>,
    events: UnboundedSender<LinkEvent>,
    known: BTreeMap<u32, Uplink>,
    own: Option<BTreeSet<Ipv6Addr>>,
    /// When to read the host again, and no later than when.
    due: Option<(Instant, Instant)>,
    /// Bad news has overtaken the reading under way.
    overtaken: bool,
}

type Reading<'a> = Pin<Box<dyn Future<Output = io::Result<Inventory>> + 'a>>;

/// What woke the watch.
enum Wakeup {
    Message(Option<NetlinkMessage<RouteNetlinkMessage>>),
    Order(Option<Order>),
    Clock(io::Result<()>),
    Read(io::Result<Inventory>),
    Due,
}

impl Watch {
    fn new(tun: String, gateway: Vec<IpAddr>, events: UnboundedSender<LinkEvent>) -> Self {
        Self {
            tun,
            gateway,
            asked: Vec::new(),
            events,
            known: BTreeMap::new(),
            own: None,
            due: None,
            overtaken: false,
        }
    }

    async fn run(mut self, mut orders: UnboundedReceiver<Order>, mut sleep: Sleep) {
        while let Err(error) = self.follow(&mut orders, &mut sleep).await {
            tracing::warn!(%error, "Watching the links failed, starting over");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Follows one netlink connection to its end; `Ok` when nobody is interested any more.
    async fn follow(
        &mut self,
        orders: &mut UnboundedReceiver<Order>,
        sleep: &mut Sleep,
    ) -> io::Result<()> {
        let (subscription, mut messages) = subscribe()?;
        let requests = Netlink::open()?;
        let tun = self.tun.clone();
        self.due = Some((Instant::now(), Instant::now()));
        let mut reading: Option<Reading<'_>> = None;
        let outcome = loop {
            let wakeup = self.wait(&mut messages, orders, sleep, &mut reading).await;
            if let Some(asleep) = sleep.check() {
                tracing::info!(?asleep, "Woke");
                self.tell(LinkEvent::Woke { asleep });
                self.news(Instant::now());
            }
            match wakeup {
                Wakeup::Message(Some(message)) => self.heed(message.payload),
                Wakeup::Message(None) => break Err(io::Error::other("netlink connection ended")),
                Wakeup::Order(Some(order)) => {
                    match order {
                        Order::Gateway(gateway) => self.gateway = gateway,
                        Order::Asked(asked) => self.asked = asked,
                    }
                    self.news(Instant::now());
                }
                Wakeup::Order(None) => break Ok(()),
                Wakeup::Clock(outcome) => {
                    if let Err(error) = outcome {
                        break Err(error);
                    }
                }
                Wakeup::Read(outcome) => {
                    reading = None;
                    self.learn(outcome);
                }
                Wakeup::Due => {
                    self.due = None;
                    self.overtaken = false;
                    let asked = self.asked.clone();
                    reading = Some(Box::pin(read(requests.handle(), &tun, asked)));
                }
            }
        };
        subscription.abort();
        outcome
    }

    async fn wait(
        &self,
        messages: &mut (impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin),
        orders: &mut UnboundedReceiver<Order>,
        sleep: &Sleep,
        reading: &mut Option<Reading<'_>>,
    ) -> Wakeup {
        let idle = reading.is_none();
        let due = self.due.map(|(due, _)| due);
        let read = async {
            match reading {
                Some(reading) => reading.await,
                None => std::future::pending().await,
            }
        };
        let alarm = async {
            match due {
                Some(due) if idle => tokio::time::sleep_until(due).await,
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = messages.next() => Wakeup::Message(message),
            order = orders.recv() => Wakeup::Order(order),
            outcome = sleep.jumped() => Wakeup::Clock(outcome),
            outcome = read => Wakeup::Read(outcome),
            () = alarm => Wakeup::Due,
        }
    }

    /// Schedules a new reading.
    fn news(&mut self, now: Instant) {
        let latest = self.due.map_or(now + LONGEST_WAIT, |(_, latest)| latest);
        self.due = Some(((now + QUIET).min(latest), latest));
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel has many more messages")]
    fn heed(&mut self, message: NetlinkPayload<RouteNetlinkMessage>) {
        if let NetlinkPayload::InnerMessage(message) = &message {
            match message {
                RouteNetlinkMessage::NewLink(link) => self.heed_link(link),
                RouteNetlinkMessage::DelLink(link) if is_plain(link) => {
                    self.lose(link.header.index, DownReason::Removed);
                }
                RouteNetlinkMessage::NewAddress(address) => {
                    self.exempt_address(address);
                    self.gain_address(address);
                }
                RouteNetlinkMessage::DelAddress(address) => self.lose_address(address),
                RouteNetlinkMessage::DelRule(rule) if translate::is_our_rule(rule) => {
                    self.tell(LinkEvent::Stripped);
                    return;
                }
                RouteNetlinkMessage::DelRoute(route) if translate::is_our_route(route) => {
                    self.tell(LinkEvent::Stripped);
                }
                // No rule makes an uplink.
                RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => return,
                _ => {}
            }
        }
        self.news(Instant::now());
    }

    fn heed_link(&mut self, link: &LinkMessage) {
        if is_plain(link)
            && let Err(reason) = inventory::state(link.header.flags)
        {
            self.lose(link.header.index, reason);
        }
    }

    /// An address of the host must be exempt from capture before anybody can use it.
    fn exempt_address(&mut self, message: &AddressMessage) {
        let address = address_of(message).and_then(inventory::own_v6);
        let (Some(address), Some(mut own)) = (address, self.own.clone()) else { return };
        // The next reading corrects this, should it be an address of the TUN: then the plan
        // leaves it out too.
        if own.insert(address) {
            self.own_addresses(own);
        }
    }

    /// One that comes right before another goes keeps its link up.
    fn gain_address(&mut self, message: &AddressMessage) {
        let Some(uplink) = self.known.get_mut(&message.header.index) else { return };
        match address_of(message).filter(|address| inventory::is_usable(message, *address)) {
            Some(IpAddr::V4(v4)) if !uplink.v4.contains(&v4) => {
                uplink.v4.push(v4);
                uplink.v4.sort_unstable();
            }
            Some(IpAddr::V6(v6)) if !uplink.v6.contains(&v6) => {
                uplink.v6.push(v6);
                uplink.v6.sort_unstable();
            }
            Some(_) | None => return,
        }
        let changed = uplink.clone();
        self.tell(LinkEvent::Changed(changed));
    }

    fn lose(&mut self, index: u32, reason: DownReason) {
        self.overtaken = true;
        if let Some(Uplink { index, name, .. }) = self.known.remove(&index) {
            self.tell(LinkEvent::Down { index, name, reason });
        }
    }

    fn lose_address(&mut self, message: &AddressMessage) {
        self.overtaken = true;
        let index = message.header.index;
        let Some(uplink) = self.known.get_mut(&index) else { return };
        let before = (uplink.v4.len(), uplink.v6.len());
        match address_of(message) {
            Some(IpAddr::V4(gone)) => uplink.v4.retain(|address| *address != gone),
            Some(IpAddr::V6(gone)) => uplink.v6.retain(|address| *address != gone),
            None => return,
        }
        if uplink.v4.is_empty() && uplink.v6.is_empty() {
            self.lose(index, DownReason::NoAddress);
        } else if (uplink.v4.len(), uplink.v6.len()) != before {
            let changed = uplink.clone();
            self.tell(LinkEvent::Changed(changed));
        }
    }

    fn learn(&mut self, outcome: io::Result<Inventory>) {
        let found = match outcome {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "Reading the host's links failed, trying again");
                let again = Instant::now() + RETRY;
                self.due = Some((again, again));
                return;
            }
        };
        if self.overtaken {
            self.news(Instant::now());
            return;
        }
        let own = found.own_v6();
        if self.own.as_ref() != Some(&own) {
            self.own_addresses(own);
        }
        let uplinks = found.uplinks(&self.known, &self.gateway);
        for event in inventory::changes(&self.known, &uplinks, |index| found.reason(index)) {
            self.tell(event);
        }
        self.known = uplinks;
    }

    fn own_addresses(&mut self, own: BTreeSet<Ipv6Addr>) {
        self.tell(LinkEvent::OwnAddresses(own.iter().copied().collect()));
        self.own = Some(own);
    }

    fn tell(&self, event: LinkEvent) {
        tracing::debug!(?event, "Link event");
        // Without a receiver the monitor is about to be dropped.
        let _ended = self.events.send(event);
    }
}

/// Messages about bridge ports share the types of messages about interfaces.
fn is_plain(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Unspec
}

/// Kernel messages on a connection of their own: on a shared one, an overflow of messages would
/// lose the answers to requests too.
fn subscribe() -> io::Result<(
    tokio::task::JoinHandle<()>,
    impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
)> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    let (mut connection, _handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
    let socket = rtnetlink::sys::AsyncSocket::socket_ref(connection.socket_mut());
    // Beyond `net.core.rmem_max` where privilege allows it, up to it elsewhere.
    if set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER).is_err() {
        set_socket_recv_buffer_size(socket, RECEIVE_BUFFER)?;
    }
    Ok((tokio::spawn(connection), messages.map(|(message, _)| message)))
}

async fn read(requests: &Handle, tun: &str, asked: Vec<String>) -> io::Result<Inventory> {
    let mut inventory = Inventory::default();
    let mut links = std::pin::pin!(requests.link().get().execute());
    while let Some(link) = links.try_next().await.map_err(io_error)? {
        inventory.add_link(&link, tun, &asked);
    }
    let mut addresses = std::pin::pin!(requests.address().get().execute());
    while let Some(address) = addresses.try_next().await.map_err(io_error)? {
        inventory.add_address(&address);
    }
    for family in [Family::V4, Family::V6] {
        let request = requests.route().get(translate::table_of(family, MAIN_TABLE));
        let mut routes = std::pin::pin!(request.execute());
        loop {
            match routes.try_next().await.map_err(io_error) {
                Ok(Some(route)) => inventory.add_route(family, &route),
                Ok(None) => break,
                Err(error) if is_absent(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(inventory)
}

/// A family the kernel runs without, or a table nobody has used yet.
fn is_absent(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT))
}

#[cfg(test)]
mod tests;
