//! A laptop with Wi-Fi and cellular, a gateway and an origin, on this machine alone: a download
//! and a ping-pong through Whimbrel beside the same over plain TCP, while the networks come and
//! go. Or a person's own command, in the same laptop.

use anyhow::{Context, Result};
use clap::Parser;
use rustix::process::Signal;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio::signal::unix::{SignalKind, signal};
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
    /// without Whimbrel. `whimbrel status` and the others work inside.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// What a program that a signal ended returns, as shells have it: this and the signal's number.
const BY_SIGNAL: u8 = 128;

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut screen = Screen::new(!arguments.command.is_empty());
    if let Err(denied) = lab::enter() {
        screen.complain(&denied);
        return ExitCode::FAILURE;
    }
    let interrupted = Interrupted::default();
    let outcome = interrupted.watch().and_then(|()| {
        if arguments.command.is_empty() {
            play::perform(&mut screen, &interrupted)
        } else {
            command::run(&mut screen, &arguments.command, &interrupted)
        }
    });
    screen.clear_status();
    match outcome {
        _ if interrupted.by() != 0 => ExitCode::from(BY_SIGNAL + interrupted.by()),
        Ok(code) => code,
        Err(error) => {
            screen.complain(&format_args!("whimbrel-demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The signal that is to end the demo, which takes the lab down in good order; whoever plays looks
/// at it.
#[derive(Clone, Default)]
struct Interrupted(Arc<AtomicU8>);

impl Interrupted {
    /// The number of the signal; zero while there was none.
    fn by(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether somebody told this process alone to end.
    fn is_order(&self) -> bool {
        i32::from(self.by()) == Signal::TERM.as_raw()
    }

    fn watch(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("starting a runtime for signals")?;
        let number = Arc::clone(&self.0);
        std::thread::spawn(move || {
            if let Ok(signal) = runtime.block_on(any_end()) {
                number.store(u8::try_from(signal.as_raw()).unwrap_or(u8::MAX), Ordering::Relaxed);
            }
        });
        Ok(())
    }
}

/// Waits for Ctrl-C, a terminal that closes, or an order to end.
async fn any_end() -> std::io::Result<Signal> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => Signal::INT,
        _ = hangup.recv() => Signal::HUP,
        _ = terminate.recv() => Signal::TERM,
    })
}
