//! `whimbrel`.

fn main() -> std::process::ExitCode {
    whimbrel::cli::main(std::env::args_os().collect())
}
