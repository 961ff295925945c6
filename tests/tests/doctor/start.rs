//! What stands in the way of a start: each obstacle has its own sentence and exit code, and nothing
//! half-done stays behind.

use crate::stage::{Stage, join, prepare};
use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use whimbrel_common::identity::SecretKey;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{Layout, World};
use whimbrel_tests::role;

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's own folders have plain names")
}

/// Starts the client in the foreground, where it must not come up.
fn refused(world: &World) -> Result<Output> {
    let config = world.client_config("laptop");
    world.run_client("laptop", &["up", "--config", text(&config)])
}

/// A start that failed left nothing: no interface, no rule, no route, no socket.
fn nothing_is_left(world: &World) -> Result<()> {
    let laptop = world.host("laptop");
    ensure!(laptop.run(|wiring| wiring.index("whimbrel0"))?.is_none(), "the TUN is still there");
    let removed = world.ask_client("laptop", &["cleanup"])?;
    ensure!(removed.is_empty(), "{removed}");
    ensure!(!world.client_config("laptop").with_extension("sock").exists(), "a socket is left");
    Ok(())
}

fn expect(output: &Output, code: i32, part: &str) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{} instead of {code}: {said}", output.status);
    let sentence = said.lines().find(|line| line.starts_with("whimbrel: "));
    let sentence = sentence.with_context(|| format!("no sentence in {said}"))?;
    ensure!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    Ok(sentence.to_owned())
}

/// The client without the capability it needs, not even as root.
fn refused_without_capability(world: &World) -> Result<Output> {
    let config = text(&world.client_config("laptop")).to_owned();
    let attempt = world.host("laptop").thread(move || {
        remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN)?;
        let mut command = Command::new("/proc/self/exe");
        command.args([role::CLIENT, "up", "--config", &config]).stdin(Stdio::null());
        command.output()
    });
    Ok(join(attempt)?)
}

pub(crate) fn what_stands_in_the_way_of_a_start_has_a_sentence_and_a_code_of_its_own() -> Result<()>
{
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    let mut told = Vec::new();

    let laptop = world.host("laptop");
    laptop.run(|_| {
        rustix::mount::mount(c"tmpfs", c"/dev/net", c"tmpfs", MountFlags::empty(), None)
    })?;
    told.push(expect(&refused(&world)?, 72, "/dev/net/tun does not exist")?);
    laptop.run(|_| rustix::mount::unmount(c"/dev/net", UnmountFlags::empty()))?;
    nothing_is_left(&world)?;

    told.push(expect(&refused_without_capability(&world)?, 77, "CAP_NET_ADMIN")?);
    nothing_is_left(&world)?;

    let taken = IpAddr::from(Ipv4Addr::new(10, 213, 52, 11));
    laptop.run(move |wiring| wiring.add_address("wifi0", taken, 24))?;
    told.push(expect(&refused(&world)?, 73, "already used by the interface wifi0")?);
    world.link("wifi0").down()?;
    world.link("wifi0").up()?;
    nothing_is_left(&world)?;

    let config = world.client_config("laptop");
    let before = fs::read_to_string(&config)?;
    fs::write(&config, before.replace("[capture]", "[captur]"))?;
    told.push(expect(&refused(&world)?, 78, "the nearest valid one is [capture]")?);
    fs::write(&config, &before)?;

    let client = world.start_client("laptop")?;
    let stage = Stage { client, gateway, origin, world };
    told.push(expect(&refused(&stage.world)?, 75, "another instance is running")?);
    // With files of its own it would still want the same interface.
    let other = config.with_file_name("other.toml");
    fs::write(&other, &before)?;
    fs::copy(config.with_extension("key"), other.with_extension("key"))?;
    let second = stage.world.run_client("laptop", &["up", "--config", text(&other)])?;
    told.push(expect(&second, 75, "connections through whimbrel0")?);
    // And with an interface of its own it would take the first one's rules away.
    edit(&other, |table| {
        let capture = table["capture"].as_table_mut().expect("the lab has written one");
        capture.insert("interface".into(), "other0".into());
        capture.insert("address4".into(), "10.99.0.1".into());
        capture.insert("address6".into(), "fd99::1".into());
    })?;
    let second = stage.world.run_client("laptop", &["up", "--config", text(&other)])?;
    expect(&second, 75, "connections through whimbrel0")?;
    // So would who cleans up behind a daemon that is not gone.
    let cleanup = stage.world.run_client("laptop", &["cleanup", "--config", text(&other)])?;
    expect(&cleanup, 75, "connections through whimbrel0")?;
    let doctor = stage.world.run_client("laptop", &["doctor", "--config", text(&other)])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    ensure!(doctor.status.success() && said.contains("Another one is"), "{said}");
    // The first one does not notice.
    stage.pair(crate::stage::ORIGIN[0])?.converse()?;

    told.sort();
    let count = told.len();
    told.dedup();
    ensure!(told.len() == count, "{told:#?}");
    Ok(())
}

