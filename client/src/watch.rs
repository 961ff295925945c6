//! `whimbrel status --watch`: the daemon's state, refreshed in place until somebody stops it.
//!
//! `history` turns two answers into rates, `frame` lays them out for a screen of a size; `screen`
//! is the terminal, which is left as it was found, whatever ends the watch.

mod frame;
mod history;
mod screen;

#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};
use whimbrel_host::Layout;
use whimbrel_host::control::{self, AskError};
use whimbrel_host::output::{Palette, plain_document};

use crate::control::explain;
use crate::report::{Event, FlowReport, Status};
use frame::Picture;
use history::History;
use screen::{Canvas, Screen};

/// How often the daemon is asked: as often as a person looks.
const REFRESH: Duration = Duration::from_secs(1);

/// Events to look at for the few that are shown: those of paths, the most of them, are not.
const LOOKED_AT: usize = 100;

/// Flows to ask for, of each protocol: more than any screen has rows.
const MOST_FLOWS: usize = 200;

/// Watches until Ctrl-C.
///
/// # Errors
/// Stdout is no terminal, or the daemon does not answer to begin with.
pub(crate) fn watch(layout: &Layout) -> anyhow::Result<()> {
    match Screen::look() {
        Canvas::Good => {}
        Canvas::Dumb => bail!(
            "--watch draws on a terminal, and this one (TERM) cannot be drawn on; `whimbrel status` \
             and `whimbrel events --follow` need nothing"
        ),
        Canvas::None => bail!(
            "--watch draws on a terminal, and this is none; programs read `whimbrel status --json` \
             and `whimbrel events --follow --json`"
        ),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(layout))
}

async fn run(layout: &Layout) -> anyhow::Result<()> {
    // Before anything is drawn: a daemon that never answered gets the usual sentence.
    look(layout).map_err(|error| explain(layout, error))?;
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let mut screen = Screen::enter().context("cannot draw on this terminal")?;
    let palette = Palette::of_stdout();
    let mut history = History::default();
    let mut picture = None;
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let word = tokio::select! {
            biased;
            word = signals.next() => word,
            _ = ticks.tick() => Word::Refresh,
        };
        match word {
            Word::Refresh => picture = Some(take(layout, &mut history)),
            Word::Resized => {}
            Word::Stop => return Ok(()),
            Word::Suspend => {
                screen.leave()?;
                suspend();
                screen = Screen::enter()?;
            }
        }
        if let Some(picture) = &picture {
            let size = Screen::size();
            screen.draw(&frame::lines(picture, &history, size, palette), size)?;
        }
    }
}

/// What the daemon says now. One that is gone may come back: that is worth watching too.
fn take(layout: &Layout, history: &mut History) -> Picture {
    match look(layout) {
        Ok((status, flows, events)) => {
            history.note(&status, &flows, Instant::now().into_std());
            Picture::Running { status: Box::new(status), flows, events }
        }
        Err(error) => {
            history.forget();
            Picture::Gone(format!("{:#}", explain(layout, error)))
        }
    }
}

fn look(layout: &Layout) -> Result<(Status, Vec<FlowReport>, Vec<Event>), AskError> {
    let events = json!({ "last": LOOKED_AT });
    Ok((
        ask(layout, "status", &Value::Null)?,
        ask(layout, "flows", &json!({ "most": MOST_FLOWS }))?,
        ask(layout, "events", &events)?,
    ))
}

fn ask<T: DeserializeOwned>(layout: &Layout, verb: &str, args: &Value) -> Result<T, AskError> {
    let answer = control::ask(&layout.socket, verb, args)?;
    let other = "the running daemon is another version than this command; restart it";
    serde_json::from_value(plain_document(answer)).map_err(|_| AskError::Refused(other.to_owned()))
}

/// What a signal means here.
#[derive(Clone, Copy, Debug)]
enum Word {
    Refresh,
    Resized,
    Suspend,
    Stop,
}

struct Signals {
    stop: [Signal; 4],
    suspend: Signal,
    resize: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            stop: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
                signal(SignalKind::quit())?,
            ],
            suspend: signal(SignalKind::from_raw(libc::SIGTSTP))?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Word {
        let [interrupt, terminate, hang_up, quit] = &mut self.stop;
        tokio::select! {
            biased;
            _ = interrupt.recv() => Word::Stop,
            _ = terminate.recv() => Word::Stop,
            _ = hang_up.recv() => Word::Stop,
            _ = quit.recv() => Word::Stop,
            _ = self.suspend.recv() => Word::Suspend,
            _ = self.resize.recv() => Word::Resized,
        }
    }
}

/// Stops this process as Ctrl-Z would have, had it not been caught; returns when it goes on.
fn suspend() {
    let own = rustix::process::getpid();
    // Nothing can be done about a system that does not let itself be stopped.
    let _refused = rustix::process::kill_process(own, rustix::process::Signal::STOP);
}
