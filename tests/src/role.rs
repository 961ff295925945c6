//! Programs of the lab that run as processes of their own: the current executable, started
//! again under a hidden first argument.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program named by the hidden first argument and returns its exit code; `None` when
/// the process was started by a person. Call it before anything else in `main`.
#[must_use]
pub fn play() -> Option<ExitCode> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let role = arguments.get(1)?.to_str()?.to_owned();
    let rest = arguments.split_off(2);
    match role.as_str() {
        _ => {
            drop(rest);
            None
        }
    }
}
