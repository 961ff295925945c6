//! The command line of `whimbrel`.

mod ask;
mod demo;
mod join;
mod names;
mod trace;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use whimbrel_client_core::plan::Way;
use whimbrel_common::config::{ClientConfig, ConfigError, InterfaceName};
use whimbrel_common::units::{Period, UnitError};
use whimbrel_host::output::{line, remark};
use whimbrel_host::{Layout, Role, exit, files, logging};

pub use crate::daemon::{Launch, Purpose};

use crate::host::{Host, HostError};
use crate::tun::TunError;
use crate::watch;
use crate::{bugreport, doctor};

/// Names the configuration file to everything started from one shell, as `--config` does.
pub const CONFIG_VARIABLE: &str = "WHIMBREL_CONFIG";

/// Runs the command line `args` (the first one is the program's name) and returns the exit code.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let command = match Cli::try_parse_from(args) {
        Ok(cli) => cli.command,
        Err(error) => {
            // Nobody is left to tell if this cannot be written.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(exit::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match dispatch(command) {
        Ok(code) => code,
        Err(error) => exit::failure_with("whimbrel", &error, code(&error)),
    }
}

/// The command line as data, to write manual pages and completions from.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The exit code of an obstacle only the client knows.
fn code(error: &anyhow::Error) -> Option<u8> {
    let tun = error.chain().find_map(|cause| cause.downcast_ref::<TunError>());
    match tun {
        Some(TunError::NoDevice) => return Some(exit::NO_DEVICE),
        Some(TunError::DeviceDenied(_) | TunError::NotPermitted { .. }) => {
            return Some(exit::DENIED);
        }
        Some(TunError::Name { .. } | TunError::AddressTaken { .. }) => return Some(exit::TAKEN),
        Some(TunError::Busy { .. }) => return Some(exit::RUNNING),
        Some(TunError::Passed(_) | TunError::Failed { .. }) | None => {}
    }
    let host = error.chain().find_map(|cause| cause.downcast_ref::<HostError>());
    host.filter(|host| host.is_permission()).map(|_| exit::DENIED)
}

/// Reads the configuration and the key and becomes the daemon.
fn up(layout: Layout, purpose: Purpose) -> anyhow::Result<()> {
    logging::init(LevelFilter::INFO)?;
    let config = read_config(&layout)?;
    let key = files::read_key(layout.key_to_read()).with_context(|| {
        if is_missing(layout.key_to_read()) {
            "there is no key; remove the configuration, ask for a new invite and `whimbrel join` again"
        } else if rustix::process::geteuid().is_root() {
            "the key cannot be used"
        } else {
            "the key cannot be used by this user; if it belongs to root, run this as root"
        }
    })?;
    if matches!(purpose, Purpose::Host) && logging::is_for_people() {
        remark(format_args!(
            "Starting; stop with Ctrl-C. In another terminal: whimbrel status{}",
            layout.option()
        ));
    }
    crate::daemon::run(Launch { config, layout, key, reread: read_config, purpose })
}

fn run(args: Run) -> anyhow::Result<()> {
    let config = args.place.config.map(|config| Layout::for_config(Some(config), Role::Client));
    let way = match (args.exclude, args.cgroup) {
        (true, _) => Way::Direct,
        (false, true) => Way::Carried,
        (false, false) => {
            let attend = |layout| up(layout, Purpose::Runs { ready: crate::run::ready });
            match crate::run::run(config, &args.command, attend)? {}
        }
    };
    match crate::run::lead(config, way, &args.command)? {}
}

#[derive(Parser, Debug)]
#[command(
    name = "whimbrel",
    version,
    about = "Keeps TCP connections alive while the network under them changes",
    long_about = None,
    after_help = exit::CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Become a client of a gateway, with the invite its owner sent
    Join(Join),
    /// Run the daemon in the foreground (systemd runs this)
    Up(Place),
    /// Run a command with its TCP carried, or around the capture, without root
    Run(Run),
    /// Show what the daemon does
    Status(Status),
    /// List the paths to the gateway
    Paths(Listing),
    /// List the connections that are carried
    Flows(Listing),
    /// List what happened lately
    Events(Events),
    /// Print figures for a monitoring system, as Prometheus reads them
    Metrics(Place),
    /// Write down what paths, moves and connections do, as a qlog, until Ctrl-C
    Trace(Trace),
    /// Move to a link by hand
    Move(Move),
    /// Let new connections go direct, for a time or until `resume`
    Pause(Pause),
    /// Capture new connections again
    Resume(Place),
    /// Validate a configuration
    Check(Place),
    /// Examine this host: what is wrong, and what to do about it
    Doctor(Listing),
    /// Gather what somebody who looks for a bug wants to know, in one file
    Bugreport(Bugreport),
    /// Remove rules and routes that a killed daemon left behind
    #[command(hide = true)]
    Cleanup(Place),
    /// Lead this host's names to the gateway for as long as a daemon wants it (systemd runs this)
    #[command(hide = true)]
    LeadNames(LeadNames),
    /// Show the whole story on one machine: no root, no set-up
    Demo(Demo),
}

