//! The figures of the gateway, for a monitoring system.

use whimbrel_carrier::Totals;
use whimbrel_common::identity::ClientName;
use whimbrel_common::metrics::{Exposition, Histogram, Kind, Tally};
use whimbrel_common::path::MoveReason;
use whimbrel_host::metrics::process;

use crate::sessions::GivenUp;
use crate::status::{ClientRow, Status};

/// What is counted for a monitoring system alone, by one slot since the start.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// Why clients moved to other paths.
    pub moves: Tally,
    /// How long nothing was acknowledged at moves.
    pub move_gaps: Histogram,
    /// How long sessions were away before they went on.
    pub resume_gaps: Histogram,
    /// Why sessions were given up.
    pub given_up: Tally,
    /// Which limits were reached.
    pub limits: Tally,
    /// What the connections to clients moved.
    pub carrier: Totals,
    /// Bytes sent to clients a second time after their path or connection was lost.
    pub replayed: u64,
    /// Datagrams for another slot that it was too busy to take.
    pub strays_lost: u64,
    /// The round trips of connected clients.
    pub rtts: Vec<(ClientName, std::time::Duration)>,
}

/// Limits that are reached, as they are called in figures: as their keys in the configuration, where
/// they have one.
pub(crate) mod limit {
    use whimbrel_common::wire::Limit;
    use whimbrel_gateway_core::limits::Exceeded;

    pub(crate) const HALF_OPEN: &str = "half_open";
    pub(crate) const SESSIONS: &str = "sessions";
    const PORTS: &str = "ports";

    /// Every name there is.
    pub(crate) fn all() -> impl Iterator<Item = String> {
        let configured = Limit::ALL.iter().map(Limit::to_string);
        configured.chain([HALF_OPEN, SESSIONS, PORTS].map(str::to_owned))
    }

    /// What a client is told that has used up something its owner may change.
    pub(crate) fn told(exceeded: Exceeded) -> Option<Limit> {
        match exceeded {
            Exceeded::Flows(_) => Some(Limit::Flows),
            Exceeded::Dials(_) => Some(Limit::Dials),
            Exceeded::Ports(_) | Exceeded::NewPorts(_) => None,
        }
    }

    /// What a client has used up.
    pub(crate) fn name(exceeded: Exceeded) -> String {
        told(exceeded).map_or_else(|| PORTS.to_owned(), |limit| limit.to_string())
    }
}

impl Figures {
    /// Adds those of another slot.
    pub(crate) fn add(&mut self, other: Self) {
        self.moves.add(&other.moves);
        self.move_gaps.add(&other.move_gaps);
        self.resume_gaps.add(&other.resume_gaps);
        self.given_up.add(&other.given_up);
        self.limits.add(&other.limits);
        self.carrier += other.carrier;
        self.replayed += other.replayed;
        self.strays_lost += other.strays_lost;
        self.rtts.extend(other.rtts);
    }
}

/// All figures, as Prometheus reads them.
pub(crate) fn write(status: &Status, clients: &[ClientRow], figures: &Figures) -> String {
    let mut text = Exposition::new("whimbrel_gateway");
    text.family("build_info", Kind::Gauge, "The running program.")
        .sample(&[("version", &status.version)], 1.0);
    write_sessions(status, figures, &mut text);
    write_flows(status, figures, &mut text);
    write_datagrams(status, &mut text);
    write_carrier(status, figures, &mut text);
    write_clients(clients, figures, &mut text);
    text.process(&process());
    text.finish()
}

fn write_sessions(status: &Status, figures: &Figures, text: &mut Exposition) {
    text.gauge("clients", "Clients that may connect.", status.clients as f64);
    let mut family = text.family("sessions", Kind::Gauge, "Sessions of clients.");
    family.sample(&[("state", "attached")], status.connected as f64);
    family.sample(&[("state", "parked")], status.parked.sessions as f64);
    let help = "Sessions given up with their connections.";
    let given_up = figures.given_up.with(&GivenUp::NAMES);
    text.counters("sessions_given_up_total", help, "reason", &given_up);
    let moves = figures.moves.with(&MoveReason::ALL);
    text.counters("moves_total", "Moves of clients to another path.", "reason", &moves);
    let help = "From the first byte that a path which was left did not acknowledge, or else from the \
                move, to the first acknowledgement on the next path.";
    text.histogram("move_gap_seconds", help, &figures.move_gaps);
    let help = "From the last that was heard of a client, or the start of this process if that is \
                later, until its session goes on over another connection.";
    text.histogram("resume_gap_seconds", help, &figures.resume_gaps);
}

