//! `whimbrel-papers`: writes manual pages, shell completions and example configurations of both
//! programs into `systemd/share`, one tree for each package, as it has them under `/usr/share`.
//!
//! They come from the definitions of the command lines and of the configuration files, so they say
//! what the programs do. They are kept in the sources for `cargo deb`, which only builds programs;
//! a test says when they are not what would be written.

mod completions;
mod copyright;
mod page;
mod program;

#[cfg(test)]
mod tests;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use program::Program;

/// Where the trees are.
const SHARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../share");

/// A file to be written.
#[derive(Debug)]
struct Paper {
    /// Where, under `/usr/share`.
    path: PathBuf,
    text: Vec<u8>,
}

fn main() -> anyhow::Result<()> {
    if std::env::args_os().len() > 1 {
        bail!("usage: cargo run -p whimbrel-papers");
    }
    for program in Program::all() {
        let tree = Path::new(SHARE).join(program.package());
        clear(&tree)?;
        for paper in papers(&program)? {
            write(&tree.join(paper.path), &paper.text)?;
        }
    }
    Ok(())
}

/// Everything that belongs beside a program.
fn papers(program: &Program) -> anyhow::Result<Vec<Paper>> {
    let mut papers = page::commands(program).context("cannot write the pages of commands")?;
    papers.push(page::configuration(program));
    papers.extend(completions::all(program));
    papers.push(copyright::copyright(program));
    let example = Path::new("doc").join(program.package()).join("examples");
    papers.push(Paper {
        path: example.join(program.config_name()),
        text: program.sample.clone().into_bytes(),
    });
    Ok(papers)
}

/// Removes what a command that is no more has left.
fn clear(tree: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", tree.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
