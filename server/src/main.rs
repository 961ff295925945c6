//! `whimbrel-gateway`.

fn main() -> std::process::ExitCode {
    whimbrel_gateway::cli::main(std::env::args_os().collect())
}
