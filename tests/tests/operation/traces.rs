//! `whimbrel trace`: a strict qlog, and what becomes of those that end badly.

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::MountFlags;
use rustix::process::Signal;
use serde_json::{Map, Value};
use std::io::ErrorKind;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use whimbrel_tests::daemon::Daemon;
use whimbrel_tests::lab::{Layout, ORIGIN_V4, Process, World};
use whimbrel_tests::role;
use whimbrel_tests::traffic::{Program, port, service};

use crate::PATIENCE;

/// Traces the daemon writes at once.
const MOST: usize = 4;

/// Both daemons, the client with two paths.
fn stage() -> Result<(World, Program, Daemon, Daemon)> {
    let world = World::build(Layout::standard())?;
    let origin = world.start_origin()?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let mut client = world.start_client("laptop")?;
    client.wait_until(&world, "has a spare", |status| {
        status["paths"].as_array().is_some_and(|paths| paths.iter().any(|it| it["state"] == "warm"))
    })?;
    Ok((world, origin, gateway, client))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the lab's own folders have plain names")
}

/// Begins a trace and waits until something is in it.
fn begin(world: &World, file: &Path, more: &[&str]) -> Result<Process> {
    let config = world.client_config("laptop");
    let arguments = [&["trace", text(file)?, "--config", text(&config)?], more].concat();
    let trace = world.host("laptop").start_role(role::CLIENT, &arguments, &world.log("trace"))?;
    let begin = Instant::now();
    while !std::fs::metadata(file).is_ok_and(|file| file.len() > 1000) {
        ensure!(begin.elapsed() < PATIENCE, "the trace never begins: {}", trace.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(trace)
}

pub(crate) fn a_trace_tells_what_happens_while_it_is_asked_for() -> Result<()> {
    let (world, _origin, _gateway, client) = stage()?;
    let file = world.folder().join("laptop.sqlog");
    let mut trace = begin(&world, &file, &["--for", "3s"])?;
    let to = service(ORIGIN_V4, port::SOURCE);
    let more = ["--bytes", "100000"];
    world.start_program("laptop", "download", to, &more)?.succeed(PATIENCE)?;
    client.command(&world, &["move", "cell0"])?;
    ensure!(trace.wait(PATIENCE)?.success(), "{}", trace.log());
    let told = std::fs::read_to_string(&file)?;
    let events = read(&told)?;
    let named = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    for name in [
        "quic:recovery_metrics_updated",
        "whimbrel:flow_opened",
        "whimbrel:flow_ended",
        "whimbrel:move_started",
        "whimbrel:path_state_updated",
    ] {
        ensure!(named(name) > 0, "no {name} among {} events", events.len());
    }
    ensure!(!told.contains("198.18."), "an address of a destination is in the trace");
    let again = client.command(&world, &["trace", text(&file)?, "--for", "1s"]);
    ensure!(again.is_err(), "a trace was written over another one");
    Ok(())
}

/// The events of a trace: a JSON text sequence (RFC 7464) as qlog has it
/// (draft-ietf-quic-qlog-main-schema-13, section 5).
fn read(told: &str) -> Result<Vec<Value>> {
    ensure!(told.starts_with('\u{1e}'), "it does not begin with a record");
    let records = told.split('\u{1e}').skip(1).map(|record| {
        let text = record.strip_suffix('\n').with_context(|| format!("torn: {record:?}"))?;
        ensure!(!text.contains(|c: char| c.is_control()), "control characters: {text:?}");
        let value: Value = serde_json::from_str(text).context("not JSON")?;
        ensure!(value.is_object(), "no object: {value}");
        Ok(value)
    });
    let mut records = records.collect::<Result<Vec<_>>>()?;
    ensure!(!records.is_empty(), "an empty trace");
    let schemas = check_header(&records.remove(0))?;
    let mut last = 0.0;
    for event in &records {
        let time = check_event(event, &schemas).with_context(|| event.to_string())?;
        ensure!(time >= last, "{event} comes after {last}");
        last = time;
    }
    Ok(records)
}

/// Looks at the header; the namespaces of its events.
fn check_header(header: &Value) -> Result<Vec<String>> {
    ensure!(header["file_schema"] == "urn:ietf:params:qlog:file:sequential", "{header}");
    ensure!(header["serialization_format"] == "application/qlog+json-seq", "{header}");
    expect_keys(header, &["file_schema", "serialization_format", "title", "trace"])?;
    let trace = &header["trace"];
    expect_keys(trace, &["common_fields", "event_schemas", "vantage_point"])?;
    ensure!(trace["vantage_point"]["type"] == "client", "{header}");
    ensure!(trace["common_fields"]["time_format"] == "relative_to_epoch", "{header}");
    let schemas = trace["event_schemas"].as_array().context("no schemas")?;
    schemas
        .iter()
        .map(|schema| {
            // The last part of the name is the namespace, and after a hyphen its version.
            let schema = schema.as_str().context("no text")?;
            ensure!(schema.starts_with("urn:"), "{schema}");
            let name = if schema.contains(":whimbrel:") { "whimbrel" } else { "quic" };
            ensure!(schema.contains(name), "{schema}");
            Ok(name.to_owned())
        })
        .collect()
}

/// Looks at an event; its time.
fn check_event(event: &Value, schemas: &[String]) -> Result<f64> {
    const QUIC: [&str; 3] = ["smoothed_rtt", "rtt_variance", "congestion_window"];
    expect_keys(event, &["data", "name", "time", "tuple"])?;
    let name = event["name"].as_str().context("no name")?;
    let (space, kind) = name.split_once(':').context("no namespace")?;
    ensure!(schemas.iter().any(|schema| schema == space), "{space} is no schema of it");
    ensure!(kind.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "the name {kind}");
    let data = event["data"].as_object().context("no data")?;
    if space == "quic" {
        // What is ours in an event of others says so.
        let known = |key: &str| QUIC.contains(&key) || key.starts_with("whimbrel_");
        ensure!(data.keys().all(|key| known(key)), "a field that qlog does not know");
    }
    let time = event["time"].as_f64().context("no time")?;
    ensure!(time.is_finite() && time > 0.0, "the time {time}");
    Ok(time)
}

/// No other keys than these.
fn expect_keys(value: &Value, keys: &[&str]) -> Result<()> {
    let object: &Map<_, _> = value.as_object().context("no object")?;
    let other = object.keys().find(|key| !keys.contains(&key.as_str()));
    ensure!(other.is_none(), "the key {other:?}");
    Ok(())
}

/// A disk of two pages, full.
fn fill(world: &World, folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)?;
    let place = std::ffi::CString::new(text(folder)?)?;
    let fill = folder.join("filler");
    world.host("laptop").run(move |_| -> Result<()> {
        rustix::mount::mount(c"tmpfs", &place, c"tmpfs", MountFlags::empty(), c"size=8k")?;
        match std::fs::File::create(&fill)?.write_all(&[0; 64 << 10]) {
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(()),
            other => bail!("the disk is not full: {other:?}"),
        }
    })
}

pub(crate) fn a_trace_that_cannot_be_written_ends_with_a_sentence() -> Result<()> {
    let (world, _origin, _gateway, mut client) = stage()?;
    let folder = world.folder().join("small");
    fill(&world, &folder)?;
    let full = folder.join("full.sqlog");
    let config = world.client_config("laptop");
    let arguments = ["trace", text(&full)?, "--config", text(&config)?];
    let output = world.run_client("laptop", &arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(74) && output.stdout.is_empty(), "{output:?}");
    ensure!(said.contains("cannot write the trace") && said.contains("No space left"), "{said}");

    // As many as may be, all killed without a word: there is room for as many again.
    let place =
        |round: usize, number: usize| world.folder().join(format!("{round}-{number}.sqlog"));
    for round in 0..2 {
        let mut traces = Vec::new();
        for number in 0..MOST {
            traces.push(begin(&world, &place(round, number), &[])?);
        }
        let refused = client.command(&world, &["trace", text(&place(round, MOST))?]);
        let said = format!("{:#}", refused.err().context("one more than there may be")?);
        ensure!(said.contains("traces are being written already"), "{said}");
        for trace in &mut traces {
            trace.signal(Signal::KILL)?;
            trace.wait(PATIENCE)?;
        }
    }
    let to = service(ORIGIN_V4, port::SOURCE);
    world.start_program("laptop", "download", to, &["--bytes", "100000"])?.succeed(PATIENCE)?;
    ensure!(client.process().is_running(), "the daemon has ended");
    Ok(())
}
