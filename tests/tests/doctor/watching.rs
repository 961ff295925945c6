//! A person watches, and passes on what was seen.

use crate::stage::{ORIGIN, Stage, prepare, until};
use crate::terminal::Terminal;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use whimbrel_tests::lab::{GATEWAY_V4, Layout};
use whimbrel_tests::role;

/// Watches on a terminal; `colours` as a person would say it.
fn watch(stage: &Stage, colours: bool) -> Result<(Terminal, Child)> {
    let refused: &[_] = if colours { &[] } else { &[("NO_COLOR", "1")] };
    on_terminal(stage, &["status", "--watch"], refused)
}

/// A command on a terminal of 120 columns and 30 rows.
fn on_terminal(
    stage: &Stage,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<(Terminal, Child)> {
    let (terminal, [input, output, error]) = Terminal::open()?;
    terminal.resize(120, 30)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(role::CLIENT).args(arguments).arg("--config").arg(stage.client.config());
    command.stdin(input).stdout(output).stderr(error).env("TERM", "xterm");
    command.env_remove("NO_COLOR").envs(environment.iter().copied());
    let child = stage.world.host("laptop").spawn(command)?;
    Ok((terminal, child))
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    let id = Pid::from_raw(i32::try_from(child.id())?).context("a process has a number")?;
    Ok(kill_process(id, signal)?)
}

fn interrupt(child: &mut Child) -> Result<()> {
    send(child, Signal::INT)?;
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

/// Whether a process is stopped, as by Ctrl-Z (`proc_pid_stat(5)`).
fn is_stopped(child: &Child) -> Result<bool> {
    let text = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let (_, after) = text.rsplit_once(") ").context("no state")?;
    Ok(after.starts_with('T'))
}

pub(crate) fn a_watch_that_is_suspended_gives_the_terminal_back_meanwhile() -> Result<()> {
    let stage = Stage::raise()?;
    let (mut terminal, mut child) = watch(&stage, true)?;
    terminal.find("\x1b[?1049h")?;
    terminal.find("wifi0")?;
    for _ in 0..2 {
        send(&child, Signal::TSTP)?;
        terminal.find("\x1b[?7h\x1b[?25h\x1b[?1049l")?;
        until("it is stopped", || is_stopped(&child))?;
        send(&child, Signal::CONT)?;
        terminal.find("\x1b[?1049h")?;
        terminal.find("wifi0")?;
    }
    // However it is asked to end.
    send(&child, Signal::HUP)?;
    ensure!(child.wait()?.success(), "it did not end well");
    terminal.find("\x1b[?7h\x1b[?25h\x1b[?1049l")
}

/// The names that a hostile network, or a joker with a screwdriver, gives to interfaces.
const HOSTILE: &str = "c\x1b]0;x\x07\u{9b}2J";

pub(crate) fn a_hostile_name_never_steers_the_terminal() -> Result<()> {
    let layout = Layout::standard().with_link("cell0", |link| link.name = HOSTILE.to_owned());
    let (world, origin) = prepare(layout, |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    let stage = Stage { client, gateway, origin, world };
    until("the link of that name is ready", || {
        let paths = stage.client.show(&stage.world, "paths")?;
        let mut paths = paths.as_array().into_iter().flatten();
        Ok(paths.any(|it| it["link"] == HOSTILE && it["state"] == "warm"))
    })?;
    stage.world.link(HOSTILE).captive(true);
    let listings: [&[&str]; 7] = [
        &["status"],
        &["paths"],
        &["events"],
        &["metrics"],
        &["doctor"],
        &["paths", "--json"],
        &["events", "--json"],
    ];
    for listing in listings {
        let place = ["--config", stage.client.config().to_str().context("a plain name")?];
        let output = stage.world.run_client("laptop", &[listing, &place].concat())?;
        let said = String::from_utf8([output.stdout, output.stderr].concat())?;
        let steering = said.chars().find(|letter| letter.is_control() && *letter != '\n');
        ensure!(!said.is_empty() && steering.is_none(), "{listing:?}: {said:?}");
        ensure!(said.contains("]0;x") || said.contains("In order"), "{listing:?}: {said:?}");
    }
    // Colours are there, and nothing else.
    let (mut terminal, mut child) = watch(&stage, true)?;
    terminal.find("c\u{fffd}]0;x\u{fffd}\u{fffd}2J")?;
    interrupt(&mut child)
}

pub(crate) fn a_terminal_that_can_do_nothing_gets_letters_only() -> Result<()> {
    let stage = Stage::raise()?;
    for refusal in [("TERM", "dumb"), ("NO_COLOR", "1")] {
        for listing in ["status", "doctor"] {
            let (mut terminal, mut child) = on_terminal(&stage, &[listing], &[refusal])?;
            child.wait()?;
            terminal.find(if listing == "status" { "Attached" } else { "Whimbrel works" })?;
            ensure!(!terminal.has_appeared("\x1b"), "{listing} with {refusal:?}");
        }
    }
    let (mut terminal, mut child) =
        on_terminal(&stage, &["status", "--watch"], &[("TERM", "dumb")])?;
    ensure!(!child.wait()?.success(), "it draws on what cannot be drawn on");
    terminal.find("cannot be drawn on")?;
    ensure!(!terminal.has_appeared("\x1b"), "it drew");
    Ok(())
}

pub(crate) fn a_reader_that_has_enough_is_no_failure() -> Result<()> {
    let stage = Stage::raise()?;
    let _pair = stage.pair(ORIGIN[0])?;
    let begin = |arguments: &[&str]| {
        let mut command = Command::new("/proc/self/exe");
        command.arg(role::CLIENT).args(arguments).arg("--config").arg(stage.client.config());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        stage.world.host("laptop").spawn(command)
    };
    let listings: [&[&str]; 5] =
        [&["flows"], &["status"], &["doctor"], &["metrics"], &["events", "--follow"]];
    for listing in listings {
        let mut child = begin(listing)?;
        let mut first = String::new();
        let mut reader = BufReader::with_capacity(1, child.stdout.take().context("piped")?);
        reader.read_line(&mut first)?;
        drop(reader);
        // Who follows is told of the end of reading by the next event.
        stage.client.command(&stage.world, &["pause"])?;
        stage.client.command(&stage.world, &["resume"])?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!first.is_empty() && said.is_empty(), "{listing:?}: {first:?}, then {said:?}");
        ensure!(output.status.success() || listing == ["doctor"], "{listing:?}: {}", output.status);
    }
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
