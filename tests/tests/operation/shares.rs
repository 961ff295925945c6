//! A line that is too narrow for what several want, and who gets how much of it.
//!
//! Bytes are compared with bytes of the same line and time; how fast anything is does not matter.

use anyhow::{Context, Result, ensure};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use whimbrel_tests::internet::{Direction, Shape};
use whimbrel_tests::lab::{HostLayout, Layout, Lease, LinkLayout, ORIGIN_V4, World};
use whimbrel_tests::traffic::{Event, Program, port, service};

use crate::PATIENCE;

/// The narrow line, in Mbit/s: debug builds on a busy machine fill it with ease.
const RATE: u64 = 24;

/// What the line carries before anything is counted: windows have grown, queues are full.
const LEAD: u64 = 6 << 20;

/// What it carries while it is watched: two seconds' worth.
const WATCHED: u64 = 6 << 20;

/// Another client, with a public address of its own.
fn desk() -> HostLayout {
    let lease = |net: u8, host: u8| Ipv4Addr::new(203, 0, net, host);
    let link = LinkLayout {
        v4: Some(Lease::new(lease(113, 70), 24, lease(113, 1))),
        v6: None,
        ..LinkLayout::bare("eth0", 100)
    };
    HostLayout { name: "desk".into(), links: vec![link] }
}

/// Waits until the gateway's line has carried so many bytes more to its clients.
fn until_carried(world: &World, bytes: u64) -> Result<()> {
    let carried = || world.link("gateway/eth0").count_one(Direction::Up).bytes;
    let (before, began) = (carried(), Instant::now());
    while carried() < before + bytes {
        ensure!(began.elapsed() < PATIENCE, "the line carries nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Bytes a download has got, by its last report since it was asked before.
fn got(load: &Program) -> Option<u64> {
    let bytes = load.reports().filter_map(|event| {
        if let Event::Progress { bytes, .. } = event { Some(bytes) } else { None }
    });
    bytes.last()
}

/// Downloads to a host, all of them under way.
fn downloads(world: &World, host: &str, count: usize) -> Result<Vec<Program>> {
    let to = service(ORIGIN_V4, port::SOURCE);
    let loads: Vec<Program> = (0..count)
        .map(|_| world.start_program(host, "download", to, &[]))
        .collect::<Result<_>>()?;
    for load in &loads {
        load.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. })).context("none")?;
    }
    Ok(loads)
}

/// Jain's index: 1 for equal shares, one in their number if one has all.
fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|it| *it as f64).sum();
    let squares: f64 = shares.iter().map(|it| (*it as f64).powi(2)).sum();
    sum * sum / (squares * shares.len() as f64)
}

fn tell(text: &str) {
    drop(std::io::stderr().write_all(format!("{text}\n").as_bytes()));
}

pub(crate) fn clients_share_a_full_line_however_many_flows_they_have() -> Result<()> {
    let shape = Shape::line(Duration::from_millis(5), RATE);
    let layout = Layout::standard().with_host(desk()).with_link("gateway/eth0", |link| {
        link.up = shape;
    });
    let world = World::build(layout)?;
    let _origin = world.start_origin()?;
    let _gateway = world.start_gateway()?;
    let hosts = ["laptop", "desk"];
    let _clients = hosts
        .iter()
        .map(|host| world.join_client(host).and_then(|()| world.start_client(host)))
        .collect::<Result<Vec<_>>>()?;
    let loads = [downloads(&world, "laptop", 8)?, downloads(&world, "desk", 2)?];
    until_carried(&world, LEAD)?;
    let look = || loads.each_ref().map(|loads| loads.iter().map(got).collect::<Vec<_>>());
    let before = look();
    until_carried(&world, WATCHED)?;
    let after = look();
    let mut shares = Vec::new();
    for (before, after) in before.iter().zip(&after) {
        // A flow that reported nothing meanwhile got nothing.
        let own = before.iter().zip(after);
        let own = own.map(|(before, after)| Some(after.as_ref()? - before.as_ref()?));
        shares.push(own.map(Option::unwrap_or_default).collect::<Vec<u64>>());
    }
    let sums: Vec<u64> = shares.iter().map(|own| own.iter().sum()).collect();
    tell(&format!("laptop and desk: {sums:?}, flows {shares:?}"));
    // By flows the desk would get a fifth of what there is, by clients half.
    let least = sums.iter().sum::<u64>() * 3 / 10;
    ensure!(sums.iter().all(|sum| *sum >= least), "{sums:?}: {shares:?}");
    for (host, own) in hosts.iter().zip(&shares) {
        ensure!(fairness(own) > 0.7, "the flows of the {host}: {own:?}");
    }
    // What is on its way need not take as long.
    world.link("gateway/eth0").shape_both(Shape { rate: None, ..shape });
    let mut loads: Vec<Program> = loads.into_iter().flatten().collect();
    loads.iter_mut().for_each(Program::stop);
    loads.iter_mut().try_for_each(|load| load.succeed(PATIENCE).map(drop).context("every byte"))
}

pub(crate) fn a_flow_that_fills_the_line_leaves_the_others_their_turn() -> Result<()> {
    /// What the line carries while keystrokes are counted: four seconds' worth, a fraction of what
    /// bulk may have written ahead of them.
    const BULK: u64 = 8 << 20;
    let shape = Shape::line(Duration::from_millis(5), 16);
    let layout = Layout::standard().with_link("wifi0", |link| {
        (link.up, link.down) = (shape, shape);
    });
    let world = World::build(layout)?;
    let _origin = world.start_origin()?;
    let _gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    // One line, so that everything shares it.
    world.link("cell0").down()?;
    let _client = world.start_client("laptop")?;
    for (bulk, to, way) in
        [("upload", port::SINK, Direction::Up), ("download", port::SOURCE, Direction::Down)]
    {
        world.link("wifi0").shape_both(shape);
        let carried = || world.link("wifi0").count_one(way).bytes;
        let mut load = world.start_program("laptop", bulk, service(ORIGIN_V4, to), &[])?;
        load.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
        let to = service(ORIGIN_V4, port::ECHO);
        let more = ["--every", "40", "--each"];
        let mut keys = world.start_program("laptop", "ping-pong", to, &more)?;
        keys.wait_for(PATIENCE, |event| matches!(event, Event::Pong { .. }))?;
        let (before, began) = (carried(), Instant::now());
        let mut pongs = 0;
        while carried() < before + BULK {
            ensure!(began.elapsed() < PATIENCE, "the line is not filled");
            std::thread::sleep(Duration::from_millis(10));
            pongs += keys.reports().filter(|event| matches!(event, Event::Pong { .. })).count();
        }
        tell(&format!("{pongs} keystrokes came back beside {BULK} bytes of {bulk}"));
        // Every 40 ms one leaves, a hundred in all.
        ensure!(pongs >= 40, "{pongs} beside {BULK} bytes of {bulk}");
        // What is on its way need not take as long; as far away it is as before.
        world.link("wifi0").shape_both(Shape { rate: None, ..shape });
        for program in [&mut keys, &mut load] {
            program.stop();
            program.succeed(PATIENCE).context(bulk)?;
        }
    }
    Ok(())
}
