//! `whimbrel trace`: what the daemon tells of its paths, written down as a qlog.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use whimbrel_common::units::Period;
use whimbrel_host::Layout;
use whimbrel_host::control;
use whimbrel_host::output::{self, remark};

use crate::control::explain;
use crate::trace::VERB;

/// A trace ends here, in bytes: about half a day of two paths.
const LONGEST: u64 = 512 << 20;

/// What ends a trace.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The time it was to take.
    Over,
    /// It has become too long.
    Full,
    /// Nobody reads it any more, or the disk is full.
    Unwritten,
}

pub(super) fn write(
    layout: &Layout,
    file: Option<&Path>,
    duration: Option<Period>,
) -> anyhow::Result<()> {
    let mut sink = open(file)?;
    let deadline = duration.map(|duration| Instant::now() + duration.0);
    let (mut written, mut end, mut failure) = (0, None, None);
    let followed = control::follow(&layout.socket, VERB, &json!({}), |value| {
        match record(&mut sink, &value) {
            Ok(count) => written += count,
            Err(error) => {
                failure = Some(error);
                end = Some(End::Unwritten);
            }
        }
        if end.is_none() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            end = Some(End::Over);
        }
        if end.is_none() && written >= LONGEST {
            end = Some(End::Full);
        }
        if end.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if written == 0
        && let Some(file) = file
    {
        // Nothing was said: a file without a beginning is no trace.
        let _ = std::fs::remove_file(file);
    }
    followed.map_err(|error| explain(layout, error))?;
    match end {
        Some(End::Over) => Ok(()),
        Some(End::Full) => {
            remark(format_args!("The trace ends here: it has {}.", output::bytes(written)));
            Ok(())
        }
        Some(End::Unwritten) if file.is_none() => Ok(()),
        Some(End::Unwritten) => Err(failure.unwrap_or_else(|| io::ErrorKind::WriteZero.into()))
            .context("cannot write the trace"),
        None => bail!(
            "the daemon ended the trace: it stops, or the trace was written more slowly than things \
             happened"
        ),
    }
}

fn open(file: Option<&Path>) -> anyhow::Result<Box<dyn Write>> {
    let Some(file) = file else { return Ok(Box::new(io::stdout())) };
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    let made = made
        .with_context(|| format!("cannot make {}; a trace goes into a new file", file.display()))?;
    Ok(Box::new(BufWriter::new(made)))
}

/// One text of a JSON sequence (RFC 7464). How many bytes it has.
fn record(sink: &mut dyn Write, value: &Value) -> io::Result<u64> {
    let text = format!("\x1e{value}\n");
    sink.write_all(text.as_bytes())?;
    // Ctrl-C leaves what was told so far.
    sink.flush()?;
    Ok(text.len() as u64)
}