fn write_flows(status: &Status, figures: &Figures, text: &mut Exposition) {
    let mut family = text.family("flows", Kind::Gauge, "Connections that are carried.");
    family.sample(&[("state", "parked")], status.parked.flows as f64);
    let moving = status.flows.saturating_sub(status.parked.flows);
    family.sample(&[("state", "attached")], moving as f64);
    let dials = &status.dials;
    let outcomes = [
        ("connected", dials.connected),
        ("failed", dials.failed),
        ("denied", dials.denied),
        ("limited", dials.limited),
    ];
    let help = "Connections that clients asked for.";
    text.counters("dials_total", help, "outcome", &outcomes);
    let help = "Times a limit kept a client from something.";
    let limits: Vec<String> = limit::all().collect();
    text.counters("limits_reached_total", help, "limit", &figures.limits.with(&limits));
    let help = "Bytes of connections to (transmit) and from (receive) clients.";
    let bytes = [("transmit", status.tx_bytes), ("receive", status.rx_bytes)];
    text.counters("flow_bytes_total", help, "direction", &bytes);
    let help = "Bytes of connections sent to clients a second time after a loss of their path or \
                connection.";
    text.counter("replayed_bytes_total", help, figures.replayed);
    let help = "Connections taken over from the process before.";
    text.counter("flows_restored_total", help, status.restored);
    let help = "Connections that will end with this process, for want of room.";
    text.counter("flows_unkept_total", help, status.unkept);
    let help = "Bytes read that nobody has taken yet.";
    text.gauge("held_bytes", help, status.held.bytes as f64);
    let help = "Bytes that may be held (limits.memory).";
    text.gauge("held_limit_bytes", help, status.held.limit as f64);
}

fn write_datagrams(status: &Status, text: &mut Exposition) {
    let datagrams = &status.datagrams;
    text.gauge(
        "udp_ports",
        "Ports that clients have for UDP and ICMP echo.",
        datagrams.ports as f64,
    );
    let help = "Datagrams of UDP to (transmit) and from (receive) clients.";
    let ways = [("transmit", datagrams.down), ("receive", datagrams.up)];
    text.counters("udp_datagrams_total", help, "direction", &ways);
    let help = "Datagrams of UDP and echoes that were not handed on.";
    let reasons = [
        ("no-room", datagrams.dropped),
        ("denied", datagrams.denied),
        ("unasked", datagrams.unasked),
    ];
    text.counters("udp_datagrams_dropped_total", help, "reason", &reasons);
    let help = "ICMP echo requests of clients that were sent, and replies to them.";
    let kinds = [("request", datagrams.echo_requests), ("reply", datagrams.echo_replies)];
    text.counters("echoes_total", help, "kind", &kinds);
}

fn write_carrier(status: &Status, figures: &Figures, text: &mut Exposition) {
    let totals = figures.carrier;
    let help = "UDP payload to and from clients.";
    let bytes = [("transmit", totals.tx_bytes), ("receive", totals.rx_bytes)];
    text.counters("carrier_bytes_total", help, "direction", &bytes);
    let help = "UDP payload deemed lost, and sent again where it still mattered.";
    text.counter("retransmitted_bytes_total", help, totals.lost_bytes);
    let help = "Datagrams received.";
    let datagrams = status.slots.iter().map(|slot| slot.datagrams).sum();
    text.counter("datagrams_received_total", help, datagrams);
    let help = "Datagrams that the kernel gave to another slot than theirs.";
    let strayed = status.slots.iter().map(|slot| slot.strayed).sum();
    text.counter("datagrams_strayed_total", help, strayed);
    let help = "Datagrams that were dropped.";
    let reasons = [("slot-busy", figures.strays_lost)];
    text.counters("datagrams_dropped_total", help, "reason", &reasons);
    let help = "Times a client came from another address or by another path.";
    let readdressed = status.slots.iter().map(|slot| slot.readdressed).sum();
    text.counter("readdressed_total", help, readdressed);
}

fn write_clients(clients: &[ClientRow], figures: &Figures, text: &mut Exposition) {
    let connected =
        || clients.iter().filter_map(|row| Some((row.name.as_str(), row.activity.as_ref()?)));
    let help = "Connections of each connected client.";
    let mut family = text.family("client_flows", Kind::Gauge, help);
    connected().for_each(|(name, it)| family.sample(&[("client", name)], it.flows as f64));
    let help = "Bytes to (transmit) and from (receive) each connected client in its session.";
    let mut family = text.family("client_session_bytes", Kind::Gauge, help);
    for (name, activity) in connected() {
        family.sample(&[("client", name), ("direction", "transmit")], activity.tx_bytes as f64);
        family.sample(&[("client", name), ("direction", "receive")], activity.rx_bytes as f64);
    }
    let help = "Round-trip time of the active path of each connected client; the longest of its \
                sessions.";
    let mut longest = std::collections::BTreeMap::new();
    for (name, rtt) in &figures.rtts {
        let entry = longest.entry(name.as_str()).or_insert(*rtt);
        *entry = (*entry).max(*rtt);
    }
    let mut family = text.family("client_rtt_seconds", Kind::Gauge, help);
    longest.iter().for_each(|(name, rtt)| family.sample(&[("client", name)], rtt.as_secs_f64()));
}
