//! Shell completions, where Debian's packages of the shells look for them.

use std::path::PathBuf;

use clap_complete::{Shell, generate};

use crate::Paper;
use crate::program::Program;

pub(crate) fn all(program: &Program) -> impl Iterator<Item = Paper> {
    let name = program.package();
    let places = [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/vendor-completions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ];
    places.into_iter().map(move |(shell, path)| {
        let mut text = Vec::new();
        generate(shell, &mut program.command.clone(), name, &mut text);
        Paper { path: PathBuf::from(path), text }
    })
}
