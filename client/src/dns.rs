//! The host's DNS, put to the name server inside the TUN, whose answers come from the gateway's own
//! resolver: with systemd-resolved, or by `/etc/resolv.conf` where nobody manages it.
//!
//! Promises:
//! - nothing is changed before that server has answered a query;
//! - what was changed is looked at again after every change of the links and every sleep, for those
//!   who write their own servers there, and put right;
//! - it is given back when the gateway is out of reach for too long, and when the daemon ends;
//!   what a killed daemon leaves behind, `whimbrel cleanup` gives back. What systemd-resolved is
//!   told is about the TUN and goes with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::report::{NamesReport, NamesState};
use crate::run::NAMESERVER;

pub(crate) mod file;
mod resolved;

use file::SettingsFile;
use resolved::Resolved;

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
                () = tokio::time::sleep(look) => settings.look_again().await,
            }
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

/// The host's settings, and what of them is ours.
struct Settings {
    place: Place,
    file: SettingsFile,
    ours: Option<Ours>,
    /// What failed last, which is told once.
    told: Option<String>,
}

/// Who has taken our server.
enum Ours {
    Resolved(Resolved),
    File,
}

impl Settings {
    fn new(place: Place) -> Self {
        let file = SettingsFile::new(&place.state);
        Self { place, file, ours: None, told: None }
    }

    async fn satisfy(&mut self, through: bool) -> NamesReport {
        if !through {
            self.give_back().await;
            return NamesReport::default();
        }
        match self.take_over().await {
            Ok(by) => {
                self.told = None;
                NamesReport { state: NamesState::Gateway, by: Some(by.to_owned()), trouble: None }
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

    async fn take_over(&mut self) -> Result<&'static str, String> {
        if let Err(error) = answers(SocketAddr::new(NAMESERVER.into(), 53)).await {
            self.give_back().await;
            return Err(format!("the gateway's resolver does not answer ({error})"));
        }
        if let Some(by) = self.assert_again().await? {
            return Ok(by);
        }
        let resolved = Resolved::find(&self.file).await?;
        let (ours, by) = match resolved {
            Some(resolved) => {
                let index = self.place.index;
                resolved.set(index, NAMESERVER).await.map_err(resolved::explain)?;
                (Ours::Resolved(resolved), "systemd-resolved")
            }
            None => {
                self.file.put(NAMESERVER)?;
                (Ours::File, "/etc/resolv.conf")
            }
        };
        info!(by, "Names are asked of the gateway");
        self.ours = Some(ours);
        Ok(by)
    }

    /// Puts right what others have changed; who has taken our server, if anybody has.
    async fn assert_again(&mut self) -> Result<Option<&'static str>, String> {
        match &self.ours {
            None => Ok(None),
            Some(Ours::Resolved(resolved)) => {
                let index = self.place.index;
                let right = resolved.is_set(index, NAMESERVER).await;
                if !right {
                    resolved.set(index, NAMESERVER).await.map_err(resolved::explain)?;
                    info!("systemd-resolved was told of the gateway again");
                }
                Ok(Some("systemd-resolved"))
            }
            Some(Ours::File) => {
                if self.file.put(NAMESERVER)? {
                    info!("/etc/resolv.conf leads to the gateway again");
                }
                Ok(Some("/etc/resolv.conf"))
            }
        }
    }

    async fn look_again(&mut self) {
        if let Err(trouble) = self.assert_again().await {
            warn!(trouble, "Names are not asked of the gateway any more");
        }
    }

    /// Waits until somebody is gone who was told.
    async fn until_changed(&mut self) {
        match &self.ours {
            Some(Ours::Resolved(resolved)) => {
                resolved.until_restarted().await;
                self.ours = None;
            }
            Some(Ours::File) | None => std::future::pending().await,
        }
    }

    async fn give_back(&mut self) {
        let outcome = match self.ours.take() {
            None => return,
            Some(Ours::Resolved(resolved)) => {
                resolved.revert(self.place.index).await.map_err(resolved::explain)
            }
            Some(Ours::File) => self.file.restore().map(drop),
        };
        match outcome {
            Ok(()) => info!("Names are asked as before"),
            Err(trouble) => warn!(trouble, "The host's DNS settings stay behind"),
        }
    }
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
