//! The command line's half of the control socket. Blocking: a command does nothing else.

use std::io::{self, BufReader, Read as _};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::line;

/// A daemon answers from memory; one that has not by now is stuck.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A table of 20,000 flows is 5 MB; this is the point where an answer is absurd.
const LONGEST_ANSWER: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("nothing is running: no daemon answers on {0}")]
    NotRunning(PathBuf),
    /// The socket is there, but not for this user.
    #[error(
        "you may not use {0}: run this as root, or join the group whimbrel \
         (`usermod -aG whimbrel $USER`, then log in again)"
    )]
    Denied(PathBuf),
    /// The daemon said no, with this sentence.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("no answer from the daemon")]
    Broken(#[from] io::Error),
}

/// A connection to a daemon that was not asked anything yet. The daemon knows its peer by who
/// opened it, whatever becomes of that process.
#[derive(Debug)]
pub struct Line {
    pub(super) stream: UnixStream,
}

impl Line {
    /// Connects to the daemon that listens on `path`. It waits a few seconds for a request.
    ///
    /// # Errors
    /// Nobody listens, or not for this user.
    pub fn open(path: &Path) -> Result<Self, AskError> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let kind = error.kind();
            if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                AskError::NotRunning(path.to_owned())
            } else if kind == io::ErrorKind::PermissionDenied {
                AskError::Denied(path.to_owned())
            } else {
                AskError::Broken(error)
            }
        })?;
        Ok(Self { stream })
    }

    /// Another connection to the same daemon, for another question.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn another(&self) -> Result<Self, AskError> {
        let peer = self.stream.peer_addr()?;
        let path =
            peer.as_pathname().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        Self::open(path)
    }

    /// Asks for one answer, and passes at most four descriptors with the question.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask(
        self,
        verb: &str,
        args: &Value,
        passed: &[BorrowedFd<'_>],
    ) -> Result<Value, AskError> {
        self.send(verb, args, passed)?;
        self.stream.set_read_timeout(Some(ANSWER_TIME))?;
        let mut reader = BufReader::new(self.stream.take(LONGEST_ANSWER));
        read_answer(&mut reader)?
            .ok_or_else(|| AskError::Broken(io::ErrorKind::UnexpectedEof.into()))
    }

    pub(super) fn send(
        &self,
        verb: &str,
        args: &Value,
        passed: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = format!("{}\n", json!({ "verb": verb, "args": args }));
        line::send(&self.stream, text.as_bytes(), passed)
    }
}

/// Asks for one answer.
///
/// # Errors
/// See [`AskError`].
pub fn ask(path: &Path, verb: &str, args: &Value) -> Result<Value, AskError> {
    Line::open(path)?.ask(verb, args, &[])
}

/// Asks for answers without end, until `each` breaks off or the daemon does.
///
/// # Errors
/// See [`AskError`].
pub fn follow(
    path: &Path,
    verb: &str,
    args: &Value,
    mut each: impl FnMut(Value) -> ControlFlow<()>,
) -> Result<(), AskError> {
    let line = Line::open(path)?;
    line.send(verb, args, &[])?;
    let mut reader = BufReader::new(line.stream);
    while let Some(value) = read_answer(&mut reader)? {
        if each(value).is_break() {
            break;
        }
    }
    Ok(())
}

/// One answer; nothing when the daemon has hung up.
fn read_answer(reader: &mut impl io::BufRead) -> Result<Option<Value>, AskError> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut answer: Value = serde_json::from_str(&line).map_err(io::Error::from)?;
    if let Some(sentence) = answer.get("error").and_then(Value::as_str) {
        return Err(AskError::Refused(sentence.to_owned()));
    }
    let value = answer.get_mut("ok").map(Value::take);
    value
        .map(Some)
        .ok_or_else(|| AskError::Broken(io::Error::other("it is neither \"ok\" nor \"error\"")))
}
