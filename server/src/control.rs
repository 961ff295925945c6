//! What the running gateway answers on its control socket, and what it reports of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use whimbrel_common::config::HostPort;
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::invite::Invite;
use whimbrel_common::units::Period;
use whimbrel_gateway_core::invites::UnixSeconds;
use whimbrel_host::control::{Changes, Request};
use whimbrel_host::exit::sentence;
use whimbrel_host::metrics::VERB;

use crate::metrics::{self, Figures};
use crate::state::State;
use crate::status::{Activity, ClientRow, Datagrams, Dials, Held, SlotStatus, Status, Waiting};

/// The verbs that change something.
pub const CHANGES: Changes = &["revoke", "invite"];

/// The shortest and longest time an invite can be good for.
pub const VALID: (Period, Period) =
    (Period(Duration::from_secs(1)), Period(Duration::from_hours(365 * 24)));

/// What the head knows of the gateway by itself.
#[derive(Debug)]
pub struct Facts {
    /// Where clients find this gateway.
    pub public: HostPort,
    /// The key it proves.
    pub key: PublicKey,
    /// The UDP addresses it listens on.
    pub listen: Vec<SocketAddr>,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether flows outlive this process.
    pub outlives: bool,
}

/// What a slot does and has done since the start.
#[derive(Debug, Default)]
pub struct Report {
    /// Which slot.
    pub slot: SlotStatus,
    /// Sessions that wait for their clients.
    pub parked: Waiting,
    /// What flows keep for those who have not taken it.
    pub held: Held,
    /// Sessions given up because their client parked too many, or memory was short.
    pub evicted: u64,
    /// Flows taken over from the process before.
    pub restored: u64,
    /// Flows for which there was no room to outlive this process.
    pub unkept: u64,
    /// Dials, by what became of them.
    pub dials: Dials,
    /// Datagrams, by what became of them.
    pub datagrams: Datagrams,
    /// Bytes to clients.
    pub tx_bytes: u64,
    /// Bytes from clients.
    pub rx_bytes: u64,
    /// What its connected clients do.
    pub activities: BTreeMap<PublicKey, Activity>,
    /// What is counted for a monitoring system alone.
    pub figures: Figures,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Answer {
    /// This is the answer.
    Now(Value),
    /// Every slot must be asked first.
    Ask(Inquiry),
}

/// What every slot must be asked before a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inquiry {
    /// For `status`: its report.
    Status,
    /// For `clients`: its report.
    Clients,
    /// For `metrics`: its report.
    Metrics,
    /// For `revoke`: to end every session of this key at once, and reset its flows.
    CutOff(PublicKey),
}

/// Answers one request of the command line, or says what must be known for that.
///
/// # Errors
/// A sentence for the user.
pub fn answer(
    request: &Request,
    state: &mut State,
    facts: &Facts,
    now: UnixSeconds,
) -> Result<Answer, String> {
    match request.verb.as_str() {
        "status" => Ok(Answer::Ask(Inquiry::Status)),
        "clients" => Ok(Answer::Ask(Inquiry::Clients)),
        VERB => Ok(Answer::Ask(Inquiry::Metrics)),
        "invite" => {
            let name = name(&request.args)?;
            let valid = valid(&request.args)?;
            let token =
                state.issue_invite(&name, valid.0, now).map_err(|error| sentence(&error))?;
            let (public, gateway_key) = (facts.public.clone(), facts.key);
            let invite = Invite { host: public.host, port: public.port, gateway_key, token };
            tracing::info!(client = %name, uid = request.peer.uid, "Made an invite");
            Ok(Answer::Now(json!({ "invite": invite.to_string() })))
        }
        "revoke" => {
            let name = name(&request.args)?;
            let key = state.revoke(&name).map_err(|error| sentence(&error))?;
            tracing::info!(client = %name, uid = request.peer.uid, "Revoked a client");
            Ok(match key {
                Some(key) => Answer::Ask(Inquiry::CutOff(key)),
                None => Answer::Now(json!({ "enrolled": false, "sessions": 0 })),
            })
        }
        other => Err(unknown_verb(other)),
    }
}

