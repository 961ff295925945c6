//! The engine of wrapped commands where no daemon runs: a process of the user's own that serves
//! their TUNs, outside of their namespaces, and ends with the last of them. It is a daemon like any
//! other, without a TUN and rules for the host, so `status` and the other commands show it.

#![expect(unsafe_code, reason = "fork(2), and closing what was inherited")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use whimbrel_host::control::{AskError, Line};
use whimbrel_host::{Layout, exit};

use super::Reached;

/// Becomes the engine for a layout; returns when it is over.
pub type Attend = fn(Layout) -> anyhow::Result<()>;

/// What the engine says once it takes commands.
const READY: &[u8] = b"ready\n";

/// Attempts to reach an engine: another one may have begun or ended at the same moment.
const ATTEMPTS: usize = 3;

/// Starts the engine of a layout, unless somebody else just did, and connects to it.
pub(super) fn start(layout: &Layout, attend: Attend) -> anyhow::Result<Reached> {
    let layout = absolute(layout)?;
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        said = launch(&layout, attend)?;
        match Line::open(&layout.socket) {
            Ok(line) => return Ok(Reached { line, is_host: false }),
            Err(AskError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("the engine did not start: {}", said.trim_end())
}

/// Tells whoever started the engine that it takes commands, and lets go of their terminal.
pub fn ready() -> io::Result<()> {
    io::stdout().write_all(READY)?;
    io::stdout().flush()?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdout(&nothing)?;
    Ok(())
}

/// The engine runs in another folder.
fn absolute(layout: &Layout) -> anyhow::Result<Layout> {
    let path = std::path::absolute(&layout.config).context("finding the configuration")?;
    Ok(Layout::for_config(Some(path), layout.role))
}

/// Starts the engine and waits until it takes commands or has given up; what it said.
fn launch(layout: &Layout, attend: Attend) -> anyhow::Result<String> {
    let (mut answer, end) = io::pipe().context("making a pipe")?;
    // SAFETY: the process has a single thread, so the child finds every lock free.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()).context("starting the engine"),
        0 => {
            drop(answer);
            // The command must not find a child it does not know of.
            // SAFETY: as above.
            if unsafe { libc::fork() } != 0 {
                leave(0);
            }
            let outcome = detach(layout, end.into()).and_then(|()| attend(layout.clone()));
            if let Err(error) = &outcome {
                // Whoever started it reads this, until it is ready.
                let _ = writeln!(io::stdout(), "{}", exit::sentence(error));
            }
            leave(i32::from(outcome.is_err()))
        }
        child => {
            drop(end);
            let mut status = 0;
            // SAFETY: `status` is valid for a write, and the child is ours.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            let mut said = String::new();
            answer.read_to_string(&mut said).context("waiting for the engine")?;
            Ok(said)
        }
    }
}

/// Leaves the terminal, the folder and the descriptors of whoever started it. Its log is a file
/// beside the configuration.
fn detach(layout: &Layout, answer: OwnedFd) -> anyhow::Result<()> {
    rustix::process::setsid().context("leaving the terminal")?;
    let log: PathBuf = layout.state.join("run.log");
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let nothing = File::open("/dev/null").context("opening /dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&answer)?;
    dup2_stderr(&log)?;
    drop((log, nothing, answer));
    // SAFETY: nobody in this process owns a descriptor above the standard ones any more: the
    // parent's are used by the parent alone.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    std::env::set_current_dir("/").context("leaving the folder")
}

/// Ends the process without running what the parent registered for its own end.
fn leave(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(code) }
}
