//! Both daemons as real processes in the lab: they meet, and carry what is sent.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::suite;
use whimbrel_tests::traffic::{port, service};

suite! {
    a_client_joins_attaches_and_carries_a_download,
    the_status_names_the_link_in_use,
    a_command_in_the_demo_sees_the_client_and_keeps_its_exit_code,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn a_client_joins_attaches_and_carries_a_download() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let _origin = world.start_origin()?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let client = world.start_client("laptop")?;
    let to = service(ORIGIN_V4, port::SOURCE);
    let mut download = world.start_program("laptop", "download", to, &["--bytes", "5000003"])?;
    download.succeed(PATIENCE)?;
    let carried = world.link("gateway/eth0").count();
    let through = carried.up.bytes.min(carried.down.bytes);
    ensure!(through > 5_000_003, "it went past the gateway: {carried:?}");
    let status = client.status(&world)?;
    ensure!(status["state"] == "attached", "{status}");
    Ok(())
}

fn the_status_names_the_link_in_use() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let mut client = world.start_client("laptop")?;
    client.wait_until(&world, "uses Wi-Fi with cellular warm", |status| {
        let has = |link: &str, state: &str| {
            let mut paths = status["paths"].as_array().into_iter().flatten();
            paths.any(|path| path["link"] == link && path["state"] == state)
        };
        has("wifi0", "active") && has("cell0", "warm")
    })?;
    let clients = gateway.show(&world, "clients")?;
    ensure!(clients.to_string().contains("laptop"), "{clients}");
    Ok(())
}

fn a_command_in_the_demo_sees_the_client_and_keeps_its_exit_code() -> Result<()> {
    let demo = env!("CARGO_BIN_EXE_whimbrel-demo");
    let command = "whimbrel status --json && exit 7";
    let output = Command::new(demo).args(["--", "sh", "-c", command]).output()?;
    let trouble = String::from_utf8_lossy(&output.stderr);
    let status: Value =
        serde_json::from_slice(&output.stdout).context(trouble.clone().into_owned())?;
    ensure!(status["state"] == "attached", "{status}");
    ensure!(output.status.code() == Some(7), "{}: {trouble}", output.status);
    Ok(())
}
