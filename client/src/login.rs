//! The login manager of the machine (systemd-logind): it says that the machine is about to sleep,
//! waits while the client parks its session, and says when the machine is awake again
//! (org.freedesktop.login1(5)).
//!
//! What is done about it is decided elsewhere. Without a login manager the clocks tell of a sleep,
//! afterwards.

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tracing::{debug, info};
use zbus::zvariant::OwnedFd;
use zbus::{Proxy, connection, proxy};

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";

/// An answer that takes longer will not come: the bus starts services within 25 s, and nobody
/// waits for this one.
const ANSWER: Duration = Duration::from_secs(30);

/// A bus without a login manager is asked again after the first, doubling up to the second: a bus
/// that is restarted is back within moments, a machine without one is not woken for it.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// What the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// It is about to sleep, and waits until it is [let go](Go).
    Sleep(Go),
    /// It is awake, or does not go to sleep after all.
    Awake,
    /// Who announces sleep, from now on.
    Watch(Watch),
}

/// Who announces that the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Watch {
    /// Nobody: the clocks tell of it afterwards.
    #[default]
    Nobody,
    /// A login manager, which does not wait for us.
    Announced,
    /// A login manager, which waits for us.
    Delayed,
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nobody => "unannounced",
            Self::Announced => "announced",
            Self::Delayed => "delayed",
        })
    }
}

/// Lets the machine sleep, once: a word that comes late does not count for the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Go(u64);

/// Listens for as long as anybody is interested.
pub(crate) async fn follow(news: UnboundedSender<News>, mut words: UnboundedReceiver<Go>) {
    let mut login = Login { news, sleeps: 0, heard: None };
    let mut pause = PAUSE.0;
    loop {
        let Err(error) = login.attend(&mut words).await else { return };
        if login.heard.replace(false) != Some(false) {
            // Without a receiver the daemon ends.
            let _ended = login.news.send(News::Watch(Watch::Nobody));
            info!(%error, "Nobody announces when the machine sleeps; the clocks tell of it later");
            pause = PAUSE.0;
        } else {
            debug!(%error, "Still no login manager");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

struct Login {
    news: UnboundedSender<News>,
    /// How many sleeps were announced.
    sleeps: u64,
    /// Whether the login manager was there when last tried.
    heard: Option<bool>,
}

impl Login {
    /// Follows one connection to its end; `Ok` when nobody is interested any more.
    async fn attend(&mut self, words: &mut UnboundedReceiver<Go>) -> zbus::Result<()> {
        let connection = connection::Builder::system()?.method_timeout(ANSWER).build().await?;
        let manager: Proxy<'_> = proxy::Builder::new(&connection)
            .destination(SERVICE)?
            .path(PATH)?
            .interface(INTERFACE)?
            .cache_properties(proxy::CacheProperties::No)
            .build()
            .await?;
        let mut announced = manager.receive_signal("PrepareForSleep").await?;
        let mut delay = inhibit(&manager).await?;
        if self.heard.replace(true) != Some(true) {
            info!(delayed = delay.is_some(), "Sleep of the machine is announced");
        }
        let watch = if delay.is_some() { Watch::Delayed } else { Watch::Announced };
        let _ended = self.news.send(News::Watch(watch));
        // What was said before is not known. Who cannot tell has not begun.
        self.tell(manager.get_property("PreparingForSleep").await.unwrap_or(false));
        loop {
            let signal = tokio::select! {
                biased;
                word = words.recv() => {
                    let Some(Go(sleep)) = word else { return Ok(()) };
                    if sleep == self.sleeps {
                        drop(delay.take());
                    }
                    continue;
                }
                signal = announced.next() => signal,
                () = self.news.closed() => return Ok(()),
            };
            let signal = signal.ok_or_else(|| zbus::Error::Failure("the bus is gone".into()))?;
            let asleep = signal.body().deserialize()?;
            self.tell(asleep);
            if !asleep {
                delay = inhibit(&manager).await?;
            }
        }
    }

    fn tell(&mut self, asleep: bool) {
        self.sleeps += 1;
        let news = if asleep { News::Sleep(Go(self.sleeps)) } else { News::Awake };
        debug!(?news, "The login manager says");
        // Without a receiver the daemon ends, and this with it.
        let _ended = self.news.send(news);
    }
}

/// Makes the machine wait before it sleeps, for as long as the descriptor is open. A machine that
/// lets nobody do that announces its sleep all the same.
async fn inhibit(manager: &Proxy<'_>) -> zbus::Result<Option<OwnedFd>> {
    let why = "Connections are parked at the gateway";
    match manager.call("Inhibit", &("sleep", "Whimbrel", why, "delay")).await {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(zbus::Error::MethodError(name, reason, _)) if is_denied(name.as_str()) => {
            let reason = reason.unwrap_or_default();
            info!(reason, "This user may not delay the sleep of the machine");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_denied(error: &str) -> bool {
    let short = error.strip_prefix("org.freedesktop.DBus.Error.");
    matches!(short, Some("AccessDenied" | "InteractiveAuthorizationRequired"))
}
