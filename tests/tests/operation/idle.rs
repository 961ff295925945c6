//! What the daemons cost while nothing happens.

use anyhow::{Context, Result, ensure};
use std::io::Write as _;
use std::time::Duration;
use whimbrel_tests::daemon::Daemon;
use whimbrel_tests::dice;
use whimbrel_tests::lab::{Layout, World};

/// Until both paths are there, and what they were opened by is over.
const SETTLE: Duration = Duration::from_secs(8);

/// What a daemon may do in a second: paths are kept alive every 20 s, each by a few packets. A timer
/// that ticks shows.
const WAKE_UPS_PER_SECOND: u64 = 5;

pub(crate) fn daemons_with_nothing_to_do_lie_still() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let mut gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let mut client = world.start_client("laptop")?;
    std::thread::sleep(SETTLE);
    let seconds = dice::number("WHIMBREL_IDLE").unwrap_or(5);
    let before = [Cost::of(&mut client)?, Cost::of(&mut gateway)?];
    std::thread::sleep(Duration::from_secs(seconds));
    let after = [Cost::of(&mut client)?, Cost::of(&mut gateway)?];
    for (name, (before, after)) in ["client", "gateway"].into_iter().zip(before.iter().zip(&after))
    {
        let (woke, ticks) = (after.wake_ups - before.wake_ups, after.ticks - before.ticks);
        let text = format!(
            "{name}: {woke} wake-ups and {} ms of processor in {seconds} s, {} KiB resident\n",
            10 * ticks,
            after.resident_kib
        );
        drop(std::io::stderr().write_all(text.as_bytes()));
        ensure!(woke <= seconds * WAKE_UPS_PER_SECOND, "{text}");
    }
    Ok(())
}

/// What a process has used so far.
struct Cost {
    /// Times one of its threads began to run after it had waited.
    wake_ups: u64,
    /// Processor time, in hundredths of a second.
    ticks: u64,
    resident_kib: u64,
}

impl Cost {
    fn of(daemon: &mut Daemon) -> Result<Self> {
        let own = format!("/proc/{}", daemon.process().id());
        let mut wake_ups = 0;
        for task in std::fs::read_dir(format!("{own}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            wake_ups += field(&status, "voluntary_ctxt_switches:")?;
        }
        let stat = std::fs::read_to_string(format!("{own}/stat"))?;
        let after_name = stat.rsplit(')').next().context("no name")?;
        let times = after_name.split_whitespace().skip(11).take(2);
        let ticks = times.map(|it| it.parse::<u64>().unwrap_or(0)).sum();
        let status = std::fs::read_to_string(format!("{own}/status"))?;
        Ok(Self { wake_ups, ticks, resident_kib: field(&status, "VmRSS:")? })
    }
}

fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
    line.split_whitespace().next().context("no value")?.parse().context("no number")
}
