//! A person's own command in the demo's laptop, while the networks keep changing.

use super::Interrupted;
use super::screen::{Screen, Tone};
use super::stage::{self, LAPTOP};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};
use whimbrel::cli::CONFIG_VARIABLE;
use whimbrel_tests::lab::{BOTH, ORIGIN_V4, REFERENCE_V4, World};
use whimbrel_tests::role::CLIENT_PROGRAM;

/// Time between two changes: long enough for a return to Wi-Fi now and then.
const CHANGE_EVERY: Duration = Duration::from_secs(5);

/// How often the command is asked whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A change of the networks.
type Change = (&'static str, fn(&World) -> Result<()>);

/// What happens over and over; afterwards everything is as it was.
const CHANGES: [Change; 7] = [
    ("Wi-Fi swallows everything", |world| {
        world.link("wifi0").black_hole(&BOTH);
        Ok(())
    }),
    ("Wi-Fi works again", |world| {
        world.link("wifi0").heal();
        Ok(())
    }),
    ("the routers forget their NAT mappings", |world| {
        world.link("wifi0").rebind();
        world.link("cell0").rebind();
        Ok(())
    }),
    ("Wi-Fi is gone", |world| world.link("wifi0").down()),
    ("cellular is gone as well: no network at all", |world| world.link("cell0").down()),
    ("cellular is back", |world| world.link("cell0").up()),
    ("Wi-Fi is back", |world| world.link("wifi0").up()),
];

/// Runs the command; its own exit code.
pub(super) fn run(
    screen: &mut Screen,
    command: &[OsString],
    interrupted: &Interrupted,
) -> Result<ExitCode> {
    let stage = stage::build()?;
    let begin = Instant::now();
    let (program, arguments) = command.split_first().context("no command")?;
    let mut process = Command::new(program);
    process.args(arguments);
    process.env("ORIGIN", ORIGIN_V4.to_string()).env("REFERENCE", REFERENCE_V4.to_string());
    // So that `whimbrel status` inside shows this laptop.
    process.env(CONFIG_VARIABLE, stage.client.config()).env("PATH", search_path(&stage.world)?);
    let spawned = stage.world.host(LAPTOP).spawn(process);
    let mut child = spawned.with_context(|| format!("starting {}", program.to_string_lossy()))?;
    let mut changes = CHANGES.iter().cycle();
    let mut next = begin + CHANGE_EVERY;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the command")? {
            return Ok(code_of(status));
        }
        if interrupted.by() != 0 {
            // A terminal has told the command as well: it may end in its own way.
            if interrupted.is_order() {
                let pid = Pid::from_child(&child);
                rustix::process::kill_process(pid, Signal::TERM).context("ending the command")?;
            }
            let status = child.wait().context("waiting for the command")?;
            return Ok(code_of(status));
        }
        if Instant::now() >= next
            && let Some((words, change)) = changes.next()
        {
            next += CHANGE_EVERY;
            announce(screen, begin, words);
            change(&stage.world)?;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Where programs are searched for: a `whimbrel` of the lab's own first.
fn search_path(world: &World) -> Result<OsString> {
    let folder = world.folder().join("bin");
    let program = std::env::current_exe().context("finding this program")?;
    std::fs::create_dir(&folder)
        .and_then(|()| std::os::unix::fs::symlink(program, folder.join(CLIENT_PROGRAM)))
        .context("linking the client's program")?;
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder).chain(std::env::split_paths(&inherited));
    std::env::join_paths(folders).context("setting PATH")
}

fn announce(screen: &mut Screen, begin: Instant, words: &str) {
    let words = screen.paint(Tone::Blow, words);
    screen.event(begin.elapsed(), &words);
}

/// A command ended by a signal gives 128 + its number, as shells have it.
fn code_of(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
