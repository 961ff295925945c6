//! Commands that the host's daemon carries.

use crate::inside::{As, Talk, shell, start, succeed, traffic, wrapped};
use crate::stage::{ORIGIN, Stage, accept, expect, expect_end, listen, prepare, until};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use whimbrel_host::control::Line;
use whimbrel_tests::lab::{Layout, ORIGIN_V4};
use whimbrel_tests::traffic::{port, service};

pub(crate) fn a_wrapped_command_is_carried_by_the_daemon() -> Result<()> {
    carried(As::Root)
}

pub(crate) fn a_wrapped_command_without_privilege_is_carried_by_the_daemon() -> Result<()> {
    carried(As::User)
}

fn carried(who: As) -> Result<()> {
    let mut stage = Stage::raise()?;
    for origin in ORIGIN {
        let to = service(origin, port::SOURCE).to_string();
        let arguments = ["download", "--to", &to, "--bytes", "5000003"];
        succeed(traffic(&stage.world, who, &arguments)?.wait_with_output()?)
            .with_context(|| format!("a download from {to}"))?;
        let to = service(origin, port::SINK).to_string();
        let arguments = ["upload", "--to", &to, "--bytes", "5000003"];
        succeed(traffic(&stage.world, who, &arguments)?.wait_with_output()?)
            .with_context(|| format!("an upload to {to}"))?;
    }
    let carried = stage.world.link("gateway/eth0").count();
    ensure!(carried.up.bytes.min(carried.down.bytes) > 20_000_000, "past the gateway: {carried:?}");
    until_over(&mut stage)
}

fn until_over(stage: &mut Stage) -> Result<()> {
    stage.client.wait_until(&stage.world, "gave the namespaces up", nobody_runs)?;
    stage.quiet()
}

fn nobody_runs(status: &serde_json::Value) -> bool {
    status["runs"].as_array().is_some_and(Vec::is_empty)
}

pub(crate) fn process_exit_code_and_signals_are_the_commands_own() -> Result<()> {
    let mut stage = Stage::raise()?;
    for who in [As::Root, As::User] {
        let child = start(&stage.world, wrapped(&stage.world, who, ["sh", "-c", "echo $$"]))?;
        let pid = child.id().to_string();
        ensure!(succeed(child.wait_with_output()?)?.trim() == pid, "another process");
        let end = |script: &str| {
            let mut child = start(&stage.world, wrapped(&stage.world, who, ["sh", "-c", script]))?;
            child.wait().context("waiting for a command")
        };
        ensure!(end("exit 42")?.code() == Some(42), "not the exit code");
        ensure!(end("kill -TERM $$")?.signal() == Some(15), "not the signal");
        let mut missing = start(&stage.world, wrapped(&stage.world, who, ["/nonexistent"]))?;
        ensure!(missing.wait()?.code() == Some(127), "a command that is not there");
        let file = stage.world.folder().join("mine");
        shell(&stage.world, who, &format!("touch {0} && test -O {0}", file.display()))?;
        std::fs::remove_file(&file)?;
        // Nothing is left open but what the command would have had without us.
        let list = "ls /proc/self/fd";
        let mut plain = Command::new("sh");
        plain.args(["-c", list]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let plain = succeed(start(&stage.world, plain)?.wait_with_output()?)?;
        let open = shell(&stage.world, who, list)?;
        ensure!(open == plain, "descriptors: {open:?}, and without us {plain:?}");
    }
    until_over(&mut stage)
}

pub(crate) fn the_namespace_lasts_as_long_as_somebody_uses_it() -> Result<()> {
    let mut stage = Stage::raise()?;
    let listener = listen(stage.world.host("origin"))?;
    let port = listener.local_addr()?.port();
    // The command ends at once; what it started waits for a word, and only then connects.
    let gate = stage.world.folder().join("gate");
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, rustix::fs::Mode::from_raw_mode(0o600))?;
    let script = format!(
        "(read word <{gate}; exec 3<>/dev/tcp/{ORIGIN_V4}/{port}; echo $word >&3; cat <&3 >{gate}) \
         >/dev/null 2>&1 &",
        gate = gate.display()
    );
    let child = start(&stage.world, wrapped(&stage.world, As::User, ["bash", "-c", &script]))?;
    succeed(child.wait_with_output()?)?;
    let served = |count: usize| {
        move |status: &serde_json::Value| {
            status["runs"].as_array().is_some_and(|runs| runs.len() == count)
        }
    };
    stage.client.wait_until(&stage.world, "serves what the command left", served(1))?;
    File::create(&gate)?.write_all(b"hello\n")?;
    let (mut server, _) = accept(&listener)?;
    expect(&mut server, b"hello\n")?;
    server.write_all(b"bye")?;
    drop(server);
    let mut word = String::new();
    File::open(&gate)?.read_to_string(&mut word)?;
    ensure!(word == "bye", "{word:?}");
    stage.client.wait_until(&stage.world, "gave the namespace up", served(0))?;
    stage.quiet()
}

pub(crate) fn a_wrapped_command_outlives_the_daemon_under_a_service_manager() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_kept_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    let mut talk =
        Talk::start(&stage, |script| wrapped(&stage.world, As::User, ["bash", "-c", script]))?;
    ensure!(talk.converse()?, "not carried");
    stage.client.restart()?;
    ensure!(talk.converse()?, "not carried after a restart");
    stage.client.kill()?;
    ensure!(talk.converse()?, "not carried after a kill");
    let status = stage.client.status(&stage.world)?;
    ensure!(status["runs"][0]["command"] == "bash", "{status}");
    talk.end()?;
    stage.client.wait_until(&stage.world, "gave the namespace up", nobody_runs)?;
    // Nothing of it is left for the next process.
    stage.client.restart()?;
    let status = stage.client.status(&stage.world)?;
    ensure!(nobody_runs(&status), "{status}");
    Ok(())
}

pub(crate) fn what_only_the_server_keeps_open_does_not_keep_the_namespace() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    // How long a kernel waits for the other end when the process is gone: 60 s as a rule.
    world.host("laptop").run(|_| std::fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "2"))?;
    let client = world.start_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    let listener = listen(stage.world.host("origin"))?;
    let port = listener.local_addr()?.port();
    let script = format!("exec 3<>/dev/tcp/{ORIGIN_V4}/{port}; echo hello >&3");
    let child = start(&stage.world, wrapped(&stage.world, As::User, ["bash", "-c", &script]))?;
    succeed(child.wait_with_output()?)?;
    let (mut server, _) = accept(&listener)?;
    expect(&mut server, b"hello\n")?;
    expect_end(&mut server).context("what the command said last")?;
    until_over(&mut stage)?;
    until("the server learns that nobody listens", || Ok(server.write_all(b"?").is_err()))
}

pub(crate) fn what_is_no_tun_is_refused() -> Result<()> {
    let stage = Stage::raise()?;
    let socket = stage.client.config().with_extension("sock");
    let args = serde_json::json!({ "command": "thief" });
    let (null, pulse) = (File::open("/dev/null")?, File::open("/dev/zero")?);
    let plain = File::open("/proc/self/exe")?;
    for (passed, word) in [
        (vec![null.as_fd(), pulse.as_fd()], "no TUN"),
        (vec![plain.as_fd(), pulse.as_fd()], "no TUN"),
        (vec![null.as_fd()], "1 descriptors"),
        (vec![], "0 descriptors"),
    ] {
        let refusal = Line::open(&socket)?.ask("run", &args, &passed);
        let refusal = refusal.err().context("it was taken")?.to_string();
        ensure!(refusal.contains(word), "{refusal}");
    }
    Ok(())
}
