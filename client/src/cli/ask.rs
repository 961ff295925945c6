//! The commands that talk to the running daemon.

use std::ops::ControlFlow;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use whimbrel_common::config::InterfaceName;
use whimbrel_common::units::Period;
use whimbrel_host::Layout;
use whimbrel_host::control;
use whimbrel_host::metrics;
use whimbrel_host::output::{
    Palette, document, line, plain, plain_document, print, says, says_document,
};

use crate::control::explain;
use crate::report::{Event, FlowReport, PathReport, Status};
use crate::show;

pub(super) fn status(layout: &Layout, json: bool) -> anyhow::Result<()> {
    list(layout, "status", json, |status: Status| show::status(&status, Palette::of_stdout()))
}

pub(super) fn paths(layout: &Layout, json: bool) -> anyhow::Result<()> {
    list(layout, "paths", json, |paths: Vec<PathReport>| show::paths(&paths, Palette::of_stdout()))
}

pub(super) fn flows(layout: &Layout, json: bool) -> anyhow::Result<()> {
    list(layout, "flows", json, |flows: Vec<FlowReport>| show::flows(&flows))
}

pub(super) fn events(layout: &Layout, json: bool, follow: bool) -> anyhow::Result<()> {
    if follow {
        return follow_events(layout, json);
    }
    list(layout, "events", json, |events: Vec<Event>| {
        if events.is_empty() {
            return "Nothing happened yet.".to_owned();
        }
        events.iter().map(show::event).collect::<Vec<_>>().join("\n")
    })
}

pub(super) fn metrics(layout: &Layout) -> anyhow::Result<()> {
    let answer = ask(layout, metrics::VERB, &Value::Null)?;
    print(plain(answer.get("text").and_then(Value::as_str).unwrap_or("")));
    Ok(())
}

pub(super) fn relocate(layout: &Layout, link: Option<&InterfaceName>) -> anyhow::Result<()> {
    order(layout, "move", &json!({ "link": link }))
}

pub(super) fn pause(layout: &Layout, duration: Option<Period>) -> anyhow::Result<()> {
    order(layout, "pause", &json!({ "duration": duration }))
}

pub(super) fn resume(layout: &Layout) -> anyhow::Result<()> {
    order(layout, "resume", &Value::Null)
}

fn list<T: DeserializeOwned>(
    layout: &Layout,
    verb: &str,
    json: bool,
    show: impl FnOnce(T) -> String,
) -> anyhow::Result<()> {
    let answer = ask(layout, verb, &Value::Null)?;
    if json {
        document(&answer);
    } else {
        line(show(parse(answer)?));
    }
    Ok(())
}

fn order(layout: &Layout, verb: &str, args: &Value) -> anyhow::Result<()> {
    let answer = ask(layout, verb, args)?;
    line(plain(answer.get("text").and_then(Value::as_str).unwrap_or("Done.")));
    Ok(())
}

fn follow_events(layout: &Layout, json: bool) -> anyhow::Result<()> {
    let mut failure = None;
    let followed = control::follow(&layout.socket, "events", &json!({ "follow": true }), |value| {
        let heard = if json {
            Ok(says_document(&value))
        } else {
            parse::<Event>(value).map(|event| says(show::event(&event)))
        };
        match heard {
            Ok(true) => return ControlFlow::Continue(()),
            // Nobody reads on.
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
        ControlFlow::Break(())
    });
    followed.map_err(|error| explain(layout, error))?;
    failure.map_or(Ok(()), Err)
}

fn ask(layout: &Layout, verb: &str, args: &Value) -> anyhow::Result<Value> {
    control::ask(&layout.socket, verb, args).map_err(|error| explain(layout, error))
}

fn parse<T: DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(plain_document(answer))
        .context("the running daemon is another version than this command; restart it")
}
