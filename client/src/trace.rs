//! A record of what paths, moves and flows do, for whoever asks, while they ask: the events of a qlog
//! (draft-ietf-quic-qlog-main-schema-13, in sequence). Round trips and windows are those of
//! draft-ietf-quic-qlog-quic-events-12; the rest has names of its own.
//!
//! No byte of a flow is in it, no key, and no address: flows are numbers, and paths go by the name of
//! their link.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use whimbrel_common::path::State;
use whimbrel_host::control::{Responder, Subscription};

use crate::report::{EventKind, MoveRecord};
use crate::tunnel::LinkView;

/// The verb that asks for it.
pub(crate) const VERB: &str = "trace";

/// Paths are looked at this often: a few times in what a move may take.
const SAMPLE: Duration = Duration::from_millis(50);

/// At once so many may ask: each gets a copy of everything.
const MOST: usize = 4;

/// Who asks, see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Trace {
    followers: Vec<Subscription>,
    sample_at: Option<Instant>,
}

impl Trace {
    /// Tells somebody from now on.
    pub(crate) fn follow(&mut self, responder: Responder, session: Option<String>) {
        self.followers.retain(|follower| !follower.is_closed());
        if self.followers.len() >= MOST {
            let text = format!("{MOST} traces are being written already; end one of them");
            responder.reply(Err(text));
            return;
        }
        let follower = responder.subscribe();
        if follower.push(&header(session)) {
            self.followers.push(follower);
        }
    }

    /// Whether anybody is told.
    pub(crate) fn is_on(&self) -> bool {
        !self.followers.is_empty()
    }

    /// When [`sample`](Self::sample) wants to be called. The first time is the turn that follows
    /// the request.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sample_at.filter(|_| self.is_on())
    }

    /// Whether it is time for [`sample`](Self::sample).
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.is_on() && self.sample_at.is_none_or(|at| at <= now)
    }

    /// How the paths are, and how much waits.
    pub(crate) fn sample(&mut self, links: &[LinkView], held: u64, now: Instant) {
        self.sample_at = Some(now + SAMPLE);
        // Somebody who has gone is not told anything else for as long as nothing happens.
        self.followers.retain(|follower| !follower.is_closed());
        for link in links {
            let Some(path) = &link.path else { continue };
            let progress = path.progress;
            let data = json!({
                "smoothed_rtt": milliseconds(path.rtt),
                "rtt_variance": progress.map(|it| milliseconds(it.rttvar)),
                "congestion_window": path.cwnd,
                "whimbrel_state": link.state.to_string(),
                "whimbrel_transmit_bytes": path.tx_bytes,
                "whimbrel_receive_bytes": path.rx_bytes,
                "whimbrel_acked_bytes": progress.map(|it| it.acked_bytes),
                "whimbrel_lost_bytes": path.lost_bytes,
                "whimbrel_silent": progress
                    .and_then(|it| it.expecting_since)
                    .map(|since| milliseconds(now.saturating_duration_since(since))),
            });
            self.tell("quic:recovery_metrics_updated", Some(&link.link), &data);
        }
        self.tell("whimbrel:held_updated", None, &json!({ "bytes": held }));
    }

    /// Something happened that has no more to it.
    pub(crate) fn event(&mut self, kind: EventKind, link: Option<&str>) {
        if self.is_on() {
            let name = kind.to_string().replace('-', "_");
            self.tell(&format!("whimbrel:{name}"), link, &json!({}));
        }
    }

    /// A path changed its state.
    pub(crate) fn path(&mut self, link: &str, from: State, to: State) {
        if self.is_on() {
            let data = json!({ "old": from.to_string(), "new": to.to_string() });
            self.tell("whimbrel:path_state_updated", Some(link), &data);
        }
    }

    /// The traffic moves: told twice, when it begins and when its cost is known.
    pub(crate) fn moved(&mut self, record: &MoveRecord, settled: bool) {
        if self.is_on() {
            let name = if settled { "whimbrel:move_settled" } else { "whimbrel:move_started" };
            self.tell(name, Some(&record.to), &json!(record));
        }
    }

    /// A program opened a connection.
    pub(crate) fn flow_opened(&mut self, flow: u64) {
        if self.is_on() {
            self.tell("whimbrel:flow_opened", None, &json!({ "flow": flow }));
        }
    }

    /// A connection is over.
    pub(crate) fn flow_ended(&mut self, flow: u64, how: &str, bytes: (u64, u64, u64)) {
        if self.is_on() {
            let (transmit, receive, replayed) = bytes;
            let data = json!({
                "flow": flow,
                "how": how,
                "transmit_bytes": transmit,
                "receive_bytes": receive,
                "replayed_bytes": replayed,
            });
            self.tell("whimbrel:flow_ended", None, &data);
        }
    }

    fn tell(&mut self, name: &str, link: Option<&str>, data: &Value) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut event = json!({ "time": milliseconds(since), "name": name, "data": data });
        if let Some(link) = link {
            event["tuple"] = json!(link);
        }
        // Whoever reads too slowly is not told the rest: a hole would look like silence.
        self.followers.retain(|follower| follower.push(&event));
    }
}

fn header(session: Option<String>) -> Value {
    json!({
        "file_schema": "urn:ietf:params:qlog:file:sequential",
        "serialization_format": "application/qlog+json-seq",
        "title": "Whimbrel client",
        "trace": {
            "vantage_point": { "name": "whimbrel", "type": "client" },
            "common_fields": {
                "group_id": session,
                "time_format": "relative_to_epoch",
                "reference_time": { "clock_type": "system", "epoch": "1970-01-01T00:00:00.000Z" },
            },
            "event_schemas": ["urn:ietf:params:qlog:events:quic-12", "urn:whimbrel:qlog:events-1"],
        },
    })
}

/// qlog's unit of time, to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000_000.0).round() / 1000.0
}
