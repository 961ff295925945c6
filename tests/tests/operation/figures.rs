//! Figures for a monitoring system, and traces.

use anyhow::{Context, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use toml::Table;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::traffic::{Event, port, service};

use crate::PATIENCE;
use crate::prometheus::{check, lint, value};

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
    at_least(&theirs, "whimbrel_gateway_moves_total{reason=\"peer-asked\"}", 1.0)?;
    at_least(&theirs, "whimbrel_gateway_move_gap_seconds_count", 1.0)?;

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
