//! The figures of the client, for a monitoring system.

use std::time::Instant;

use whimbrel_client_core::engine::Drops;
use whimbrel_common::metrics::{Exposition, Kind};
use whimbrel_common::path::{MoveReason, State};
use whimbrel_common::wire::{Limit, RefuseReason};
use whimbrel_host::metrics::process;

use super::Daemon;
use crate::ferry::End;
use crate::report::{CaptureState, DatagramReport, EventKind, SessionState};
use crate::tunnel::LinkView;

/// All figures, as Prometheus reads them.
pub(super) fn write(daemon: &mut Daemon) -> String {
    let mut text = Exposition::new("whimbrel");
    text.family("build_info", Kind::Gauge, "The running program.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    write_session(daemon, &mut text);
    write_moves(daemon, &mut text);
    write_flows(daemon, &mut text);
    write_datagrams(&daemon.client.datagram_report(), &mut text);
    write_drops(&daemon.client.engine_stats().dropped, &mut text);
    let links = daemon.client.tunnel.links();
    write_paths(&links, &mut text);
    text.process(&process());
    text.finish()
}

fn write_session(daemon: &mut Daemon, text: &mut Exposition) {
    let now = daemon.session_state();
    text.state("session_state", "What the daemon does.", SessionState::ALL, &now);
    let now = daemon.client.capture_state();
    text.state("capture_state", "What new connections get.", CaptureState::ALL, &now);
    let help = "What happened, as `whimbrel events` tells it.";
    let kinds = daemon.client.journal.kinds.with(EventKind::ALL);
    text.counters("events_total", help, "event", &kinds);
    let totals = daemon.client.tunnel.endpoint.totals();
    let help = "UDP payload to and from the gateway, over all paths.";
    let values = [("transmit", totals.tx_bytes), ("receive", totals.rx_bytes)];
    text.counters("carrier_bytes_total", help, "direction", &values);
    let help = "UDP payload deemed lost, and sent again where it still mattered.";
    text.counter("retransmitted_bytes_total", help, totals.lost_bytes);
}

fn write_moves(daemon: &Daemon, text: &mut Exposition) {
    let journal = &daemon.client.journal;
    let help = "Moves of the traffic to another link.";
    text.counters("moves_total", help, "reason", &journal.reasons.with(&MoveReason::ALL));
    let help = "From the first byte that a path which was left did not acknowledge, or else from the \
                move, to the first acknowledgement on the next path.";
    text.histogram("move_gap_seconds", help, &journal.gaps);
    let help = "From the last that was heard of the gateway over a connection that was lost until the \
                session goes on over another one.";
    text.histogram("resume_gap_seconds", help, &journal.absences);
}

fn write_flows(daemon: &Daemon, text: &mut Exposition) {
    let client = &daemon.client;
    let counts = client.flow_counts();
    let mut family = text.family("flows", Kind::Gauge, "Connections that are carried.");
    family.sample(&[("state", "moving")], counts.open.saturating_sub(counts.held) as f64);
    family.sample(&[("state", "held")], counts.held as f64);
    let stats = client.engine_stats();
    text.counter("flows_opened_total", "Connections of programs that were caught.", stats.opened);
    let ends = client.counts.ends.with(&End::NAMES);
    text.counters("flows_ended_total", "How connections ended.", "how", &ends);
    let refusals = client.counts.refusals.with(&RefuseReason::ALL);
    text.counters("flows_refused_total", "Why connections were refused.", "reason", &refusals);
    let help = "Times the gateway told that a limit of its own holds this client back, once a minute \
                for each.";
    let limits = client.counts.limits.with(&Limit::ALL);
    text.counters("limits_reached_total", help, "limit", &limits);
    let bytes = client.flow_bytes();
    let help = "Bytes from (transmit) and to (receive) programs.";
    let values = [("transmit", bytes.up), ("receive", bytes.down)];
    text.counters("flow_bytes_total", help, "direction", &values);
    let help = "Bytes of connections sent a second time after a path or a connection was lost.";
    text.counter("replayed_bytes_total", help, bytes.replayed);
    let help = "Bytes kept until the gateway has taken them.";
    text.gauge("held_bytes", help, client.held_bytes() as f64);
}

fn write_datagrams(datagrams: &DatagramReport, text: &mut Exposition) {
    let help = "Sockets of programs with a port at the gateway, or lately with one.";
    text.gauge("udp_endpoints", help, datagrams.open as f64);
    let help = "Datagrams of UDP from (transmit) and to (receive) programs.";
    let ways = [("transmit", datagrams.sent), ("receive", datagrams.received)];
    text.counters("udp_datagrams_total", help, "direction", &ways);
    let help = "Datagrams of UDP and echoes that were lost here.";
    text.counter("udp_datagrams_dropped_total", help, datagrams.dropped);
    let help = "ICMP echo requests of programs that were sent, and replies to them.";
    let kinds = [("request", datagrams.echo_requests), ("reply", datagrams.echo_replies)];
    text.counters("echoes_total", help, "kind", &kinds);
}

fn write_drops(drops: &Drops, text: &mut Exposition) {
    let help = "Packets of programs that were dropped.";
    text.counters("packets_dropped_total", help, "reason", &drops.by_reason());
}

fn write_paths(links: &[LinkView], text: &mut Exposition) {
    let mut family = text.family("path_state", Kind::Gauge, "What each path does.");
    for link in links {
        for state in State::ALL {
            let labels = [("link", link.link.as_str()), ("state", &state.to_string())];
            family.sample(&labels, f64::from(u8::from(state == link.state)));
        }
    }
    let mut family = text.family("path_bytes_total", Kind::Counter, "UDP payload on each link.");
    for link in links {
        let name = link.link.as_str();
        family.sample(&[("link", name), ("direction", "transmit")], link.tx_bytes as f64);
        family.sample(&[("link", name), ("direction", "receive")], link.rx_bytes as f64);
    }
    let open = || links.iter().filter_map(|link| Some((link.link.as_str(), link.path.as_ref()?)));
    let help = "Smoothed round-trip time of each path that has answered.";
    let mut family = text.family("path_rtt_seconds", Kind::Gauge, help);
    for (name, path) in open() {
        if path.progress.is_some_and(|progress| progress.last_ack.is_some()) {
            family.sample(&[("link", name)], path.rtt.as_secs_f64());
        }
    }
    let help = "Congestion window of each path.";
    let mut family = text.family("path_congestion_window_bytes", Kind::Gauge, help);
    open().for_each(|(name, path)| family.sample(&[("link", name)], path.cwnd as f64));
    let help = "Largest UDP payload of each path.";
    let mut family = text.family("path_mtu_bytes", Kind::Gauge, help);
    open().for_each(|(name, path)| family.sample(&[("link", name)], f64::from(path.mtu)));
    let help = "Seconds since a path made progress.";
    let mut family = text.family("path_silence_seconds", Kind::Gauge, help);
    let now = Instant::now();
    for (name, path) in open() {
        if let Some(at) = path.progress.and_then(|progress| progress.last_ack) {
            let silence = now.saturating_duration_since(at);
            family.sample(&[("link", name)], silence.as_secs_f64());
        }
    }
}
