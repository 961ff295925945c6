//! `whimbrel doctor`: gathers what can be known of this host and says what is wrong with it. What
//! follows from the facts is decided by [`whimbrel_client_core::doctor`].

mod bus;
mod host;
mod reach;
mod show;

use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::Context as _;
use serde_json::Value;
use whimbrel_client_core::doctor::{
    Capture, Daemon, DaemonState, Facts, Key, Names, PathFact, Reach, Report, Running, Settings,
    Setup, Sleep, examine,
};
use whimbrel_common::config::ClientConfig;
use whimbrel_host::control::{self, AskError};
use whimbrel_host::output::{Palette, document, line};
use whimbrel_host::{Layout, exit, files};

use crate::daemon::asked;
use crate::link::survey;
use crate::report::{CaptureState, NamesState, PathReport, SessionState, Status};

/// Reads and validates a configuration; its error has file and line.
pub(crate) type ReadConfig = fn(&Layout) -> anyhow::Result<ClientConfig>;

/// Examines this host and prints the outcome. Whether nothing needs to be done.
///
/// # Errors
/// There is no runtime to examine anything with.
pub(crate) fn doctor(layout: &Layout, read: ReadConfig, json: bool) -> anyhow::Result<bool> {
    let (facts, report) = consult(layout, read)?;
    if json {
        document(&show::json(&report));
    } else {
        line(show::text(&facts, &report, Palette::of_stdout()));
    }
    Ok(report.is_well())
}

/// The examination as a text and as a document, for a report about a bug.
///
/// # Errors
/// There is no runtime to examine anything with.
pub(crate) fn record(layout: &Layout, read: ReadConfig) -> anyhow::Result<(String, Value)> {
    let (facts, report) = consult(layout, read)?;
    Ok((show::text(&facts, &report, Palette::PLAIN), show::json(&report)))
}

fn consult(layout: &Layout, read: ReadConfig) -> anyhow::Result<(Facts, Report)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let facts = runtime.block_on(gather(layout, read));
    let report = examine(&facts);
    Ok((facts, report))
}

async fn gather(layout: &Layout, read: ReadConfig) -> Facts {
    let config = read(layout);
    let addresses = config.as_ref().ok().map(resolve);
    let ips: Vec<_> =
        addresses.iter().flatten().flatten().map(|address: &SocketAddr| address.ip()).collect();
    let interface = config.as_ref().map_or("whimbrel0", |it| it.capture.interface.as_str());
    // Without netlink there is nothing to say about the network; the daemon says it could not start.
    let asked = config.as_ref().map_or(Vec::new(), |config| asked(&config.paths));
    let network = survey::survey(interface, asked, &ips).await.unwrap_or_default();
    let (daemon, sleep) = daemon(layout);
    let reach = match (&daemon, &config, addresses) {
        (Daemon::Absent | Daemon::Broken(_), Ok(config), Some(addresses)) => {
            reach::reach(layout, config, addresses, &network.links).await
        }
        _ => Reach::NotTried,
    };
    let bus = bus::Answers::ask().await;
    Facts {
        option: layout.option(),
        rights: host::rights(),
        setup: setup(layout, config),
        daemon,
        reach,
        unit: host::unit(bus.unit),
        tun: host::tun(),
        group: host::group(),
        sleep: sleep.unwrap_or(bus.sleep),
        clock: host::clock(bus.synchronised),
        links: network.links,
        networks: network.networks,
        rules: network.rules,
        vpns: network.vpns,
        rooms: host::rooms(layout),
    }
}

fn resolve(config: &ClientConfig) -> Result<Vec<SocketAddr>, String> {
    let gateway = &config.gateway;
    let found = (gateway.host.as_str(), gateway.port).to_socket_addrs();
    found.map(Iterator::collect).map_err(|error| format!("{error}"))
}

fn setup(layout: &Layout, config: anyhow::Result<ClientConfig>) -> Setup {
    let file = layout.config.display().to_string();
    match config {
        Ok(config) => Setup::Ready(Settings {
            file,
            gateway: config.gateway.to_string(),
            port: config.gateway.port,
            interface: config.capture.interface.to_string(),
            address4: config.capture.address4,
            address6: config.capture.address6,
            mark: config.paths.mark,
            key: key(layout),
        }),
        Err(_) if !layout.config.exists() => Setup::Missing { file },
        Err(error) => Setup::Wrong { message: exit::sentence(&error) },
    }
}

fn key(layout: &Layout) -> Key {
    let path = layout.key_to_read();
    match (path.try_exists(), files::read_key(path)) {
        (_, Ok(_)) => Key::Fine,
        (Ok(false), Err(_)) => Key::Missing,
        (_, Err(error)) if files::is_denied(&error) => Key::Hidden,
        (_, Err(error)) => Key::Unusable(exit::sentence(&error)),
    }
}

/// The daemon, and what it knows of announcements of sleep.
fn daemon(layout: &Layout) -> (Daemon, Option<Sleep>) {
    let daemon = match control::ask(&layout.socket, "status", &Value::Null) {
        Ok(answer) => match serde_json::from_value::<Status>(answer) {
            Ok(status) => {
                let undelayed = status.sleep.as_deref() == Some("announced");
                let sleep = undelayed.then_some(Sleep::Undelayed);
                return (Daemon::Running(running(status)), sleep);
            }
            Err(_) => Daemon::Broken("it is another version than this command".to_owned()),
        },
        Err(AskError::NotRunning(_)) => Daemon::Absent,
        Err(AskError::Denied(_)) => Daemon::Denied,
        Err(AskError::Refused(why)) => Daemon::Broken(why),
        Err(AskError::Broken(error)) => Daemon::Broken(error.to_string()),
    };
    (daemon, None)
}

fn running(status: Status) -> Running {
    let trouble = status.trouble.map(|text| {
        let kind = status.trouble_kind.and_then(|kind| kind.parse().ok());
        (kind.unwrap_or(whimbrel_client_core::trouble::Trouble::Other), text)
    });
    Running {
        state: match status.state {
            SessionState::Connecting => DaemonState::Connecting,
            SessionState::Attached => DaemonState::Attached,
            SessionState::Parked => DaemonState::Parked,
            SessionState::Offline => DaemonState::Offline,
        },
        trouble,
        capture: match status.capture {
            CaptureState::On | CaptureState::Commands => Capture::On,
            CaptureState::Paused => Capture::Paused,
            CaptureState::Direct => Capture::Direct,
            CaptureState::Blocked => Capture::Blocked,
        },
        names: match status.names.state {
            NamesState::Direct => Names::Direct,
            NamesState::Gateway => Names::Gateway,
            NamesState::Failed => Names::Failed(status.names.trouble.unwrap_or_default()),
        },
        paths: status.paths.iter().enumerate().map(|(at, path)| path_fact(at == 0, path)).collect(),
        version: status.version,
        own_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A path that carries may be suspect for a moment; a spare one stays so while it is dead.
fn path_fact(first: bool, path: &PathReport) -> PathFact {
    let dead = match path.state.as_str() {
        "absent" | "cooldown" => true,
        "suspect" => !first,
        _ => false,
    };
    PathFact { link: path.link.clone(), works: !dead, captive: path.captive }
}
