//! The thread of the Internet: waits for packets and due times, to the nanosecond.

use super::exchange::Exchange;
use super::{Port, Shared};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets read from one device before the others get their turn.
const BATCH: usize = 64;

/// A device to read from.
struct Plugged {
    port: Port,
    device: Arc<tun::Device>,
}

/// The largest IP packet and its frame.
const LARGEST: usize = 65_535 + 14;

pub(super) fn run(shared: &Shared) {
    sharpen();
    let mut buffer = vec![0; LARGEST];
    let mut plugged: Vec<Plugged> = Vec::new();
    let mut generation = u64::MAX;
    loop {
        let due = {
            let mut exchange = shared.lock();
            if exchange.is_stopped() {
                return;
            }
            if generation != exchange.generation() {
                generation = exchange.generation();
                plugged = list(&exchange);
            }
            exchange.advance(Instant::now())
        };
        let ready = wait(shared, &plugged, due);
        let mut exchange = shared.lock();
        for index in ready {
            read(&mut exchange, &plugged[index], &mut buffer);
        }
    }
}

fn list(exchange: &Exchange) -> Vec<Plugged> {
    exchange.plugged().map(|(port, device)| Plugged { port, device: Arc::clone(device) }).collect()
}

/// Waits until a device has packets, a packet is due or somebody changed something; returns
/// which devices are ready.
fn wait(shared: &Shared, plugged: &[Plugged], due: Option<Instant>) -> Vec<usize> {
    let timeout = due.map(|due| timespec(due.saturating_duration_since(Instant::now())));
    let woken = shared.woken();
    let mut fds = vec![PollFd::from_borrowed_fd(woken, PollFlags::IN)];
    for Plugged { device, .. } in plugged {
        fds.push(PollFd::from_borrowed_fd(descriptor(device), PollFlags::IN));
    }
    if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
        return Vec::new();
    }
    if fds[0].revents().contains(PollFlags::IN) {
        let _ = rustix::io::read(woken, &mut [0; 8]);
    }
    let ready = fds[1..].iter().enumerate();
    ready.filter(|(_, fd)| fd.revents().contains(PollFlags::IN)).map(|(index, _)| index).collect()
}

fn read(exchange: &mut Exchange, plugged: &Plugged, buffer: &mut [u8]) {
    let now = Instant::now();
    for _ in 0..BATCH {
        match plugged.device.recv(buffer) {
            Ok(length) if length > 0 => exchange.accept(plugged.port, &buffer[..length], now),
            Ok(_) | Err(_) => return,
        }
    }
}

#[expect(unsafe_code, reason = "the `tun` crate lends its descriptor only as a number")]
fn descriptor(device: &tun::Device) -> BorrowedFd<'_> {
    // SAFETY: the device owns the descriptor and outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Asks for punctual wake-ups. Neither is essential, and the second needs a privilege.
fn sharpen() {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let _ = rustix::process::setpriority_process(None, -15);
}
