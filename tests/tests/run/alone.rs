//! Commands on a host where no daemon runs.

use crate::inside::{As, start, succeed, traffic, wrapped};
use crate::stage::prepare;
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::traffic::{port, service};

/// More than an engine lingers.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn without_a_daemon_an_engine_comes_and_goes_with_the_commands() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let to = service(ORIGIN_V4, port::SOURCE).to_string();
    let arguments = ["download", "--to", &to, "--bytes", "5000003"];
    // The second finds the first one's engine.
    let two = [traffic(&world, As::User, &arguments)?, traffic(&world, As::User, &arguments)?];
    for child in two {
        succeed(child.wait_with_output()?).with_context(|| log(&world))?;
    }
    let carried = world.link("gateway/eth0").count();
    ensure!(carried.up.bytes.min(carried.down.bytes) > 10_000_000, "past the gateway: {carried:?}");
    let socket = world.client_config("laptop").with_extension("sock");
    let deadline = Instant::now() + PATIENCE;
    while socket.exists() {
        ensure!(Instant::now() < deadline, "the engine stays: {}", log(&world));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn log(world: &World) -> String {
    let log = world.client_config("laptop").with_file_name("run.log");
    std::fs::read_to_string(log).unwrap_or_default()
}

pub(crate) fn an_engine_that_cannot_start_says_why() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    edit(&world.client_config("laptop"), |table| {
        table.insert("gatewey".to_owned(), "x".into());
    })?;
    let output = start(&world, wrapped(&world, As::User, ["true"]))?.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("gatewey"), "{}: {said}", output.status);
    Ok(())
}
