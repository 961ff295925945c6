//! What it came to.

use super::act::Act;
use super::runner::NOTICEABLE;
use super::screen::{Screen, Tone, span};
use std::time::Duration;

/// What one act did to everybody.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) act: Act,
    /// Longest gap of the download through Whimbrel.
    pub(super) download: Duration,
    /// Longest gap of the ping-pong through Whimbrel.
    pub(super) ping_pong: Duration,
    /// After the outage: how long after a network was back bytes moved again.
    pub(super) recovery: Option<Duration>,
    /// What became of plain TCP.
    pub(super) plain: Fate,
}

/// What became of the plain connections.
#[derive(Debug)]
pub(super) struct Fate {
    /// The error that ended one.
    pub(super) died: Option<String>,
    /// How long nothing had arrived when it was given up.
    pub(super) silent: Option<Duration>,
    /// The longest gap.
    pub(super) gap: Duration,
}

impl Fate {
    fn tone(&self) -> Tone {
        if self.died.is_some() || self.silent.is_some() {
            Tone::Bad
        } else if self.gap >= Duration::from_millis(300) {
            Tone::Blow
        } else {
            Tone::Quiet
        }
    }

    fn words(&self) -> String {
        match (&self.died, self.silent) {
            (Some(error), _) => format!("died: {}", without_number(error)),
            (None, Some(silent)) => format!("dead silence for {}, given up", span(silent)),
            (None, None) if self.gap >= Duration::from_millis(300) => {
                format!("frozen for {}", span(self.gap))
            }
            (None, None) => "not affected".to_owned(),
        }
    }
}

/// One line for the timeline.
pub(super) fn gist(screen: &Screen, row: &Row) -> String {
    let carried = match row.recovery {
        Some(recovery) => format!("moving again {} after a network was back", span(recovery)),
        None => format!("longest gap {}", gap(row.download.max(row.ping_pong))),
    };
    let carried = screen.paint(Tone::Good, format_args!("Whimbrel: {carried}"));
    let plain = screen.paint(row.plain.tone(), format_args!("plain TCP: {}", row.plain.words()));
    format!("  {carried};  {plain}")
}

/// The table.
pub(super) fn print(screen: &mut Screen, rows: &[Row]) {
    let heading =
        format!("{:<26}  {:>10}  {:>10}   {}", "Longest gap", "download", "ping-pong", "plain TCP");
    let heading = screen.paint(Tone::Strong, heading);
    screen.line("");
    screen.line(&heading);
    for row in rows {
        let plain = screen.paint(row.plain.tone(), row.plain.words());
        let (download, ping_pong) = (gap(row.download), gap(row.ping_pong));
        let title = row.act.title();
        screen.line(&format!("{title:<26}  {download:>10}  {ping_pong:>10}   {plain}"));
        if let Some(recovery) = row.recovery {
            let after = format!("  back to moving: {}", span(recovery));
            screen.line(&after);
        }
    }
    screen.line("");
}

fn gap(gap: Duration) -> String {
    if gap.is_zero() { format!("< {}", span(NOTICEABLE)) } else { span(gap) }
}

/// The system's words without "(os error 104)".
fn without_number(error: &str) -> &str {
    error.split(" (os error").next().unwrap_or(error)
}
