//! `whimbrel-gateway status`, `clients` and `metrics`.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use whimbrel_host::Layout;
use whimbrel_host::metrics;
use whimbrel_host::output::{bytes, date, document, line, print, seconds, table, unix_now};

use super::{ask_running, read_config};
use crate::control::rows;
use crate::outlet::NO_ECHOES;
use crate::state::State;
use crate::status::{ClientRow, Datagrams, SlotStatus, Status};

/// Exit code 1 while the gateway is stopped, so that scripts can ask.
pub(super) fn status(layout: &Layout, as_json: bool) -> anyhow::Result<ExitCode> {
    let running = ask_running(layout, "status", &Value::Null)?;
    let (status, code) = match running {
        Some(answer) => (parse::<Status>(answer)?, ExitCode::SUCCESS),
        None => (stopped(layout)?, ExitCode::FAILURE),
    };
    if as_json {
        document(&json!(status));
    } else {
        line(describe(&status, layout));
    }
    Ok(code)
}

pub(super) fn clients(layout: &Layout, as_json: bool) -> anyhow::Result<()> {
    let clients: Vec<ClientRow> = match ask_running(layout, "clients", &Value::Null)? {
        Some(answer) => parse(answer)?,
        None => {
            read_config(layout)?;
            rows(&mut State::open(layout)?, unix_now(), |_| None)
        }
    };
    if as_json {
        document(&json!(clients));
    } else if clients.is_empty() {
        line(format_args!(
            "No clients yet. Invite one with: whimbrel-gateway invite NAME{}",
            layout.option()
        ));
    } else {
        line(client_table(&clients));
    }
    Ok(())
}

pub(super) fn metrics(layout: &Layout) -> anyhow::Result<()> {
    let Some(answer) = ask_running(layout, metrics::VERB, &Value::Null)? else {
        let option = layout.option();
        bail!("the gateway is stopped; start it with `whimbrel-gateway run{option}`");
    };
    print(answer.get("text").and_then(Value::as_str).unwrap_or(""));
    Ok(())
}

pub(super) fn describe(status: &Status, layout: &Layout) -> String {
    if status.state == "stopped" {
        return format!(
            "The gateway is stopped; it knows {} clients. Start it with: whimbrel-gateway run{}",
            status.clients,
            layout.option()
        );
    }
    let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
    format!(
        "Gateway    {} (version {}), for {}\n\
         Listens    {} (UDP); clients use {}\n\
         Key        {}\n\
         Clients    {} connected of {}\n\
         Flows      {} open, {}\n\
         Dials      {} connected, {} failed, {} denied, {} over a limit\n\
         UDP        {} ports, {} datagrams out and {} in; {} denied, {} dropped\n\
         Ping       {}\n\
         Waiting    {} sessions with {} flows; {} given up\n\
         Memory     {} held of {}\n\
         Traffic    {} to clients, {} from clients\n\
         Slots      {}",
        status.state,
        status.version,
        seconds(status.uptime_s),
        listen.join(", "),
        status.public,
        status.key,
        status.connected,
        status.clients,
        status.flows,
        outliving(status),
        status.dials.connected,
        status.dials.failed,
        status.dials.denied,
        status.dials.limited,
        status.datagrams.ports,
        status.datagrams.up,
        status.datagrams.down,
        status.datagrams.denied,
        status.datagrams.dropped,
        echoes(&status.datagrams),
        status.parked.sessions,
        status.parked.flows,
        status.evicted,
        bytes(status.held.bytes),
        bytes(status.held.limit),
        bytes(status.tx_bytes),
        bytes(status.rx_bytes),
        slots(&status.slots),
    )
}

/// How clients are spread over threads, and whether they stay where they are.
fn slots(slots: &[SlotStatus]) -> String {
    let total = |count: fn(&SlotStatus) -> u64| slots.iter().map(count).sum::<u64>();
    let connections: Vec<String> = slots.iter().map(|slot| slot.connections.to_string()).collect();
    format!(
        "{} with {} clients; {} changes of address, {} datagrams astray, {} sessions moved",
        slots.len(),
        connections.join(" + "),
        total(|slot| slot.readdressed),
        total(|slot| slot.strayed),
        total(|slot| slot.moved_in),
    )
}

/// Whether clients can ping through it.
fn echoes(datagrams: &Datagrams) -> String {
    if datagrams.echoes {
        let (out, back) = (datagrams.echo_requests, datagrams.echo_replies);
        return format!("{out} requests out and {back} replies in");
    }
    format!("not carried: {NO_ECHOES}")
}

/// What becomes of the flows when the gateway's process ends.
fn outliving(status: &Status) -> String {
    if !status.outlives {
        return "which end with this process: no service manager keeps them".to_owned();
    }
    let mut text = "which outlive this process".to_owned();
    if status.unkept > 0 {
        text += &format!(", but for {} since its start", status.unkept);
    }
    if status.restored > 0 {
        text += &format!("; {} came from one before", status.restored);
    }
    text
}

/// A client probes a path that is quiet every 20 s: by then two probes were lost.
const SILENT: u64 = 60;

/// The state of a client, and whether it is still there.
fn standing(client: &ClientRow) -> String {
    let silence = client.activity.as_ref().and_then(|activity| activity.silent_s);
    match silence.filter(|silence| *silence >= SILENT) {
        Some(silence) => format!("{}, silent for {}", client.state, seconds(silence)),
        None => client.state.clone(),
    }
}

pub(super) fn client_table(clients: &[ClientRow]) -> String {
    let rows: Vec<[String; 6]> = clients
        .iter()
        .map(|client| {
            let activity = client.activity.clone().unwrap_or_default();
            let live = |text: String| if client.activity.is_some() { text } else { "-".to_owned() };
            let key = match (client.key, client.invite_expires) {
                (Some(key), _) => key.to_string(),
                (None, Some(expires)) => format!("invite until {}", date(expires)),
                (None, None) => "-".to_owned(),
            };
            [
                client.name.to_string(),
                standing(client),
                live(activity.flows.to_string()),
                live(bytes(activity.rx_bytes)),
                live(bytes(activity.tx_bytes)),
                key,
            ]
        })
        .collect();
    table(["NAME", "STATE", "FLOWS", "FROM IT", "TO IT", "KEY"], &rows)
}

fn stopped(layout: &Layout) -> anyhow::Result<Status> {
    let config = read_config(layout)?;
    Ok(Status {
        state: "stopped".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: config.listen,
        public: config.public.to_string(),
        clients: State::open(layout)?.clients().iter().count(),
        ..Status::default()
    })
}

fn parse<T: serde::de::DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(answer)
        .context("the running gateway is another version than this command; restart it")
}
