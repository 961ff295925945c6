//! The examination's outcome, for people and for programs.

use serde_json::{Value, json};
use whimbrel_client_core::doctor::{
    Daemon, DaemonState, Facts, Finding, Remedy, Report, Subject, Weight,
};
use whimbrel_host::output::{Palette, Tone, plain, wrap};

/// Sentences are broken here: a terminal has that much.
const COLUMNS: usize = 78;

pub(super) fn json(report: &Report) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "subject": finding.subject.to_string(),
                "weight": finding.weight.to_string(),
                "text": finding.text,
                "remedies": finding.remedies.iter().map(remedy_json).collect::<Vec<_>>(),
            })
        })
        .collect();
    let fine: Vec<String> = report.fine.iter().map(Subject::to_string).collect();
    json!({ "well": report.is_well(), "findings": findings, "fine": fine })
}

pub(super) fn text(facts: &Facts, report: &Report, palette: Palette) -> String {
    let mut text = headline(facts, report, palette);
    for finding in &report.findings {
        text.push_str("\n\n");
        text.push_str(&finding_text(finding, palette));
    }
    if !report.fine.is_empty() {
        let fine: Vec<String> = report.fine.iter().map(Subject::to_string).collect();
        let line = format!("In order: {}.", fine.join(", "));
        text.push_str("\n\n");
        text.push_str(&palette.paint(Tone::Faint, wrap(&line, COLUMNS, "  ")));
    }
    text
}

fn headline(facts: &Facts, report: &Report, palette: Palette) -> String {
    let count = |weight| report.findings.iter().filter(|it| it.weight == weight).count();
    let attached = matches!(&facts.daemon,
        Daemon::Running(running) if running.state == DaemonState::Attached);
    let (tone, text) = match (count(Weight::Broken), count(Weight::Hampered)) {
        (0, 0) if attached => (Tone::Good, "Whimbrel works on this machine.".to_owned()),
        (0, 0) => (Tone::Good, "Nothing is wrong with this machine.".to_owned()),
        (0, hampered) => (
            Tone::Doubtful,
            format!("Whimbrel works, but {}.", things(hampered, "could be better")),
        ),
        (broken, _) => {
            (Tone::Bad, format!("Whimbrel does not work: {}.", things(broken, "stand in its way")))
        }
    };
    palette.paint(tone, text)
}

fn things(count: usize, what: &str) -> String {
    match count {
        1 => format!("one thing {}", what.replacen("stand ", "stands ", 1)),
        more => format!("{more} things {what}"),
    }
}

fn finding_text(finding: &Finding, palette: Palette) -> String {
    let (sign, tone) = match finding.weight {
        Weight::Broken => ("x", Tone::Bad),
        Weight::Hampered => ("!", Tone::Doubtful),
        Weight::Remark => ("-", Tone::Faint),
    };
    let mut text = palette.paint(tone, sign);
    text.push(' ');
    text.push_str(&wrap(&plain(&finding.text), COLUMNS - 2, "  "));
    for remedy in &finding.remedies {
        text.push_str("\n  ");
        match remedy {
            // Never broken, so that it can be copied.
            Remedy::Command(command) => {
                text.push_str(&format!("    {}", palette.paint(Tone::Strong, plain(command))));
            }
            Remedy::Advice(advice) => text.push_str(&wrap(&plain(advice), COLUMNS - 2, "  ")),
        }
    }
    text
}

fn remedy_json(remedy: &Remedy) -> Value {
    match remedy {
        Remedy::Command(command) => json!({ "command": command }),
        Remedy::Advice(advice) => json!({ "advice": advice }),
    }
}
