//! Manual pages: one for each command, one for each configuration file.

use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use whimbrel_host::{Role, exit, logging};

use crate::Paper;
use crate::program::Program;

/// The pages of a program and of each of its commands, section 1.
pub(crate) fn commands(program: &Program) -> io::Result<Vec<Paper>> {
    let mut command = program.command.clone().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    for sub in command.get_subcommands() {
        subcommand(program, sub, &mut pages)?;
    }
    pages.push(page(program, &command, &about_all(program))?);
    Ok(pages)
}

/// The page of a configuration file, section 5.
pub(crate) fn configuration(program: &Program) -> Paper {
    let name = program.config_page();
    let about = match program.layout.role {
        Role::Client => "configuration of the Whimbrel client",
        Role::Gateway => "configuration of the Whimbrel gateway",
    };
    let mut roff = Roff::new();
    roff.control("TH", [name.as_str(), "5", "", &source(program), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {about}"))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic(program.layout.config.display().to_string())]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        roman("A TOML file. A key that is left out has its default; an unknown key is an error. "),
        bold(format!("{} check", program.package())),
        roman(
            " validates the file. Durations are written as \"90s\", \"10m\" or \"24h\", sizes as ",
        ),
        roman("\"512KiB\" or \"8MiB\". The daemon reads the file again when it is reloaded."),
    ]);
    let mut section = None;
    for entry in &program.entries {
        if section != Some(entry.section) {
            section = Some(entry.section);
            let heading = match entry.section {
                "" => "KEYS AT THE TOP OF THE FILE".to_owned(),
                name => format!("KEYS OF [{name}]"),
            };
            roff.control("SH", [heading.as_str()]);
        }
        roff.control("TP", []);
        roff.text([bold(entry.name)]);
        roff.text([roman(entry.comment.replace('\n', " "))]);
        roff.control("br", []);
        match entry.default {
            Some(default) => roff.text([roman("Default: "), roman(default)]),
            None => roff.text([roman("Required, as in: "), roman(entry.example)]),
        };
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(program.package()), roman("(1)")]);
    let path = Path::new("man/man5").join(format!("{name}.5"));
    Paper { path, text: roff.to_roff().into_bytes() }
}

const MANUAL: &str = "Whimbrel";

/// The page of a command of a program, and those of its own commands.
fn subcommand(program: &Program, command: &Command, pages: &mut Vec<Paper>) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        subcommand(program, sub, pages)?;
    }
    let mut end = Roff::new();
    end.control("SH", ["SEE ALSO"]);
    end.text([bold(program.package()), roman("(1)")]);
    pages.push(page(program, command, &end)?);
    Ok(())
}

/// The page of one command; `end` comes last.
fn page(program: &Program, command: &Command, end: &Roff) -> io::Result<Paper> {
    let man = Man::new(command.clone()).source(source(program)).manual(MANUAL);
    let usage = command.clone().render_usage().to_string();
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    synopsis.text([roman(usage.trim_start_matches("Usage: "))]);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    synopsis.to_writer(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    man.render_options_section(&mut text)?;
    if command.get_after_help().is_some() {
        man.render_extra_section(&mut text)?;
    }
    end.to_writer(&mut text)?;
    Ok(Paper { path: Path::new("man/man1").join(man.get_filename()), text })
}

/// What the definition of the command line does not have.
fn about_all(program: &Program) -> Roff {
    let layout = &program.layout;
    let mut roff = Roff::new();
    roff.control("SH", ["FILES"]);
    let files = [
        (&layout.config, "The configuration. --config FILE moves everything beside FILE."),
        (&layout.key, "The private key."),
        (&layout.state, "What the daemon keeps."),
        (&layout.socket, "The control socket, for root and members of the group whimbrel."),
    ];
    for (path, what) in files {
        roff.control("TP", []);
        roff.text([italic(path.display().to_string())]);
        roff.text([roman(what)]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    roff.control("TP", []);
    roff.text([bold(logging::VARIABLE)]);
    roff.text([roman("What the daemon logs: error, warn, info, debug or trace.")]);
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman(exit::CODES)]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(program.config_page()), roman("(5)")]);
    roff
}

fn source(program: &Program) -> String {
    format!("{} {}", program.package(), program.command.get_version().unwrap_or_default())
}
