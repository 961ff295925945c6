//! The host's DNS, put to the name server inside the TUN, whose answers come from the gateway's own
//! resolver: with systemd-resolved, with `resolvconf`, or by `/etc/resolv.conf` where neither
//! manages it.
//!
//! Promises:
//! - nothing is changed before that server has answered a query;
//! - whoever else writes the settings is answered at once, and what was changed is looked at again
//!   after every change of the links and every sleep;
//! - it is given back when the gateway is out of reach for too long, and when the daemon ends,
//!   however it ends: what systemd-resolved is told is about the TUN and goes with it, and what the
//!   service of [`lease`] writes it takes back. What a daemon wrote itself, as root, the next one
//!   gives back, or `whimbrel cleanup`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::report::{NamesReport, NamesState};
use crate::run::NAMESERVER;

pub(crate) mod file;
pub(crate) mod lease;
mod resolvconf;
mod resolved;
pub(crate) mod scribe;

use lease::Lease;
use resolved::Resolved;
use scribe::Scribe;

/// After a change of the links others write their settings, within a second as a rule: so much
/// later they are looked at again.
const LOOKS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// The gateway and its resolver answer within this time, or names stay where they are.
const ANSWER: Duration = Duration::from_secs(2);

/// A server that did not answer is tried again after the first, doubling up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What systemd-resolved is called in reports.
const RESOLVED: &str = "systemd-resolved";

/// What the host's DNS should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Names are asked of the gateway.
    pub(crate) through: bool,
    /// Rises with everything that may have changed the host's settings.
    pub(crate) round: u64,
}

/// Where names are set.
#[derive(Debug)]
pub(crate) struct Place {
    /// The TUN's interface index.
    pub(crate) index: u32,
    /// Where the settings of before are kept.
    pub(crate) state: PathBuf,
}

/// The word with [`follow`].
#[derive(Debug)]
pub(crate) struct Wishes {
    pub(crate) wish: watch::Sender<Wish>,
    pub(crate) done: oneshot::Receiver<()>,
}

/// Follows wishes for as long as there are any, and gives everything back then.
pub(crate) async fn follow(
    place: Place,
    mut wishes: watch::Receiver<Wish>,
    reports: UnboundedSender<NamesReport>,
    done: oneshot::Sender<()>,
) {
    let mut settings = Settings::new(place);
    let mut pause = RETRY.0;
    'wish: loop {
        let wish = *wishes.borrow_and_update();
        let report = settings.satisfy(wish.through).await;
        let failed = report.state == NamesState::Failed;
        if reports.send(report).is_err() {
            break;
        }
        for look in LOOKS.into_iter().filter(|_| wish.through && !failed) {
            tokio::select! {
                changed = wishes.changed() => match changed {
                    Ok(()) => continue 'wish,
                    Err(_) => break 'wish,
                },
                () = settings.until_changed() => continue 'wish,
                () = tokio::time::sleep(look) => {}
            }
            settings.look_again().await;
        }
        let retry = async {
            if failed {
                tokio::time::sleep(pause).await;
            } else {
                settings.until_changed().await;
            }
        };
        tokio::select! {
            changed = wishes.changed() => if changed.is_err() { break },
            () = retry => {}
        }
        pause = if failed { (pause * 2).min(RETRY.1) } else { RETRY.0 };
    }
    settings.give_back().await;
    // Nobody may be waiting.
    let _ = done.send(());
}

/// Gives back what a daemon before this one left, or a power cut: the gateway's own name could not be
/// looked up. `state` is the folder of [`Place`].
pub(crate) async fn mend(state: &Path) {
    let mut scribe = Scribe::new(state, NAMESERVER);
    if !scribe.file().names(NAMESERVER).unwrap_or_default() {
        return;
    }
    let mended = match lease().await {
        Ok(Some(lease)) => lease.give_back().await.map(drop),
        Ok(None) => scribe.restore().await.map(drop),
        Err(trouble) => Err(trouble),
    };
    match mended {
        Ok(()) => info!("Settings that were left behind are as before"),
        Err(trouble) => warn!(trouble, "The host's DNS settings were left behind"),
    }
}

/// The host's settings, and what of them is ours.
struct Settings {
    place: Place,
    /// What this process may write.
    scribe: Scribe,
    ours: Option<Ours>,
    /// What failed last, which is told once.
    told: Option<String>,
}

/// Who has taken our server.
enum Ours {
    Resolved(Resolved),
    /// A service that may write, and who did for it.
    Lease(Lease, String),
    Scribe,
}

impl Settings {
    fn new(place: Place) -> Self {
        let scribe = Scribe::new(&place.state, NAMESERVER);
        Self { place, scribe, ours: None, told: None }
    }

