//! Wrapping commands in the lab.

use crate::stage::{Stage, accept, expect, listen};
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use whimbrel_tests::lab::{GATEWAY_V4, ORIGIN_V4, World, unprivileged};
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
    wrapped_by(world, who, &[], command)
}

/// The same with further options.
pub(crate) fn wrapped_by<A: AsRef<OsStr>>(
    world: &World,
    who: As,
    options: &[&str],
    command: impl IntoIterator<Item = A>,
) -> Command {
    let mut run = Command::new("/proc/self/exe");
    run.args([role::CLIENT, "run", "--config"]).arg(world.client_config("laptop"));
    run.args(options).arg("--").args(command).env("HOME", "/nonexistent");
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

/// A shell that opens a connection whenever it is told to, and repeats what it hears there.
pub(crate) struct Talk {
    shell: Child,
    listener: TcpListener,
    server: Option<TcpStream>,
}

impl Talk {
    /// `command` starts a script.
    pub(crate) fn start(stage: &Stage, command: impl FnOnce(&str) -> Command) -> Result<Self> {
        let listener = listen(stage.world.host("origin"))?;
        let port = listener.local_addr()?.port();
        let script = format!(
            "while read -r word; do exec 3<>/dev/tcp/{ORIGIN_V4}/{port}; cat <&3 >&3 & done; \
             kill $(jobs -p) 2>/dev/null; true"
        );
        let mut command = command(&script);
        command.stdin(Stdio::piped());
        Ok(Self { shell: start(&stage.world, command)?, listener, server: None })
    }

    /// Talks over a new connection. Whether the gateway made it.
    pub(crate) fn converse(&mut self) -> Result<bool> {
        let input = self.shell.stdin.as_mut().context("no input")?;
        input.write_all(b"connect\n")?;
        let (server, peer) = accept(&self.listener)?;
        self.server = Some(server);
        self.repeat()?;
        Ok(peer.ip() == IpAddr::V4(GATEWAY_V4))
    }

    /// Talks over the last one.
    pub(crate) fn repeat(&mut self) -> Result<()> {
        let server = self.server.as_mut().context("no connection")?;
        server.write_all(b"are you there?")?;
        expect(server, b"are you there?")
    }

    /// Ends the last connection and the shell.
    pub(crate) fn end(mut self) -> Result<()> {
        drop((self.server.take(), self.shell.stdin.take()));
        ensure!(self.shell.wait()?.success(), "the shell");
        Ok(())
    }
}
