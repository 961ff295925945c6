//! `whimbrel-papers FOLDER`: writes manual pages, shell completions and example configurations of
//! both programs, in folders as a package has them under `/usr/share`, one tree for each package.
//!
//! Nothing of it is kept in the sources. It comes from the definitions of the command lines and of
//! the configuration files themselves, so it says what the programs do.

mod completions;
mod copyright;
mod page;
mod program;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use program::Program;

/// A file to be written.
#[derive(Debug)]
struct Paper {
    /// Where, under `/usr/share`.
    path: PathBuf,
    text: Vec<u8>,
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(folder), None) = (args.next(), args.next()) else {
        bail!("usage: whimbrel-papers FOLDER");
    };
    for program in Program::all() {
        let tree = Path::new(&folder).join(program.package());
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

fn write(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
