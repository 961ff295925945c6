//! What one client may use, and what it is told beyond that.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::time::Instant;
use toml::Table;
use whimbrel_tests::daemon::{Daemon, edit};
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::traffic::{Event, Program, port, service};

use crate::PATIENCE;
use crate::prometheus::value;

/// Both daemons, the gateway with these limits.
pub(crate) fn stage(limits: &[(&str, toml::Value)]) -> Result<(World, Program, Daemon, Daemon)> {
    let world = World::build(Layout::standard())?;
    let origin = world.start_origin()?;
    world.init_gateway("192.0.2.10:443".parse().context("an address")?)?;
    limit(&world, limits)?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    Ok((world, origin, gateway, client))
}

fn limit(world: &World, limits: &[(&str, toml::Value)]) -> Result<()> {
    edit(&world.gateway_config(), |table| {
        let section = table.entry("limits").or_insert_with(|| Table::new().into());
        let Some(section) = section.as_table_mut() else { return };
        for (name, value) in limits {
            section.insert((*name).to_owned(), value.clone());
        }
    })
}

/// Waits until the client's events have a sentence, and its figures count it.
fn until_told(world: &World, client: &Daemon, sentence: &str) -> Result<()> {
    let began = Instant::now();
    while !client.show(world, "events")?.to_string().contains(sentence) {
        ensure!(began.elapsed() < PATIENCE, "nobody is told: {sentence}");
    }
    let (_, rest) = sentence.split_once("limits.").context("no limit")?;
    let limit = rest.split(' ').next().unwrap_or_default();
    let counted = value(
        &client.command(world, &["metrics"])?,
        &format!("whimbrel_limits_reached_total{{limit=\"{limit}\"}}"),
    );
    ensure!(counted == Some(1.0), "{limit}: {counted:?}");
    Ok(())
}

pub(crate) fn connections_beyond_a_limit_are_refused_and_counted() -> Result<()> {
    let (world, _origin, mut gateway, client) = stage(&[("flows_per_client", 3.into())])?;
    let to = service(ORIGIN_V4, port::ECHO);
    let mut three = world.start_program("laptop", "idle", to, &["--count", "3"])?;
    three.wait_for(PATIENCE, |event| matches!(event, Event::Open { count: 3, .. }))?;
    let (mut refused, mut began) = (String::new(), Instant::now());
    let knock = |refused: &mut String| -> Result<()> {
        let mut knock = world.start_program("laptop", "knock", to, &[])?;
        *refused = knock.finish(PATIENCE)?.1.iter().map(kind_of).collect();
        Ok(())
    };
    knock(&mut refused)?;
    ensure!(refused == "HostUnreachable", "the fourth connection: {refused}");
    let took = began.elapsed();
    ensure!(took.as_secs() < 5, "the refusal took {took:?}: it has waited for something");
    let figures = gateway.command(&world, &["metrics"])?;
    let counted =
        value(&figures, "whimbrel_gateway_limits_reached_total{limit=\"flows_per_client\"}");
    ensure!(counted == Some(1.0), "{counted:?}");
    until_told(&world, &client, "has as many as it may (limits.flows_per_client at the gateway)")?;
    let figures = client.command(&world, &["metrics"])?;
    let counted = value(&figures, "whimbrel_flows_refused_total{reason=\"limit\"}");
    ensure!(counted == Some(1.0), "{counted:?}");

    // Another limit, without a word to anybody who is connected.
    limit(&world, &[("flows_per_client", 100.into())])?;
    gateway.process().signal(Signal::HUP)?;
    began = Instant::now();
    while !refused.is_empty() {
        ensure!(began.elapsed() < PATIENCE, "the new limit never counts");
        knock(&mut refused)?;
    }
    three.stop();
    three.succeed(PATIENCE).context("connections from before the change")?;
    Ok(())
}

fn kind_of(event: &Event) -> String {
    if let Event::Failed { kind, .. } = event { kind.clone() } else { String::new() }
}

