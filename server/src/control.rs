//! What the running gateway answers on its control socket, and what it reports of itself.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use whimbrel_common::config::HostPort;
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::invite::Invite;
use whimbrel_common::units::Period;
use whimbrel_gateway_core::invites::UnixSeconds;
use whimbrel_host::control::{Changes, Request};
use whimbrel_host::exit::sentence;

use crate::state::State;

/// The verbs that change something.
pub const CHANGES: Changes = &["revoke", "invite"];

/// The shortest and longest time an invite can be good for.
pub const VALID: (Period, Period) =
    (Period(Duration::from_secs(1)), Period(Duration::from_hours(365 * 24)));

/// What the control socket needs of the daemon.
pub trait Running {
    /// Where clients find this gateway, and the key it proves.
    fn identity(&self) -> (HostPort, PublicKey);

    /// The state of the gateway.
    fn status(&self) -> Status;

    /// What the client with this key does; `None` while it is not connected.
    fn activity(&self, key: &PublicKey) -> Option<Activity>;

    /// Ends every session of this key at once, and resets its flows. How many sessions there were.
    fn cut_off(&mut self, key: &PublicKey) -> usize;
}

/// `whimbrel-gateway status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// `running` or `stopped`.
    pub state: String,
    /// The version of the running program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The UDP addresses it listens on.
    pub listen: Vec<SocketAddr>,
    /// Where clients find it.
    pub public: String,
    /// Its public key.
    pub key: String,
    /// Clients that may connect. Filled in from the clients file.
    pub clients: usize,
    /// Clients that are connected.
    pub connected: usize,
    /// Flows open.
    pub flows: u64,
    /// Sessions that wait for their clients.
    #[serde(default)]
    pub parked: Waiting,
    /// Sessions given up since the start because their client parked too many.
    #[serde(default)]
    pub evicted: u64,
    /// Flows taken over from the process before.
    #[serde(default)]
    pub restored: u64,
    /// Flows since the start for which there was no room to outlive this process.
    #[serde(default)]
    pub unkept: u64,
    /// Whether flows outlive this process: a restart, or its sudden death.
    #[serde(default)]
    pub outlives: bool,
    /// Dials since the start, by what became of them.
    pub dials: Dials,
    /// Bytes to clients since the start.
    pub tx_bytes: u64,
    /// Bytes from clients since the start.
    pub rx_bytes: u64,
}

/// What waits for its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Waiting {
    /// Sessions without a connection.
    pub sessions: u64,
    /// Their flows.
    pub flows: u64,
}

/// What became of the connections that clients asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Dials {
    /// The destination answered.
    pub connected: u64,
    /// It refused, was unreachable, or did not answer.
    pub failed: u64,
    /// The destination policy forbids it.
    pub denied: u64,
    /// The client was over its limits.
    pub limited: u64,
}

/// One row of `whimbrel-gateway clients --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientRow {
    /// What the owner calls it.
    pub name: ClientName,
    /// Its public key; `None` for one that is invited but has not joined.
    pub key: Option<PublicKey>,
    /// `connected`, `away`, `invited` or `expired`.
    pub state: String,
    /// When an open invite expires, in seconds since 1970.
    pub invite_expires: Option<UnixSeconds>,
    /// What it does, while it is connected.
    pub activity: Option<Activity>,
}

/// What a connected client does.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Flows it has open.
    pub flows: u64,
    /// Where its packets come from, the active path first.
    pub addresses: Vec<SocketAddr>,
    /// Bytes to it in this session.
    pub tx_bytes: u64,
    /// Bytes from it in this session.
    pub rx_bytes: u64,
    /// Seconds it has been connected.
    pub connected_s: u64,
}

/// Answers one request of the command line.
///
/// # Errors
/// A sentence for the user.
pub fn answer(
    request: &Request,
    state: &mut State,
    running: &mut impl Running,
    now: UnixSeconds,
) -> Result<Value, String> {
    match request.verb.as_str() {
        "status" => {
            let status = Status { clients: state.clients().iter().count(), ..running.status() };
            Ok(json!(status))
        }
        "clients" => Ok(json!(rows(state, now, |key| running.activity(key)))),
        "invite" => {
            let name = name(&request.args)?;
            let valid = valid(&request.args)?;
            let token =
                state.issue_invite(&name, valid.0, now).map_err(|error| sentence(&error))?;
            let (public, gateway_key) = running.identity();
            let invite = Invite { host: public.host, port: public.port, gateway_key, token };
            tracing::info!(client = %name, uid = request.peer.uid, "Made an invite");
            Ok(json!({ "invite": invite.to_string() }))
        }
        "revoke" => {
            let name = name(&request.args)?;
            let key = state.revoke(&name).map_err(|error| sentence(&error))?;
            let sessions = key.map_or(0, |key| running.cut_off(&key));
            tracing::info!(client = %name, sessions, uid = request.peer.uid, "Revoked a client");
            Ok(json!({ "enrolled": key.is_some(), "sessions": sessions }))
        }
        other => Err(unknown_verb(other)),
    }
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
