//! Every link at once.

use anyhow::{Result, ensure};
use std::time::Duration;
use whimbrel_tests::lab::{BOTH, ORIGIN_V4};
use whimbrel_tests::traffic::Moment;

use crate::ride::Ride;
use crate::stage::{Stage, outage, tell};

const LINKS: [&str; 2] = ["wifi0", "cell0"];

pub(crate) fn an_outage_of_every_link_is_survived() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let session = stage.client.status(&stage.world)?["session"].clone();
    for link in LINKS {
        stage.world.link(link).down()?;
        ensure!(!stage.has_default_route(link)?, "{link} is not down");
    }
    sit_out(&mut stage, &mut ride)?;
    let back = Moment::now();
    for link in LINKS {
        stage.world.link(link).up()?;
    }
    stage.goes_on_after(&mut ride, Moment::now())?;
    ride.tell_gaps("every link down", back)?;
    tell(&format!("every link down: moving within {:.1?}", Moment::now().since(back)));
    stage.until("a link carries", |stage| is_carrying(stage))?;
    ensure!(stage.client.status(&stage.world)?["session"] == session, "another session");
    stage.end(ride)
}

pub(crate) fn an_outage_no_interface_shows_is_survived() -> Result<()> {
    let stage = Stage::raise()?;
    let ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    fall_silent(stage, ride)
}

pub(crate) fn connections_that_have_just_opened_survive_an_outage() -> Result<()> {
    let stage = Stage::raise()?;
    let ride = Ride::open(&stage.world, ORIGIN_V4)?;
    fall_silent(stage, ride)
}

/// Every network swallows everything; the one that did not carry comes back alone.
fn fall_silent(mut stage: Stage, mut ride: Ride) -> Result<()> {
    for link in LINKS {
        stage.world.link(link).black_hole(&BOTH);
    }
    sit_out(&mut stage, &mut ride)?;
    for link in LINKS {
        stage.swallows(link, &BOTH[..1])?;
    }
    let back = Moment::now();
    stage.world.link("cell0").heal();
    stage.goes_on_after(&mut ride, back)?;
    tell(&format!("every link silent: moving within {:.1?}", Moment::now().since(back)));
    stage.until_active("cell0")?;
    stage.carries(&mut ride, "cell0")?;
    stage.world.link("wifi0").heal();
    stage.end(ride)
}

/// Nothing arrives for as long as the outage lasts, and nobody gives up.
fn sit_out(stage: &mut Stage, ride: &mut Ride) -> Result<()> {
    let (begin, lasts) = (Moment::now(), outage());
    stage.until("nothing arrives any more", |_| ride.is_silent_for(Duration::from_secs(2)))?;
    std::thread::sleep(lasts.saturating_sub(Moment::now().since(begin)));
    ensure!(ride.is_silent_for(lasts / 2)?, "something arrived in an outage");
    let status = stage.client.status(&stage.world)?;
    tell(&format!("in the outage: {} with {} flows", status["state"], status["flows"]));
    ensure!(status["flows"]["open"] == 2, "the flows are gone: {status}");
    stage.no_route_to_the_gateway()
}

fn is_carrying(stage: &Stage) -> Result<bool> {
    let paths = stage.paths()?;
    Ok(paths.as_array().into_iter().flatten().any(|path| path["state"] == "active"))
}

/// What was in flight on a lost link leaves by the other one for a while. That must be over once
/// the link is back, or both would depend on one network.
pub(crate) fn a_link_that_is_back_at_once_stands_alone() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    stage.world.link("wifi0").down()?;
    ensure!(!stage.has_default_route("wifi0")?, "Wi-Fi was not lost");
    stage.until_active("cell0")?;
    std::thread::sleep(Duration::from_millis(100));
    stage.world.link("wifi0").up()?;
    std::thread::sleep(Duration::from_millis(50));
    let since = Moment::now();
    stage.world.link("cell0").black_hole(&BOTH);
    stage.swallows("cell0", &BOTH)?;
    stage.until_active("wifi0")?;
    stage.carries(&mut ride, "wifi0")?;
    ride.tell_gaps("cellular silent just after Wi-Fi is back", since)?;
    stage.catch_up()?;
    stage.end(ride)
}

pub(crate) fn both_links_may_flap() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let mut lost = 0;
    for round in 0..6_u64 {
        for link in LINKS {
            let pause = Duration::from_millis(250 + 50 * round);
            stage.world.link(link).down()?;
            lost += u32::from(!stage.has_default_route(link)?);
            std::thread::sleep(pause);
            stage.world.link(link).up()?;
            std::thread::sleep(pause);
        }
    }
    ensure!(lost == 12, "only {lost} of 12 losses happened");
    stage.goes_on_after(&mut ride, Moment::now())?;
    for link in LINKS.repeat(4) {
        stage.world.link(link).black_hole(&BOTH);
        std::thread::sleep(Duration::from_millis(400));
        stage.world.link(link).heal();
        std::thread::sleep(Duration::from_millis(400));
    }
    let swallowed = stage.world.link("wifi0").count_one(BOTH[0]).swallowed;
    ensure!(swallowed > 0, "no black hole ever swallowed anything");
    stage.goes_on_after(&mut ride, Moment::now())?;
    stage.until("a link carries", |stage| is_carrying(stage))?;
    let steps = stage.catch_up()?;
    ensure!(!steps.is_empty(), "the traffic never moved");
    tell(&format!("{} moves", steps.len()));
    stage.end(ride)
}
