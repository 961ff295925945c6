//! The daemon's half of the control socket. Runs on the daemon's own tokio runtime, which may
//! be a current-thread one; answering never waits.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::exit::AlreadyRunning;
use crate::files;

use super::foreign::{Connection, Foreign};
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

/// Characters of a verb that is not known are repeated up to here.
const LONGEST_VERB: usize = 40;

/// The verbs that change something. They need the daemon's own user, root or the group.
pub type Changes = &'static [&'static str];

/// The verbs that descriptors may come with.
pub type Takes = &'static [&'static str];

/// Accepts control connections and hands out what they ask.
#[derive(Debug)]
pub struct ControlServer {
    requests: mpsc::Receiver<(Request, Responder)>,
    asker: Asker,
    accepting: JoinHandle<()>,
    slots: Arc<Semaphore>,
    /// What `accepting` listens on.
    listening: OwnedFd,
    /// Where it is found, until it is retired.
    path: Option<PathBuf>,
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
        let mut answer = match answers.recv().await.ok_or(STOPPING)? {
            Answer::Short(value) => value,
            Answer::Long(write) => serde_json::from_str(&write()).map_err(|e| e.to_string())?,
        };
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
    pub passed: Vec<Foreign>,
}

/// Answers one request. Dropped without an answer it tells the peer that the daemon is stopping.
#[derive(Debug)]
pub struct Responder {
    lines: mpsc::Sender<Answer>,
}

/// An answer of many lines.
#[derive(Debug)]
pub struct Subscription {
    lines: mpsc::Sender<Answer>,
}

/// A line that is not written yet.
enum Answer {
    Short(Value),
    Long(Box<dyn FnOnce() -> String + Send>),
}

#[derive(Serialize)]
struct Accepted<T> {
    ok: T,
}

impl Responder {
    /// Answers with a value, or with a sentence about what failed, why and what to do.
    pub fn reply(self, answer: Result<Value, String>) {
        let line = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(sentence) => json!({ "error": sentence }),
        };
        // The peer may have hung up; then nobody is interested.
        let _ = self.lines.try_send(Answer::Short(line));
    }

    /// Answers with a value that is long: it is written by a thread that has nothing else to do.
    pub fn reply_long(self, value: impl Serialize + Send + 'static) {
        let write = move || match serde_json::to_string(&Accepted { ok: value }) {
            Ok(text) => text,
            Err(error) => json!({ "error": format!("the answer is no JSON: {error}") }).to_string(),
        };
        // As above.
        let _ = self.lines.try_send(Answer::Long(Box::new(write)));
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
        self.lines.try_send(Answer::Short(json!({ "ok": value }))).is_ok()
    }

    /// Whether the peer has hung up.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lines.is_closed()
    }
}

impl ControlServer {
    /// Listens on `path`, whose folder is made if need be. Replaces the socket of a daemon that is
    /// gone; members of the group `whimbrel` may connect where that group exists. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// A running daemon owns the socket, or it cannot be made.
    pub fn bind(path: &Path, changes: Changes, takes: Takes) -> anyhow::Result<Self> {
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
        let listening = listener.as_fd().try_clone_to_owned().context("listening")?;
        let group = admit_group(path)?;
        let (sender, requests) = mpsc::channel(CONNECTIONS);
        let policy = Policy { own: rustix::process::geteuid().as_raw(), group, changes, takes };
        let asker = Asker { requests: sender.clone() };
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let accepting = tokio::spawn(accept(listener, policy, sender, Arc::clone(&slots)));
        Ok(Self { requests, asker, accepting, slots, listening, path: Some(path.to_owned()) })
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

    /// Retires if nobody is connected, not even somebody whom nobody has noticed yet. Whether it has:
    /// whoever comes then finds nothing, and may put another daemon there at once.
    pub fn retire(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        let Some(path) = &self.path else { return true };
        let aside = path.with_extension("ending");
        let hidden = std::fs::rename(path, &aside).is_ok();
        if self.has_callers() {
            // If another daemon is there already, this one goes on for who has called.
            let _ = hidden && renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE).is_ok();
            return false;
        }
        // It is hidden: what is left of it harms nobody.
        let _ = std::fs::remove_file(&aside);
        self.path = None;
        true
    }

