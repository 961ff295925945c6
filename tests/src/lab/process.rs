//! A process running on a host of the lab.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A running process whose standard output is read line by line. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

/// How often a process is asked whether it has ended, while somebody waits for that.
const ASK_EVERY: Duration = Duration::from_millis(2);

impl Process {
    pub(super) fn new(name: String, mut child: Child, log: &Path) -> Self {
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Self { name, child, lines, log: log.to_owned() }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it is gone, or its input is closed.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("its standard input is closed")?;
        writeln!(input, "{line}").with_context(|| format!("telling {}", self.name))
    }

    /// Closes its standard input: the lab's own clients finish their exchange then.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// The next line of standard output, or `None` once that is closed.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn next_line(&self, timeout: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing for {timeout:?}; its log ends:\n{}", self.name, self.log())
            }
        }
    }

    /// The lines that have come so far and were not read yet.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.lines.try_iter()
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a process")? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}; its log ends:\n{}", self.name, self.log());
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits for the end of the process and for everything it said.
    ///
    /// # Errors
    /// When it has not ended in time, or ended with a failure.
    pub fn finish(&mut self, timeout: Duration) -> Result<Vec<String>> {
        let status = self.wait(timeout)?;
        let lines: Vec<String> = self.lines.iter().collect();
        if !status.success() {
            bail!("{} ended with {status}: {lines:?}; its log ends:\n{}", self.name, self.log());
        }
        Ok(lines)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log(&self) -> String {
        const LAST: usize = 60;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let mut last: VecDeque<&str> = VecDeque::new();
        for line in text.lines() {
            if last.len() == LAST {
                last.pop_front();
            }
            last.push_back(line);
        }
        Vec::from(last).join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; either way nobody is left behind.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
