//! What a screen shows, as lines.

use whimbrel_host::output::{Palette, Tone, bytes, date, seconds, table};

use super::history::{History, KEPT, sparkline};
use super::screen::Size;
use crate::report::{Event, EventKind, FlowReport, PathReport, Status};
use crate::show;

/// Moves and other events to show at most.
pub(super) const EVENTS: usize = 5;

/// What there is to show.
#[derive(Debug)]
pub(super) enum Picture {
    /// The daemon answers.
    Running { status: Box<Status>, flows: Vec<FlowReport>, events: Vec<Event> },
    /// It does not: a sentence.
    Gone(String),
}

/// The lines of a screen of this size, top to bottom. Flows take what room is left.
pub(super) fn lines(
    picture: &Picture,
    history: &History,
    size: Size,
    palette: Palette,
) -> Vec<String> {
    let (status, flows, events) = match picture {
        Picture::Running { status, flows, events } => (status, flows, events),
        Picture::Gone(sentence) => {
            return vec![palette.paint(Tone::Bad, sentence), String::new(), footer(palette)];
        }
    };
    let mut lines = split(&show::summary(status, palette));
    lines.push(String::new());
    lines.extend(links(&status.paths, history, palette));
    let mut tail = happened(events, palette);
    tail.push(footer(palette));
    let room = size.rows.saturating_sub(lines.len() + tail.len() + 1);
    // A heading and a row, or nothing.
    if room >= 3 {
        lines.push(String::new());
        lines.extend(flow_lines(flows, history, room - 1, palette));
    }
    lines.push(String::new());
    lines.extend(tail);
    lines
}

fn links(paths: &[PathReport], history: &History, palette: Palette) -> Vec<String> {
    if paths.is_empty() {
        return vec!["No network yet.".to_owned()];
    }
    let rows: Vec<[String; 5]> = paths
        .iter()
        .map(|path| {
            let rates = history.link(&path.link);
            let now = rates.last().copied().unwrap_or(0);
            [
                show::link_name(path),
                show::path_state(path, palette),
                show::rtt(path),
                format!("{:>9}/s", bytes(now)),
                palette.paint(Tone::Good, sparkline(&rates, KEPT)),
            ]
        })
        .collect();
    split(&table(["LINK", "STATE", "RTT", "TRAFFIC", ""], &rows))
}

/// The busiest flows first, then those that had to live through most, then the oldest.
fn flow_lines(
    flows: &[FlowReport],
    history: &History,
    room: usize,
    palette: Palette,
) -> Vec<String> {
    if flows.is_empty() {
        return vec!["No flows.".to_owned()];
    }
    let mut sorted: Vec<&FlowReport> = flows.iter().collect();
    let lived = |flow: &FlowReport| flow.moves_survived + flow.reconnects_survived;
    sorted.sort_by_key(|flow| {
        std::cmp::Reverse((history.flow(flow.id), lived(flow), flow.age_s, flow.id))
    });
    let left = flows.len().saturating_sub(room - 1);
    // The last row tells of the others.
    let shown = if left > 0 { room - 2 } else { room - 1 };
    let rows: Vec<[String; 4]> = sorted
        .iter()
        .take(shown)
        .map(|flow| {
            [
                flow.destination.to_string(),
                format!("{:>9}/s", bytes(history.flow(flow.id))),
                seconds(flow.age_s),
                show::story(flow),
            ]
        })
        .collect();
    let mut lines = split(&table(["FLOW TO", "TRAFFIC", "AGE", "STORY"], &rows));
    if left > 0 {
        let more = flows.len() - shown.min(flows.len());
        lines.push(palette.paint(Tone::Faint, format_args!("and {more} more")));
    }
    lines
}

fn happened(events: &[Event], palette: Palette) -> Vec<String> {
    let told = |event: &&Event| event.event != EventKind::Path;
    let mut last: Vec<&Event> = events.iter().rev().filter(told).take(EVENTS).collect();
    last.reverse();
    let line = |event: &&Event| {
        // The day is today's, as a rule.
        let time = date(event.at / 1000);
        let clock = time.split(' ').nth(1).unwrap_or_default();
        let text = show::event_text(event);
        let tone = match event.event {
            EventKind::Moved => Some(Tone::Strong),
            EventKind::Parked
            | EventKind::Offline
            | EventKind::Refused
            | EventKind::Limited
            | EventKind::Captive => Some(Tone::Bad),
            EventKind::Attached => Some(Tone::Good),
            EventKind::Started
            | EventKind::Stopped
            | EventKind::LinkUp
            | EventKind::LinkDown
            | EventKind::Path
            | EventKind::Paused
            | EventKind::Resumed
            | EventKind::Sleep
            | EventKind::Wake
            | EventKind::Run => None,
        };
        let text = tone.map_or_else(|| text.clone(), |tone| palette.paint(tone, &text));
        format!("{}  {text}", palette.paint(Tone::Faint, clock))
    };
    last.iter().map(line).collect()
}

fn footer(palette: Palette) -> String {
    palette.paint(Tone::Faint, "Times are UTC. Ctrl-C ends this; connections do not notice.")
}

fn split(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
