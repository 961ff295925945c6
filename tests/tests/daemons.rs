//! Both daemons as real processes in the lab: they meet, and carry what is sent.

use anyhow::{Result, ensure};
use std::time::Duration;
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::suite;
use whimbrel_tests::traffic::{port, service};

suite! {
    a_client_joins_attaches_and_carries_a_download,
    the_status_names_the_link_in_use,
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
