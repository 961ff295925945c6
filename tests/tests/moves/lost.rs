//! Links that go and come, as the host sees it.

use anyhow::{Result, ensure};
use whimbrel_tests::internet::{Direction, Shape};
use whimbrel_tests::lab::{GATEWAY_V4, Link, ORIGIN_V4};
use whimbrel_tests::traffic::{Moment, port, service};

use crate::ride::Ride;
use crate::stage::{CELL_DELAY, PATIENCE, Stage, Step, layout, path_of, state_of, tell, unplug};

/// Why a link is left that the host has lost: whichever news comes first.
pub(crate) const LOST: [&str; 3] = ["link-down", "address-removed", "send-error"];

pub(crate) fn a_link_that_goes_down_is_left() -> Result<()> {
    leave_and_return(|link| link.down())
}

pub(crate) fn a_link_without_an_address_is_left() -> Result<()> {
    leave_and_return(|link| link.remove_address())
}

pub(crate) fn a_link_that_disappears_is_left() -> Result<()> {
    leave_and_return(unplug)
}

/// Wi-Fi is lost in some way, comes back and carries again, because the kernel prefers it.
fn leave_and_return(lose: impl Fn(&Link<'_>) -> Result<()>) -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    stage.carries(&mut ride, "wifi0")?;
    let since = Moment::now();
    lose(&stage.world.link("wifi0"))?;
    ensure!(!stage.has_default_route("wifi0")?, "Wi-Fi was not lost");
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &LOST)?;
    let gone = path_of(&stage.paths()?, "wifi0").clone();
    ensure!(gone["state"] != "active", "{gone}");

    let since = Moment::now();
    let wifi = stage.world.link("wifi0");
    if stage.world.host("laptop").run(|wiring| wiring.index("wifi0"))?.is_some() {
        wifi.up()?;
    } else {
        wifi.plug()?;
    }
    stage.moved(
        &mut ride,
        since,
        ("cell0", "wifi0"),
        &["return", "preferred", "black-hole", "peer-asked"],
    )?;
    stage.end(ride)
}

pub(crate) fn a_link_that_appears_later_takes_over_when_the_first_dies() -> Result<()> {
    let without = |world: &whimbrel_tests::lab::World| unplug(&world.link("cell0"));
    let mut stage = Stage::open(layout(), GATEWAY_V4.into(), |_| {}, without)?;
    stage.until_active("wifi0")?;
    let paths = stage.paths()?;
    ensure!(path_of(&paths, "cell0").is_null(), "cellular is there already: {paths}");
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;

    stage.world.link("cell0").plug()?;
    stage.settle("wifi0", "cell0")?;
    let steps = stage.catch_up()?;
    let chosen = |step: &Step| step.to == "cell0" && step.reason == "preferred";
    ensure!(!steps.iter().any(chosen), "a worse link took the traffic: {steps:?}");
    ride.goes_on_after(Moment::now())?;

    let since = Moment::now();
    stage.world.link("wifi0").down()?;
    ensure!(!stage.has_default_route("wifi0")?, "Wi-Fi was not lost");
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &LOST)?;
    stage.end(ride)
}

/// A cable appears, with a better metric than what there is, and is pulled out again.
pub(crate) fn docking_moves_onto_the_cable_and_undocking_back() -> Result<()> {
    let docked = layout().with_link("wifi0", |link| link.metric = 50);
    let undocked = |world: &whimbrel_tests::lab::World| unplug(&world.link("wifi0"));
    let mut stage = Stage::open(docked, GATEWAY_V4.into(), |_| {}, undocked)?;
    stage.until_active("cell0")?;
    let session = stage.client.status(&stage.world)?["session"].clone();
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let since = Moment::now();
    stage.world.link("wifi0").plug()?;
    let better = ["preferred", "return", "black-hole", "peer-asked"];
    stage.moved(&mut ride, since, ("cell0", "wifi0"), &better)?;
    let since = Moment::now();
    unplug(&stage.world.link("wifi0"))?;
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &LOST)?;
    let after = stage.client.status(&stage.world)?["session"].clone();
    ensure!(after == session, "the session is another one");
    stage.end(ride)
}

/// Round trip, window and packet size of the old path are nothing the new one may rely on.
pub(crate) fn a_new_path_starts_with_measures_of_its_own() -> Result<()> {
    const NARROW: usize = 1400;
    let layout = layout().with_link("cell0", |link| {
        let shape = Shape { mtu: Some(NARROW), ..Shape::line(CELL_DELAY, 30) };
        (link.up, link.down) = (shape, shape);
    });
    let without = |world: &whimbrel_tests::lab::World| unplug(&world.link("cell0"));
    let mut stage = Stage::open(layout, GATEWAY_V4.into(), |_| {}, without)?;
    stage.until_active("wifi0")?;
    let to = service(ORIGIN_V4, port::SINK);
    let bulk = ["--bytes", "8000000"];
    let mut upload = stage.world.start_program("laptop", "upload", to, &bulk)?;
    upload.succeed(PATIENCE)?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    stage.until("the size of packets is found on Wi-Fi", |stage| {
        Ok(path_of(&stage.paths()?, "wifi0")["mtu"].as_u64() > Some(NARROW as u64))
    })?;
    let paths = stage.paths()?;
    let old = path_of(&paths, "wifi0");
    tell(&format!("Wi-Fi {old}"));

    stage.world.link("cell0").plug()?;
    stage.settle("wifi0", "cell0")?;
    let paths = stage.paths()?;
    let fresh = path_of(&paths, "cell0");
    tell(&format!("cellular, fresh {fresh}"));
    ensure!(fresh["cwnd"].as_u64() < old["cwnd"].as_u64(), "a window from before: {paths}");

    let since = Moment::now();
    stage.world.link("wifi0").down()?;
    ensure!(!stage.has_default_route("wifi0")?, "Wi-Fi was not lost");
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &LOST)?;
    let mut upload = stage.world.start_program("laptop", "upload", to, &["--bytes", "2000000"])?;
    upload.succeed(PATIENCE)?;
    let paths = stage.paths()?;
    let used = path_of(&paths, "cell0");
    tell(&format!("cellular, used {used}"));
    ensure!(state_of(&paths, "cell0") == "active", "{paths}");
    // What light needs cannot be undercut, and no packet was larger than the line takes.
    let floor = 2.0 * CELL_DELAY.as_secs_f64() * 1000.0;
    ensure!(used["rtt_ms"].as_f64().is_some_and(|rtt| rtt >= floor), "a round trip: {used}");
    ensure!(used["cwnd"].as_u64() > Some(0), "no window: {used}");
    let mtu = used["mtu"].as_u64();
    ensure!(mtu >= Some(1200) && mtu <= Some(NARROW as u64 - 28), "a packet size: {used}");
    let oversized = stage.world.link("cell0").count_one(Direction::Up).oversized;
    tell(&format!("{oversized} probes of the packet size were too large"));
    stage.end(ride)
}
