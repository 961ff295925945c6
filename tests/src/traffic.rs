//! Traffic for the lab: services of the origin and programs of the laptop, each a process of its
//! own that reports what it sees as JSON lines on standard output.
//!
//! A client that runs until told (`download`, `ping-pong`) stops in an orderly way when its
//! standard input is closed: it finishes the exchange and says whether every byte was right.

use clap::{Parser, Subcommand};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

mod arrivals;
mod bulk;
mod idle;
mod manners;
mod origin;
mod pattern;
mod pingpong;
mod run;

pub use run::{Program, longest_gap, service};

/// Where the origin's services listen, on every address.
pub mod port {
    /// Sends a numbered stream.
    pub const SOURCE: u16 = 7000;
    /// Takes and checks a numbered stream, then says how many bytes were right.
    pub const SINK: u16 = 7001;
    /// Sends everything back.
    pub const ECHO: u16 = 7002;
    /// Reads to the end, then answers with what it counted: half-close by the client.
    pub const LAST_WORD: u16 = 7003;
    /// Sends a greeting and its end at once, then reads to the client's end: half-close by the
    /// server. It reports what it read.
    pub const EARLY_END: u16 = 7004;
    /// Answers the first byte with a reset.
    pub const RESET: u16 = 7005;
    /// Accepts and never reads.
    pub const DEAF: u16 = 7006;
    /// Reads, and reports whether the end was orderly or a reset.
    pub const WITNESS: u16 = 7007;
    /// Nobody listens here.
    pub const REFUSED: u16 = 7009;
    /// A few HTTP pages, for programs that are not ours.
    pub const HTTP: u16 = 80;
}

/// Microseconds of CLOCK_MONOTONIC: comparable between processes of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Self(seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000)
    }

    /// How long after `earlier`; zero if it was not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// What a program of the lab reports, one JSON line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The services listen.
    Ready,
    /// The connection is open.
    Open {
        /// When.
        at: Moment,
        /// How long connecting took, in microseconds.
        took_us: u64,
        /// How many are open.
        count: usize,
    },
    /// It failed to open.
    Failed {
        /// When.
        at: Moment,
        /// How long it tried, in microseconds.
        took_us: u64,
        /// The kind of failure, as `std::io::ErrorKind` names it.
        kind: String,
        /// The system's words.
        error: String,
    },
    /// Bytes so far; at most one every 50 ms.
    Progress {
        /// When the last of them arrived.
        at: Moment,
        /// How many.
        bytes: u64,
    },
    /// Nothing arrived for a while, then something did.
    Gap {
        /// The last arrival before it.
        from: Moment,
        /// The first arrival after it.
        to: Moment,
    },
    /// A round trip of a ping-pong, if asked for.
    Pong {
        /// When it came back.
        at: Moment,
        /// Its number.
        sequence: u64,
        /// Its round-trip time in microseconds.
        rtt_us: u64,
    },
    /// It is over.
    End {
        /// When.
        at: Moment,
        /// Bytes that arrived.
        bytes: u64,
        /// Whether every byte was right and none is missing.
        exact: bool,
        /// The longest time between two arrivals, in microseconds.
        longest_gap_us: u64,
        /// What went wrong, if something did.
        error: Option<String>,
    },
    /// A connection of the origin is over.
    Closed {
        /// The service's port.
        service: u16,
        /// The other end.
        peer: SocketAddr,
        /// Bytes read from it.
        bytes: u64,
        /// Whether it ended with a reset instead of an orderly end.
        reset: bool,
    },
}

impl Event {
    /// Reads a line of output.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    fn report(&self) {
        let Ok(mut line) = serde_json::to_string(self) else { return };
        line.push('\n');
        let mut stdout = std::io::stdout().lock();
        // Whoever listened has gone; the process ends soon.
        drop(stdout.write_all(line.as_bytes()));
        drop(stdout.flush());
    }

    fn failed(since: Moment, error: &std::io::Error) -> Self {
        let at = Moment::now();
        let took_us = at.0 - since.0;
        Self::Failed { at, took_us, kind: format!("{:?}", error.kind()), error: error.to_string() }
    }
}

