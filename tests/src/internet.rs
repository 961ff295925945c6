//! The Internet of a lab: one thread that carries packets between TAP devices.
//!
//! ```text
//! host ─ TAP ─ up pipe ─ NAT ─┐                 ┌─ NAT ─ down pipe ─ TAP ─ host
//!                             ├─ hook ─ route ─ hook
//! ```
//!
//! A [`Port`] is where one interface of one host is plugged in. Its *up* pipe carries what the
//! host sends, its *down* pipe what the host receives. The line (pipe) is nearest to the host,
//! translation lies behind it, and a [`Hook`] sees what a stranger on the Internet's side of the
//! port would see.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

mod exchange;
mod frame;
mod nat;
pub mod packet;
mod pipe;
mod portal;
mod turn;

pub use nat::Expiry;
pub use pipe::{Count, Shape};

use self::exchange::Exchange;

/// Which way packets go over a line, seen from the host at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the host sends.
    Up,
    /// What the host receives.
    Down,
}

/// One interface of one host, plugged into the Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(usize);

impl Port {
    /// The Ethernet address of the interface in this port.
    #[must_use]
    pub fn mac(self) -> [u8; 6] {
        // Locally administered, unicast (IEEE 802).
        let [high, low] = u16::try_from(self.0).unwrap_or(u16::MAX).to_be_bytes();
        [0x02, 0, 0, 0, high, low]
    }
}

/// What becomes of a packet that a [`Hook`] has seen.
#[derive(Debug)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It is gone.
    Drop,
    /// It goes on, after these whole IP packets have been sent into the Internet.
    PassAfter(Vec<Vec<u8>>),
}

/// Sees every packet at the Internet's side of a port. It runs on the Internet's own thread and
/// must not call back into it.
pub type Hook = Box<dyn FnMut(Direction, &[u8]) -> Verdict + Send>;

/// How a port is connected.
#[derive(Clone, Debug, Default)]
pub struct PortPlan {
    /// The addresses under which the Internet finds the host, or its translator.
    pub addresses: Vec<IpAddr>,
    /// Whether the host sits behind a translator.
    pub translated: bool,
    /// The first routers on the line; they answer echo requests.
    pub routers: Vec<IpAddr>,
}

/// What one port has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCount {
    /// From the host.
    pub up: Count,
    /// To the host.
    pub down: Count,
    /// Packets the translator did not let in.
    pub unsolicited: u64,
    /// Packets the translator could not let out.
    pub untranslatable: u64,
    /// Packets a captive network dropped.
    pub captured: u64,
    /// Packets a hook dropped.
    pub hooked: u64,
}

/// Packets and bytes that arrived at an address where nobody lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stray {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP.
    pub bytes: u64,
}

/// The network between all hosts of a lab. Dropping it stops its thread.
#[derive(Debug)]
pub struct Internet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    exchange: Mutex<Exchange>,
    wake: OwnedFd,
}

impl Internet {
    /// Starts the network; `seed` decides every random loss.
    ///
    /// # Errors
    /// When the thread or its wake-up descriptor cannot be made.
    pub fn start(seed: u64) -> io::Result<Self> {
        let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
        let wake = rustix::event::eventfd(0, flags)?;
        let shared = Arc::new(Shared { exchange: Mutex::new(Exchange::new(seed)), wake });
        let thread = std::thread::Builder::new().name("internet".into()).spawn({
            let shared = Arc::clone(&shared);
            move || turn::run(&shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds a port with nothing plugged in yet.
    #[must_use]
    pub fn add_port(&self, plan: PortPlan) -> Port {
        self.change(|exchange| exchange.add_port(plan))
    }

    /// Plugs a non-blocking TAP device in, or pulls it out.
    pub fn plug(&self, port: Port, device: Option<Arc<tun::Device>>) {
        self.change(|exchange| exchange.plug(port, device));
    }

    /// Shapes one direction of a line; packets already under way keep their time.
    pub fn shape(&self, port: Port, direction: Direction, shape: Shape) {
        self.change(|exchange| exchange.pipe(port, direction).shape = shape);
    }

    /// What a direction does at the moment.
    #[must_use]
    pub fn shape_of(&self, port: Port, direction: Direction) -> Shape {
        self.change(|exchange| exchange.pipe(port, direction).shape)
    }

    /// Makes one direction swallow everything, or ends that.
    pub fn black_hole(&self, port: Port, direction: Direction, on: bool) {
        self.change(|exchange| exchange.pipe(port, direction).set_black_hole(on));
    }

    /// Throws away what is under way on a line.
    pub fn flush(&self, port: Port) {
        self.change(|exchange| {
            exchange.pipe(port, Direction::Up).clear();
            exchange.pipe(port, Direction::Down).clear();
        });
    }

    /// Makes the port's translator forget every mapping: what follows leaves from new ports.
    pub fn forget_mappings(&self, port: Port) {
        self.change(|exchange| exchange.forget_mappings(port));
    }

    /// Moves the port's translator to other public addresses and forgets every mapping.
    pub fn move_translator(&self, port: Port, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.change(|exchange| exchange.move_translator(port, v4, v6));
    }

    /// Sets how long the port's translator keeps unused mappings.
    pub fn set_expiry(&self, port: Port, expiry: Expiry) {
        self.change(|exchange| exchange.set_expiry(port, expiry));
    }

    /// The number of mappings in the port's translator.
    #[must_use]
    pub fn mappings(&self, port: Port) -> usize {
        self.change(|exchange| exchange.mappings(port))
    }

    /// Makes the line's network answer every echo request and TCP connection itself and drop
    /// everything else, as one does that wants its guests to sign in first.
    pub fn set_captive(&self, port: Port, on: bool) {
        self.change(|exchange| exchange.set_captive(port, on));
    }

    /// Installs or removes the hook of a port.
    pub fn set_hook(&self, port: Port, hook: Option<Hook>) {
        self.change(|exchange| exchange.set_hook(port, hook));
    }

    /// Sends a whole IP packet as if a stranger on the Internet had.
    pub fn inject(&self, packet: Vec<u8>) {
        self.change(|exchange| exchange.route(packet, Instant::now()));
    }

    /// Makes routers answer "host unreachable" for this address instead of dropping silently.
    pub fn set_unreachable(&self, address: IpAddr) {
        self.change(|exchange| exchange.set_unreachable(address));
    }

    /// What a port has seen.
    #[must_use]
    pub fn count(&self, port: Port) -> PortCount {
        self.change(|exchange| exchange.count(port))
    }

    /// What was sent to an address where nobody lives.
    #[must_use]
    pub fn stray(&self, address: IpAddr) -> Stray {
        self.change(|exchange| exchange.stray(address))
    }

    /// Every address that got packets although nobody lives there.
    #[must_use]
    pub fn strays(&self) -> BTreeMap<IpAddr, Stray> {
        self.change(|exchange| exchange.strays().clone())
    }

    /// Applies a change and lets the thread see it at once.
    fn change<T>(&self, apply: impl FnOnce(&mut Exchange) -> T) -> T {
        let result = apply(&mut self.shared.lock());
        self.shared.wake();
        result
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.change(Exchange::stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already; there is nobody left to tell.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // The only error is a counter already full, which wakes the thread as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn woken(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