    /// Whether somebody waits in the kernel; if it cannot tell, somebody may.
    fn has_callers(&self) -> bool {
        let mut wait = [PollFd::new(&self.listening, PollFlags::IN)];
        poll(&mut wait, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
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
        if let Some(path) = &self.path {
            // A later start removes it as stale if this fails.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Who may ask what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) own: u32,
    pub(super) group: Option<u32>,
    pub(super) changes: Changes,
    pub(super) takes: Takes,
}

impl Policy {
    pub(super) fn check(&self, peer: &Peer, verb: &str, passed: usize) -> Result<(), String> {
        let member = self.group.is_some_and(|group| peer.is_in(group));
        if peer.uid == 0 || peer.uid == self.own || member {
            if passed > 0 && !self.takes.contains(&verb) {
                let shown: String = verb.chars().take(LONGEST_VERB).collect();
                return Err(format!("{shown:?} takes no descriptors, and {passed} came with it"));
            }
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
                let connection = Connection::new(stream, Arc::new(slot));
                tokio::spawn(async move {
                    if let Err(error) = serve(&connection, policy, requests).await {
                        tracing::debug!(%error, "Control connection ended");
                    }
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
    connection: &Connection,
    policy: Policy,
    requests: mpsc::Sender<(Request, Responder)>,
) -> io::Result<()> {
    let stream = connection.stream();
    let peer = Peer::of(stream)?;
    let read = tokio::time::timeout(REQUEST_TIME, read_request(connection, peer)).await;
    let request = match read {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return write_line(stream, &json!({ "error": refusal })).await,
        Err(_) => return write_line(stream, &json!({ "error": "no request came" })).await,
    };
    let checked = policy.check(&request.peer, &request.verb, request.passed.len());
    if let Err(refusal) = checked {
        tracing::info!(uid = request.peer.uid, verb = %request.verb, "Refused a control request");
        return write_line(stream, &json!({ "error": refusal })).await;
    }
    let (lines, mut answers) = mpsc::channel(LINES_WAITING);
    let stopping = json!({ "error": "the daemon is stopping; try again when it runs" });
    if requests.send((request, Responder { lines })).await.is_err() {
        return write_line(stream, &stopping).await;
    }
    let mut answered = false;
    loop {
        tokio::select! {
            line = answers.recv() => match line {
                Some(line) => {
                    answered = true;
                    write_answer(stream, line).await?;
                }
                None if answered => return Ok(()),
                None => return write_line(stream, &stopping).await,
            },
            // The peer sends nothing more: what can be read is its hanging up.
            ready = line::over(stream) => return ready,
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

async fn read_request(connection: &Connection, peer: Peer) -> Result<Request, String> {
    let (text, passed) = line::receive(connection).await?;
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let line: Line = serde_json::from_slice(&text[..end]).map_err(|error| {
        format!("the request is not one line of JSON with \"verb\" and \"args\": {error}")
    })?;
    Ok(Request { verb: line.verb, args: line.args, peer, passed })
}

async fn write_answer(stream: &UnixStream, answer: Answer) -> io::Result<()> {
    match answer {
        Answer::Short(line) => write_line(stream, &line).await,
        Answer::Long(write) => {
            let text = tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?;
            write_text(stream, text).await
        }
    }
}

async fn write_line(stream: &UnixStream, line: &Value) -> io::Result<()> {
    write_text(stream, line.to_string()).await
}

async fn write_text(stream: &UnixStream, mut text: String) -> io::Result<()> {
    text.push('\n');
    tokio::time::timeout(WRITE_TIME, write_all(stream, text.as_bytes()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn write_all(stream: &UnixStream, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        stream.writable().await?;
        match stream.try_write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
