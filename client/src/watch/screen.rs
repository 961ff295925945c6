//! The terminal while it is drawn on.

use std::io::{self, IsTerminal as _, Write as _};

use whimbrel_host::output::{self, clip};

/// Columns and rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// What there is to draw on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Canvas {
    /// A terminal.
    Good,
    /// A terminal that can only be written on, line after line.
    Dumb,
    /// A file or a pipe.
    None,
}

/// A terminal that does not say is one of the first ones.
const USUAL: Size = Size { columns: 80, rows: 24 };

/// The alternate screen, without a cursor and without line wrap; and back (xterm, ctlseqs).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The terminal behind stdout. Dropping it shows again what was there before.
#[derive(Debug)]
pub(super) struct Screen {
    drawn_on: bool,
}

impl Screen {
    pub(super) fn look() -> Canvas {
        if !io::stdout().is_terminal() {
            Canvas::None
        } else if output::is_dumb() {
            Canvas::Dumb
        } else {
            Canvas::Good
        }
    }

    pub(super) fn enter() -> io::Result<Self> {
        write(ENTER)?;
        Ok(Self { drawn_on: true })
    }

    pub(super) fn leave(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.drawn_on, false) {
            write(LEAVE)?;
        }
        Ok(())
    }

    /// The size at this moment.
    pub(super) fn size() -> Size {
        let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) else { return USUAL };
        if size.ws_col == 0 || size.ws_row == 0 {
            return USUAL;
        }
        Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
    }

    /// Draws over what was drawn before, in one write, so that nothing flickers.
    pub(super) fn draw(&mut self, lines: &[String], size: Size) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (row, line) in lines.iter().take(size.rows).enumerate() {
            if row > 0 {
                text.push_str("\r\n");
            }
            text.push_str(&clip(line, size.columns));
            // What was longer before.
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _gone = self.leave();
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