/// The answer once every slot has told its part: its report, or how many sessions it has ended.
pub fn conclude(
    inquiry: &Inquiry,
    reports: Vec<Report>,
    ended: usize,
    state: &mut State,
    facts: &Facts,
    now: UnixSeconds,
) -> Value {
    match inquiry {
        Inquiry::Status => json!(status(reports, state.clients().iter().count(), facts)),
        Inquiry::Clients => {
            let activities = activities(&reports);
            json!(rows(state, now, |key| activities.get(key).cloned()))
        }
        Inquiry::Metrics => {
            let activities = activities(&reports);
            let rows = rows(state, now, |key| activities.get(key).cloned());
            let mut figures = Figures::default();
            let own = reports.iter().map(|report| report.figures.clone());
            own.for_each(|own| figures.add(own));
            let status = status(reports, state.clients().iter().count(), facts);
            json!({ "text": metrics::write(&status, &rows, &figures) })
        }
        Inquiry::CutOff(_) => json!({ "enrolled": true, "sessions": ended }),
    }
}

fn activities(reports: &[Report]) -> BTreeMap<PublicKey, Activity> {
    let mut activities: BTreeMap<PublicKey, Activity> = BTreeMap::new();
    for (key, activity) in reports.iter().flat_map(|report| &report.activities) {
        activities.entry(*key).or_default().add(activity.clone());
    }
    activities
}

fn status(mut reports: Vec<Report>, clients: usize, facts: &Facts) -> Status {
    reports.sort_by_key(|report| report.slot.slot);
    let mut status = Status {
        state: "running".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: facts.uptime_s,
        listen: facts.listen.clone(),
        public: facts.public.to_string(),
        key: facts.key.to_string(),
        clients,
        outlives: facts.outlives,
        ..Status::default()
    };
    for report in reports {
        status.connected += usize::try_from(report.slot.connections).unwrap_or(usize::MAX);
        status.flows += report.slot.flows;
        status.parked.sessions += report.parked.sessions;
        status.parked.flows += report.parked.flows;
        status.held.bytes += report.held.bytes;
        status.held.limit += report.held.limit;
        status.evicted += report.evicted;
        status.restored += report.restored;
        status.datagrams.add(report.datagrams);
        status.unkept += report.unkept;
        status.dials.connected += report.dials.connected;
        status.dials.failed += report.dials.failed;
        status.dials.denied += report.dials.denied;
        status.dials.limited += report.dials.limited;
        status.tx_bytes += report.tx_bytes;
        status.rx_bytes += report.rx_bytes;
        status.slots.push(report.slot);
    }
    status
}

/// Every client, and every invite that nobody has used yet.
pub fn rows(
    state: &mut State,
    now: UnixSeconds,
    activity: impl Fn(&PublicKey) -> Option<Activity>,
) -> Vec<ClientRow> {
    let enrolled = state.clients().iter().map(|client| {
        let activity = activity(&client.key);
        ClientRow {
            name: client.name.clone(),
            key: Some(client.key),
            state: if activity.is_some() { "connected" } else { "away" }.to_owned(),
            invite_expires: None,
            activity,
        }
    });
    let mut rows: Vec<ClientRow> = enrolled.collect();
    let open = state.invites().iter().filter(|entry| entry.used.is_none());
    rows.extend(open.map(|entry| ClientRow {
        name: entry.name.clone(),
        key: None,
        state: if now < entry.expires { "invited" } else { "expired" }.to_owned(),
        invite_expires: Some(entry.expires),
        activity: None,
    }));
    rows
}

fn name(args: &Value) -> Result<ClientName, String> {
    let text = args.get("name").and_then(Value::as_str).ok_or("the request has no \"name\"")?;
    text.parse().map_err(|error: whimbrel_common::identity::NameError| error.to_string())
}

fn valid(args: &Value) -> Result<Period, String> {
    let text = args.get("valid").and_then(Value::as_str).ok_or("the request has no \"valid\"")?;
    let period: Period =
        text.parse().map_err(|error: whimbrel_common::units::UnitError| error.to_string())?;
    if period < VALID.0 || period > VALID.1 {
        return Err(format!("an invite can be valid from {} to {}", VALID.0, VALID.1));
    }
    Ok(period)
}

fn unknown_verb(verb: &str) -> String {
    let shown: String = verb.chars().take(40).collect();
    format!("the running gateway does not know {shown:?}; it may be an older version: restart it")
}

#[cfg(test)]
mod tests;
