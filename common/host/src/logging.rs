//! Logs on stderr, at the level of `WHIMBREL_LOG`.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// The environment variable with the log level or filter, as in `debug` or `whimbrel=trace`.
pub const VARIABLE: &str = "WHIMBREL_LOG";

/// Sends the log of this process to stderr. Without time stamps under systemd, whose journal
/// has its own. Does nothing if a log was set up before.
///
/// # Errors
/// `WHIMBREL_LOG` is no filter.
pub fn init(default_level: LevelFilter) -> anyhow::Result<()> {
    let filter = filter(default_level)?;
    let builder: SubscriberBuilder<_, _, _, _> = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter);
    // An error means that a log exists already: a process that re-executes parts of itself.
    let _ = if is_for_people() { builder.try_init() } else { builder.without_time().try_init() };
    Ok(())
}

/// Whether stderr is read as it comes, and not kept in systemd's journal.
#[must_use]
pub fn is_for_people() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_none()
}

fn filter(default_level: LevelFilter) -> anyhow::Result<EnvFilter> {
    let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(EnvFilter::default().add_directive(default_level.into()));
    };
    let text = text.to_string_lossy();
    EnvFilter::builder().parse(&text).with_context(|| {
        format!(
            "{VARIABLE}={text:?} is not a log filter; set it to error, warn, info, debug or trace"
        )
    })
}
