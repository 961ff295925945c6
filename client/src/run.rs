//! `whimbrel run`: one command with all its TCP behind the gateway, without any privilege.
//!
//! The process gives itself a user, a network and a mount namespace, makes a TUN there, passes it
//! to a daemon and becomes the command: process, terminal, signals and exit code are the command's
//! own. The daemon is the host's, or one that serves nothing but wrapped commands and lives as long
//! as they do (`attendant`).
//!
//! A command that keeps the host's network is *led* instead: its process gets a control group of its
//! own (`group`), and the daemon marks the sockets that are made in it (`stamps`).
//!
//! What is in the namespace:
//! - `lo` and the TUN, to which every other route leads: nothing can go around it;
//! - the host's files, but for those that tell how names are looked up, and the folders of sockets
//!   that would do it outside (`names`);
//! - the *pulse*: a file system that only this mount namespace has. The kernel takes it down with
//!   the last process of the namespace, and says so to whoever watches it.

use std::borrow::Cow;
use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use whimbrel_client_core::plan::Way;
use whimbrel_host::control::{AskError, Line};
use whimbrel_host::exit::ExitWith;
use whimbrel_host::{Layout, Role};

mod attendant;
mod closed;
mod group;
mod names;
mod namespace;
mod wiring;

pub use attendant::{Attend, ready};
pub(crate) use closed::closed_doors;
pub(crate) use group::GROUP;
pub use names::NAMESERVER;

/// The exit code of a command that is not there, as shells have it.
const NOT_FOUND: u8 = 127;

/// The exit code of a command that cannot be started, as shells have it.
const NOT_STARTED: u8 = 126;

/// The TUN's addresses inside: the defaults of the host's own, in a network where nobody else is.
const ADDRESS: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 213, 52, 11), Ipv6Addr::new(0xfd52, 0x1109, 0x77b6, 0, 0, 0, 0, 1));

/// Becomes the command, whose first part is the program, in a network of its own. Returns only if
/// that fails.
///
/// # Errors
/// No daemon and no configuration to start one with, a host that does not allow it, or a command
/// that cannot be started; the last has an exit code of its own.
pub fn run(
    layout: Option<Layout>,
    command: &[OsString],
    attend: Attend,
) -> anyhow::Result<std::convert::Infallible> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    let daemon = reach(layout, attend)?;
    let name = name(program);
    let carries_all = carries_all(&daemon.line);
    let inside = namespace::enter().and_then(|entered| {
        let pulse = names::confine(entered, carries_all)?;
        Ok((pulse, wiring::lay()?))
    });
    let (pulse, tun) = match inside {
        Ok(inside) => inside,
        Err(error) => {
            let offers = if daemon.is_host { closed::ask(daemon.line) } else { Vec::new() };
            return Err(closed::explain(error, offers));
        }
    };
    daemon
        .line
        .ask("run", &json!({ "command": name }), &[tun.as_fd(), pulse.as_fd()])
        .context("the daemon does not carry the command")?;
    drop((tun, pulse));
    become_command(program, arguments)
}

/// Becomes the command in the host's network, and leads its new connections: around the capture of
/// the host's daemon, or through it. Returns only if that fails.
///
/// # Errors
/// No daemon, one that cannot, a host without control groups, or a command that cannot be started;
/// the last has an exit code of its own.
pub fn lead(
    layout: Option<Layout>,
    way: Way,
    command: &[OsString],
) -> anyhow::Result<std::convert::Infallible> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    let layout = layout.unwrap_or_else(|| Layout::for_config(None, Role::Client));
    let line = Line::open(&layout.socket).map_err(|error| match (error, way) {
        (AskError::NotRunning(socket), Way::Direct) => anyhow!(
            "no daemon answers on {}, so there is nothing to go around; start the command as it is",
            socket.display()
        ),
        (error, Way::Direct | Way::Carried) => error.into(),
    })?;
    let group = group::enter()?;
    let args = json!({ "command": name(program), "way": way.to_string() });
    if let Err(error) = line.ask("group", &args, &[group.folder()]) {
        group.leave();
        return Err(error).context("the daemon does not lead the command");
    }
    drop(group);
    become_command(program, arguments)
}

fn name(program: &OsString) -> Cow<'_, str> {
    Path::new(program).file_name().unwrap_or(program).to_string_lossy()
}

fn become_command(
    program: &OsString,
    arguments: &[OsString],
) -> anyhow::Result<std::convert::Infallible> {
    let error = Command::new(program).args(arguments).exec();
    let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED };
    Err(anyhow!(error).context(format!("cannot start {}", program.display())))
        .context(ExitWith(code))
}

/// Whether a daemon carries more than TCP, so that programs that need more may try.
fn carries_all(line: &Line) -> bool {
    let status = line.another().and_then(|line| line.ask("status", &Value::Null, &[]));
    status.is_ok_and(|status| status["datagrams"]["state"] != "off")
}

/// A daemon that takes a TUN.
struct Reached {
    line: Line,
    /// It serves the whole host.
    is_host: bool,
}

/// The daemon to use: that of `--config`, else the host's if this user may, else the user's own,
/// which is started if need be.
fn reach(layout: Option<Layout>, attend: Attend) -> anyhow::Result<Reached> {
    if let Some(layout) = layout {
        return match Line::open(&layout.socket) {
            Ok(line) => Ok(Reached { line, is_host: false }),
            Err(AskError::NotRunning(_)) => attendant::start(&layout, attend),
            Err(error) => Err(error.into()),
        };
    }
    let system = Layout::for_config(None, Role::Client);
    let refused = match Line::open(&system.socket) {
        Ok(line) => return Ok(Reached { line, is_host: true }),
        Err(error) => error,
    };
    let Some(own) = Layout::of_user(Role::Client).filter(|own| own.config.exists()) else {
        return Err(refused).context(
            "there is no daemon to use and no configuration of your own; start the daemon \
             (`systemctl start whimbrel`), or become a client yourself with `whimbrel join INVITE`",
        );
    };
    match Line::open(&own.socket) {
        Ok(line) => Ok(Reached { line, is_host: false }),
        Err(AskError::NotRunning(_)) => attendant::start(&own, attend),
        Err(error) => Err(error.into()),
    }
}
