//! Reports as people read them.

#[cfg(test)]
mod tests;

use whimbrel_host::output::{Palette, Tone, bytes, date, seconds, table};

use crate::report::{
    CaptureState, DatagramState, Event, FlowReport, MoveRecord, NamesReport, NamesState,
    PathReport, RunReport, RunWay, SessionState, Status,
};

/// `whimbrel status`.
#[must_use]
pub fn status(status: &Status, palette: Palette) -> String {
    let mut text = summary(status, palette);
    if !status.paths.is_empty() {
        text.push_str("\n\n");
        text.push_str(&paths(&status.paths, palette));
    }
    if !status.runs.is_empty() {
        text.push_str("\n\n");
        text.push_str(&runs(&status.runs));
    }
    text
}

/// Commands of `whimbrel run`.
fn runs(runs: &[RunReport]) -> String {
    let row = |run: &RunReport| {
        let process = run.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let state = if run.ended { "ended" } else { "runs" };
        let flows = match run.way {
            RunWay::Namespace => run.flows.to_string(),
            RunWay::Cgroup | RunWay::Direct => "-".to_owned(),
        };
        let (user, way, age) = (run.uid.to_string(), run.way.to_string(), seconds(run.age_s));
        [run.command.clone(), process, user, way, state.to_owned(), flows, age]
    };
    let rows: Vec<[String; 7]> = runs.iter().map(row).collect();
    table(["COMMAND", "PROCESS", "USER", "BY", "STATE", "FLOWS", "AGE"], &rows)
}

/// Everything about the daemon but its paths: what is wrong first, and what to do about it.
#[must_use]
pub fn summary(status: &Status, palette: Palette) -> String {
    let mut text = standing(status, palette);
    text.push_str(&format!(
        "\nCapture    {}{}\nFlows      {} open, {} held\nMoves      {} in {}",
        capture(status),
        names(&status.names),
        status.flows.open,
        status.flows.held,
        status.moves,
        seconds(status.uptime_s),
    ));
    if let Some(last) = &status.last_move {
        text.push_str(&format!("\nLast move  {}, {}", date(last.at / 1000), movement(last)));
    }
    text
}

/// `whimbrel paths`.
#[must_use]
pub fn paths(paths: &[PathReport], palette: Palette) -> String {
    if paths.is_empty() {
        return "No network yet.".to_owned();
    }
    let rows: Vec<[String; 8]> = paths.iter().map(|path| path_row(path, palette)).collect();
    table(["LINK", "STATE", "RTT", "WINDOW", "MTU", "SENT", "RECEIVED", "GATEWAY"], &rows)
}

/// `whimbrel flows`.
#[must_use]
pub fn flows(flows: &[FlowReport]) -> String {
    if flows.is_empty() {
        return "No flows.".to_owned();
    }
    let rows: Vec<[String; 12]> = flows.iter().map(flow_row).collect();
    let headings = [
        "ID",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "SENT",
        "RECEIVED",
        "AGE",
        "LONGEST STALL",
        "HELD",
        "REPLAYED",
        "SURVIVED",
    ];
    table(headings, &rows)
}

/// A line of `whimbrel events`.
#[must_use]
pub fn event(event: &Event) -> String {
    format!("{}  {:<9}  {}", date(event.at / 1000), event.event, event_text(event))
}

/// What happened, without when.
pub(crate) fn event_text(event: &Event) -> String {
    event.moved.as_ref().map_or_else(|| event.text.clone(), movement)
}

/// What a flow has lived through, and what it waits for.
pub(crate) fn story(flow: &FlowReport) -> String {
    let mut parts = Vec::new();
    match flow.state.as_str() {
        "open" => {}
        "held" => parts.push("waits for a network".to_owned()),
        "opening" => parts.push("is being opened".to_owned()),
        "half-closed" => parts.push("one side has finished".to_owned()),
        other => parts.push(other.to_owned()),
    }
    let survived = survived(flow);
    if survived != "-" {
        parts.push(format!("lived through {survived}"));
    }
    // Below this it is the network's own round trip.
    if flow.stalled_ms_longest >= 100 {
        parts.push(format!("waited {} ms at most", flow.stalled_ms_longest));
    }
    if flow.replayed_bytes > 0 {
        parts.push(format!("{} sent again", bytes(flow.replayed_bytes)));
    }
    parts.join(", ")
}

fn standing(status: &Status, palette: Palette) -> String {
    let gateway = &status.gateway;
    let active = status.paths.first().filter(|path| is_active(path));
    let (tone, text) = match (status.state, active) {
        (SessionState::Attached, Some(active)) => {
            let mut text = format!("{gateway} over {}", active.link);
            if let Some(rtt) = active.rtt_ms {
                text.push_str(&format!(", {rtt:.1} ms"));
            }
            text.push_str(&spares(&status.paths[1..]));
            (Tone::Good, text)
        }
        (SessionState::Attached, None) => (Tone::Doubtful, gateway.clone()),
        (SessionState::Connecting, _) => (Tone::Doubtful, format!("to {gateway}")),
        (SessionState::Parked, _) => {
            (Tone::Bad, format!("{gateway} is out of reach; what is open is held"))
        }
        (SessionState::Offline, _) => (Tone::Bad, format!("no network to reach {gateway}")),
    };
    let state = palette.paint(tone, format_args!("{:<10}", capitalised(status.state)));
    let mut text = format!("{state} {text}");
    if let Some(trouble) = &status.trouble {
        text.push_str(&format!(
            "\n{}",
            palette.paint(Tone::Bad, format_args!("Trouble    {trouble}"))
        ));
    }
    if status.state != SessionState::Attached && status.uptime_s >= SETTLED {
        text.push_str("\nWhat to do whimbrel doctor");
    }
    text
}

