//! A laptop with Wi-Fi and cellular, a gateway and an origin, on this machine alone: a download
//! and a ping-pong through Whimbrel beside the same over plain TCP, while the networks come and
//! go. Or a person's own command, in the same laptop.

use anyhow::{Context, Result};
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use whimbrel_tests::lab;

mod act;
mod command;
mod play;
mod runner;
mod screen;
mod stage;
mod summary;

use screen::Screen;

/// See TCP connections survive what kills them: on this machine, without root, without set-up.
#[derive(Debug, Parser)]
#[command(name = "whimbrel-demo", version)]
struct Arguments {
    /// A command to run inside the demo's laptop while its networks keep changing. The origin,
    /// at $ORIGIN, has HTTP on port 80 and an echo on port 7002; $REFERENCE is the same machine
    /// without Whimbrel.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// What an interrupted program returns, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut screen = Screen::new(!arguments.command.is_empty());
    if let Err(denied) = lab::enter() {
        screen.complain(&denied);
        return ExitCode::FAILURE;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let outcome = watch_for_interrupt(&interrupted).and_then(|()| {
        if arguments.command.is_empty() {
            play::perform(&mut screen, &interrupted)
        } else {
            command::run(&mut screen, &arguments.command, &interrupted)
        }
    });
    screen.clear_status();
    match outcome {
        _ if interrupted.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Ok(code) => code,
        Err(error) => {
            screen.complain(&format_args!("whimbrel-demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The lab is taken down in an orderly way on Ctrl-C; whoever plays looks at the flag.
fn watch_for_interrupt(interrupted: &Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting a runtime for signals")?;
    let interrupted = Arc::clone(interrupted);
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            interrupted.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}
