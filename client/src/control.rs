//! What the running daemon answers on its control socket.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use whimbrel_client_core::plan::Way;
use whimbrel_common::config::{InterfaceName, InterfaceNameError};
use whimbrel_common::units::{Period, UnitError};
use whimbrel_host::Layout;
use whimbrel_host::control::{AskError, Changes, Request, Responder, Subscription};
use whimbrel_host::metrics;

use crate::devices::Owner;
use crate::report::{Event, FlowReport, Status};
use crate::trace;

/// The verbs that change something.
pub const CHANGES: Changes = &["group", "move", "pause", "resume", "run"];

/// Events kept for `whimbrel events`: a day of a restless laptop, at about 200 bytes each.
const EVENTS_KEPT: usize = 1000;

/// Characters of a command's name that are kept.
const LONGEST_NAME: usize = 64;

/// What the control socket needs of the daemon.
pub trait Running {
    /// The state of the daemon.
    fn status(&mut self) -> Status;

    /// Every flow, by number.
    fn flows(&self) -> Vec<FlowReport>;

    /// Figures for a monitoring system, as Prometheus reads them.
    fn metrics(&mut self) -> String;

    /// Tells somebody of paths, moves and flows from now on.
    fn trace(&mut self, responder: Responder);

    /// What happened lately, and who wants to hear of it.
    fn events(&mut self) -> &mut Events;

    /// Moves to a link and stays there, or goes back to choosing by itself. Returns a sentence
    /// about what happens.
    ///
    /// # Errors
    /// A sentence about why it cannot.
    fn relocate(&mut self, to: Target) -> Result<String, String>;

    /// Carries the connections of a wrapped command.
    ///
    /// # Errors
    /// A sentence about why it cannot.
    fn run(&mut self, passed: Passed) -> Result<Welcome, String>;

    /// Leads the new connections of a command by its control group.
    ///
    /// # Errors
    /// A sentence about why it cannot.
    fn lead(&mut self, grouped: Grouped) -> Result<Welcome, String>;

    /// Lets new connections go direct, for a time or until [`Running::resume`].
    ///
    /// # Errors
    /// A sentence about why it cannot.
    fn pause(&mut self, duration: Option<Duration>) -> Result<String, String>;

    /// Captures new connections again.
    ///
    /// # Errors
    /// A sentence about why it cannot.
    fn resume(&mut self) -> Result<String, String>;
}

/// Where `whimbrel move` moves to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// This link, until told otherwise.
    Link(InterfaceName),
    /// Whatever the path manager thinks best.
    Auto,
}

/// What a wrapped command passes.
#[derive(Debug)]
pub struct Passed {
    /// Who passes it.
    pub(crate) owner: Owner,
    /// The TUN in its network namespace.
    pub(crate) tun: OwnedFd,
    /// Readable once no process is left there.
    pub(crate) pulse: OwnedFd,
}

/// What a command passes that keeps the host's network.
#[derive(Debug)]
pub struct Grouped {
    /// Who passes it.
    pub(crate) owner: Owner,
    /// Where its new connections are to go.
    pub(crate) way: Way,
    /// The folder of its control group.
    pub(crate) folder: OwnedFd,
}

/// What a command learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {}

/// Recent events, and those who follow them.
#[derive(Debug, Default)]
pub struct Events {
    recent: VecDeque<Event>,
    followers: Vec<Subscription>,
}

impl Events {
    /// Keeps an event and tells followers.
    pub fn record(&mut self, event: Event) {
        let value = json!(event);
        self.followers.retain(|follower| follower.push(&value));
        if self.recent.len() == EVENTS_KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    /// The kept events, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Event> {
        self.recent.iter()
    }

    fn follow(&mut self, responder: Responder) {
        let follower = responder.subscribe();
        self.followers.retain(|follower| !follower.is_closed());
        // What fits is sent: a follower that reads gets all of it.
        if self.recent.iter().all(|event| follower.push(&json!(event))) {
            self.followers.push(follower);
        }
    }
}

