//! Carrying out the capture plan, on a thread of its own: netlink answers when it likes.
//!
//! What another program removes of it comes back: systemd-networkd, for one, takes every rule away
//! that it did not make when it is started (`ManageForeignRoutingPolicyRules` of networkd.conf(5)).

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};
use whimbrel_client_core::plan::Plan;

use crate::host::{Host, HostError};

/// An orderly stop waits this long for the kernel to remove the rules.
const REMOVAL: Duration = Duration::from_secs(3);

/// Between two mends, doubling up to the second. Packets of captured connections go astray until
/// the rules are back, so the first comes at once; whoever removes them each time they appear costs
/// a few netlink requests a second.
const MEND_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// After this long without a mend the next one comes at once again.
const PEACE: Duration = Duration::from_secs(10);

/// What was done to the host's rules and routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// They follow the plan that was asked for.
    Followed,
    /// So many were missing, and are back.
    Mended(usize),
}

/// How an order went.
pub(crate) type Outcome = Result<Done, HostError>;

enum Order {
    Apply(Plan),
    Mend,
    Remove(oneshot::Sender<Result<usize, HostError>>),
}

/// The thread that owns the host's rules and routes.
pub(crate) struct Capture {
    orders: UnboundedSender<Order>,
    applied: Option<Plan>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Removes what an earlier run may have left, and waits for orders. Must be called where the
    /// host's network namespace is current. Each plan's outcome goes to `outcomes`.
    pub(crate) fn spawn(outcomes: UnboundedSender<Outcome>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, inbox) = unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || runtime.block_on(serve(inbox, outcomes)))?;
        Ok(Self { orders, applied: None, thread: Some(thread) })
    }

    /// Makes the host follow `plan`, if it does not already.
    pub(crate) fn follow(&mut self, plan: Plan) {
        if self.applied.as_ref() != Some(&plan) {
            self.applied = Some(plan.clone());
            // Without its thread the daemon is about to end.
            let _ = self.orders.send(Order::Apply(plan));
        }
    }

    /// Some rule or route of ours was removed: whoever did it, what the plan wants comes back.
    pub(crate) fn mend(&self) {
        if self.applied.is_some() {
            // Without its thread the daemon is about to end.
            let _ = self.orders.send(Order::Mend);
        }
    }

    /// Removes every rule and route.
    pub(crate) async fn remove(mut self) -> anyhow::Result<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.orders.send(Order::Remove(answer));
        drop(self.orders);
        let removed = tokio::time::timeout(REMOVAL, answered).await;
        match removed {
            Ok(Ok(Ok(count))) => debug!(count, "Capture removed"),
            Ok(Ok(Err(error))) => return Err(error.into()),
            Ok(Err(_)) | Err(_) => anyhow::bail!(
                "the kernel did not remove the capture rules in time; run `whimbrel cleanup`"
            ),
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        Ok(())
    }
}

async fn serve(mut inbox: UnboundedReceiver<Order>, outcomes: UnboundedSender<Outcome>) {
    let mut host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            let _ = outcomes.send(Err(error));
            return;
        }
    };
    if let Err(error) = host.remove().await {
        let _ = outcomes.send(Err(error));
    }
    let mut applied = None;
    let mut mends = Mends::default();
    loop {
        let mend = async {
            match mends.due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            biased;
            order = inbox.recv() => match order {
                None => return,
                Some(Order::Remove(answer)) => {
                    let _ = answer.send(host.remove().await);
                    return;
                }
                Some(Order::Mend) => {
                    mends.ask(Instant::now());
                    continue;
                }
                Some(Order::Apply(plan)) => {
                    let done = host.apply(&plan).await.map(|_| Done::Followed);
                    applied = Some(plan);
                    done
                }
            },
            () = mend => {
                mends.due = None;
                let Some(plan) = &applied else { continue };
                match host.apply(plan).await {
                    // It was ourselves who removed something.
                    Ok(0) => continue,
                    Ok(count) => {
                        mends.note(Instant::now());
                        Ok(Done::Mended(count))
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match &outcome {
            Ok(done) => debug!(?done, "Capture follows its plan"),
            Err(error) => warn!(%error, "Cannot capture"),
        }
        let _ = outcomes.send(outcome);
    }
}

/// When to look what is missing.
#[derive(Debug, Default)]
struct Mends {
    due: Option<Instant>,
    /// When something was put back, and how long to leave it at that.
    last: Option<(Instant, Duration)>,
}

impl Mends {
    /// Something was removed.
    fn ask(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |(at, pause)| at + pause);
        self.due = self.due.or_else(|| Some(earliest.max(now)));
    }

    /// Something was put back.
    fn note(&mut self, now: Instant) {
        let pause = match self.last {
            Some((at, pause)) if now < at + PEACE => (pause * 2).min(MEND_PAUSE.1),
            Some(_) | None => MEND_PAUSE.0,
        };
        self.last = Some((now, pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mend_comes_at_once_and_a_war_costs_little() {
        let begin = Instant::now();
        let (mut mends, mut now, mut count) = (Mends::default(), begin, 0);
        while now < begin + Duration::from_secs(60) {
            mends.ask(now);
            let due = mends.due.take().unwrap();
            assert!(count > 0 || due == begin);
            now = due;
            mends.note(now);
            count += 1;
        }
        assert!((60..75).contains(&count), "{count} mends in a minute of war");
        now += PEACE + MEND_PAUSE.1;
        mends.ask(now);
        assert_eq!(mends.due, Some(now));
    }
}