#[derive(Args, Debug)]
struct Place {
    /// Use this configuration file, with key, state and control socket beside it
    #[arg(long, value_name = "FILE", env = CONFIG_VARIABLE, hide_env_values = true)]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Join {
    /// The line that `whimbrel-gateway invite` printed, in quotes
    invite: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// Let its new connections go direct, around the daemon of this host
    #[arg(long)]
    exclude: bool,
    /// Carry its new connections by its control group, where it cannot have a network of its own
    #[arg(long, conflicts_with = "exclude")]
    cgroup: bool,
    /// The command and its arguments; its exit code is passed on
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
struct Listing {
    #[command(flatten)]
    place: Place,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Status {
    #[command(flatten)]
    place: Place,
    /// Print a JSON document
    #[arg(long)]
    json: bool,
    /// Keep showing it, on this terminal, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

#[derive(Args, Debug)]
struct Events {
    #[command(flatten)]
    place: Place,
    /// Print a JSON document; with --follow, one per line
    #[arg(long)]
    json: bool,
    /// Keep printing what happens
    #[arg(long)]
    follow: bool,
}

#[derive(Args, Debug)]
struct Move {
    /// The interface to move to, and to stay on
    #[arg(required_unless_present = "auto", conflicts_with = "auto")]
    link: Option<InterfaceName>,
    /// Choose by itself again
    #[arg(long)]
    auto: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct Pause {
    /// For how long: 90s, 10m, 2h [default: until `resume`]
    #[arg(value_parser = parse_pause)]
    duration: Option<Period>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct Bugreport {
    #[command(flatten)]
    place: Place,
    /// Write to this file [default: whimbrel-bugreport-TIME.tar in this folder]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Keep network addresses as they are
    #[arg(long)]
    addresses: bool,
}

#[derive(Args, Debug)]
struct Trace {
    /// The file to write, which must not exist [default: standard output]
    file: Option<PathBuf>,
    /// For how long: 90s, 10m, 2h [default: until Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_pause)]
    duration: Option<Period>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args, Debug)]
struct LeadNames {
    /// Only restore what one that was killed left behind
    #[arg(long)]
    restore: bool,
}

#[derive(Args, Debug)]
struct Demo {
    /// A command to run inside the demo while its networks keep changing
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Place {
    fn layout(self) -> Layout {
        Layout::for_user(self.config, Role::Client)
    }

    /// Where `join` makes things: a user has a folder of their own.
    fn new_layout(self) -> Layout {
        let own = if self.config.is_none() { Layout::of_user(Role::Client) } else { None };
        own.unwrap_or_else(|| Layout::for_config(self.config, Role::Client))
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Join(args) => join::join(&args.place.new_layout(), &args.invite),
        Command::Up(place) => up(place.layout(), Purpose::Host),
        Command::Run(args) => run(args),
        Command::Status(args) if args.watch => watch::watch(&args.place.layout()),
        Command::Status(args) => ask::status(&args.place.layout(), args.json),
        Command::Paths(args) => ask::paths(&args.place.layout(), args.json),
        Command::Flows(args) => ask::flows(&args.place.layout(), args.json),
        Command::Events(args) => ask::events(&args.place.layout(), args.json, args.follow),
        Command::Metrics(place) => ask::metrics(&place.layout()),
        Command::Trace(args) => {
            trace::write(&args.place.layout(), args.file.as_deref(), args.duration)
        }
        Command::Move(args) => ask::relocate(&args.place.layout(), args.link.as_ref()),
        Command::Pause(args) => ask::pause(&args.place.layout(), args.duration),
        Command::Resume(place) => ask::resume(&place.layout()),
        Command::Check(place) => check(&place.layout()),
        Command::Doctor(args) => {
            let well = doctor::doctor(&args.place.layout(), read_config, args.json)?;
            return Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Bugreport(args) => {
            let layout = args.place.layout();
            bugreport::bugreport(&layout, read_config, args.output, args.addresses)
        }
        Command::Cleanup(place) => cleanup(&place.layout()),
        Command::LeadNames(args) => names::names(args.restore),
        Command::Demo(args) => demo::demo(args.command),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn parse_pause(text: &str) -> Result<Period, String> {
    let period: Period = text.parse().map_err(|error: UnitError| error.to_string())?;
    if period.0.is_zero() {
        return Err("a pause of no time; to end one, run `whimbrel resume`".to_owned());
    }
    Ok(period)
}

fn read_config(layout: &Layout) -> anyhow::Result<ClientConfig> {
    let file = layout.config.display().to_string();
    let Some(text) = files::read_if_any(&layout.config)? else {
        let message = format!(
            "there is no such configuration; make one with `whimbrel join INVITE{}`",
            layout.option()
        );
        return Err(ConfigError { file, line: None, message }.into());
    };
    Ok(ClientConfig::parse(&text, &file)?)
}

fn check(layout: &Layout) -> anyhow::Result<()> {
    let config = read_config(layout)?;
    line(format_args!("{} is valid, for the gateway {}.", layout.config.display(), config.gateway));
    if is_missing(layout.key_to_read()) {
        line(format_args!(
            "There is no key at {}; `whimbrel join INVITE` makes one, where there is no configuration yet.",
            layout.key.display()
        ));
    } else {
        files::read_key(layout.key_to_read())?;
    }
    Ok(())
}

/// Whether there is certainly no such file; one that this user may not see is not missing.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn cleanup(layout: &Layout) -> anyhow::Result<()> {
    logging::init(LevelFilter::WARN)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(names::restore(layout));
    let removed = runtime
        .block_on(async { Host::open()?.remove().await })
        .context("cannot remove Whimbrel's rules and routes; run this as root")?;
    if removed > 0 {
        line(format_args!("Removed {removed} rules and routes that were left behind."));
    }
    Ok(())
}