/// How a client connects and what it tells.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Target {
    /// The service.
    #[arg(long)]
    to: SocketAddr,
    /// Gaps at least this long are reported, in milliseconds.
    #[arg(long, default_value_t = 30)]
    gap: u64,
    /// Seconds to wait for the end of the exchange once asked to stop.
    #[arg(long, default_value_t = 20)]
    patience: u64,
}

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// All services.
    Origin,
    /// Read a numbered stream.
    Download {
        #[command(flatten)]
        target: Target,
        /// Bytes; without it until standard input closes.
        #[arg(long)]
        bytes: Option<u64>,
        /// Bits per second the origin sends at most.
        #[arg(long, default_value_t = 0)]
        rate: u64,
        /// Stop reading after this many bytes …
        #[arg(long, default_value_t = u64::MAX)]
        pause_at: u64,
        /// … for this many milliseconds.
        #[arg(long, default_value_t = 0)]
        pause: u64,
    },
    /// Send a numbered stream.
    Upload {
        #[command(flatten)]
        target: Target,
        /// Bytes; without it until standard input closes.
        #[arg(long)]
        bytes: Option<u64>,
    },
    /// Small messages there and back.
    PingPong {
        #[command(flatten)]
        target: Target,
        /// Milliseconds between two messages; 0: the next leaves when the last came back.
        #[arg(long, default_value_t = 20)]
        every: u64,
        /// How many; without it until standard input closes.
        #[arg(long)]
        count: Option<u64>,
        /// Report every round trip.
        #[arg(long)]
        each: bool,
    },
    /// Open connections, hold them until standard input closes, then prove each alive.
    Idle {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long)]
        count: usize,
    },
    /// Try to connect, and say what came of it.
    Knock {
        #[command(flatten)]
        target: Target,
    },
    /// Send, end, and read what comes after the end.
    HalfClose {
        #[command(flatten)]
        target: Target,
        /// Bytes to send.
        #[arg(long, default_value_t = 100_000)]
        bytes: u64,
    },
    /// Read to the other side's end, then go on sending.
    SpeakLast {
        #[command(flatten)]
        target: Target,
        /// Bytes to send after it.
        #[arg(long, default_value_t = 100_000)]
        bytes: u64,
    },
    /// Send a byte and say how the connection ended.
    Provoke {
        #[command(flatten)]
        target: Target,
    },
    /// Send a byte and reset the connection.
    Abort {
        #[command(flatten)]
        target: Target,
    },
}

/// Runs one program of the lab.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let name = std::iter::once(OsString::from("traffic"));
    match Arguments::try_parse_from(name.chain(arguments)) {
        Ok(arguments) => arguments.role.run(),
        Err(error) => {
            drop(error.print());
            ExitCode::from(2)
        }
    }
}

impl Role {
    fn run(self) -> ExitCode {
        match self {
            Self::Origin => origin::serve(),
            Self::Download { target, bytes, rate, pause_at, pause } => {
                let pause = bulk::Pause { at: pause_at, lasts: Duration::from_millis(pause) };
                bulk::download(target, bytes, rate, pause)
            }
            Self::Upload { target, bytes } => bulk::upload(target, bytes),
            Self::PingPong { target, every, count, each } => {
                pingpong::play(target, Duration::from_millis(every), count, each)
            }
            Self::Idle { target, count } => idle::hold(target, count),
            Self::Knock { target } => manners::knock(target),
            Self::HalfClose { target, bytes } => manners::half_close(target, bytes),
            Self::SpeakLast { target, bytes } => manners::speak_last(target, bytes),
            Self::Provoke { target } => manners::provoke(target),
            Self::Abort { target } => manners::abort(target),
        }
    }
}
