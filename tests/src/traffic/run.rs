//! Starting the programs of the lab, and reading what they report.

use super::Event;
use crate::lab::{Process, World};
use crate::role;
use anyhow::{Context, Result, bail};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// A running program of the lab.
#[derive(Debug)]
pub struct Program {
    process: Process,
}

/// How long starting may take on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(10);

impl World {
    /// Starts the origin's services and waits until they listen.
    ///
    /// # Errors
    /// When they do not.
    pub fn start_origin(&self) -> Result<Program> {
        let origin = self.start_traffic("origin", &["origin"])?;
        match origin.next(START_PATIENCE)? {
            Some(Event::Ready) => Ok(origin),
            other => bail!("the origin's services did not start: {other:?}"),
        }
    }

    /// Starts a client program on a host: its name, the service, further arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_program(
        &self,
        host: &str,
        program: &str,
        to: SocketAddr,
        more: &[&str],
    ) -> Result<Program> {
        let to = to.to_string();
        self.start_traffic(host, &[&[program, "--to", &to], more].concat())
    }

    fn start_traffic(&self, host: &str, arguments: &[&str]) -> Result<Program> {
        let log = self.log(&format!("traffic-{host}"));
        let process = self.host(host).start_role(role::TRAFFIC, arguments, &log)?;
        Ok(Program { process })
    }
}

impl Program {
    /// The next report, or `None` after the last.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn next(&self, timeout: Duration) -> Result<Option<Event>> {
        match self.process.next_line(timeout)? {
            Some(line) => {
                Event::parse(&line).with_context(|| format!("not a report: {line}")).map(Some)
            }
            None => Ok(None),
        }
    }

    /// The next report that fulfils a condition.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn wait_for(&self, timeout: Duration, condition: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + timeout;
        let mut last = None;
        while let Some(event) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if condition(&event) {
                return Ok(event);
            }
            last = Some(event);
        }
        bail!("the program ended without it; its last report was {last:?}")
    }

    /// Reports that have come so far and were not read yet.
    pub fn reports(&self) -> impl Iterator<Item = Event> + '_ {
        self.process.lines().filter_map(|line| Event::parse(&line))
    }

    /// Tells a client to finish its exchange.
    pub fn stop(&mut self) {
        self.process.close_input();
    }

    /// Waits for the end: how it ended, and every report not read yet.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn finish(&mut self, timeout: Duration) -> Result<(ExitStatus, Vec<Event>)> {
        let status = self.process.wait(timeout)?;
        let mut events = Vec::new();
        while let Some(event) = self.next(timeout)? {
            events.push(event);
        }
        Ok((status, events))
    }

    /// Waits for an orderly end with every byte right; every report not read yet.
    ///
    /// # Errors
    /// When it did not end well.
    pub fn succeed(&mut self, timeout: Duration) -> Result<Vec<Event>> {
        let (status, events) = self.finish(timeout)?;
        if !status.success() {
            bail!("the program ended with {status}: {:?}", events.last());
        }
        Ok(events)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A service at an address.
#[must_use]
pub fn service(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// The longest gap a program reported at its end.
#[must_use]
pub fn longest_gap(events: &[Event]) -> Option<Duration> {
    events.iter().rev().find_map(|event| {
        let Event::End { longest_gap_us, .. } = event else { return None };
        Some(Duration::from_micros(*longest_gap_us))
    })
}
