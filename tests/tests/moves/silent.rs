//! Networks that fail behind the host's back.

use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use whimbrel_tests::internet::packet::{Headers, UDP};
use whimbrel_tests::internet::{Direction, Hook, Verdict};
use whimbrel_tests::lab::{BOTH, GATEWAY_V4, ORIGIN_V4, REFERENCE_V4, World};
use whimbrel_tests::traffic::Moment;

use crate::ride::Ride;
use crate::stage::{PATIENCE, Stage, layout, state_of, tell, unplug};

/// The address Wi-Fi's translator has.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// The address it gets.
const OTHER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

pub(crate) fn a_black_hole_the_host_never_notices_is_left() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    fall_silent(&mut stage, &mut ride, &BOTH)?;
    // It works again, and is the better one.
    let since = Moment::now();
    stage.world.link("wifi0").heal();
    stage.moved(&mut ride, since, ("cell0", "wifi0"), &["return", "black-hole", "peer-asked"])?;
    stage.end(ride)
}

pub(crate) fn a_black_hole_whose_route_goes_late_is_left_once() -> Result<()> {
    /// How long operating systems take to notice.
    const LATE: Duration = Duration::from_secs(10);
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let since = Moment::now();
    fall_silent(&mut stage, &mut ride, &BOTH)?;
    ride.goes_on_for(LATE.saturating_sub(Moment::now().since(since)))?;
    let late = Moment::now();
    stage.world.link("wifi0").remove_default_route()?;
    ensure!(!stage.has_default_route("wifi0")?, "the route is still there");
    ride.goes_on_for(Duration::from_secs(2))?;
    stage.carries(&mut ride, "cell0")?;
    ride.tell_gaps("the route goes late", late)?;
    let steps = stage.catch_up()?;
    let again = steps.iter().any(|step| step.from == "wifi0");
    ensure!(!again, "the late news moved the traffic once more: {steps:?}");
    stage.end(ride)
}

pub(crate) fn a_link_that_only_receives_is_left() -> Result<()> {
    one_direction(Direction::Up)
}

pub(crate) fn a_link_that_only_sends_is_left() -> Result<()> {
    one_direction(Direction::Down)
}

fn one_direction(dead: Direction) -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let alive = if dead == Direction::Up { Direction::Down } else { Direction::Up };
    let passed = stage.world.link("wifi0").count_one(alive).packets;
    fall_silent(&mut stage, &mut ride, &[dead])?;
    let count = stage.world.link("wifi0").count_one(alive);
    ensure!(count.swallowed == 0 && count.packets > passed, "both directions died: {count:?}");
    stage.end(ride)
}

/// Wi-Fi swallows everything in these directions while its interface stays as it was.
fn fall_silent(stage: &mut Stage, ride: &mut Ride, dead: &[Direction]) -> Result<()> {
    stage.carries(ride, "wifi0")?;
    let since = Moment::now();
    stage.world.link("wifi0").black_hole(dead);
    stage.swallows("wifi0", dead)?;
    stage.moved(ride, since, ("wifi0", "cell0"), &["black-hole", "peer-asked"])
}

pub(crate) fn a_rebinding_goes_unnoticed() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let sources = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = || sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let hook = note_sources(Arc::clone(&sources));
    stage.world.link("gateway/eth0").set_hook(Some(hook));
    stage.carries(&mut ride, "wifi0")?;
    for outside in [OUTSIDE, OTHER_OUTSIDE] {
        let (since, before) = (Moment::now(), seen());
        ensure!(before.iter().any(|source| source.ip() == OUTSIDE), "not seen: {before:?}");
        let wifi = stage.world.link("wifi0");
        if outside == OUTSIDE {
            wifi.rebind();
        } else {
            wifi.rebind_to(Some(OTHER_OUTSIDE), None);
        }
        stage.until("the gateway hears from another address", |_| {
            let fresh = &seen() - &before;
            Ok(fresh.iter().any(|source| source.ip() == outside))
        })?;
        ride.goes_on_for(Duration::from_secs(2))?;
        stage.carries(&mut ride, "wifi0")?;
        ride.tell_gaps(&format!("rebinding to {outside}"), since)?;
    }
    // On a quiet machine there are none.
    tell(&format!("{} moves", stage.catch_up()?.len()));
    stage.end(ride)
}