pub(crate) fn dials_beyond_their_rate_are_refused_and_the_reason_is_told() -> Result<()> {
    let (world, _origin, gateway, client) = stage(&[("dials_per_second", 1.into())])?;
    let to = service(ORIGIN_V4, port::ECHO);
    // All at once: whatever the machine does, some are within a second of each other.
    let knocks: Vec<Program> =
        (0..12).map(|_| world.start_program("laptop", "knock", to, &[])).collect::<Result<_>>()?;
    let (mut opened, mut refused) = (0, 0);
    for mut knock in knocks {
        match knock.finish(PATIENCE)?.1.iter().map(kind_of).collect::<String>().as_str() {
            "" => opened += 1,
            "HostUnreachable" => refused += 1,
            other => anyhow::bail!("a connection ended with {other}"),
        }
    }
    ensure!(opened > 0 && refused > 0, "{opened} were opened, {refused} refused");
    let figures = gateway.command(&world, &["metrics"])?;
    for sample in
        ["limits_reached_total{limit=\"dials_per_second\"}", "dials_total{outcome=\"limited\"}"]
    {
        let counted = value(&figures, &format!("whimbrel_gateway_{sample}"));
        ensure!(counted == Some(f64::from(refused)), "{sample}: {counted:?} of {refused}");
    }
    until_told(
        &world,
        &client,
        "begins too many at once (limits.dials_per_second at the gateway)",
    )?;
    let log = std::fs::read_to_string(world.log("laptop"))?;
    ensure!(log.contains("begins too many at once"), "{log}");
    Ok(())
}

pub(crate) fn limits_that_change_close_nothing() -> Result<()> {
    let (world, _origin, mut gateway, mut client) = stage(&[])?;
    let to = service(ORIGIN_V4, port::SOURCE);
    let mut load = world.start_program("laptop", "download", to, &["--rate", "16000000"])?;
    load.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    let session = client.status(&world)?["session"].clone();
    limit(
        &world,
        &[
            ("flows_per_client", 1.into()),
            ("dials_per_second", 1.into()),
            ("bandwidth_per_client", "256KiB".into()),
            ("buffered_per_client", "1MiB".into()),
            ("memory", "16MiB".into()),
            ("half_open", 1.into()),
        ],
    )?;
    gateway.process().signal(Signal::HUP)?;
    let (bound, began) =
        ("whimbrel_gateway_limits_reached_total{limit=\"bandwidth_per_client\"}", Instant::now());
    while value(&gateway.command(&world, &["metrics"])?, bound) < Some(1.0) {
        ensure!(began.elapsed() < PATIENCE, "the new limit never counts");
    }
    // What is under way goes on, slower; and nothing was connected anew for it.
    let is_later = |event: &Event| matches!(event, Event::Progress { .. });
    load.wait_for(PATIENCE, is_later).context("it goes on")?;
    limit(&world, &[("bandwidth_per_client", "0B".into())])?;
    gateway.process().signal(Signal::HUP)?;
    load.stop();
    load.succeed(PATIENCE).context("every byte")?;
    ensure!(client.status(&world)?["session"] == session, "another session");
    ensure!(client.process().is_running() && gateway.process().is_running(), "one has ended");
    Ok(())
}

pub(crate) fn a_limit_of_bandwidth_is_kept() -> Result<()> {
    const RATE: u64 = 500_000;
    let (world, _origin, gateway, client) =
        stage(&[("bandwidth_per_client", format!("{}KiB", RATE / 1024).into())])?;
    for (bulk, to) in [("download", port::SOURCE), ("upload", port::SINK)] {
        let bytes = (2 * RATE).to_string();
        let began = Instant::now();
        let mut load =
            world.start_program("laptop", bulk, service(ORIGIN_V4, to), &["--bytes", &bytes])?;
        load.succeed(PATIENCE).context(bulk)?;
        let took = began.elapsed();
        // A machine can be slower than the limit, never faster.
        ensure!(took.as_millis() > 1500, "{bytes} bytes of {bulk} in {took:?}");
    }
    let figures = gateway.command(&world, &["metrics"])?;
    let counted =
        value(&figures, "whimbrel_gateway_limits_reached_total{limit=\"bandwidth_per_client\"}");
    ensure!(counted > Some(0.0), "{counted:?}");
    until_told(
        &world,
        &client,
        "moves as much as it may (limits.bandwidth_per_client at the gateway)",
    )
}

pub(crate) fn every_flow_has_a_share_of_a_limited_bandwidth() -> Result<()> {
    let (world, _origin, _gateway, _client) =
        stage(&[("bandwidth_per_client", "1MiB".to_owned().into())])?;
    let to = service(ORIGIN_V4, port::SOURCE);
    let download = |bytes: &str| world.start_program("laptop", "download", to, &["--bytes", bytes]);
    let mut bulk = Vec::new();
    for _ in 0..3 {
        let endless = download("1000000000")?;
        endless.wait_for(
            PATIENCE,
            |event| matches!(event, Event::Progress { bytes, .. } if *bytes > 0),
        )?;
        bulk.push(endless);
    }
    download("200000")?.succeed(PATIENCE).context("beside three endless ones")?;
    Ok(())
}
