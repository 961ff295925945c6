//! Waiting until a moment, and not waking up before it.
//!
//! tokio keeps timers in wheels: for one that is far away the thread wakes up once or twice before,
//! to move it to a finer wheel. A daemon that has nothing to do for 20 s is to lie still for 20 s, so
//! for what is far away there is a timer of the kernel's, set anew only when the moment changes.

use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What is nearer is left to tokio: while traffic flows the moment changes with every packet, and a
/// system call each time costs more than a wake-up too many.
const FAR: Duration = Duration::from_millis(250);

/// One thread's alarm.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    set: Option<Instant>,
}

impl Alarm {
    /// An alarm that is not set. Needs a tokio runtime.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer: watch(timer)?, set: None })
    }

    /// Waits until `at`; for ever without it. Cancelling the wait loses nothing.
    pub async fn wait(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return pending().await };
        let left = at.saturating_duration_since(Instant::now());
        if left < FAR || self.set(at, left).is_err() {
            return tokio::time::sleep_until(at.into()).await;
        }
        poll_fn(|cx| {
            loop {
                match self.timer.poll_read_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(mut ready)) => {
                        let mut count = [0; 8];
                        let rang =
                            ready.try_io(|it| Ok(rustix::io::read(it.get_ref(), &mut count)?));
                        // Otherwise it rang for what it was set to before.
                        if rang.is_ok() {
                            return Poll::Ready(());
                        }
                    }
                }
            }
        })
        .await;
        self.set = None;
    }

    fn set(&mut self, at: Instant, left: Duration) -> io::Result<()> {
        if self.set == Some(at) {
            return Ok(());
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value: left };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.set = Some(at);
        Ok(())
    }
}

#[expect(deprecated, reason = "the replacement is unsafe, and the watcher owns the descriptor")]
fn watch(timer: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    }

    /// Whether the wait is over the first time it is looked at.
    async fn is_over(alarm: &mut Alarm, at: Option<Instant>) -> bool {
        tokio::select! {
            biased;
            () = alarm.wait(at) => true,
            () = std::future::ready(()) => false,
        }
    }

    #[test]
    fn an_alarm_rings_when_it_is_time_and_not_before() {
        run(async {
            let mut alarm = Alarm::new().unwrap();
            for after in [Duration::ZERO, FAR / 2, FAR + FAR / 10] {
                let at = Instant::now() + after;
                alarm.wait(Some(at)).await;
                assert!(Instant::now() >= at, "{after:?}");
            }
        });
    }

    #[test]
    fn an_alarm_that_was_put_off_does_not_ring_for_the_moment_before() {
        run(async {
            let mut alarm = Alarm::new().unwrap();
            let first = Instant::now() + FAR + FAR / 10;
            assert!(!is_over(&mut alarm, Some(first)).await);
            // It has rung by then, and nobody has heard it.
            tokio::time::sleep_until((first + FAR / 10).into()).await;
            let second = Instant::now() + FAR + FAR / 10;
            alarm.wait(Some(second)).await;
            assert!(Instant::now() >= second);
        });
    }

    #[test]
    fn without_a_moment_it_never_rings() {
        run(async {
            let mut alarm = Alarm::new().unwrap();
            assert!(!is_over(&mut alarm, None).await);
        });
    }
}
