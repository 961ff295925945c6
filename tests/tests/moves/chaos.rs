//! Networks that come and go at random.

use anyhow::{Context, Result};
use std::time::Duration;
use whimbrel_tests::dice::{self, Dice};
use whimbrel_tests::internet::Direction;
use whimbrel_tests::lab::{BOTH, ORIGIN_V4};
use whimbrel_tests::traffic::Moment;

use crate::ride::Ride;
use crate::stage::{Stage, tell};

const LINKS: [&str; 2] = ["wifi0", "cell0"];

/// The order of events of a usual run, the same each time, so that a change is judged by what it
/// changes. `WHIMBREL_SOAK` makes it as many seconds as wanted, in an order of their own,
/// `WHIMBREL_SEED` repeats one.
const SEED: u64 = 1;

/// As long as a test may be.
const TIME: Duration = Duration::from_secs(20);

/// How long one good link is enough for everything to move again on a busy machine.
const RECOVERY: Duration = Duration::from_secs(4);

pub(crate) fn networks_may_come_and_go_at_random() -> Result<()> {
    let soak = dice::number("WHIMBREL_SOAK");
    let usual = soak.is_none() && dice::number("WHIMBREL_SEED").is_none();
    let seed = if usual { SEED } else { dice::seed() };
    let time = soak.map_or(TIME, Duration::from_secs);
    tell(&format!("seed {seed}, {time:?}"));
    let mut stage = Stage::raise()?;
    let mut ride = Ride::begin(&stage.world, ORIGIN_V4)?;
    let (mut dice, begin, mut rounds) = (Dice::new(seed), Moment::now(), 0);
    while Moment::now().since(begin) < time {
        let mut story = Vec::new();
        for _ in 0..=dice.throw(4) {
            story.push(befall(&stage, &mut dice)?);
        }
        let good = LINKS[usize::from(dice.throw(2) == 0)];
        stage.world.link(good).heal();
        stage.world.link(good).up()?;
        let healed = Moment::now();
        stage.goes_on_after(&mut ride, healed).with_context(|| format!("{story:?}, {good}"))?;
        let took = Moment::now().since(healed);
        if took > RECOVERY {
            tell(&format!("moving {took:.1?} after {good} came back: {}", story.join(", ")));
        }
        rounds += 1;
    }
    for link in LINKS {
        stage.world.link(link).heal();
        stage.world.link(link).up()?;
    }
    tell(&format!("{rounds} rounds, {} moves", stage.new_steps()?.len()));
    stage.end(ride)
}

/// Something happens to a network and lasts a while.
fn befall(stage: &Stage, dice: &mut Dice) -> Result<String> {
    let name = LINKS[usize::from(dice.throw(2) == 0)];
    let link = stage.world.link(name);
    let what = match dice.throw(8) {
        0 | 1 => {
            link.black_hole(&BOTH);
            "swallows everything"
        }
        2 => {
            link.black_hole(&[Direction::Up]);
            "swallows what leaves"
        }
        3 => {
            link.black_hole(&[Direction::Down]);
            "swallows what arrives"
        }
        4 => {
            link.down()?;
            "goes down"
        }
        5 => {
            link.rebind();
            "is rebound"
        }
        _ => {
            link.heal();
            link.up()?;
            "heals"
        }
    };
    let lasts = match dice.throw(5) {
        0 => 20,
        1 => 150,
        2 => 400,
        3 => 900,
        _ => 2500,
    };
    let lasts = Duration::from_millis(lasts);
    std::thread::sleep(lasts);
    Ok(format!("{name} {what} for {lasts:?}"))
}
