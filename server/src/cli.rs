//! The command line of `whimbrel-gateway`.

mod init;
mod show;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;
use whimbrel_common::config::{ConfigError, GatewayConfig, HostPort};
use whimbrel_common::identity::ClientName;
use whimbrel_common::invite::Invite;
use whimbrel_common::units::Period;
use whimbrel_host::control::{AskError, ask};
use whimbrel_host::output::{line, remark, unix_now};
use whimbrel_host::{Layout, Role, exit, files, logging};

use crate::control::VALID;
use crate::state::State;

pub use crate::daemon::Launch;

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
        Err(error) => exit::failure("whimbrel-gateway", &error),
    }
}

/// The command line as data, to write manual pages and completions from.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Reads the configuration and the key and becomes the daemon.
fn run(layout: Layout) -> anyhow::Result<()> {
    logging::init(LevelFilter::INFO)?;
    let config = read_config(&layout)?;
    let key = files::read_key(layout.key_to_read()).with_context(|| no_key(&layout))?;
    if logging::is_for_people() {
        remark(format_args!(
            "Starting; stop with Ctrl-C. In another terminal: whimbrel-gateway invite NAME{}",
            layout.option()
        ));
    }
    crate::daemon::run(Launch { config, layout, key, reread: read_config })
}

#[derive(Parser, Debug)]
#[command(
    name = "whimbrel-gateway",
    version,
    about = "Carries the connections of Whimbrel clients to their destinations",
    long_about = None,
    after_help = exit::CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a key and a configuration
    Init(Init),
    /// Run the gateway in the foreground (systemd runs this)
    Run(Place),
    /// Print an invite for a new client: one line, for `whimbrel join`
    Invite(InviteArgs),
    /// List clients and open invites
    Clients(Listing),
    /// Cut a client off, its live sessions included
    Revoke(Revoke),
    /// Show what the gateway does
    Status(Listing),
    /// Print figures for a monitoring system, as Prometheus reads them
    Metrics(Place),
    /// Validate a configuration
    Check(Place),
}

#[derive(Args, Debug)]
struct Place {
    /// Use this configuration file, with key, state and control socket beside it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Init {
    #[command(flatten)]
    place: Place,
    /// UDP address to listen on, can be repeated [default: [::]:443]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where clients find this gateway [default: the public address of this machine]
    #[arg(long, value_name = "HOST:PORT")]
    public: Option<HostPort>,
}

#[derive(Args, Debug)]
struct InviteArgs {
    /// What to call the client: letters, digits, . _ and -
    name: ClientName,
    #[command(flatten)]
    place: Place,
    /// How long the invite can be used: 90s, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_valid)]
    valid: Period,
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
struct Revoke {
    /// The client, as `clients` lists it
    name: ClientName,
    #[command(flatten)]
    place: Place,
}

impl Place {
    fn layout(self) -> Layout {
        Layout::for_config(self.config, Role::Gateway)
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(args) => init::init(&args.place.layout(), args.listen, args.public)?,
        Command::Run(place) => run(place.layout())?,
        Command::Invite(args) => invite(&args.place.layout(), &args.name, args.valid)?,
        Command::Clients(args) => show::clients(&args.place.layout(), args.json)?,
        Command::Revoke(args) => revoke(&args.place.layout(), &args.name)?,
        Command::Status(args) => return show::status(&args.place.layout(), args.json),
        Command::Metrics(place) => show::metrics(&place.layout())?,
        Command::Check(place) => check(&place.layout())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_valid(text: &str) -> Result<Period, String> {
    let period: Period =
        text.parse().map_err(|error: whimbrel_common::units::UnitError| error.to_string())?;
    let (shortest, longest) = VALID;
    if period < shortest || period > longest {
        return Err(format!("an invite can be valid from {shortest} to {longest}"));
    }
    Ok(period)
}

/// The running gateway's answer, or nothing if none runs.
fn ask_running(layout: &Layout, verb: &str, args: &Value) -> anyhow::Result<Option<Value>> {
    match ask(&layout.socket, verb, args) {
        Ok(value) => Ok(Some(value)),
        Err(AskError::NotRunning(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_config(layout: &Layout) -> anyhow::Result<GatewayConfig> {
    let file = layout.config.display().to_string();
    let Some(text) = files::read_if_any(&layout.config)? else {
        let message = format!(
            "there is no such configuration; make one with `whimbrel-gateway init{}`",
            layout.option()
        );
        return Err(ConfigError { file, line: None, message }.into());
    };
    Ok(GatewayConfig::parse(&text, &file)?)
}

fn check(layout: &Layout) -> anyhow::Result<()> {
    let config = read_config(layout)?;
    line(format_args!(
        "{} is valid; clients reach it at {}.",
        layout.config.display(),
        config.public
    ));
    files::read_key(layout.key_to_read()).with_context(|| no_key(layout))?;
    Ok(())
}

fn no_key(layout: &Layout) -> String {
    format!("the gateway has no usable key (`whimbrel-gateway init{}` makes one)", layout.option())
}

fn invite(layout: &Layout, name: &ClientName, valid: Period) -> anyhow::Result<()> {
    let asked = json!({ "name": name, "valid": valid });
    let invite = match ask_running(layout, "invite", &asked)? {
        Some(answer) => match answer.get("invite").and_then(Value::as_str) {
            Some(invite) => invite.to_owned(),
            None => {
                bail!("the running gateway gave no invite; it may be another version: restart it")
            }
        },
        None => invite_on_disk(layout, name, valid)?,
    };
    line(invite);
    remark(format_args!(
        "\nThis invite makes one client, \"{name}\", within {valid}, and replaces earlier ones for it.\n\
         Send it over a private channel.\n\
         Next, on the client: sudo whimbrel join '<the line above>'"
    ));
    Ok(())
}

fn invite_on_disk(layout: &Layout, name: &ClientName, valid: Period) -> anyhow::Result<String> {
    let public = read_config(layout)?.public;
    let key = files::read_key(layout.key_to_read()).with_context(|| no_key(layout))?;
    let token = State::open(layout)?.issue_invite(name, valid.0, unix_now())?;
    remark(format_args!(
        "The gateway is not running; start it with `whimbrel-gateway run{}`.",
        layout.option()
    ));
    let gateway_key = key.public();
    Ok(Invite { host: public.host, port: public.port, gateway_key, token }.to_string())
}

fn revoke(layout: &Layout, name: &ClientName) -> anyhow::Result<()> {
    let (enrolled, sessions) = match ask_running(layout, "revoke", &json!({ "name": name }))? {
        Some(answer) => (
            answer.get("enrolled").and_then(Value::as_bool).unwrap_or(true),
            answer.get("sessions").and_then(Value::as_u64).unwrap_or(0),
        ),
        None => {
            if !layout.config.exists() && !layout.clients.exists() {
                read_config(layout)?;
            }
            (State::open(layout)?.revoke(name)?.is_some(), 0)
        }
    };
    match (enrolled, sessions) {
        (false, _) => line(format_args!("Withdrew the invite for {name}, which nobody had used.")),
        (true, 0) => line(format_args!("Revoked {name}. It was not connected.")),
        (true, 1) => line(format_args!("Revoked {name} and ended its session.")),
        (true, more) => line(format_args!("Revoked {name} and ended its {more} sessions.")),
    }
    line(format_args!("To let it in again: whimbrel-gateway invite {name}{}", layout.option()));
    Ok(())
}
