//! The daemon's half of the control socket. Runs on the daemon's own tokio runtime, which may
//! be a current-thread one; answering never waits.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::exit::AlreadyRunning;
use crate::files;

use super::peer::{Peer, group_id};
use super::{GROUP, line};

/// People and scripts ask a few at a time; more waiting connections queue in the kernel.
const CONNECTIONS: usize = 64;

/// A local program writes its one line at once, or something is wrong with it.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// A reader slower than this many lines loses its subscription rather than our memory.
const LINES_WAITING: usize = 1024;

/// How long one line may take to be read by the other end.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// The verbs that change something. They need the daemon's own user, root or the group.
pub type Changes = &'static [&'static str];

/// Accepts control connections and hands out what they ask.
#[derive(Debug)]
pub struct ControlServer {
    requests: mpsc::Receiver<(Request, Responder)>,
    asker: Asker,
    accepting: JoinHandle<()>,
    slots: Arc<Semaphore>,
    path: PathBuf,
}

/// Asks the daemon from inside its own process, as a peer without any right.
#[derive(Clone, Debug)]
pub struct Asker {
    requests: mpsc::Sender<(Request, Responder)>,
}

impl Asker {
    /// Asks for one answer.
    ///
    /// # Errors
    /// The daemon's sentence about why there is none.
    pub async fn ask(&self, verb: &str) -> Result<Value, String> {
        const STOPPING: &str = "the daemon is stopping; try again when it runs";
        let (lines, mut answers) = mpsc::channel(1);
        let peer = Peer { uid: NOBODY, gid: NOBODY, pid: None, groups: Vec::new() };
        let request =
            Request { verb: verb.to_owned(), args: Value::Null, peer, passed: Vec::new() };
        let sent = self.requests.send((request, Responder { lines })).await;
        sent.map_err(|_| STOPPING.to_owned())?;
        let mut answer = answers.recv().await.ok_or(STOPPING)?;
        match answer.get("error").and_then(Value::as_str) {
            Some(sentence) => Err(sentence.to_owned()),
            None => Ok(answer["ok"].take()),
        }
    }
}

/// The user and group of whoever is nobody in particular.
const NOBODY: u32 = 65534;

/// One request of a permitted peer.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub verb: String,
    /// With what: `null` where there is nothing to say.
    pub args: Value,
    /// Who asks.
    pub peer: Peer,
    /// Descriptors that came with it; whatever they may be.
    pub passed: Vec<OwnedFd>,
}

/// Answers one request. Dropped without an answer it tells the peer that the daemon is stopping.
#[derive(Debug)]
pub struct Responder {
    lines: mpsc::Sender<Value>,
}

/// An answer of many lines.
#[derive(Debug)]
pub struct Subscription {
    lines: mpsc::Sender<Value>,
}

impl Responder {
    /// Answers with a value, or with a sentence about what failed, why and what to do.
    pub fn reply(self, answer: Result<Value, String>) {
        let line = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(sentence) => json!({ "error": sentence }),
        };
        // The peer may have hung up; then nobody is interested.
        let _ = self.lines.try_send(line);
    }

    /// Answers with one value after another.
    #[must_use]
    pub fn subscribe(self) -> Subscription {
        Subscription { lines: self.lines }
    }
}

impl Subscription {
    /// Sends one more value. `false` once the peer has hung up or reads too slowly: drop it then.
    #[must_use]
    pub fn push(&self, value: &Value) -> bool {
        self.lines.try_send(json!({ "ok": value })).is_ok()
    }

    /// Whether the peer has hung up.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lines.is_closed()
    }
}

impl ControlServer {
    /// Listens on `path`, whose folder is made if need be. Replaces the socket of a daemon that is gone; members of the group
    /// `whimbrel` may connect where that group exists. Needs a tokio runtime.
    ///
    /// # Errors
    /// A running daemon owns the socket, or it cannot be made.
    pub fn bind(path: &Path, changes: Changes) -> anyhow::Result<Self> {
        // The kernel's limit on sun_path, with its final zero.
        if path.as_os_str().len() > 107 {
            bail!(
                "the control socket {} has too long a path (at most 107 bytes); \
                 move the configuration to a folder with a shorter name",
                path.display()
            );
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // Below /run, which is empty after every boot.
            files::ensure_folder(folder, 0o755).context(
                "cannot make the control socket; run this as root, or use --config FILE to keep \
                 everything in a folder of your own",
            )?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot make the control socket {}", path.display()))?;
        let group = admit_group(path)?;
        let (sender, requests) = mpsc::channel(CONNECTIONS);
        let policy = Policy { own: rustix::process::geteuid().as_raw(), group, changes };
        let asker = Asker { requests: sender.clone() };
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let accepting = tokio::spawn(accept(listener, policy, sender, Arc::clone(&slots)));
        Ok(Self { requests, asker, accepting, slots, path: path.to_owned() })
    }

    /// Asks what [`next`](Self::next) hands out.
    #[must_use]
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        // One waits to be given to whoever connects next.
        self.slots.available_permits() + 1 >= CONNECTIONS
    }

