//! A gateway of which one thread stands still.

#![expect(unsafe_code, reason = "a single thread is stopped by ptrace(2), which no library wraps")]

use crate::slots::raise;
use crate::stage::{ORIGIN, Stage, no_panics, until};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io;

/// Stops a thread for as long as it lives.
fn stop(thread: libc::pid_t) -> Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: neither request reads or writes memory of this process.
        let outcome = unsafe { libc::ptrace(request, thread, none, none) };
        if outcome != 0 {
            return Err(io::Error::last_os_error()).context("stopping a thread");
        }
    }
    ensure!(changed(thread, 0), "waiting for it: {}", io::Error::last_os_error());
    Ok(())
}

/// Whether a thread that was stopped has changed since, or is gone.
fn changed(thread: libc::pid_t, options: libc::c_int) -> bool {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, options | libc::__WALL) };
    waited == thread
}

/// The threads of the gateway by their names.
fn threads(stage: &mut Stage) -> Result<Vec<(String, libc::pid_t)>> {
    let manager = stage.gateway.process().id();
    let children = fs::read_to_string(format!("/proc/{manager}/task/{manager}/children"))?;
    let gateway = children.split_whitespace().next().context("it has no process")?;
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{gateway}/task"))? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm"))?.trim().to_owned();
        let number = path.file_name().and_then(|name| name.to_str()).context("no number")?;
        threads.push((name, number.parse()?));
    }
    Ok(threads)
}

pub(crate) fn a_single_slot_that_hangs_is_noticed_and_nothing_is_lost() -> Result<()> {
    let mut stage = raise(3)?;
    let mut pairs = [stage.pair(ORIGIN[0])?, stage.pair(ORIGIN[1])?];
    for pair in &mut pairs {
        pair.converse()?;
    }
    stage.gateway.process().say("guard")?;
    let threads = threads(&mut stage)?;
    let slots = threads.iter().filter(|(name, _)| name.starts_with("slot-")).count();
    ensure!(slots == 3, "{threads:?}");
    let (_, second) = threads.iter().find(|(name, _)| name == "slot-1").context("no slot 1")?;
    stop(*second)?;
    // Its process is not gone before we have seen its end.
    until("somebody ends it", || Ok(changed(*second, libc::WNOHANG)))?;
    stage.gateway.until_started()?;
    for pair in &mut pairs {
        pair.converse().context("after it hung")?;
    }
    no_panics(&stage.world)
}
