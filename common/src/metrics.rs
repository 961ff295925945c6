//! Figures for a monitoring system: the text format of Prometheus (exposition format 0.0.4).
//!
//! Whoever has figures writes them when asked; nothing is registered anywhere, and counting is a
//! plain number of its owner. Names end in their unit, `_total` for counters, as Prometheus
//! recommends.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// The `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of figure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// The text, as it grows. Every family is written once, with all its samples.
#[derive(Debug)]
pub struct Exposition {
    prefix: &'static str,
    text: String,
}

/// The samples of one name.
#[derive(Debug)]
pub struct Family<'e> {
    name: String,
    text: &'e mut String,
}

impl Exposition {
    /// Nothing yet; every name begins with `prefix` and an underscore.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, text: String::new() }
    }

    /// Begins the samples of `name`, explained by `help`.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let name = format!("{}_{name}", self.prefix);
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.begin(&name, kind, help);
        Family { name, text: &mut self.text }
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help).sample(&[], value as f64);
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// A counter with one label.
    pub fn counters<S: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(S, u64)],
    ) {
        let mut family = self.family(name, Kind::Counter, help);
        values.iter().for_each(|(of, value)| family.sample(&[(label, of.as_ref())], *value as f64));
    }

    /// A gauge that is 1 for the state that holds, and 0 for the others there are.
    pub fn state<S: Display + PartialEq>(&mut self, name: &str, help: &str, states: &[S], now: &S) {
        let mut family = self.family(name, Kind::Gauge, help);
        for state in states {
            family.sample(&[("state", &state.to_string())], f64::from(u8::from(state == now)));
        }
    }

    /// Where durations were.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let name = format!("{}_{name}", self.prefix);
        self.begin(&name, "histogram", help);
        let mut count = 0;
        for (bound, own) in BOUNDS.iter().zip(histogram.counts) {
            count += own;
            let _ = writeln!(self.text, "{name}_bucket{{le=\"{}\"}} {count}", bound.as_secs_f64());
        }
        count += histogram.beyond;
        let _ = writeln!(self.text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.text, "{name}_sum {}", histogram.sum.as_secs_f64());
        let _ = writeln!(self.text, "{name}_count {count}");
    }

    /// What the process uses: the names every program has in common.
    pub fn process(&mut self, process: &Process) {
        let mut own = Self { prefix: "process", text: std::mem::take(&mut self.text) };
        own.gauge("resident_memory_bytes", "Memory in use.", process.resident as f64);
        let seconds = process.cpu.as_secs_f64();
        own.family("cpu_seconds_total", Kind::Counter, "Processor time used.").sample(&[], seconds);
        own.gauge("open_fds", "Open file descriptors.", process.descriptors as f64);
        let started = process.started.as_secs_f64();
        own.gauge("start_time_seconds", "When it started, since 1970.", started);
        self.text = own.text;
    }

    /// The whole text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }

    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // A string takes whatever is written to it.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

impl Family<'_> {
    /// A value, for these labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(&self.name);
        for (at, (name, of)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"{}\"", escaped(of));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// Memory, in bytes.
    pub resident: u64,
    /// Processor time.
    pub cpu: Duration,
    /// Open descriptors.
    pub descriptors: u64,
    /// When it started, since 1970.
    pub started: Duration,
}

/// Upper bounds of the buckets of a [`Histogram`]: around what is promised for a gap (100 ms with a
/// spare link, 300 ms for one that dies in silence), and outages of a network beyond.
const BOUNDS: [Duration; 11] = [
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(5),
];

/// How many durations there were of which length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len()],
    beyond: u64,
    sum: Duration,
}

impl Histogram {
    /// One more.
    pub fn observe(&mut self, duration: Duration) {
        self.sum = self.sum.saturating_add(duration);
        match BOUNDS.iter().position(|bound| duration <= *bound) {
            Some(at) => self.counts[at] += 1,
            None => self.beyond += 1,
        }
    }

    /// Adds what another observed.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(own, more)| *own += more);
        self.beyond += other.beyond;
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// Counts by name, for labels whose values are few and known to their owner only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(std::collections::BTreeMap<String, u64>);

impl Tally {
    /// One more.
    pub fn count(&mut self, name: &str) {
        self.count_many(name, 1);
    }

    /// So many more.
    pub fn count_many(&mut self, name: &str, more: u64) {
        match self.0.get_mut(name) {
            Some(count) => *count += more,
            None => {
                self.0.insert(name.to_owned(), more);
            }
        }
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name.clone()).or_default() += count;
        }
    }

    /// Every name and its count; of `names` even those that never happened.
    #[must_use]
    pub fn with(&self, names: &[impl Display]) -> Vec<(String, u64)> {
        let mut all = Self(names.iter().map(|name| (name.to_string(), 0)).collect());
        all.add(self);
        all.0.into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