    /// The next request. Cancelling the wait loses none.
    pub async fn next(&mut self) -> (Request, Responder) {
        match self.requests.recv().await {
            Some(request) => request,
            // It holds a sender itself.
            None => std::future::pending().await,
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.accepting.abort();
        // A later start removes it as stale if this fails.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who may ask what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) own: u32,
    pub(super) group: Option<u32>,
    pub(super) changes: Changes,
}

impl Policy {
    pub(super) fn check(&self, peer: &Peer, verb: &str) -> Result<(), String> {
        let member = self.group.is_some_and(|group| peer.is_in(group));
        if peer.uid == 0 || peer.uid == self.own || member {
            return Ok(());
        }
        let act = if self.changes.contains(&verb) { "use" } else { "read" };
        Err(format!(
            "you may not {act} `{verb}`: run it as root, or join the group {GROUP} \
             (`usermod -aG {GROUP} $USER`, then log in again)"
        ))
    }
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(AlreadyRunning(format!(
            "it answers on {}; stop it first, or use another --config",
            path.display()
        ))
        .into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove the old control socket {}", path.display()))
        }
        Err(error) => Err(error)
            .with_context(|| format!("cannot use {} as the control socket", path.display())),
    }
}

/// Lets the group connect; without it only the owner and root can.
fn admit_group(path: &Path) -> anyhow::Result<Option<u32>> {
    // A service runs as that group already, and may not be allowed to change any owner.
    let has = |group| std::fs::metadata(path).is_ok_and(|about| about.gid() == group);
    let give = |group| std::os::unix::fs::chown(path, None, Some(group)).is_ok();
    let group = group_id(GROUP).filter(|&group| has(group) || give(group));
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
    Ok(group)
}

async fn accept(
    listener: UnixListener,
    policy: Policy,
    requests: mpsc::Sender<(Request, Responder)>,
    slots: Arc<Semaphore>,
) {
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, policy, requests).await {
                        tracing::debug!(%error, "Control connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "Cannot accept a control connection");
                // Out of descriptors: the next attempt would fail the same way at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    mut stream: UnixStream,
    policy: Policy,
    requests: mpsc::Sender<(Request, Responder)>,
) -> io::Result<()> {
    let peer = Peer::of(&stream)?;
    let read = tokio::time::timeout(REQUEST_TIME, read_request(&stream, peer)).await;
    let (_, mut writer) = stream.split();
    let request = match read {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return write_line(&mut writer, &json!({ "error": refusal })).await,
        Err(_) => return write_line(&mut writer, &json!({ "error": "no request came" })).await,
    };
    if let Err(refusal) = policy.check(&request.peer, &request.verb) {
        tracing::info!(uid = request.peer.uid, verb = %request.verb, "Refused a control request");
        return write_line(&mut writer, &json!({ "error": refusal })).await;
    }
    let (lines, mut answers) = mpsc::channel(LINES_WAITING);
    let stopping = json!({ "error": "the daemon is stopping; try again when it runs" });
    if requests.send((request, Responder { lines })).await.is_err() {
        return write_line(&mut writer, &stopping).await;
    }
    let mut answered = false;
    loop {
        tokio::select! {
            line = answers.recv() => match line {
                Some(line) => {
                    answered = true;
                    write_line(&mut writer, &line).await?;
                }
                None if answered => return Ok(()),
                None => return write_line(&mut writer, &stopping).await,
            },
            // The peer sends nothing more: what can be read is its hanging up.
            ready = stream_closed(&writer) => return ready,
        }
    }
}

/// Resolves when the peer has closed its end.
async fn stream_closed(writer: &tokio::net::unix::WriteHalf<'_>) -> io::Result<()> {
    let stream: &UnixStream = writer.as_ref();
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0; 1024]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    verb: String,
    #[serde(default)]
    args: Value,
}

async fn read_request(stream: &UnixStream, peer: Peer) -> Result<Request, String> {
    let (text, passed) = line::receive(stream).await?;
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let line: Line = serde_json::from_slice(&text[..end]).map_err(|error| {
        format!("the request is not one line of JSON with \"verb\" and \"args\": {error}")
    })?;
    Ok(Request { verb: line.verb, args: line.args, peer, passed })
}

async fn write_line(writer: &mut tokio::net::unix::WriteHalf<'_>, line: &Value) -> io::Result<()> {
    let mut text = line.to_string();
    text.push('\n');
    tokio::time::timeout(WRITE_TIME, writer.write_all(text.as_bytes()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