pub(crate) fn a_full_disk_costs_neither_the_invite_nor_half_a_file() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let _gateway = world.start_gateway()?;
    let gateway = world.gateway_config();
    let invite = world.ask_gateway(&["invite", "laptop", "--config", text(&gateway)])?;
    let folder = world.folder().join("small");
    fs::create_dir(&folder)?;
    let config = folder.join("client.toml");
    let join = ["join", invite.trim(), "--config", text(&config)];

    // A disk of two pages, and one file that takes both.
    let path = std::ffi::CString::new(text(&folder))?;
    let fill = folder.join("filler");
    world.host("laptop").run(move |_| -> Result<()> {
        rustix::mount::mount(c"tmpfs", &path, c"tmpfs", MountFlags::empty(), c"size=8k")?;
        let mut file = fs::File::create(&fill)?;
        match file.write_all(&[0; 64 << 10]) {
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(()),
            other => bail!("the disk is not full: {other:?}"),
        }
    })?;
    expect(&world.run_client("laptop", &join)?, 74, "No space left")?;
    let shown = folder.clone();
    let left = world.host("laptop").run(move |_| -> Result<Vec<_>> {
        let names = fs::read_dir(&shown)?.map(|entry| Ok(entry?.file_name()));
        names.collect()
    })?;
    ensure!(left == ["filler"], "{left:?}");

    // With room the same invite works: it was not used up.
    let fill = folder.join("filler");
    world.host("laptop").run(move |_| fs::remove_file(fill))?;
    let output = world.run_client("laptop", &join)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

pub(crate) fn an_invite_that_cannot_be_used_says_why() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let _gateway = world.start_gateway()?;
    let gateway = world.gateway_config();
    let invite = world.ask_gateway(&["invite", "laptop", "--config", text(&gateway)])?;
    let invite = invite.trim();
    let attempt = |invite: &str, name: &str| -> Result<Output> {
        let folder = world.folder().join(name);
        fs::create_dir_all(&folder)?;
        let config = folder.join("client.toml");
        let output = world.run_client("laptop", &["join", invite, "--config", text(&config)])?;
        ensure!(output.status.success() == config.exists(), "{name}: half configured");
        Ok(output)
    };
    let (before, token) = invite.split_once("&t=").context("no token")?;
    let (at, _) = before.split_once("?k=").context("no key")?;
    let stranger = SecretKey::from_seed([7; 32]).public();
    expect(
        &attempt(&format!("{at}?k={stranger}&t={token}"), "other")?,
        1,
        "is for another gateway",
    )?;
    expect(&attempt(&invite[..invite.len() - 5], "cut")?, 1, "is truncated")?;
    let unknown = format!("{before}&t={}", "A".repeat(token.len()));
    expect(&attempt(&unknown, "unknown")?, 1, "does not know this invite")?;
    // None of them used it up.
    let output = attempt(invite, "right")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    expect(&attempt(invite, "again")?, 1, "was used before")?;

    // One that lay unread for longer than it is good for.
    let late = world.ask_gateway(&["invite", "late", "--config", text(&gateway)])?;
    let list = gateway.with_extension("invites");
    let expired = fs::read_to_string(&list)?.lines().map(let_expire).collect::<String>();
    fs::write(&list, expired)?;
    expect(&attempt(late.trim(), "late")?, 1, "has expired")?;
    Ok(())
}

/// A line of the gateway's list of invites, with its end 25 hours earlier.
fn let_expire(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        [name @ "late", hash, expires] => {
            let expires: u64 = expires.parse().expect("the gateway's own number");
            format!("{name} {hash} {}\n", expires - 25 * 3600)
        }
        _ => format!("{line}\n"),
    }
}
