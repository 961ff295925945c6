//! The two connections that ride through every test, and what became of them.

use anyhow::{Context, Result, bail, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use whimbrel_tests::lab::World;
use whimbrel_tests::traffic::{Event, Moment, Program, longest_gap, port, service};

use crate::stage::{LOOK_EVERY, PATIENCE, tell};

/// What the origin sends in bits per second: debug builds on a busy machine carry it with ease.
const RATE: &str = "8000000";

/// A download and a ping-pong.
pub(crate) struct Ride {
    runners: [Runner; 2],
}

struct Runner {
    name: &'static str,
    program: Program,
    last: Moment,
    bytes: u64,
    gaps: Vec<(Moment, Moment)>,
}

impl Ride {
    /// Starts both and waits until both move.
    pub(crate) fn begin(world: &World, origin: impl Into<IpAddr>) -> Result<Self> {
        let mut ride = Self::open(world, origin)?;
        // Opening is no more than a promise.
        ride.goes_on_after(Moment::now())?;
        Ok(ride)
    }

    /// Starts both and waits until both are open, which is before anything has arrived.
    pub(crate) fn open(world: &World, origin: impl Into<IpAddr>) -> Result<Self> {
        let origin = origin.into();
        let start = |name, service_port, more: [&str; 2]| -> Result<Runner> {
            let to = service(origin, service_port);
            let common = ["--gap", "25", "--patience", "60"];
            let arguments = [common.as_slice(), &more].concat();
            let program = world.start_program("laptop", name, to, &arguments)?;
            let (last, gaps) = (Moment::now(), Vec::new());
            Ok(Runner { name, program, last, bytes: 0, gaps })
        };
        let download = start("download", port::SOURCE, ["--rate", RATE])?;
        let ping_pong = start("ping-pong", port::ECHO, ["--every", "10"])?;
        for runner in [&download, &ping_pong] {
            let open = |event: &Event| matches!(event, Event::Open { .. });
            runner.program.wait_for(PATIENCE, open).context(runner.name)?;
        }
        Ok(Self { runners: [download, ping_pong] })
    }

    /// Waits until both have received something that arrived after a moment.
    pub(crate) fn goes_on_after(&mut self, moment: Moment) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for runner in &mut self.runners {
            while runner.bytes == 0 || runner.last <= moment {
                ensure!(
                    Instant::now() < deadline,
                    "{} stands still at {} bytes for {:?}",
                    runner.name,
                    runner.bytes,
                    Moment::now().since(runner.last)
                );
                runner.listen()?;
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    /// Waits until both have gone on for a while from now.
    pub(crate) fn goes_on_for(&mut self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        self.goes_on_after(Moment::now())
    }

    /// Nothing arrives: whether both have been silent for this long.
    pub(crate) fn is_silent_for(&mut self, time: Duration) -> Result<bool> {
        for runner in &mut self.runners {
            runner.listen()?;
        }
        Ok(self.runners.iter().all(|runner| Moment::now().since(runner.last) >= time))
    }

    /// Tells the longest gap of each around a moment.
    pub(crate) fn tell_gaps(&mut self, of: &str, around: Moment) -> Result<()> {
        /// What was in the air arrives a little later, and clocks of the wall are coarse.
        const MARGIN: u64 = 500_000;
        for runner in &mut self.runners {
            runner.listen()?;
            let near = |(begin, end): &&(Moment, Moment)| {
                end.0 + MARGIN / 5 >= around.0 && begin.0 <= around.0 + MARGIN
            };
            let gaps = runner.gaps.iter().filter(near);
            let longest = gaps.map(|(begin, end)| end.since(*begin)).max();
            let text = longest.map_or_else(|| "no gap".to_owned(), |gap| format!("gap {gap:.1?}"));
            tell(&format!("{of}: {} {text}", runner.name));
        }
        Ok(())
    }

    /// Ends both in an orderly way: every byte must have been right, and none missing.
    pub(crate) fn end(mut self) -> Result<()> {
        for runner in &mut self.runners {
            runner.program.stop();
        }
        for runner in &mut self.runners {
            let events = runner.program.succeed(PATIENCE).context(runner.name)?;
            let exact = events.iter().any(|event| {
                matches!(event, Event::End { exact: true, bytes: 1.., error: None, .. })
            });
            ensure!(exact, "{} was not exact: {:?}", runner.name, events.last());
            let longest = longest_gap(&events).unwrap_or_default();
            tell(&format!("{} whole, longest gap {longest:.1?}", runner.name));
        }
        Ok(())
    }
}

impl Runner {
    fn listen(&mut self) -> Result<()> {
        for event in self.program.reports() {
            match event {
                Event::Open { at, .. } => self.last = at,
                Event::Progress { at, bytes } => (self.last, self.bytes) = (at, bytes),
                Event::Gap { from, to } => self.gaps.push((from, to)),
                Event::Ready | Event::Pong { .. } | Event::Closed { .. } => {}
                Event::Failed { .. } | Event::End { .. } => {
                    bail!("{} did not survive: {event:?}", self.name)
                }
            }
        }
        Ok(())
    }
}
