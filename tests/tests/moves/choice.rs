//! What people want.

use anyhow::{Result, ensure};
use std::time::Duration;
use whimbrel_tests::lab::{BOTH, GATEWAY_V4, ORIGIN_V4};
use whimbrel_tests::traffic::Moment;

use crate::lost::LOST;
use crate::ride::Ride;
use crate::stage::{Stage, Step, layout, list, path_of};

pub(crate) fn a_person_decides_and_gives_the_choice_back() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let wrong = stage.client.command(&stage.world, &["move", "nosuch0"]);
    let said = format!("{:#}", wrong.err().unwrap_or_else(|| anyhow::anyhow!("nothing")));
    ensure!(said.contains("nosuch0") && said.contains("wifi0"), "an unclear refusal: {said}");

    let since = Moment::now();
    stage.client.command(&stage.world, &["move", "cell0"])?;
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &["hand"])?;
    // Long enough for the better link to have taken over, had nobody decided.
    ride.goes_on_for(Duration::from_secs(15))?;
    let steps = stage.catch_up()?;
    let chosen = |step: &Step| ["preferred", "return", "metered"].contains(&step.reason.as_str());
    ensure!(!steps.iter().any(chosen), "the decision did not last: {steps:?}");

    let since = Moment::now();
    stage.client.command(&stage.world, &["move", "--auto"])?;
    stage.moved(&mut ride, since, ("cell0", "wifi0"), &["preferred"])?;

    // A decision is for a link that works.
    let since = Moment::now();
    stage.client.command(&stage.world, &["move", "wifi0"])?;
    stage.world.link("wifi0").black_hole(&BOTH);
    stage.swallows("wifi0", &BOTH)?;
    stage.moved(&mut ride, since, ("wifi0", "cell0"), &["black-hole", "peer-asked"])?;
    stage.end(ride)
}

pub(crate) fn the_preferred_link_carries_while_it_works() -> Result<()> {
    let prefer = list("paths", "prefer", "cell0");
    let mut stage = Stage::open(layout(), GATEWAY_V4.into(), prefer, |_| Ok(()))?;
    stage.settle("cell0", "wifi0")?;
    stage.catch_up()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    lend_and_return(&mut stage, &mut ride, &["preferred", "return", "black-hole", "peer-asked"])?;
    stage.end(ride)
}

pub(crate) fn a_metered_link_is_the_last_resort() -> Result<()> {
    let metered = list("paths", "metered", "wifi0");
    let mut stage = Stage::open(layout(), GATEWAY_V4.into(), metered, |_| Ok(()))?;
    stage.settle("cell0", "wifi0")?;
    stage.catch_up()?;
    let paths = stage.paths()?;
    let marks = ["wifi0", "cell0"].map(|link| path_of(&paths, link)["metered"] == true);
    ensure!(marks == [true, false], "what costs money is not shown: {paths}");
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    lend_and_return(&mut stage, &mut ride, &["metered", "return", "black-hole", "peer-asked"])?;
    stage.end(ride)
}

/// Cellular, the link of choice, dies; Wi-Fi carries until it is back.
fn lend_and_return(stage: &mut Stage, ride: &mut Ride, back: &[&str]) -> Result<()> {
    stage.carries(ride, "cell0")?;
    let since = Moment::now();
    stage.world.link("cell0").down()?;
    ensure!(!stage.has_default_route("cell0")?, "cellular is not down");
    stage.moved(ride, since, ("cell0", "wifi0"), &LOST)?;
    let since = Moment::now();
    stage.world.link("cell0").up()?;
    stage.moved(ride, since, ("wifi0", "cell0"), back)
}
