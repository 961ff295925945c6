//! A small test harness for tests that build labs. Each test runs in a process of its own, so
//! that entering namespaces, panics and leftovers stay apart; its options are those of the
//! standard harness that matter here.

use crate::{dice, lab, role};
use std::io::{Read, Seek, Write};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A test: a sentence and what proves it.
pub type Test = (&'static str, fn() -> anyhow::Result<()>);

/// Runs one test of the suite by its exact name.
const ONE: &str = "__test";

/// A test that takes longer than this hangs: the longest ones last about a minute. Tests that were
/// made longer by the environment need more: `WHIMBREL_PATIENCE` in seconds.
const PATIENCE: Duration = Duration::from_secs(300);

fn patience() -> Duration {
    dice::number("WHIMBREL_PATIENCE").map_or(PATIENCE, Duration::from_secs)
}

/// Names a test with its own function.
#[macro_export]
macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::suite::run(&[$((stringify!($test), $test)),*])
        }
    };
}

/// What the command line asks for.
#[derive(Debug, Default)]
struct Choice {
    list: bool,
    exact: bool,
    show_output: bool,
    filters: Vec<String>,
    skipped: Vec<String>,
}

/// Runs the tests the command line selects, one after the other, because they share two cores
/// and measure time.
#[must_use]
pub fn run(tests: &[Test]) -> ExitCode {
    if let Some(code) = role::play() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [marker, name] = arguments.as_slice()
        && marker == ONE
    {
        return run_here(tests, name);
    }
    let choice = Choice::read(arguments);
    let chosen: Vec<&Test> = tests.iter().filter(|(name, _)| choice.takes(name)).collect();
    if choice.list {
        chosen.iter().for_each(|(name, _)| say(&format!("{name}: test\n")));
        return ExitCode::SUCCESS;
    }
    run_apart(&chosen, &choice)
}

fn run_here(tests: &[Test], name: &str) -> ExitCode {
    let Some((_, test)) = tests.iter().find(|(own, _)| *own == name) else {
        complain(&format!("there is no test {name}\n"));
        return ExitCode::from(2);
    };
    if let Err(denied) = lab::enter() {
        complain(&denied.to_string());
        return ExitCode::FAILURE;
    }
    match test() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:?}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run_apart(chosen: &[&Test], choice: &Choice) -> ExitCode {
    say(&format!("\nrunning {} tests\n", chosen.len()));
    let mut failed = Vec::new();
    for (name, _) in chosen {
        say(&format!("test {name} ... "));
        let begin = Instant::now();
        let outcome = run_one(name, choice.show_output);
        let took = begin.elapsed().as_secs_f64();
        match outcome {
            Ok((status, _)) if status.success() => say(&format!("ok ({took:.1} s)\n")),
            Ok((status, output)) => {
                say(&format!("FAILED ({status}, {took:.1} s)\n"));
                failed.push((name, output));
            }
            Err(error) => {
                say("FAILED\n");
                failed.push((name, format!("{error:?}")));
            }
        }
    }
    for (name, output) in &failed {
        say(&format!("\n---- {name} ----\n{output}\n"));
    }
    let passed = chosen.len() - failed.len();
    say(&format!("\ntest result: {passed} passed; {} failed\n\n", failed.len()));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// Runs one test in a process of its own; its exit status and what it said.
fn run_one(name: &str, show_output: bool) -> anyhow::Result<(ExitStatus, String)> {
    let mut said = tempfile::tempfile()?;
    let mut command = Command::new("/proc/self/exe");
    command.args([ONE, name]).stdin(Stdio::null());
    if !show_output {
        command.stdout(said.try_clone()?).stderr(said.try_clone()?);
    }
    let mut child = command.spawn()?;
    let patience = patience();
    let deadline = Instant::now() + patience;
    let mut status = child.try_wait()?;
    while status.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        status = child.try_wait()?;
    }
    let mut output = String::new();
    let status = match status {
        Some(status) => status,
        None => {
            child.kill()?;
            output = format!("killed: it was not done after {patience:?}\n");
            child.wait()?
        }
    };
    said.rewind()?;
    said.read_to_string(&mut output)?;
    Ok((status, output))
}

impl Choice {
    fn read(arguments: Vec<String>) -> Self {
        let mut choice = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => choice.list = true,
                "--exact" => choice.exact = true,
                "--nocapture" | "--no-capture" | "--show-output" => choice.show_output = true,
                "--skip" => choice.skipped.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "-Z" => drop(arguments.next()),
                other if other.starts_with('-') => {}
                _ => choice.filters.push(argument),
            }
        }
        choice
    }

    fn takes(&self, name: &str) -> bool {
        let matches = |filter: &String| {
            if self.exact { filter == name } else { name.contains(filter.as_str()) }
        };
        let wanted = self.filters.is_empty() || self.filters.iter().any(matches);
        wanted && !self.skipped.iter().any(matches)
    }
}

fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // A reader that went away has no use for the rest either.
    drop(stdout.write_all(text.as_bytes()));
    drop(stdout.flush());
}

pub(crate) fn complain(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
