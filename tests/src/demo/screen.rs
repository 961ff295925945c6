//! What the person sees: one line per event, and on a terminal a status line that stays in place.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How a piece of text is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tone {
    /// Something the network does to us.
    Blow,
    /// Something good.
    Good,
    /// Something bad.
    Bad,
    /// Something beside the point.
    Quiet,
    /// A heading.
    Strong,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Blow => "33",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Quiet => "2",
            Self::Strong => "1",
        }
    }
}

/// Where everything is written: standard output, or standard error beside a person's command.
#[derive(Debug)]
pub(super) struct Screen {
    beside: bool,
    colours: bool,
    live: bool,
    status_shown: bool,
}

impl Screen {
    pub(super) fn new(beside: bool) -> Self {
        let terminal =
            if beside { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        // https://no-color.org: present and not empty.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let (colours, live) = (terminal && !plain && !dumb, terminal && !beside && !dumb);
        Self { beside, colours, live, status_shown: false }
    }

    /// Text in a tone, where colours are shown.
    pub(super) fn paint(&self, tone: Tone, text: impl Display) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_string() }
    }

    /// A line of the timeline.
    pub(super) fn event(&mut self, at: Duration, text: &str) {
        let at = self.paint(Tone::Quiet, format_args!("{:5.1} s", at.as_secs_f64()));
        self.line(&format!("{at}  {text}"));
    }

    /// A line of its own.
    pub(super) fn line(&mut self, text: &str) {
        self.clear_status();
        let text = if self.beside { format!("[demo] {text}\r\n") } else { format!("{text}\n") };
        self.write(&text);
    }

    /// Replaces the status line; without a terminal there is none.
    pub(super) fn status(&mut self, text: &str) {
        if self.live {
            let text: String = text.chars().take(width()).collect();
            self.write(&format!("\r\x1b[2K{text}"));
            self.status_shown = true;
        }
    }

    pub(super) fn clear_status(&mut self) {
        if self.status_shown {
            self.write("\r\x1b[2K");
            self.status_shown = false;
        }
    }

    /// A message about a failure.
    pub(super) fn complain(&mut self, message: &dyn Display) {
        self.clear_status();
        drop(writeln!(std::io::stderr(), "{message}"));
    }

    fn write(&self, text: &str) {
        // Whoever looked has gone: the exit code still tells how it went.
        if self.beside {
            drop(std::io::stderr().lock().write_all(text.as_bytes()));
        } else {
            let mut stdout = std::io::stdout().lock();
            drop(stdout.write_all(text.as_bytes()));
            drop(stdout.flush());
        }
    }
}

/// Columns a status line may take without wrapping.
fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(std::io::stdout()).map(|size| size.ws_col);
    match columns {
        Ok(columns) if columns > 1 => usize::from(columns) - 1,
        Ok(_) | Err(_) => 79,
    }
}

/// A duration as a person says it.
pub(super) fn span(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}