/// Answers one request of the command line.
pub fn answer(request: Request, responder: Responder, running: &mut impl Running) {
    let followed = request.args.get("follow").and_then(Value::as_bool).unwrap_or(false);
    if request.verb == "events" && followed {
        running.events().follow(responder);
    } else if request.verb == trace::VERB {
        running.trace(responder);
    } else {
        responder.reply(reply(request, running));
    }
}

fn reply(request: Request, running: &mut impl Running) -> Result<Value, String> {
    let done = |text: String| json!({ "text": text });
    match request.verb.as_str() {
        "status" => Ok(json!(running.status())),
        "paths" => Ok(json!(running.status().paths)),
        "flows" => Ok(json!(running.flows())),
        metrics::VERB => Ok(json!({ "text": running.metrics() })),
        "events" => Ok(events(&request.args, running.events())),
        "move" => running.relocate(target(&request.args)?).map(done),
        "pause" => running.pause(duration(&request.args)?).map(done),
        "resume" => running.resume().map(done),
        "run" => running.run(passed(request)?).map(|welcome| json!(welcome)),
        "group" => running.lead(grouped(request)?).map(|welcome| json!(welcome)),
        other => Err(unknown_verb(other)),
    }
}

fn passed(request: Request) -> Result<Passed, String> {
    let owner = owner(&request)?;
    let Request { passed, .. } = request;
    let [tun, pulse] = <[OwnedFd; 2]>::try_from(passed).map_err(|passed| {
        format!("{} descriptors came with the request; it needs a TUN and a pulse", passed.len())
    })?;
    Ok(Passed { owner, tun, pulse })
}

fn grouped(request: Request) -> Result<Grouped, String> {
    let owner = owner(&request)?;
    let Request { args, passed, .. } = request;
    let named = args.get("way").and_then(Value::as_str);
    let way = Way::ALL.into_iter().find(|way| named == Some(way.to_string().as_str()));
    let way = way.ok_or("\"way\" must be \"direct\" or \"carried\"")?;
    let [folder] = <[OwnedFd; 1]>::try_from(passed).map_err(|passed| {
        format!("{} descriptors came with the request; it needs a control group", passed.len())
    })?;
    Ok(Grouped { owner, way, folder })
}

fn owner(request: &Request) -> Result<Owner, String> {
    let Some(Value::String(command)) = request.args.get("command") else {
        return Err("\"command\" is missing; it must be the name of a program".to_owned());
    };
    let command = command.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    Ok(Owner { uid: request.peer.uid, pid: request.peer.pid, command })
}

/// The kept events, or the `last` of them.
fn events(args: &Value, events: &Events) -> Value {
    let last = args.get("last").and_then(Value::as_u64).and_then(|last| usize::try_from(last).ok());
    let skipped = last.map_or(0, |last| events.recent.len().saturating_sub(last));
    json!(events.recent().skip(skipped).collect::<Vec<_>>())
}

/// What a command says that got no answer from the daemon of a layout.
pub(crate) fn explain(layout: &Layout, error: AskError) -> anyhow::Error {
    match error {
        AskError::NotRunning(_) => anyhow!(
            "Whimbrel is not running (nobody answers on {}); start it with `whimbrel up{}`",
            layout.socket.display(),
            layout.option()
        ),
        other @ (AskError::Denied(_) | AskError::Refused(_) | AskError::Broken(_)) => other.into(),
    }
}

fn target(args: &Value) -> Result<Target, String> {
    match args.get("link") {
        None | Some(Value::Null) => Ok(Target::Auto),
        Some(Value::String(name)) => {
            let link = name.parse().map_err(|error: InterfaceNameError| error.to_string())?;
            Ok(Target::Link(link))
        }
        Some(other) => Err(format!("\"link\" is {}; it must be an interface name", kind(other))),
    }
}

fn duration(args: &Value) -> Result<Option<Duration>, String> {
    match args.get("duration") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            let period: Period = text.parse().map_err(|error: UnitError| error.to_string())?;
            Ok(Some(period.0))
        }
        Some(other) => Err(format!("\"duration\" is {}; it must be as \"10m\"", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn unknown_verb(verb: &str) -> String {
    let shown: String = verb.chars().take(40).collect();
    format!("the running daemon does not know {shown:?}; it may be an older version: restart it")
}
