//! The world of the demo, with everything running in it.

use anyhow::{Context, Result};
use std::time::Duration;
use whimbrel_tests::daemon::Daemon;
use whimbrel_tests::internet::Shape;
use whimbrel_tests::lab::{Layout, World};
use whimbrel_tests::traffic::Program;

/// The laptop's name, as a host and as a client of the gateway.
pub(super) const LAPTOP: &str = "laptop";

/// Everything that runs. Fields drop in this order: daemons before their world.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) client: Daemon,
    pub(super) _gateway: Daemon,
    pub(super) _origin: Program,
    pub(super) world: World,
}

/// Builds the world, sets both daemons up as a person would, and waits until they have met.
pub(super) fn build() -> Result<Stage> {
    let wifi = Shape::line(Duration::from_millis(10), 100).with_loss(0.0001);
    let cell = Shape::line(Duration::from_millis(30), 40).with_loss(0.001);
    let layout = Layout::standard()
        .with_link("wifi0", |link| (link.up, link.down) = (wifi, wifi))
        .with_link("cell0", |link| (link.up, link.down) = (cell, cell));
    let world = World::build(layout).context("building the networks")?;
    let origin = world.start_origin().context("starting the origin")?;
    let gateway = world.start_gateway().context("starting the gateway")?;
    world.join_client(LAPTOP).context("joining the gateway")?;
    let client = world.start_client(LAPTOP).context("starting the client")?;
    Ok(Stage { client, _gateway: gateway, _origin: origin, world })
}

/// How a person calls a link.
pub(super) fn called(link: &str) -> &str {
    match link {
        "wifi0" => "Wi-Fi",
        "cell0" => "cellular",
        other => other,
    }
}