/// A daemon that has just started is not attached yet, and nothing is wrong with that: seconds.
const SETTLED: u64 = 3;

fn capitalised(state: SessionState) -> &'static str {
    match state {
        SessionState::Connecting => "Connecting",
        SessionState::Attached => "Attached",
        SessionState::Parked => "Parked",
        SessionState::Offline => "Offline",
    }
}

fn is_active(path: &PathReport) -> bool {
    matches!(path.state.as_str(), "active" | "suspect" | "steered")
}

/// What the links that do not carry are good for.
fn spares(paths: &[PathReport]) -> String {
    let named = |wanted: fn(&PathReport) -> bool, one: &str, more: &str| {
        let names: Vec<&str> =
            paths.iter().filter(|path| wanted(path)).map(|path| path.link.as_str()).collect();
        let what = if names.len() == 1 { one } else { more };
        (!names.is_empty()).then(|| format!("; {} {what}", names.join(", ")))
    };
    let ready =
        named(|path| path.state == "warm", "is ready to take over", "are ready to take over");
    let captive = named(|path| path.captive, "wants a sign-in", "want a sign-in");
    let dead = named(
        |path| !path.captive && matches!(path.state.as_str(), "absent" | "cooldown" | "suspect"),
        "does not reach it",
        "do not reach it",
    );
    [ready, captive, dead].into_iter().flatten().collect()
}

/// A line about names, if they are asked of the gateway or should be.
fn names(names: &NamesReport) -> String {
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    match names.state {
        NamesState::Direct => String::new(),
        NamesState::Gateway => {
            format!("\nNames      asked of the gateway, by {}", said(&names.by))
        }
        NamesState::Failed => {
            format!("\nNames      asked as without it: {}", said(&names.trouble))
        }
    }
}

fn capture(status: &Status) -> String {
    let text = match status.capture {
        CaptureState::On if status.state == SessionState::Attached => {
            match status.datagrams.state {
                DatagramState::Off | DatagramState::Waiting => {
                    "on: new TCP connections are carried"
                }
                DatagramState::Carried if status.datagrams.echoes == DatagramState::Carried => {
                    "on: new TCP connections, UDP and ping are carried"
                }
                DatagramState::Carried => {
                    "on: new TCP connections and UDP are carried, ping is not: the gateway cannot"
                }
                DatagramState::Unsupported => {
                    "on: new TCP connections are carried, UDP is not: the gateway is too old for it"
                }
            }
        }
        CaptureState::On => "on: new TCP connections wait for the gateway",
        CaptureState::Paused => {
            let time = status.pause_left_s.map(|left| format!(" for another {}", seconds(left)));
            return format!(
                "paused{}: new connections go direct (`whimbrel resume` ends it)",
                time.unwrap_or_default()
            );
        }
        CaptureState::Direct => "new connections go direct until the gateway is in reach",
        CaptureState::Blocked => "new connections fail until the gateway is in reach",
        CaptureState::Commands => "commands of `whimbrel run` only",
    };
    text.to_owned()
}

fn movement(moved: &MoveRecord) -> String {
    let from = moved.from.as_deref().unwrap_or("nothing");
    let mut text = format!("{from} to {}: {}", moved.to, moved.reason);
    if let Some(gap) = moved.gap_ms {
        text.push_str(&format!(", gap {gap:.0} ms"));
    }
    if let Some(again) = moved.retransmitted_bytes {
        text.push_str(&format!(", {} sent again", bytes(again)));
    }
    text
}

fn path_row(path: &PathReport, palette: Palette) -> [String; 8] {
    [
        link_name(path),
        path_state(path, palette),
        rtt(path),
        bytes(path.cwnd),
        path.mtu.to_string(),
        bytes(path.tx_bytes),
        bytes(path.rx_bytes),
        path.remote.map_or_else(|| "-".to_owned(), |remote| remote.to_string()),
    ]
}

/// A link, what kind it is and what it costs.
pub(crate) fn link_name(path: &PathReport) -> String {
    // A cable needs no word.
    let class = path.class.as_deref().filter(|class| *class != "wired");
    let about: Vec<&str> = class.into_iter().chain(path.metered.then_some("metered")).collect();
    if about.is_empty() {
        return path.link.clone();
    }
    format!("{} ({})", path.link, about.join(", "))
}

/// The state of a path.
pub(crate) fn path_state(path: &PathReport, palette: Palette) -> String {
    if path.captive {
        return palette.paint(Tone::Bad, "captive");
    }
    match path.state.as_str() {
        "active" => palette.paint(Tone::Good, "active"),
        state @ ("suspect" | "steered" | "cooldown") => palette.paint(Tone::Doubtful, state),
        state => state.to_owned(),
    }
}

/// The round-trip time of a path.
pub(crate) fn rtt(path: &PathReport) -> String {
    path.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms"))
}

fn survived(flow: &FlowReport) -> String {
    let count = |number: u64, what: &str| match number {
        0 => None,
        1 => Some(format!("1 {what}")),
        more => Some(format!("{more} {what}s")),
    };
    let moves = count(flow.moves_survived, "move");
    let reconnects = count(flow.reconnects_survived, "reconnect");
    let all: Vec<String> = moves.into_iter().chain(reconnects).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn flow_row(flow: &FlowReport) -> [String; 12] {
    [
        flow.id.to_string(),
        flow.protocol.to_string(),
        flow.source.to_string(),
        flow.destination.to_string(),
        flow.state.clone(),
        bytes(flow.tx_bytes),
        bytes(flow.rx_bytes),
        seconds(flow.age_s),
        format!("{} ms", flow.stalled_ms_longest),
        bytes(flow.held_bytes),
        bytes(flow.replayed_bytes),
        survived(flow),
    ]
}
