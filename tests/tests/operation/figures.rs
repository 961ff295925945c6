//! Figures for a monitoring system, and traces.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use toml::Table;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::role;
use whimbrel_tests::traffic::{Event, port, service};

use crate::PATIENCE;
use crate::prometheus::{check, value};

const CLIENT: &str = "127.0.0.1:9464";
const GATEWAY: &str = "[::1]:9465";

pub(crate) fn both_daemons_tell_their_figures() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let _origin = world.start_origin()?;
    world.init_gateway("192.0.2.10:443".parse().context("an address")?)?;
    let at = |place: &str| {
        let place = place.to_owned();
        move |table: &mut Table| drop(table.insert("metrics".to_owned(), place.into()))
    };
    edit(&world.gateway_config(), at(GATEWAY))?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    edit(&world.client_config("laptop"), at(CLIENT))?;
    let mut client = world.start_client("laptop")?;
    client.wait_until(&world, "has a spare", |status| {
        status["paths"].as_array().is_some_and(|paths| paths.iter().any(|it| it["state"] == "warm"))
    })?;
    let to = service(ORIGIN_V4, port::SOURCE);
    let download = world.start_program("laptop", "download", to, &["--rate", "8000000"])?;
    download.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    client.command(&world, &["move", "cell0"])?;
    client.wait_until(&world, "has moved", |status| status["last_move"]["gap_ms"].is_number())?;
    let end = download.wait_for(
        PATIENCE,
        |event| matches!(event, Event::Progress { bytes, .. } if *bytes > 500_000),
    );
    end.context("the download goes on")?;

    let own = client.command(&world, &["metrics"])?;
    check(&own).with_context(|| own.clone())?;
    let at_least = |text: &str, sample: &str, least: f64| -> Result<()> {
        let found = value(text, sample);
        ensure!(found.is_some_and(|it| it >= least), "{sample} is {found:?}\n{text}");
        Ok(())
    };
    at_least(&own, "whimbrel_session_state{state=\"attached\"}", 1.0)?;
    at_least(&own, "whimbrel_flows{state=\"moving\"}", 1.0)?;
    at_least(&own, "whimbrel_flow_bytes_total{direction=\"receive\"}", 500_000.0)?;
    at_least(&own, "whimbrel_moves_total{reason=\"hand\"}", 1.0)?;
    at_least(&own, "whimbrel_move_gap_seconds_count", 1.0)?;
    at_least(&own, "whimbrel_path_rtt_seconds{link=\"cell0\"}", 1e-6)?;
    at_least(&own, "process_resident_memory_bytes", 1e6)?;
    let theirs = gateway.command(&world, &["metrics"])?;
    check(&theirs).with_context(|| theirs.clone())?;
    at_least(&theirs, "whimbrel_gateway_sessions{state=\"attached\"}", 1.0)?;
    at_least(&theirs, "whimbrel_gateway_flow_bytes_total{direction=\"transmit\"}", 500_000.0)?;
    at_least(&theirs, "whimbrel_gateway_client_rtt_seconds{client=\"laptop\"}", 1e-6)?;
    at_least(&theirs, "whimbrel_gateway_dials_total{outcome=\"connected\"}", 1.0)?;

    for (host, place, name) in
        [("laptop", CLIENT, "whimbrel_flows"), ("gateway", GATEWAY, "whimbrel_gateway_flows")]
    {
        let answer = scrape(&world, host, place.parse()?)?;
        let (head, text) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        check(text).with_context(|| format!("over HTTP: {text}"))?;
        ensure!(text.contains(&format!("# TYPE {name} gauge\n")), "{text}");
        lint(text)?;
    }
    Ok(())
}

fn scrape(world: &World, host: &str, place: SocketAddr) -> Result<String> {
    world.host(host).run(move |_| -> Result<String> {
        let mut stream = TcpStream::connect(place).context("connecting to the port")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {place}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// Prometheus' own opinion, where its tool is installed.
fn lint(text: &str) -> Result<()> {
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

pub(crate) fn a_trace_tells_what_happens_while_it_is_asked_for() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let _origin = world.start_origin()?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let mut client = world.start_client("laptop")?;
    client.wait_until(&world, "has a spare", |status| {
        status["paths"].as_array().is_some_and(|paths| paths.iter().any(|it| it["state"] == "warm"))
    })?;
    let file = world.folder().join("laptop.sqlog");
    let name = file.to_str().context("a plain name")?;
    let config = world.client_config("laptop");
    let config = config.to_str().context("a plain name")?;
    let trace = ["trace", name, "--for", "3s", "--config", config];
    let mut trace = world.host("laptop").start_role(role::CLIENT, &trace, &world.log("trace"))?;
    let begin = Instant::now();
    while !std::fs::metadata(&file).is_ok_and(|file| file.len() > 1000) {
        ensure!(begin.elapsed() < PATIENCE, "the trace never begins: {}", trace.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    let to = service(ORIGIN_V4, port::SOURCE);
    let more = ["--bytes", "100000"];
    world.start_program("laptop", "download", to, &more)?.succeed(PATIENCE)?;
    client.command(&world, &["move", "cell0"])?;
    ensure!(trace.wait(PATIENCE)?.success(), "{}", trace.log());
    let text = std::fs::read_to_string(&file)?;
    let records: Vec<Value> = text
        .split('\u{1e}')
        .skip(1)
        .map(|record| {
            ensure!(record.ends_with('\n'), "no record of a JSON sequence: {record:?}");
            serde_json::from_str(record).context("not JSON")
        })
        .collect::<Result<_>>()?;
    let (header, events) = records.split_first().context("an empty trace")?;
    ensure!(header["file_schema"] == "urn:ietf:params:qlog:file:sequential", "{header}");
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
    let times: Vec<f64> = events.iter().filter_map(|event| event["time"].as_f64()).collect();
    ensure!(times.len() == events.len() && times.is_sorted(), "times are not in order");
    ensure!(!text.contains("198.18."), "an address of a destination is in the trace");
    let again = client.command(&world, &["trace", name, "--for", "1s"]);
    ensure!(again.is_err(), "a trace was written over another one");
    Ok(())
}
