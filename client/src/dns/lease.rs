//! Settings that somebody else writes for us, who may: a small service that leads the host's names
//! to the gateway for exactly as long as a connection to its socket is open.
//!
//! The daemon has no privilege to write them. Whatever becomes of it, the kernel closes the
//! connection, and the settings are as before. The service takes one octet at a time and nothing
//! else: whoever has taken the daemon over can lead names to the TUN, and nowhere else.

use std::io::{
    self,
    ErrorKind::{NotFound, PermissionDenied},
};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};
use whimbrel_host::service::{Order, Orders};

use super::scribe::Scribe;

/// `ListenStream=` of systemd/whimbrel-names.socket.
pub(super) const SOCKET: &str = "/run/whimbrel-names.socket";

/// The service is started first, and `resolvconf` starts others.
const ANSWER: Duration = Duration::from_secs(15);

/// Without a connection the service ends after so long; the next one starts it again.
const LINGER: Duration = Duration::from_secs(5);

/// Lead names to the gateway.
const LEAD: u8 = b'+';

/// Let them be as before.
const RETURN: u8 = b'-';

/// What precedes the reason of a failure.
const FAILED: &str = "failed ";

/// Whether this host has the service.
pub(crate) fn is_offered() -> bool {
    Path::new(SOCKET).exists()
}

/// The daemon's end.
#[derive(Debug)]
pub(super) struct Lease {
    answers: Lines<BufReader<UnixStream>>,
}

impl Lease {
    /// Connects to the service, if this host has it for us.
    ///
    /// # Errors
    /// It is there, and out of reach.
    pub(super) async fn open(socket: &Path) -> Result<Option<Self>, String> {
        match UnixStream::connect(socket).await {
            Ok(stream) => Ok(Some(Self { answers: BufReader::new(stream).lines() })),
            Err(error) if [NotFound, PermissionDenied].contains(&error.kind()) => Ok(None),
            Err(error) => Err(format!(
                "whimbrel-names.socket cannot be used ({error}): run `systemctl restart \
                 whimbrel-names.socket`"
            )),
        }
    }

    /// Lets it lead names to the gateway. Who does it.
    ///
    /// # Errors
    /// What it says.
    pub(super) async fn lead(&mut self) -> Result<String, String> {
        self.say(LEAD).await
    }

    /// Lets names be as before.
    ///
    /// # Errors
    /// What it says.
    pub(super) async fn give_back(mut self) -> Result<(), String> {
        self.say(RETURN).await.map(drop)
    }

    /// Waits until it is gone, or cannot lead any more. Dropping the future loses nothing.
    pub(super) async fn until_over(&mut self) {
        let _said = self.answers.next_line().await;
    }

    async fn say(&mut self, word: u8) -> Result<String, String> {
        let talk = async {
            self.answers.get_mut().get_mut().write_all(&[word]).await?;
            self.answers.next_line().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        let outcome = tokio::time::timeout(ANSWER, talk).await;
        let silent = "whimbrel-names.service does not answer: see `journalctl -u whimbrel-names`";
        let answer = outcome.map_err(|_| silent.to_owned())?;
        let answer = answer.map_err(|error: io::Error| format!("{silent} ({error})"))?;
        match answer.strip_prefix(FAILED) {
            Some(trouble) => Err(trouble.to_owned()),
            None => Ok(answer),
        }
    }
}

/// The service's end: serves one connection after the other, until it is told to stop or nobody
/// needs it.
///
/// # Errors
/// Settings of ours stay behind.
pub(crate) async fn serve(listener: UnixListener, scribe: &mut Scribe) -> anyhow::Result<()> {
    let mut orders = Orders::listen()?;
    // What a predecessor left, or a power cut.
    tell(scribe.restore().await);
    loop {
        let stream = tokio::select! {
            biased;
            Order::Stop = orders.next() => return Ok(()),
            accepted = listener.accept() => accepted?.0,
            () = tokio::time::sleep(LINGER) => return Ok(()),
        };
        let stopped = tokio::select! {
            biased;
            Order::Stop = orders.next() => true,
            _ended = attend(stream, scribe) => false,
        };
        tell(scribe.restore().await);
        if stopped {
            return Ok(());
        }
    }
}

async fn attend(mut stream: UnixStream, scribe: &mut Scribe) -> io::Result<()> {
    let mut leading = false;
    loop {
        let mut word = [LEAD];
        let asked = tokio::select! {
            read = stream.read(&mut word) => match read? {
                0 => return Ok(()),
                _ => true,
            },
            () = scribe.until_changed(), if leading => false,
        };
        let outcome = match word {
            [LEAD] => scribe.lead().await.map(str::to_owned),
            [RETURN] => scribe.restore().await.map(|_| "as before".to_owned()),
            _ => return Ok(()),
        };
        leading = word == [LEAD];
        let answer = match outcome {
            Ok(_) if !asked => continue,
            Ok(done) => format!("{done}\n"),
            Err(trouble) => format!("{FAILED}{}\n", trouble.replace('\n', " ")),
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

fn tell(outcome: Result<bool, String>) {
    match outcome {
        Ok(true) => info!("Names are asked as before"),
        Ok(false) => {}
        Err(trouble) => warn!(trouble, "The host's DNS settings stay behind"),
    }
}

#[cfg(test)]
mod tests;
