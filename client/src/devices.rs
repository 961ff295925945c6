//! Every TUN the daemon serves: the host's own, and those of wrapped commands.
//!
//! A wrapped command has a network namespace of its own, and passes two descriptors: the TUN in
//! there, and its *pulse*, which becomes readable when no process is left that could use it (see
//! [`crate::run`]). The TUN pins the namespace, so a device is given up when its pulse has stopped
//! and its last flow has ended.

mod kept;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsFd as _, OwnedFd};
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, info, warn};
use whimbrel_client_core::engine::{DeviceId, PacketSink};
use whimbrel_client_core::offload;

use crate::report::{RunReport, RunWay};
use crate::tun::{LARGEST_PACKET, Tun, VNET_HEADER, watch};

/// The host's own TUN.
pub(crate) const HOST: DeviceId = DeviceId(0);

/// Packets read from one TUN before everything else gets its turn.
const PACKETS: usize = 64;

/// Wrapped commands of one user at a time: more than anybody keeps terminals open.
const PER_USER: usize = 64;

/// Wrapped commands at a time. Each costs a network namespace and two descriptors.
const ALL: usize = 256;

/// What the kernel has unless it is told otherwise (`TCP_FIN_TIMEOUT`).
const ORPHAN_PATIENCE: Duration = Duration::from_secs(60);

/// See the [module](self).
pub(crate) struct Devices {
    host: Option<Tun>,
    guests: BTreeMap<DeviceId, Guest>,
    last: DeviceId,
    /// How long a half-closed connection may wait for the other end when its process is gone.
    patience: Duration,
    /// Since when there is no guest.
    empty_since: Instant,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    failures: u64,
}

/// Who passed a TUN.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owner {
    /// The user, as the kernel says.
    pub(crate) uid: u32,
    /// The process, as the kernel says.
    pub(crate) pid: Option<i32>,
    /// The command, as it says itself.
    pub(crate) command: String,
}

struct Guest {
    owner: Owner,
    tun: Tun,
    pulse: AsyncFd<OwnedFd>,
    since: Instant,
    /// No process is left that could open a connection.
    stopped: bool,
    /// When its half-closed connections are looked through, once it has stopped.
    due: Option<Instant>,
    /// The TUN is of no use any more.
    broken: bool,
}

impl Devices {
    /// `host` is `None` where only wrapped commands are served.
    pub(crate) fn new(host: Option<Tun>, now: Instant) -> Self {
        Self {
            host,
            guests: BTreeMap::new(),
            last: HOST,
            patience: orphan_patience(),
            empty_since: now,
            incoming: vec![0; VNET_HEADER + LARGEST_PACKET],
            outgoing: vec![0; VNET_HEADER + LARGEST_PACKET],
            failures: 0,
        }
    }

    /// The host's own TUN.
    pub(crate) fn host(&self) -> Option<&Tun> {
        self.host.as_ref()
    }

    /// Serves the TUN of a wrapped command.
    ///
    /// # Errors
    /// A sentence about what is wrong with it, or about a limit that is reached.
    pub(crate) fn admit(
        &mut self,
        owner: Owner,
        tun: OwnedFd,
        pulse: OwnedFd,
        now: Instant,
    ) -> Result<DeviceId, String> {
        let own = self.guests.values().filter(|guest| guest.owner.uid == owner.uid).count();
        if own >= PER_USER || self.guests.len() >= ALL {
            return Err(format!(
                "too many wrapped commands: {own} of this user (at most {PER_USER}), {} in all \
                 (at most {ALL}); end some of them first",
                self.guests.len()
            ));
        }
        let device = DeviceId(self.last.0 + 1);
        self.serve(device, owner, tun, pulse, now)?;
        // An engine of a user's own is nobody's service.
        if let Some(guest) = self.guests.get(&device).filter(|_| self.host.is_some()) {
            kept::keep(device, &guest.owner, guest.tun.as_fd(), guest.pulse.get_ref());
        }
        Ok(device)
    }

    /// Serves the TUNs that a process before has stored. Whose they are.
    pub(crate) fn restore(
        &mut self,
        passed: Vec<(String, OwnedFd)>,
        now: Instant,
    ) -> Vec<(DeviceId, Owner)> {
        let mut restored = Vec::new();
        for kept::Kept { device, owner, tun, pulse } in kept::sort(passed) {
            match self.serve(device, owner.clone(), tun, pulse, now) {
                Ok(()) => restored.push((device, owner)),
                Err(error) => {
                    warn!(owner.command, error, "A command is not served any more");
                    kept::forget(device, &owner);
                }
            }
        }
        restored
    }

    fn serve(
        &mut self,
        device: DeviceId,
        owner: Owner,
        tun: OwnedFd,
        pulse: OwnedFd,
        now: Instant,
    ) -> Result<(), String> {
        let tun = Tun::adopt(tun).map_err(|error| error.to_string())?;
        let pulse = watch(pulse).map_err(|error| format!("the pulse cannot be felt: {error}"))?;
        info!(%device, owner.uid, owner.pid, owner.command, "Serves a command");
        self.last = self.last.max(device);
        let guest =
            Guest { owner, tun, pulse, since: now, stopped: false, due: None, broken: false };
        self.guests.insert(device, guest);
        Ok(())
    }

