//! `whimbrel bugreport`: what somebody who looks for a bug wants to know, in one file, without what
//! is nobody's business. Nothing is sent anywhere.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::process::Command;
use whimbrel_client_core::redact::Redactor;
use whimbrel_host::output::{bytes, line, table, unix_now};
use whimbrel_host::{Layout, control, exit, files};

use crate::doctor::{self, ReadConfig};

/// A program that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end of what a program says; the last day of a restless daemon fits.
const MOST: usize = 2 << 20;

/// Flows in the report at most, the oldest first: what is wrong shows in a few.
const FLOWS: usize = 1000;

/// What other programs say, where they are installed.
const PROGRAMS: [(&str, &str, &[&str]); 6] = [
    ("links.txt", "ip", &["-details", "-statistics", "link"]),
    ("addresses.txt", "ip", &["address"]),
    ("rules4.txt", "ip", &["-4", "rule"]),
    ("rules6.txt", "ip", &["-6", "rule"]),
    ("routes.txt", "ip", &["route", "show", "table", "all"]),
    (
        "log.txt",
        "journalctl",
        &[
            "--unit",
            "whimbrel.service",
            "--no-hostname",
            "--output",
            "short-iso",
            "--lines",
            "5000",
        ],
    ),
];

/// One file of the report.
#[derive(Debug)]
struct Part {
    name: &'static str,
    what: &'static str,
    text: String,
}

/// Writes the report to `output`, or to a file of its own name in this folder, and says what is in
/// it.
///
/// # Errors
/// It cannot be written.
pub(crate) fn bugreport(
    layout: &Layout,
    read: ReadConfig,
    output: Option<PathBuf>,
    keep_addresses: bool,
) -> anyhow::Result<()> {
    let output = output.unwrap_or_else(|| format!("whimbrel-bugreport-{}.tar", unix_now()).into());
    let mut redactor = Redactor::new(keep_addresses);
    if let Ok(config) = read(layout) {
        redactor.hide(&config.gateway.host, "gateway");
    }
    let uname = rustix::system::uname();
    redactor.hide(&uname.nodename().to_string_lossy(), "this-machine");
    if let Some(user) = std::env::var_os("SUDO_USER").or_else(|| std::env::var_os("USER")) {
        // `root` and the daemon's own user are in every log, and name nobody.
        let user = user.to_string_lossy();
        if !matches!(user.as_ref(), "root" | "whimbrel") {
            redactor.hide(&user, "user");
        }
    }
    let mut parts = gather(layout, read)?;
    for part in &mut parts {
        part.text = redactor.redact(&part.text);
    }
    parts
        .insert(0, Part { name: "README.txt", what: "what this is", text: readme(keep_addresses) });
    write(&output, &parts)?;

    let rows: Vec<[String; 3]> = parts
        .iter()
        .map(|part| [part.name.to_owned(), bytes(part.text.len() as u64), part.what.to_owned()])
        .collect();
    line(table(["FILE", "SIZE", "WHAT"], &rows));
    line(format_args!("\nWrote {}. {}", output.display(), promise(keep_addresses)));
    line(format_args!(
        "Nothing was sent. Read it before you pass it on:\n    tar -xOf {}",
        output.display()
    ));
    Ok(())
}

fn promise(keep_addresses: bool) -> &'static str {
    if keep_addresses {
        "Keys, invites and names were taken out; addresses were kept, as you asked."
    } else {
        "Keys, invites, names and addresses were taken out (--addresses keeps addresses)."
    }
}

fn readme(keep_addresses: bool) -> String {
    format!(
        "A report about the Whimbrel client on one machine, made by `whimbrel bugreport`.\n\
         {}\n\
         In the place of what was taken out stand its kind and a number, the same number for the\n\
         same thing in every file: [public4 1] is one public IPv4 address.\n",
        promise(keep_addresses)
    )
}

fn gather(layout: &Layout, read: ReadConfig) -> anyhow::Result<Vec<Part>> {
    let (text, document) = doctor::record(layout, read)?;
    let mut parts = vec![
        Part {
            name: "versions.txt",
            what: "versions of Whimbrel and the system",
            text: versions(),
        },
        Part { name: "doctor.txt", what: "the examination of this machine", text },
        Part { name: "doctor.json", what: "the same, for programs", text: shown(&document) },
        Part { name: "client.toml", what: "the configuration", text: config(layout) },
    ];
    for (name, what, verb) in [
        ("status.json", "the daemon and its paths", "status"),
        ("flows.json", "connections: addresses and figures, never contents", "flows"),
        ("events.json", "what happened lately", "events"),
    ] {
        parts.push(Part { name, what, text: answer(layout, verb) });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    for (name, program, arguments) in PROGRAMS {
        let text = runtime.block_on(said(program, arguments));
        let what = match program {
            "journalctl" => "the daemon's log, from systemd's journal",
            _ => "the machine's network, from iproute2",
        };
        parts.push(Part { name, what, text });
    }
    Ok(parts)
}

fn versions() -> String {
    let uname = rustix::system::uname();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    format!(
        "whimbrel {}\n{} {} {}\n{}\n",
        env!("CARGO_PKG_VERSION"),
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy(),
        system.unwrap_or("an unnamed system").trim_matches('"'),
    )
}

fn config(layout: &Layout) -> String {
    match files::read_if_any(&layout.config) {
        Ok(Some(text)) => text,
        Ok(None) => "There is none.\n".to_owned(),
        Err(error) => format!("{}\n", exit::sentence(&error)),
    }
}

fn answer(layout: &Layout, verb: &str) -> String {
    match control::ask(&layout.socket, verb, &Value::Null) {
        Ok(Value::Array(mut items)) if verb == "flows" => {
            items.truncate(FLOWS);
            shown(&json!(items))
        }
        Ok(answer) => shown(&answer),
        Err(error) => format!("{error}\n"),
    }
}

fn shown(value: &Value) -> String {
    format!("{value:#}\n")
}

/// What a program says, the end of it; or why it says nothing.
async fn said(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output.stdout,
        Ok(Err(error)) => return format!("{program}: {error}\n"),
        Err(_) => return format!("{program} does not answer\n"),
    };
    let end = &output[output.len().saturating_sub(MOST)..];
    String::from_utf8_lossy(end).into_owned()
}

fn write(path: &Path, parts: &[Part]) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    let written = archive(parts).and_then(|archive| file.write_all(&archive));
    if written.is_err() {
        // What exists at this point is half a file of our own.
        let _ = std::fs::remove_file(path);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn archive(parts: &[Part]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for part in parts {
        let mut header = tar::Header::new_ustar();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(unix_now());
        let name = format!("whimbrel-bugreport/{}", part.name);
        archive.append_data(&mut header, name, part.text.as_bytes())?;
    }
    archive.into_inner()
}
