//! How a program ends: one sentence on stderr and a code.

use std::io::Write as _;
use std::process::ExitCode;

use whimbrel_common::config::{ConfigError, EXIT_BAD_CONFIG};

/// The command line is wrong.
pub const USAGE: u8 = 2;

/// What the codes mean, for the end of a help text (sysexits.h has the last).
pub const CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration";

/// An error's own exit code. As a context it says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitWith(pub u8);

impl std::fmt::Display for ExitWith {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

/// Prints why `program` failed and chooses its exit code: its [own](ExitWith), 78 for a bad
/// configuration, else 1.
pub fn failure(program: &str, error: &anyhow::Error) -> ExitCode {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(std::io::stderr(), "{program}: {}", sentence(error));
    if let Some(ExitWith(code)) = error.downcast_ref() {
        ExitCode::from(*code)
    } else if error.chain().any(|cause| cause.is::<ConfigError>()) {
        ExitCode::from(EXIT_BAD_CONFIG)
    } else {
        ExitCode::FAILURE
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
    fn causes_are_told_once() {
        let error =
            Err::<(), _>(std::io::Error::other("no disk")).context("cannot write").unwrap_err();
        assert_eq!(sentence(&error), "cannot write: no disk");
        let error = anyhow::anyhow!("no disk").context("cannot write: no disk");
        assert_eq!(sentence(&error), "cannot write: no disk");
    }
}
