//! A person at a terminal: types, and reads what appears.

#![allow(dead_code, reason = "several test programs share this file, each uses its part")]
#![expect(unsafe_code, reason = "openpty(3) has no safe form among what the lab depends on")]

use crate::stage::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use rustix::io::FdFlags;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::Stdio;
use std::ptr::{null, null_mut};
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

/// Our side of a pseudo-terminal.
pub(crate) struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What appeared and was not expected yet.
    seen: Vec<u8>,
    /// Everything that appeared.
    all: Vec<u8>,
}

impl Terminal {
    /// A terminal, and the standard input, output and error of the program that runs in it.
    pub(crate) fn open() -> Result<(Self, [Stdio; 3])> {
        let (ours, theirs) = open_pair().context("opening a pseudo-terminal")?;
        let (error, output) = (theirs.try_clone()?, theirs.try_clone()?);
        let mut source = ours.try_clone()?;
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut piece = vec![0; 4096];
            // It ends with an error once nobody has the other side any more.
            while let Ok(count @ 1..) = source.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let terminal = Self { keyboard: ours, screen, seen: Vec::new(), all: Vec::new() };
        Ok((terminal, [theirs.into(), output.into(), error.into()]))
    }

    /// Types.
    pub(crate) fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("typing")
    }

    /// Makes it wider or narrower; whoever draws on it learns of that when asked next.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.keyboard, size).context("resizing")
    }

    /// Reads up to some text, wherever it appears.
    pub(crate) fn find(&mut self, text: &str) -> Result<()> {
        let text = text.as_bytes();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            self.read_more(deadline)?;
        }
    }

    /// Whether some text has appeared by now, found or not.
    pub(crate) fn has_appeared(&mut self, text: &str) -> bool {
        while let Ok(more) = self.screen.try_recv() {
            self.take(&more);
        }
        let text = text.as_bytes();
        self.all.windows(text.len()).any(|window| window == text)
    }

    /// Reads exactly this text and nothing before it.
    pub(crate) fn read(&mut self, text: &str) -> Result<()> {
        let text = text.as_bytes();
        let deadline = Instant::now() + PATIENCE;
        while self.seen.len() < text.len() {
            self.read_more(deadline)?;
        }
        ensure!(self.seen.starts_with(text), "not what was expected: {}", self.rest());
        self.seen.drain(..text.len());
        Ok(())
    }

    fn read_more(&mut self, deadline: Instant) -> Result<()> {
        match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(more) => self.take(&more),
            Err(error) => bail!("{error}; the screen says: {}", self.rest()),
        }
        Ok(())
    }

    fn take(&mut self, more: &[u8]) {
        self.seen.extend_from_slice(more);
        self.all.extend_from_slice(more);
    }

    fn rest(&self) -> String {
        self.seen.escape_ascii().to_string()
    }
}

/// Both sides of a new pseudo-terminal, ours first.
fn open_pair() -> io::Result<(File, File)> {
    let (mut ours, mut theirs): (RawFd, RawFd) = (-1, -1);
    let (name, settings, size) = (null_mut(), null(), null());
    // SAFETY: both descriptors outlive the call, and null stands for no name and no settings.
    let outcome = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, name, settings, size) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((own(ours)?, own(theirs)?))
}

fn own(descriptor: RawFd) -> io::Result<File> {
    // SAFETY: openpty has just made it for us alone.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor.into())
}
