//! `whimbrel-demo`: the whole story on one machine. See [`demo`].

mod demo;

use std::process::ExitCode;

fn main() -> ExitCode {
    whimbrel_tests::role::play().unwrap_or_else(demo::main)
}
