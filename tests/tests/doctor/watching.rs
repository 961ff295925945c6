//! A person watches, and passes on what was seen.

use crate::stage::{ORIGIN, Stage, until};
use crate::terminal::Terminal;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Read;
use std::process::{Child, Command};
use whimbrel_tests::lab::GATEWAY_V4;
use whimbrel_tests::role;

/// Watches on a terminal; `colours` as a person would say it.
fn watch(stage: &Stage, colours: bool) -> Result<(Terminal, Child)> {
    let (terminal, [input, output, error]) = Terminal::open()?;
    terminal.resize(120, 30)?;
    let mut command = Command::new("/proc/self/exe");
    command.args([role::CLIENT, "status", "--watch", "--config"]).arg(stage.client.config());
    command.stdin(input).stdout(output).stderr(error).env("TERM", "xterm");
    command.env_remove("NO_COLOR");
    if !colours {
        command.env("NO_COLOR", "1");
    }
    let child = stage.world.host("laptop").spawn(command)?;
    Ok((terminal, child))
}

fn interrupt(child: &mut Child) -> Result<()> {
    let id = Pid::from_raw(i32::try_from(child.id())?).context("a process has a number")?;
    kill_process(id, Signal::INT)?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

pub(crate) fn a_watch_shows_what_happens_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let stage = Stage::raise()?;
    let mut pair = stage.pair(ORIGIN[0])?;
    pair.converse()?;
    let (mut terminal, mut child) = watch(&stage, true)?;
    terminal.find("\x1b[?1049h")?;
    terminal.find("\x1b[32mAttached")?;
    terminal.find("wifi0")?;
    terminal.find("FLOW TO")?;
    until("the spare link is ready", || {
        let status = stage.client.status(&stage.world)?;
        Ok(status["paths"]
            .as_array()
            .is_some_and(|paths| paths.iter().any(|it| it["state"] == "warm")))
    })?;
    stage.client.command(&stage.world, &["move", "cell0"])?;
    terminal.find("wifi0 to cell0: hand")?;
    // Too narrow for the first line.
    terminal.resize(30, 10)?;
    terminal.find("Attached  \x1b[0m 192.0.2.10:443 ove…")?;
    interrupt(&mut child)?;
    terminal.find("\x1b[?25h\x1b[?1049l")?;

    let (mut terminal, mut child) = watch(&stage, false)?;
    terminal.find("\x1b[HAttached   192.0.2.10:443")?;
    interrupt(&mut child)?;
    terminal.find("\x1b[?1049l")?;

    // Nothing to draw on.
    let config = stage.client.config().to_str().context("a plain name")?;
    let output = stage.world.run_client("laptop", &["status", "--watch", "--config", config])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("draws on a terminal"), "{said}");
    ensure!(output.stdout.is_empty(), "{output:?}");
    Ok(())
}

pub(crate) fn a_report_about_a_bug_has_no_secret_in_it() -> Result<()> {
    let stage = Stage::raise()?;
    let pair = stage.pair(ORIGIN[0])?;
    let file = stage.world.folder().join("report.tar");
    let path = file.to_str().context("a plain name")?;
    let said = stage.client.command(&stage.world, &["bugreport", "--output", path])?;
    let mut report = Vec::new();
    fs::File::open(&file)?.read_to_end(&mut report)?;
    let report = String::from_utf8_lossy(&report).into_owned();
    for part in
        ["README.txt", "doctor.txt", "status.json", "flows.json", "events.json", "client.toml"]
    {
        ensure!(said.contains(part) && report.contains(part), "{part} is not in it: {said}");
    }
    ensure!(report.contains("\"state\": \"attached\""), "the daemon was not asked");

    let config = fs::read_to_string(stage.client.config())?;
    let key = config.lines().find(|line| line.starts_with("gateway_key"));
    let key = key.and_then(|line| line.split('"').nth(1)).context("no key in the configuration")?;
    let secret = fs::read_to_string(stage.client.config().with_extension("key"))?;
    let secret = secret.split_whitespace().max_by_key(|word| word.len()).context("no key")?;
    ensure!(key.len() == 43 && secret.len() >= 43, "{key} and {} letters", secret.len());
    for hidden in
        [key, secret, &GATEWAY_V4.to_string(), "192.168.10.2", &pair.app.peer_addr()?.to_string()]
    {
        ensure!(!report.contains(hidden), "{hidden} is in the report");
    }

    // Never over what is there.
    let again = stage.client.command(&stage.world, &["bugreport", "--output", path]);
    ensure!(again.is_err_and(|error| error.to_string().contains("cannot make")), "overwritten");
    let kept = stage.world.folder().join("kept.tar");
    let path = kept.to_str().context("a plain name")?;
    stage.client.command(&stage.world, &["bugreport", "--addresses", "--output", path])?;
    let kept = String::from_utf8_lossy(&fs::read(&kept)?).into_owned();
    ensure!(kept.contains("192.168.10.2") && !kept.contains(key), "addresses were asked for");
    Ok(())
}
