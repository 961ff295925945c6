//! Reading what a daemon tells a monitoring system, as strictly as Prometheus and its linter do.

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// The value of a sample, by its name and labels as they are written.
pub(crate) fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// Reads a text in the exposition format 0.0.4, and asks of it what Prometheus recommends.
pub(crate) fn check(text: &str) -> Result<()> {
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let (mut helped, mut seen, mut current) = (BTreeSet::new(), BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').context("a help without words")?;
            ensure!(!words.is_empty() && helped.insert(name.to_owned()), "help of {name}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').context("a type without a kind")?;
            ensure!(helped.contains(name), "{name} has no help before its type");
            ensure!(families.insert(name.into(), kind.into()).is_none(), "{name} twice");
            name.clone_into(&mut current);
            check_name(name, kind)?;
        } else {
            let (name, labels) = read_sample(line).with_context(|| format!("in {line:?}"))?;
            let kind = families.get(&current).context("a sample before any type")?;
            let suffix =
                name.strip_prefix(&current).with_context(|| format!("{name} is no {current}"))?;
            let histogram = kind == "histogram" && ["_bucket", "_sum", "_count"].contains(&suffix);
            ensure!(histogram || suffix.is_empty(), "{name} in {current}");
            ensure!(seen.insert(format!("{name}{labels:?}")), "{name} {labels:?} twice");
        }
    }
    ensure!(!families.is_empty() && text.ends_with('\n'), "no figures");
    Ok(())
}

/// Prometheus' own opinion, where its tool is installed.
pub(crate) fn lint(text: &str) -> Result<()> {
    let linter = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut linter) = linter else { return Ok(()) };
    linter.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
    let output = linter.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    drop(std::io::stderr().write_all(b"promtool has nothing to say\n"));
    Ok(())
}

fn check_name(name: &str, kind: &str) -> Result<()> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    ensure!(name.chars().all(letters), "the name {name}");
    for unit in ["_ms", "_milliseconds", "_micros", "_kilobytes", "_kib", "_mb", "_minutes"] {
        ensure!(!name.contains(unit), "{name} is not in a base unit");
    }
    match kind {
        "counter" => ensure!(name.ends_with("_total"), "the counter {name}"),
        "gauge" | "histogram" => ensure!(!name.ends_with("_total"), "the {kind} {name}"),
        other => bail!("{name} is a {other}"),
    }
    Ok(())
}

/// The name of a sample, and its labels.
fn read_sample(line: &str) -> Result<(&str, Vec<(String, String)>)> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").context("a label without a value")?;
            let (value, after) = read_quoted(after)?;
            labels.push((label.trim_start_matches(',').to_owned(), value));
            rest = after;
        }
        rest = &rest[1..];
    }
    let _number: f64 = rest.strip_prefix(' ').context("no space")?.parse().context("no number")?;
    Ok((name, labels))
}

/// A value up to its closing quote, and what follows.
fn read_quoted(text: &str) -> Result<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match (c, escaped) {
            ('\\', false) => escaped = true,
            ('"', false) => return Ok((value, &text[at + 1..])),
            ('\\' | '"' | 'n', true) | (_, false) => {
                value.push(c);
                escaped = false;
            }
            (other, true) => bail!("\\{other} is no escape"),
        }
    }
    bail!("a quote is missing")
}
