//! Notices that the machine has slept, without ever waking it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::tun::watch;

/// Shorter sleeps are none: suspending and resuming alone takes about this long.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// `CLOCK_MONOTONIC` stands still in suspend, `CLOCK_BOOTTIME` does not: the difference is the
/// time slept since boot.
#[derive(Debug)]
pub(super) struct SleepMeter {
    slept: Duration,
}

impl SleepMeter {
    pub(super) fn new(boottime: Duration, monotonic: Duration) -> Self {
        Self { slept: boottime.saturating_sub(monotonic) }
    }

    /// The time slept since the last call that returned some.
    pub(super) fn read(&mut self, boottime: Duration, monotonic: Duration) -> Option<Duration> {
        let slept = boottime.saturating_sub(monotonic);
        let asleep = slept.checked_sub(self.slept).filter(|asleep| *asleep > SHORTEST_SLEEP)?;
        self.slept = slept;
        Some(asleep)
    }
}

/// Wakes up when the machine does.
///
/// A realtime timer that never expires is cancelled by the kernel whenever the realtime clock
/// jumps against the monotonic one, which is what resuming looks like: no tick is needed.
#[derive(Debug)]
pub(super) struct Sleep {
    timer: AsyncFd<OwnedFd>,
    meter: SleepMeter,
}

impl Sleep {
    pub(super) fn watch() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        arm(&timer)?;
        let timer = watch(timer)?;
        let (boottime, monotonic) = clocks();
        Ok(Self { timer, meter: SleepMeter::new(boottime, monotonic) })
    }

    /// Waits until the clocks may have jumped; [`Sleep::check`] tells whether they have.
    pub(super) async fn jumped(&self) -> io::Result<()> {
        let mut guard = self.timer.readable().await?;
        let mut count = [0; 8];
        // `ECANCELED` is the expected answer; either way the timer must be armed again.
        let _cancelled = rustix::io::read(self.timer.get_ref(), &mut count);
        guard.clear_ready();
        arm(self.timer.get_ref())
    }

    /// How long the machine slept since the last check, if it did.
    pub(super) fn check(&mut self) -> Option<Duration> {
        let (boottime, monotonic) = clocks();
        self.meter.read(boottime, monotonic)
    }
}

fn arm(timer: &OwnedFd) -> io::Result<()> {
    let never = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        // The year 2100: far enough to never expire, and valid for every kernel.
        it_value: Timespec { tv_sec: 4_102_444_800, tv_nsec: 0 },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    match timerfd_settime(timer, flags, &never) {
        // Cancelled between the read and now; it is armed all the same.
        Ok(_) | Err(rustix::io::Errno::CANCELED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn clocks() -> (Duration, Duration) {
    // Monotonic last, so that a pause between the two reads never looks like sleep backwards.
    let boottime = clock_gettime(ClockId::Boottime);
    let monotonic = clock_gettime(ClockId::Monotonic);
    (duration(boottime), duration(monotonic))
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
