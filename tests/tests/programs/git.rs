//! `git clone` from a `git daemon`.

use crate::ssh::{listens, plain};
use crate::stage::{Loss, ORIGIN, Stage, command, write_noise};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

/// How many commits, each with a file of this many bytes, none of which compresses.
const COMMITS: u32 = 20;
const FILE: usize = 5_000_000;

pub(crate) fn clone() -> Result<()> {
    clone_on(&Stage::raise()?)
}

pub(crate) fn clone_wrapped() -> Result<()> {
    clone_on(&Stage::raise_wrapped()?)
}

fn clone_on(stage: &Stage) -> Result<()> {
    let folder = stage.folder("git")?;
    let (source, copy) = (folder.join("source"), folder.join("copy"));
    write_history(stage, &source)?;
    let programs = stage.run("origin", "exec-path", git(&folder, &["--exec-path"]))?;
    let daemon = format!("{}/git-daemon", programs.trim());
    let base = format!("--base-path={}", plain(&folder));
    let listen = format!("--listen={ORIGIN}");
    let server = command(daemon, ["--reuseaddr", "--export-all", &base, &listen]);
    let mut server = stage.start("origin", "git-daemon", calm(server))?;
    server.until("listened", || Ok(listens(stage, 9418)))?;

    let place = format!("git://{ORIGIN}/source");
    let client = git(&folder, &["clone", "--progress", &place, plain(&copy)]);
    let mut job = stage.start("laptop", "git-clone", client)?;
    stage.move_twice(&mut job, Loss::BlackHole)?;
    job.succeed()?;
    stage.run("laptop", "git-fsck", git(&copy, &["fsck", "--full", "--strict"]))?;
    for question in [
        &["rev-parse", "HEAD", "HEAD^{tree}"] as &[&str],
        &["rev-list", "--objects", "--all"],
        &["status", "--porcelain"],
    ] {
        let name = format!("git-{}", question[0]);
        let there = stage.run("origin", &name, git(&source, question))?;
        let here = stage.run("laptop", &name, git(&copy, question))?;
        ensure!(there == here, "git {question:?} says {there} there, {here} here");
    }
    Ok(())
}

fn write_history(stage: &Stage, source: &Path) -> Result<()> {
    std::fs::create_dir(source)?;
    let run = |arguments: &[&str]| stage.run("origin", "git", git(source, arguments)).map(drop);
    run(&["init", "-q", "-b", "main"])?;
    // What does not compress is not worth the time to try.
    for (key, value) in [("core.compression", "0"), ("core.bigFileThreshold", "1m")] {
        run(&["config", key, value])?;
    }
    for commit in 0..COMMITS {
        write_noise(&source.join(format!("file-{commit}")), FILE)?;
        run(&["add", "."])?;
        run(&["commit", "-q", "-m", &format!("file {commit}")])?;
    }
    Ok(())
}

fn git(folder: &Path, arguments: &[&str]) -> Command {
    let mut git = calm(command("git", arguments));
    git.current_dir(folder);
    git
}

/// With no configuration but the repository's.
fn calm(mut git: Command) -> Command {
    git.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "laboratory");
        git.env(format!("GIT_{role}_EMAIL"), "laboratory@localhost");
    }
    git
}
