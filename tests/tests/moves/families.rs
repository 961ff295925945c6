//! Two families of addresses.

use anyhow::{Context, Result, ensure};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{GATEWAY_V4, GATEWAY_V6, ORIGIN_V4, ORIGIN_V6, World};
use whimbrel_tests::traffic::Moment;

use crate::lost::LOST;
use crate::ride::Ride;
use crate::stage::{Stage, layout, path_of};

/// What the gateway is called in the laptop's table of hosts.
const NAME: &str = "gateway.lab.example";

pub(crate) fn a_gateway_may_have_an_ipv6_address() -> Result<()> {
    let mut stage = Stage::open(layout(), GATEWAY_V6.into(), |_| {}, |_| Ok(()))?;
    stage.settle("wifi0", "cell0")?;
    remotes(&stage, &[("wifi0", "[2001:db8:2::10]:443"), ("cell0", "[2001:db8:2::10]:443")])?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V6)?;
    stage.carries(&mut ride, "wifi0")?;
    let since = Moment::now();
    stage.world.link("wifi0").down()?;
    ensure!(!stage.has_default_route("wifi0")?, "Wi-Fi was not lost");
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &LOST)?;
    stage.end(ride)
}

/// Wi-Fi knows IPv4 only, cellular IPv6 only; the gateway's name has an address of each.
pub(crate) fn a_move_may_change_the_address_family() -> Result<()> {
    let layout = layout()
        .with_link("wifi0", |link| link.v6 = None)
        .with_link("cell0", |link| link.v4 = None);
    let named = |table: &mut toml::Table| {
        table.insert("gateway".to_owned(), format!("{NAME}:443").into());
    };
    let mut stage = Stage::open(layout, GATEWAY_V4.into(), named, name_the_gateway)?;
    stage.settle("wifi0", "cell0")?;
    let remote = [("wifi0", "192.0.2.10:443"), ("cell0", "[2001:db8:2::10]:443")];
    remotes(&stage, &remote)?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    stage.carries(&mut ride, "wifi0")?;

    let since = Moment::now();
    stage.world.link("wifi0").down()?;
    ensure!(!stage.has_default_route("wifi0")?, "IPv4 was not lost");
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &LOST)?;
    let since = Moment::now();
    stage.world.link("wifi0").up()?;
    stage.moved(
        &mut ride,
        since,
        ("cell0", "wifi0"),
        &["return", "preferred", "black-hole", "peer-asked"],
    )?;
    remotes(&stage, &remote)?;
    stage.end(ride)
}

/// Writes a table of hosts for the laptop alone.
fn name_the_gateway(world: &World) -> Result<()> {
    let table = world.folder().join("hosts");
    std::fs::write(&table, format!("{GATEWAY_V4} {NAME}\n{GATEWAY_V6} {NAME}\n"))?;
    let table = CString::new(table.as_os_str().as_bytes())?;
    let mounted = world
        .host("laptop")
        .run(move |_| rustix::mount::mount_bind(table.as_c_str(), c"/etc/hosts"));
    mounted.context("giving the laptop a table of hosts of its own")?;
    // The configuration must be one the daemon accepts.
    edit(&world.client_config("laptop"), |_| {})
}

fn remotes(stage: &Stage, expected: &[(&str, &str)]) -> Result<()> {
    let paths = stage.paths()?;
    for (link, remote) in expected {
        ensure!(path_of(&paths, link)["remote"] == *remote, "{link} not to {remote}: {paths}");
    }
    Ok(())
}
