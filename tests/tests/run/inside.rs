//! Wrapping commands in the lab.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::process::{Child, Command, Output, Stdio};
use whimbrel_tests::lab::{World, unprivileged};
use whimbrel_tests::role;

/// With which privilege `whimbrel run` is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum As {
    /// As the lab's root.
    Root,
    /// As a user who must make a user namespace.
    User,
}

/// `whimbrel run` on the laptop, its output kept.
pub(crate) fn wrapped<A: AsRef<OsStr>>(
    world: &World,
    who: As,
    command: impl IntoIterator<Item = A>,
) -> Command {
    let mut run = Command::new("/proc/self/exe");
    run.args([role::CLIENT, "run", "--config"]).arg(world.client_config("laptop")).arg("--");
    run.args(command).env("HOME", "/nonexistent");
    run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if who == As::User {
        unprivileged(&mut run);
    }
    run
}

/// Starts one of the lab's clients of a service, wrapped.
pub(crate) fn traffic(world: &World, who: As, arguments: &[&str]) -> Result<Child> {
    let program = ["/proc/self/exe", role::TRAFFIC];
    start(world, wrapped(world, who, program.iter().chain(arguments)))
}

pub(crate) fn start(world: &World, command: Command) -> Result<Child> {
    world.host("laptop").spawn(command).context("starting `whimbrel run`")
}

/// Runs a shell script, wrapped; what it said.
pub(crate) fn shell(world: &World, who: As, script: &str) -> Result<String> {
    let child = start(world, wrapped(world, who, ["sh", "-c", script]))?;
    succeed(child.wait_with_output()?)
}

pub(crate) fn succeed(output: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{said}{complaint}", output.status);
    Ok(said)
}