    /// Reads what there is, up to a batch per TUN. Whether there may be more.
    ///
    /// # Errors
    /// The host's own TUN is gone.
    pub(crate) fn read(&mut self, mut each: impl FnMut(DeviceId, &[u8])) -> io::Result<bool> {
        let Self { host, guests, incoming, .. } = self;
        let mut busy = match host {
            Some(tun) => read_batch(tun, incoming, |packet| each(HOST, packet))?,
            None => false,
        };
        for (device, guest) in guests.iter_mut().filter(|(_, guest)| !guest.broken) {
            match read_batch(&guest.tun, incoming, |packet| each(*device, packet)) {
                Ok(more) => busy |= more,
                Err(error) => {
                    debug!(%device, %error, "The TUN of a command is gone");
                    guest.broken = true;
                }
            }
            guest.stopped |= guest.pulse.try_io(Interest::READABLE, |_| Ok(())).is_ok();
        }
        Ok(busy)
    }

    /// Whether there is anything to [`read`](Self::read); wakes the task once there is.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> bool {
        let mut any = self.host.as_ref().is_some_and(|tun| tun.poll_readable(cx).is_ready());
        for guest in self.guests.values() {
            any |= !guest.broken && guest.tun.poll_readable(cx).is_ready();
            any |= !guest.stopped && guest.pulse.poll_read_ready(cx).is_ready();
        }
        any
    }

    /// Those without a process whose half-closed connections have had their time, again and again.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<DeviceId> {
        let patience = self.patience;
        let stopped = self.guests.iter_mut().filter(|(_, guest)| guest.stopped);
        let overdue = stopped.filter_map(|(device, guest)| {
            let due = *guest.due.get_or_insert(now + patience);
            let is_due = due <= now;
            if is_due {
                guest.due = Some(now + patience);
            }
            is_due.then_some(*device)
        });
        overdue.collect()
    }

    /// When [`overdue`](Self::overdue) finds the next.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.guests.values().filter_map(|guest| guest.due).min()
    }

    /// Gives up those that nobody can use any more; `idle` says of a device that it has no flow.
    /// What is given up, and by whom it was used.
    pub(crate) fn part(
        &mut self,
        idle: impl Fn(DeviceId) -> bool,
        now: Instant,
    ) -> Vec<(DeviceId, Owner)> {
        let over = |device: DeviceId, guest: &Guest| guest.broken || guest.stopped && idle(device);
        let parted: Vec<_> =
            self.guests.extract_if(.., |device, guest| over(*device, guest)).collect();
        for (device, guest) in parted.iter().filter(|_| self.host.is_some()) {
            kept::forget(*device, &guest.owner);
        }
        if !parted.is_empty() && self.guests.is_empty() {
            self.empty_since = now;
        }
        parted.into_iter().map(|(device, guest)| (device, guest.owner)).collect()
    }

    /// Since when there is no wrapped command; `None` while there is one.
    pub(crate) fn empty_since(&self) -> Option<Instant> {
        self.guests.is_empty().then_some(self.empty_since)
    }

    /// The wrapped commands, the oldest first; `flows` counts the flows of a device.
    pub(crate) fn report(&self, flows: impl Fn(DeviceId) -> usize, now: Instant) -> Vec<RunReport> {
        let describe = |(device, guest): (&DeviceId, &Guest)| RunReport {
            device: device.0,
            command: guest.owner.command.clone(),
            pid: guest.owner.pid,
            uid: guest.owner.uid,
            flows: flows(*device) as u64,
            age_s: now.saturating_duration_since(guest.since).as_secs(),
            ended: guest.stopped,
            way: RunWay::Namespace,
        };
        self.guests.iter().map(describe).collect()
    }
}

/// How long this kernel lets a connection wait whose process has closed it (`tcp_fin_timeout` in
/// `ip-sysctl`; RFC 1122, section 4.2.2.13, allows it).
fn orphan_patience() -> Duration {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fin_timeout").ok();
    let seconds = text.and_then(|text| text.trim().parse().ok()).filter(|seconds| *seconds > 0);
    seconds.map_or(ORPHAN_PATIENCE, Duration::from_secs)
}

fn read_batch(tun: &Tun, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> io::Result<bool> {
    for _ in 0..PACKETS {
        match tun.read(buffer) {
            Ok(length) => {
                if let Some(packet) = offload::payload(&buffer[..length]) {
                    each(packet);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

impl PacketSink for Devices {
    fn send(
        &mut self,
        device: DeviceId,
        len: usize,
        segment: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) {
        let tun = match &self.host {
            Some(tun) if device == HOST => Some(tun),
            Some(_) | None => self.guests.get(&device).map(|guest| &guest.tun),
        };
        let Some((header, packet)) = self.outgoing.split_first_chunk_mut::<VNET_HEADER>() else {
            return;
        };
        let (Some(tun), Some(packet)) = (tun, packet.get_mut(..len)) else { return };
        fill(packet);
        offload::prepare(header, packet, segment);
        if let Err(error) = tun.write(&self.outgoing[..VNET_HEADER + len]) {
            // The application's TCP repeats what is missing.
            self.failures += 1;
            debug!(%device, %error, failures = self.failures, "TUN write failed");
        }
    }
}
