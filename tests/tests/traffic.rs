//! The programs of the lab tell the truth, over plain TCP: what is whole is called whole, and
//! what breaks is called broken.

use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;
use whimbrel_tests::lab::{
    BOTH, Layout, ORIGIN_V4, ORIGIN_V6, REFERENCE_V4, UNREACHABLE_V4, World,
};
use whimbrel_tests::suite;
use whimbrel_tests::traffic::{Event, Program, longest_gap, port, service};

suite! {
    downloads_and_uploads_are_whole_over_both_families,
    a_gap_is_measured_where_it_was_made,
    a_killed_server_is_not_a_whole_stream,
    rebinding_kills_plain_tcp,
    half_closes_work_both_ways,
    resets_and_refusals_are_told_apart,
    idle_connections_are_proved_alive,
    a_ping_pong_returns_every_message,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn world() -> Result<(World, Program)> {
    let world = World::build(Layout::standard())?;
    let origin = world.start_origin()?;
    Ok((world, origin))
}

/// Bytes, whether they were exact, and what went wrong.
fn end_of(events: &[Event]) -> Result<(u64, bool, Option<String>)> {
    for event in events {
        if let Event::End { bytes, exact, error, .. } = event {
            return Ok((*bytes, *exact, error.clone()));
        }
    }
    bail!("no end in {events:?}")
}

fn downloads_and_uploads_are_whole_over_both_families() -> Result<()> {
    let (world, _origin) = world()?;
    for address in [ORIGIN_V4.into(), ORIGIN_V6.into(), REFERENCE_V4.into()] {
        let address: std::net::IpAddr = address;
        for (program, service_port) in [("download", port::SOURCE), ("upload", port::SINK)] {
            let to = service(address, service_port);
            let mut client = world.start_program("laptop", program, to, &["--bytes", "5000003"])?;
            let (bytes, exact, error) = end_of(&client.succeed(PATIENCE)?)?;
            ensure!(exact && bytes >= 5_000_003, "{program} {to}: {bytes} {error:?}");
        }
    }
    let to = service(ORIGIN_V4, port::SOURCE);
    let mut client = world.start_program("laptop", "download", to, &["--rate", "8000000"])?;
    client.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    client.stop();
    ensure!(end_of(&client.succeed(PATIENCE)?)?.1, "stopping early lost bytes");
    Ok(())
}

fn a_gap_is_measured_where_it_was_made() -> Result<()> {
    let (world, _origin) = world()?;
    let to = service(ORIGIN_V4, port::ECHO);
    let mut client = world.start_program("laptop", "ping-pong", to, &["--every", "10"])?;
    client.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    world.link("wifi0").black_hole(&BOTH);
    std::thread::sleep(Duration::from_millis(400));
    world.link("wifi0").heal();
    let long = |event: &Event| {
        let Event::Gap { from, to } = event else { return false };
        to.since(*from) > Duration::from_millis(380)
    };
    client.wait_for(PATIENCE, long)?;
    client.stop();
    let events = client.succeed(PATIENCE)?;
    let longest = longest_gap(&events).context("no longest gap")?;
    ensure!(longest > Duration::from_millis(380), "{longest:?}");
    Ok(())
}

fn a_killed_server_is_not_a_whole_stream() -> Result<()> {
    let (world, origin) = world()?;
    let to = service(ORIGIN_V4, port::SOURCE);
    let mut client = world.start_program("laptop", "download", to, &["--rate", "8000000"])?;
    client.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    drop(origin);
    let (status, events) = client.finish(PATIENCE)?;
    let (_, exact, error) = end_of(&events)?;
    ensure!(!status.success() && !exact && error.is_some(), "{events:?}");
    Ok(())
}

fn rebinding_kills_plain_tcp() -> Result<()> {
    let (world, _origin) = world()?;
    let to = service(REFERENCE_V4, port::ECHO);
    let mut client = world.start_program("laptop", "ping-pong", to, &["--every", "10"])?;
    client.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    world.link("wifi0").rebind();
    let (status, events) = client.finish(PATIENCE)?;
    let (_, _, error) = end_of(&events)?;
    ensure!(!status.success(), "plain TCP survived: {events:?}");
    ensure!(error.as_deref().is_some_and(|error| error.contains("reset")), "{error:?}");
    Ok(())
}

fn half_closes_work_both_ways() -> Result<()> {
    let (world, _origin) = world()?;
    for (program, service_port) in
        [("half-close", port::LAST_WORD), ("speak-last", port::EARLY_END)]
    {
        let to = service(ORIGIN_V4, service_port);
        world.start_program("laptop", program, to, &[])?.succeed(PATIENCE)?;
    }
    Ok(())
}

fn resets_and_refusals_are_told_apart() -> Result<()> {
    let (world, origin) = world()?;
    let outcome = |program: &str, to| -> Result<Event> {
        let mut client = world.start_program("laptop", program, to, &[])?;
        client.finish(PATIENCE)?.1.pop().context("no report")
    };
    let kind_of = |event: &Event| {
        if let Event::Failed { kind, .. } = event {
            return kind.clone();
        }
        let Event::End { error, .. } = event else { return format!("{event:?}") };
        error.clone().unwrap_or_default()
    };
    let refused = outcome("knock", service(ORIGIN_V4, port::REFUSED))?;
    ensure!(kind_of(&refused) == "ConnectionRefused", "{refused:?}");
    let unreachable = outcome("knock", service(UNREACHABLE_V4, 80))?;
    ensure!(kind_of(&unreachable) == "HostUnreachable", "{unreachable:?}");
    let reset = outcome("provoke", service(ORIGIN_V4, port::RESET))?;
    ensure!(kind_of(&reset) == "ConnectionReset", "{reset:?}");
    let aborted = outcome("abort", service(ORIGIN_V4, port::WITNESS))?;
    ensure!(kind_of(&aborted).is_empty(), "{aborted:?}");
    origin.wait_for(PATIENCE, |event| {
        matches!(event, Event::Closed { service: port::WITNESS, reset: true, .. })
    })?;
    Ok(())
}

fn idle_connections_are_proved_alive() -> Result<()> {
    let (world, _origin) = world()?;
    let to = service(ORIGIN_V4, port::ECHO);
    let mut client = world.start_program("laptop", "idle", to, &["--count", "500"])?;
    client.wait_for(PATIENCE, |event| matches!(event, Event::Open { count: 500, .. }))?;
    client.stop();
    client.succeed(PATIENCE)?;
    let mut client =
        world.start_program("laptop", "idle", to, &["--count", "10", "--patience", "1"])?;
    client.wait_for(PATIENCE, |event| matches!(event, Event::Open { count: 10, .. }))?;
    world.link("wifi0").black_hole(&BOTH);
    client.stop();
    ensure!(!client.finish(PATIENCE)?.0.success(), "dead connections passed for alive");
    Ok(())
}

fn a_ping_pong_returns_every_message() -> Result<()> {
    let (world, _origin) = world()?;
    let to = service(ORIGIN_V4, port::ECHO);
    let more = ["--every", "0", "--count", "500", "--each"];
    let mut client = world.start_program("laptop", "ping-pong", to, &more)?;
    let events = client.succeed(PATIENCE)?;
    let pongs = events.iter().filter(|event| matches!(event, Event::Pong { .. })).count();
    ensure!(pongs == 500, "{pongs} of 500");
    Ok(())
}
