//! Reports as people read them.

#[cfg(test)]
mod tests;

use whimbrel_host::output::{bytes, date, seconds, table};

use crate::report::{
    CaptureState, DatagramState, Event, FlowReport, MoveRecord, PathReport, SessionState, Status,
};

/// `whimbrel status`.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut text = format!("Gateway    {}, {}", status.gateway, status.state);
    if let Some(trouble) = &status.trouble {
        text.push_str(&format!(" ({trouble})"));
    }
    text.push_str(&format!(
        "\nCapture    {}\nFlows      {} open, {} held\nMoves      {} in {}",
        capture(status),
        status.flows.open,
        status.flows.held,
        status.moves,
        seconds(status.uptime_s),
    ));
    if let Some(last) = &status.last_move {
        text.push_str(&format!("\nLast move  {}, {}", date(last.at / 1000), movement(last)));
    }
    if !status.paths.is_empty() {
        text.push_str("\n\n");
        text.push_str(&paths(&status.paths));
    }
    text
}

/// `whimbrel paths`.
#[must_use]
pub fn paths(paths: &[PathReport]) -> String {
    if paths.is_empty() {
        return "No network yet.".to_owned();
    }
    let rows: Vec<[String; 8]> = paths.iter().map(path_row).collect();
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
    let text = event.moved.as_ref().map_or_else(|| event.text.clone(), movement);
    format!("{}  {:<9}  {text}", date(event.at / 1000), event.event)
}

fn capture(status: &Status) -> String {
    let text = match status.capture {
        CaptureState::On if status.state == SessionState::Attached => {
            match status.datagrams.state {
                DatagramState::Off | DatagramState::Waiting => {
                    "on: new TCP connections are carried"
                }
                DatagramState::Carried => "on: new TCP connections and UDP are carried",
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

fn path_row(path: &PathReport) -> [String; 8] {
    let metered = if path.metered { " (metered)" } else { "" };
    [
        format!("{}{metered}", path.link),
        path.state.clone(),
        path.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms")),
        bytes(path.cwnd),
        path.mtu.to_string(),
        bytes(path.tx_bytes),
        bytes(path.rx_bytes),
        path.remote.map_or_else(|| "-".to_owned(), |remote| remote.to_string()),
    ]
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
