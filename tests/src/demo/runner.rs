//! One connection of the demo, and what has become of it.

use anyhow::Result;
use std::net::Ipv4Addr;
use std::time::Duration;
use whimbrel_tests::lab::{ORIGIN_V4, REFERENCE_V4, World};
use whimbrel_tests::traffic::{Event, Moment, Program, port, service};

/// Gaps shorter than this are the ordinary rhythm of packets.
pub(super) const NOTICEABLE: Duration = Duration::from_millis(25);

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A numbered stream at 12 Mbit/s: two of them fit into cellular with room to spare.
    Download,
    /// A message there and back every 10 ms.
    PingPong,
}

/// How a connection ended.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) at: Moment,
    pub(super) exact: bool,
    pub(super) error: Option<String>,
}

/// A connection and its history.
#[derive(Debug)]
pub(super) struct Runner {
    program: Program,
    history: History,
}

#[derive(Debug)]
struct History {
    opened: bool,
    last: Moment,
    bytes: u64,
    gaps: Vec<(Moment, Moment)>,
    ending: Option<Ending>,
}

impl Runner {
    /// Starts a connection, through Whimbrel or not.
    pub(super) fn start(world: &World, kind: Kind, carried: bool) -> Result<Self> {
        let address: Ipv4Addr = if carried { ORIGIN_V4 } else { REFERENCE_V4 };
        let patience = if carried { "10" } else { "1" };
        let gap = NOTICEABLE.as_millis().to_string();
        let common = ["--gap", &gap, "--patience", patience];
        let (program, service_port, own) = match kind {
            Kind::Download => ("download", port::SOURCE, ["--rate", "12000000"]),
            Kind::PingPong => ("ping-pong", port::ECHO, ["--every", "10"]),
        };
        let to = service(address, service_port);
        let program =
            world.start_program("laptop", program, to, &[common.as_slice(), &own].concat())?;
        Ok(Self { program, history: History::begin() })
    }

    /// Takes note of what has been reported since.
    pub(super) fn listen(&mut self) {
        for event in self.program.reports() {
            self.history.note(event);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.history.opened
    }

    pub(super) fn bytes(&self) -> u64 {
        self.history.bytes
    }

    pub(super) fn ending(&self) -> Option<&Ending> {
        self.history.ending.as_ref()
    }

    /// How long nothing has arrived. Progress comes every 50 ms, so less than 100 ms is nothing.
    pub(super) fn silence(&self) -> Duration {
        let silence = Moment::now().since(self.history.last);
        if silence < Duration::from_millis(100) { Duration::ZERO } else { silence }
    }

    /// The longest gap that began in this time, one that still lasts included; zero if none was
    /// noticeable.
    pub(super) fn longest_gap(&self, from: Moment, until: Moment) -> Duration {
        self.gaps_within(from, until).map(|(begin, end)| end.since(begin)).max().unwrap_or_default()
    }

    /// The first arrival after a moment that ended a gap which lasted at that moment.
    pub(super) fn moving_again(&self, after: Moment) -> Option<Moment> {
        let over = |(begin, end): &&(Moment, Moment)| *begin < after && *end >= after;
        self.history.gaps.iter().find(over).map(|(_, end)| *end)
    }

    fn gaps_within(
        &self,
        from: Moment,
        until: Moment,
    ) -> impl Iterator<Item = (Moment, Moment)> + '_ {
        // What was in the air when something happened began its gap a little earlier.
        const EARLIER: u64 = 100_000;
        let window = from.0.saturating_sub(EARLIER)..until.0.saturating_sub(EARLIER);
        let lasting = (!self.silence().is_zero()).then(|| (self.history.last, Moment::now()));
        self.history
            .gaps
            .iter()
            .copied()
            .chain(lasting)
            .filter(move |(begin, _)| window.contains(&begin.0))
    }

    /// Asks it to finish its exchange.
    pub(super) fn stop(&mut self) {
        self.program.stop();
    }

    /// Waits for its end.
    pub(super) fn finish(&mut self, patience: Duration) -> Result<()> {
        let (_, events) = self.program.finish(patience)?;
        for event in events {
            self.history.note(event);
        }
        Ok(())
    }
}

impl History {
    fn begin() -> Self {
        let last = Moment::now();
        Self { opened: false, last, bytes: 0, gaps: Vec::new(), ending: None }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Open { at, .. } => (self.opened, self.last) = (true, at),
            Event::Progress { at, bytes } => (self.last, self.bytes) = (at, bytes),
            Event::Gap { from, to } => {
                self.last = self.last.max(to);
                self.gaps.push((from, to));
            }
            Event::Failed { at, error, .. } => {
                self.ending = Some(Ending { at, exact: false, error: Some(error) });
            }
            Event::End { at, bytes, exact, error, .. } => {
                self.bytes = bytes;
                self.ending = Some(Ending { at, exact, error });
            }
            Event::Ready | Event::Pong { .. } | Event::Closed { .. } => {}
        }
    }
}
