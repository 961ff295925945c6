//! How a program ends: one sentence on stderr and a code.

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use whimbrel_common::config::{ConfigError, EXIT_BAD_CONFIG};

use crate::output::plain;

/// The command line is wrong.
pub const USAGE: u8 = 2;

/// `/dev/net/tun` is not there (`EX_OSFILE` of sysexits.h, like those below).
pub const NO_DEVICE: u8 = 72;

/// An address or a name is taken (`EX_CANTCREAT`).
pub const TAKEN: u8 = 73;

/// The disk is full (`EX_IOERR`).
pub const DISK_FULL: u8 = 74;

/// Another instance is running (`EX_TEMPFAIL`).
pub const RUNNING: u8 = 75;

/// A right is missing (`EX_NOPERM`).
pub const DENIED: u8 = 77;

/// What the codes mean, for the end of a help text.
pub const CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 72 no TUN device, \
                         73 address or name taken, 74 disk full, 75 already running, \
                         77 not permitted, 78 wrong configuration";

/// Another instance has what a new one would need.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("another instance is running: {0}")]
pub struct AlreadyRunning(pub String);

/// An error's own exit code. As a context it says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitWith(pub u8);

impl std::fmt::Display for ExitWith {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

/// Prints why `program` failed and chooses its exit code: its [own](ExitWith), that of an obstacle
/// named above, 78 for a bad configuration, else 1.
pub fn failure(program: &str, error: &anyhow::Error) -> ExitCode {
    failure_with(program, error, None)
}

/// The same with a code that the program knows better.
pub fn failure_with(program: &str, error: &anyhow::Error, code: Option<u8>) -> ExitCode {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(io::stderr(), "{program}: {}", plain(&sentence(error)));
    let own = error.downcast_ref::<ExitWith>().map(|own| own.0);
    let known = own.or(code).or_else(|| error.chain().find_map(code_of));
    known.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<ConfigError>() {
        return Some(EXIT_BAD_CONFIG);
    }
    if cause.is::<AlreadyRunning>() {
        return Some(RUNNING);
    }
    let of_system = cause.downcast_ref::<io::Error>().map(io::Error::kind);
    let of_errno = cause.downcast_ref::<rustix::io::Errno>().map(|errno| errno.kind());
    let kind = of_system.or(of_errno)?;
    if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        Some(DISK_FULL)
    } else {
        (kind == ErrorKind::PermissionDenied).then_some(DENIED)
    }
}

/// The error and its causes, outermost first, each once.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if cause.is_empty() || text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn obstacles_have_codes_of_their_own_however_deep_they_are() {
        let code = |error: anyhow::Error| error.chain().find_map(code_of);
        let full = io::Error::from(ErrorKind::StorageFull);
        let full = Err::<(), _>(full).context("cannot write").unwrap_err();
        assert_eq!(code(full), Some(DISK_FULL));
        assert_eq!(code(rustix::io::Errno::ACCESS.into()), Some(DENIED));
        assert_eq!(code(AlreadyRunning("here".to_owned()).into()), Some(RUNNING));
        assert_eq!(code(anyhow::anyhow!("else")), None);
    }

    #[test]
    fn causes_are_told_once() {
        let error = Err::<(), _>(io::Error::other("no disk")).context("cannot write").unwrap_err();
        assert_eq!(sentence(&error), "cannot write: no disk");
        let error = anyhow::anyhow!("no disk").context("cannot write: no disk");
        assert_eq!(sentence(&error), "cannot write: no disk");
    }
}
