//! Keystrokes beside bulk: a ping-pong over a line that an upload or a download fills, through both
//! daemons and, to compare, through plain TCP on the same line.
//!
//! How long the round trips were is told and judged nowhere: speed is measured on a quiet machine.
//! That a small write does not wait behind bulk is proved on a virtual clock (`carrier/tests/pair`).

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;
use whimbrel_tests::dice;
use whimbrel_tests::internet::{Direction, Shape};
use whimbrel_tests::lab::{Layout, ORIGIN_V4, REFERENCE_V4, World};
use whimbrel_tests::traffic::{Event, Program, port, service};

use crate::PATIENCE;

/// Milliseconds between two keystrokes.
const EVERY: &str = "25";

/// What bulk does before the keystrokes begin: its windows have grown.
const LEAD: Duration = Duration::from_secs(1);

pub(crate) fn keystrokes_pass_bulk_that_fills_the_line() -> Result<()> {
    // In Mbit/s: debug builds on a busy machine fill it with ease.
    let rate = dice::number("WHIMBREL_RATE").unwrap_or(20);
    let flows = dice::number("WHIMBREL_FLOWS").unwrap_or(1);
    let shape = Shape::line(Duration::from_millis(10), rate);
    let layout = Layout::standard().with_link("wifi0", |link| {
        (link.up, link.down) = (shape, shape);
    });
    let world = World::build(layout)?;
    let _origin = world.start_origin()?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    // One line, so that everything shares it.
    world.link("cell0").down()?;
    let client = world.start_client("laptop")?;
    for (name, host) in [("plain", REFERENCE_V4), ("carried", ORIGIN_V4)] {
        tell(name, "alone", &type_to(&world, host)?);
        for (bulk, to, way) in
            [("upload", port::SINK, Direction::Up), ("download", port::SOURCE, Direction::Down)]
        {
            let mut loads = Vec::new();
            for _ in 0..flows {
                loads.push(world.start_program("laptop", bulk, service(host, to), &[])?);
            }
            std::thread::sleep(LEAD);
            let before = world.link("wifi0").count_one(way);
            let times = type_to(&world, host)?;
            let after = world.link("wifi0").count_one(way);
            let bytes = after.bytes - before.bytes;
            ensure!(bytes > 500_000, "the line was not filled: {bytes} bytes during it");
            tell(name, &format!("beside {flows} {bulk} ({bytes} bytes)"), &times);
            if host == ORIGIN_V4 {
                tell_paths(&client.command(&world, &["metrics"])?, "whimbrel_path_rtt");
                tell_paths(&gateway.command(&world, &["metrics"])?, "whimbrel_gateway_client_rtt");
            }
            loads.into_iter().try_for_each(end)?;
        }
    }
    Ok(())
}

/// Round trips of keystrokes, in microseconds, the shortest first.
fn type_to(world: &World, host: Ipv4Addr) -> Result<Vec<u64>> {
    let count = dice::number("WHIMBREL_KEYS").unwrap_or(40).to_string();
    let more = ["--every", EVERY, "--count", &count, "--each"];
    let mut keys = world.start_program("laptop", "ping-pong", service(host, port::ECHO), &more)?;
    let events = keys.succeed(PATIENCE)?;
    let mut times: Vec<u64> = events
        .iter()
        .filter_map(
            |event| {
                if let Event::Pong { rtt_us, .. } = event { Some(*rtt_us) } else { None }
            },
        )
        .collect();
    ensure!(times.len().to_string() == count, "{} of {count} came back", times.len());
    times.sort_unstable();
    Ok(times)
}

/// Every byte of the bulk has to be right, too.
fn end(mut load: Program) -> Result<()> {
    load.stop();
    load.succeed(PATIENCE).context("the bulk")?;
    Ok(())
}

/// What the daemons make of the round trip themselves: what is more than that is ours.
fn tell_paths(figures: &str, of: &str) {
    for line in figures.lines().filter(|line| line.starts_with(of)) {
        drop(writeln!(std::io::stderr().lock(), "    {line}"));
    }
}

fn tell(name: &str, what: &str, times: &[u64]) {
    let at = |share: usize| times[(times.len() - 1) * share / 100] as f64 / 1000.0;
    let text = format!(
        "{name} {what}: median {:.1} ms, 90 % {:.1} ms, 99 % {:.1} ms, most {:.1} ms\n",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    // Nobody reads it if this fails.
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
