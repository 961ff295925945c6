//! Programs of the lab that run as processes of their own: the current executable, started
//! again under a hidden first argument.

use crate::{login, manager, traffic};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The origin's services and the laptop's programs, see [`crate::traffic`].
pub const TRAFFIC: &str = "__traffic";

/// The client, see `whimbrel::cli`.
pub const CLIENT: &str = "__whimbrel";

/// The client to whoever types a command: the name of a link to the current executable.
pub const CLIENT_PROGRAM: &str = "whimbrel";

/// The gateway, see `whimbrel_gateway::cli`.
pub const GATEWAY: &str = "__whimbrel-gateway";

/// A service manager for one of them, see [`crate::manager`].
pub const MANAGER: &str = "__manager";

/// A login manager for the client, see [`crate::login`].
pub const LOGIN: &str = "__login";

/// What the service manager starts.
pub(crate) const SERVICE: &str = "__service";

/// Runs the program named by the hidden first argument, or by its own name, and returns its exit code; `None` when
/// the process was started by a person. Call it before anything else in `main`.
#[must_use]
pub fn play() -> Option<ExitCode> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if Path::new(arguments.first()?).file_name() == Some(CLIENT_PROGRAM.as_ref()) {
        return Some(whimbrel::cli::main(arguments));
    }
    let role = arguments.get(1)?.to_str()?.to_owned();
    let rest = arguments.split_off(2);
    match role.as_str() {
        TRAFFIC => Some(traffic::main(rest)),
        CLIENT => Some(whimbrel::cli::main(named(CLIENT_PROGRAM, rest))),
        GATEWAY => Some(whimbrel_gateway::cli::main(named("whimbrel-gateway", rest))),
        MANAGER => Some(manager::main(rest)),
        LOGIN => Some(login::main(rest)),
        SERVICE => Some(manager::exec(rest)),
        _ => None,
    }
}

/// A command line as a shell passes it: the program's name first.
fn named(program: &str, arguments: Vec<OsString>) -> Vec<OsString> {
    std::iter::once(program.into()).chain(arguments).collect()
}