/// Until the new address is validated the spare path is the only one the gateway may use.
pub(crate) fn a_rebinding_while_the_spare_link_swallows_everything_strands_nothing() -> Result<()> {
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    for _ in 0..2 {
        stage.settle("wifi0", "cell0")?;
        let since = Moment::now();
        stage.world.link("cell0").black_hole(&BOTH);
        for _ in 0..3 {
            stage.world.link("wifi0").rebind();
            ride.goes_on_for(Duration::from_millis(300))?;
        }
        ride.tell_gaps("rebindings beside a dead spare", since)?;
        stage.world.link("cell0").heal();
    }
    stage.end(ride)
}

/// Notes whom the gateway's carrier hears from.
fn note_sources(sources: Arc<Mutex<BTreeSet<SocketAddr>>>) -> Hook {
    Box::new(move |direction, packet| {
        if direction == Direction::Down
            && let Some(Headers { source, source_port: Some(port), protocol: UDP, .. }) =
                Headers::read(packet)
        {
            let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.insert(SocketAddr::new(source, port));
        }
        Verdict::Pass
    })
}

/// The kernel prefers Wi-Fi, everything there answers, and nothing gets through.
pub(crate) fn a_captive_network_never_carries_anything() -> Result<()> {
    let before = |world: &World| {
        world.link("wifi0").captive(true);
        unplug(&world.link("wifi0"))
    };
    let mut stage = Stage::open(layout(), GATEWAY_V4.into(), |_| {}, before)?;
    stage.until_active("cell0")?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let since = Moment::now();
    stage.world.link("wifi0").plug()?;
    ensure!(stage.has_default_route("wifi0")?, "Wi-Fi did not come up");
    answers_itself(&stage.world)?;

    let mut seen = Vec::new();
    let mut look = |stage: &mut Stage, ride: &mut Ride, time: Duration| -> Result<()> {
        let begin = Moment::now();
        while Moment::now().since(begin) < time {
            let paths = stage.paths()?;
            let (wifi, cell) = (state_of(&paths, "wifi0"), state_of(&paths, "cell0"));
            let carries = ["warm", "active", "suspect", "steered"].contains(&wifi);
            ensure!(!carries && cell == "active", "shown as carrying: {paths}");
            if seen.last().is_none_or(|last| last != wifi) {
                seen.push(wifi.to_owned());
            }
            ride.goes_on_after(Moment::now())?;
        }
        Ok(())
    };
    look(&mut stage, &mut ride, Duration::from_secs(5))?;
    // Not even a person can make it carry.
    stage.client.command(&stage.world, &["move", "wifi0"])?;
    look(&mut stage, &mut ride, Duration::from_secs(4))?;
    let dropped = stage.world.link("wifi0").count().captured;
    ensure!(dropped > 0, "nothing was ever tried over Wi-Fi");
    tell(&format!("{dropped} packets dropped; Wi-Fi was {}", seen.join(", ")));
    ensure!(seen.iter().any(|state| state == "probing"), "never tried: {seen:?}");
    let steps = stage.catch_up()?;
    ensure!(steps.is_empty(), "it was moved onto: {steps:?}");
    ride.tell_gaps("a captive network came", since)?;

    // Once somebody has signed in it is a network like any other.
    let since = Moment::now();
    stage.world.link("wifi0").captive(false);
    stage.client.command(&stage.world, &["move", "wifi0"])?;
    stage.moved(&mut ride, since, ("cell0", "wifi0"), &["hand", "preferred", "return"])?;
    stage.end(ride)
}

/// What leaves directly is answered by the network itself, wherever it was meant for.
fn answers_itself(world: &World) -> Result<()> {
    let to = SocketAddr::new(REFERENCE_V4.into(), 4321);
    let asked = world.host("laptop").thread(move || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    });
    let page =
        asked.join().map_err(|_| anyhow!("asking panicked"))?.context("the network is silent")?;
    ensure!(page.contains("portal.example"), "not the sign-in page: {page:?}");
    Ok(())
}
