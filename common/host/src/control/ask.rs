//! The command line's half of the control socket. Blocking: a command does nothing else.

use std::io::{self, BufReader, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

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

/// Asks for one answer.
///
/// # Errors
/// See [`AskError`].
pub fn ask(path: &Path, verb: &str, args: &Value) -> Result<Value, AskError> {
    let stream = send(path, verb, args)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    let mut reader = BufReader::new(stream.take(LONGEST_ANSWER));
    read_answer(&mut reader)?.ok_or_else(|| AskError::Broken(io::ErrorKind::UnexpectedEof.into()))
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
    let mut reader = BufReader::new(send(path, verb, args)?);
    while let Some(value) = read_answer(&mut reader)? {
        if each(value).is_break() {
            break;
        }
    }
    Ok(())
}

fn send(path: &Path, verb: &str, args: &Value) -> Result<UnixStream, AskError> {
    let mut stream = UnixStream::connect(path).map_err(|error| {
        let kind = error.kind();
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            AskError::NotRunning(path.to_owned())
        } else if kind == io::ErrorKind::PermissionDenied {
            AskError::Denied(path.to_owned())
        } else {
            AskError::Broken(error)
        }
    })?;
    let line = format!("{}\n", json!({ "verb": verb, "args": args }));
    stream.write_all(line.as_bytes())?;
    Ok(stream)
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
