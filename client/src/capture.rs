//! Carrying out the capture plan, on a thread of its own: netlink answers when it likes.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tracing::{debug, warn};
use whimbrel_client_core::plan::Plan;

use crate::host::{Host, HostError};

/// An orderly stop waits this long for the kernel to remove the rules.
const REMOVAL: Duration = Duration::from_secs(3);

enum Order {
    Apply(Plan),
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
    pub(crate) fn spawn(outcomes: UnboundedSender<Result<(), HostError>>) -> io::Result<Self> {
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

async fn serve(
    mut inbox: UnboundedReceiver<Order>,
    outcomes: UnboundedSender<Result<(), HostError>>,
) {
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
    while let Some(order) = inbox.recv().await {
        match order {
            Order::Apply(plan) => {
                let outcome = host.apply(&plan).await;
                match &outcome {
                    Ok(changes) => debug!(changes, "Capture follows its plan"),
                    Err(error) => warn!(%error, "Cannot capture"),
                }
                let _ = outcomes.send(outcome.map(drop));
            }
            Order::Remove(answer) => {
                let _ = answer.send(host.remove().await);
            }
        }
    }
}