    async fn satisfy(&mut self, through: bool) -> NamesReport {
        if !through {
            self.give_back().await;
            return NamesReport::default();
        }
        match self.take_over().await {
            Ok(by) => {
                self.told = None;
                NamesReport { state: NamesState::Gateway, by: Some(by), trouble: None }
            }
            Err(trouble) => {
                if self.told.as_ref() != Some(&trouble) {
                    warn!(trouble, "Names are not asked of the gateway");
                    self.told = Some(trouble.clone());
                }
                NamesReport { state: NamesState::Failed, by: None, trouble: Some(trouble) }
            }
        }
    }

    async fn take_over(&mut self) -> Result<String, String> {
        // What is there is put right first: the answer may take longer.
        let again = self.assert_again().await?;
        if let Err(error) = answers(SocketAddr::new(NAMESERVER.into(), 53)).await {
            self.give_back().await;
            return Err(format!("the gateway's resolver does not answer ({error})"));
        }
        if let Some(by) = again {
            return Ok(by);
        }
        let (ours, by) = self.begin().await?;
        info!(by, "Names are asked of the gateway");
        self.ours = Some(ours);
        Ok(by)
    }

    async fn begin(&mut self) -> Result<(Ours, String), String> {
        if let Some(resolved) = Resolved::find(self.scribe.file()).await? {
            let index = self.place.index;
            if let Err(error) = resolved.set(index, NAMESERVER).await {
                // Of several calls the first may have been allowed. What fails here has set nothing.
                let _nothing = resolved.revert(index).await;
                return Err(resolved::explain(error));
            }
            return Ok((Ours::Resolved(resolved), RESOLVED.to_owned()));
        }
        if let Some(mut lease) = lease().await? {
            let by = lease.lead().await?;
            return Ok((Ours::Lease(lease, by.clone()), by));
        }
        let by = self.scribe.lead().await?;
        Ok((Ours::Scribe, by.to_owned()))
    }

    /// Puts right what others have changed; who has taken our server, if anybody has.
    async fn assert_again(&mut self) -> Result<Option<String>, String> {
        match &self.ours {
            None => Ok(None),
            Some(Ours::Resolved(resolved)) => {
                let index = self.place.index;
                let right = resolved.is_set(index, NAMESERVER).await;
                if !right {
                    resolved.set(index, NAMESERVER).await.map_err(resolved::explain)?;
                    info!("systemd-resolved was told of the gateway again");
                }
                Ok(Some(RESOLVED.to_owned()))
            }
            // Whoever writes also watches.
            Some(Ours::Lease(_, by)) => Ok(Some(by.clone())),
            Some(Ours::Scribe) => self.scribe.lead().await.map(|by| Some(by.to_owned())),
        }
    }

    async fn look_again(&mut self) {
        if let Err(trouble) = self.assert_again().await {
            warn!(trouble, "Names are not asked of the gateway any more");
        }
    }

    /// Waits until what is ours may not be there any more.
    async fn until_changed(&mut self) {
        match &mut self.ours {
            Some(Ours::Resolved(resolved)) => {
                resolved.until_restarted().await;
                self.ours = None;
            }
            Some(Ours::Lease(lease, _)) => {
                lease.until_over().await;
                self.ours = None;
            }
            Some(Ours::Scribe) => self.scribe.until_changed().await,
            None => std::future::pending().await,
        }
    }

    async fn give_back(&mut self) {
        let outcome = match self.ours.take() {
            None => return,
            Some(Ours::Resolved(resolved)) => {
                resolved.revert(self.place.index).await.map_err(resolved::explain)
            }
            Some(Ours::Lease(lease, _)) => lease.give_back().await,
            Some(Ours::Scribe) => self.scribe.restore().await.map(drop),
        };
        match outcome {
            Ok(()) => info!("Names are asked as before"),
            Err(trouble) => warn!(trouble, "The host's DNS settings stay behind"),
        }
    }
}

/// The service that writes for us. Root writes itself.
async fn lease() -> Result<Option<Lease>, String> {
    if rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    Lease::open(Path::new(lease::SOCKET)).await
}

/// Whether a name server answers, whatever it says.
async fn answers(server: SocketAddr) -> std::io::Result<()> {
    let ask = async {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(server).await?;
        let [high, low] = whimbrel_host::random::bytes().map_err(std::io::Error::other)?;
        // Who serves the root: every resolver knows (RFC 1035 §4.1, RFC 8109).
        let query = [high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        let mut answer = [0; 1500];
        loop {
            socket.send(&query).await?;
            let received = tokio::time::timeout(ANSWER / 2, socket.recv(&mut answer)).await;
            match received {
                Ok(Ok(length)) if length >= 12 && answer[..2] == query[..2] => return Ok(()),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    };
    let silent = || std::io::Error::from(std::io::ErrorKind::TimedOut);
    tokio::time::timeout(ANSWER, ask).await.unwrap_or_else(|_| Err(silent()))
}
