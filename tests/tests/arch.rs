//! The shape of the workspace: who may depend on whom, and what no file may say.

#![expect(clippy::unwrap_used, reason = "a test that cannot look has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const PURE: [&str; 3] = ["whimbrel-common", "whimbrel-client-core", "whimbrel-gateway-core"];

/// Crates that do IO, read clocks or run threads. `libc` is not among them, because `ring` brings
/// it for its random numbers; see `DIRECT_IO`.
const IO: [&str; 17] = [
    "async-std",
    "mio",
    "netlink-packet-route",
    "netlink-sys",
    "nix",
    "noq",
    "noq-proto",
    "noq-udp",
    "quinn",
    "rtnetlink",
    "rustix",
    "rustls",
    "sd-notify",
    "smol",
    "socket2",
    "tokio",
    "tun",
];

/// What a pure crate may not name itself, although a dependency may bring it.
const DIRECT_IO: [&str; 4] = ["chrono", "getrandom", "libc", "rand"];

const ENGINE: [&str; 2] = ["noq-proto", "noq-udp"];
const ENGINE_VERSION: &str = "1.3.0";

/// What `cargo metadata` says.
struct Workspace {
    /// Package names by package id.
    names: BTreeMap<String, String>,
    /// The members' own dependencies: (member, dependency, kind, requirement).
    named: Vec<(String, String, Kind, String)>,
    /// The resolved graph: package ids and what they depend on.
    graph: BTreeMap<String, Vec<(String, Vec<Kind>)>>,
    root: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Normal,
    Other,
}

impl Kind {
    fn read(value: &Value) -> Self {
        if value["kind"].is_null() { Self::Normal } else { Self::Other }
    }
}

impl Workspace {
    fn read() -> Self {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let host = host_triple();
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &host])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
        let members: BTreeSet<String> = list(&metadata["workspace_members"]).map(text).collect();
        let packages = || list(&metadata["packages"]);
        let named = packages()
            .filter(|package| members.contains(&text(&package["id"])))
            .flat_map(|package| {
                list(&package["dependencies"]).map(|dependency| {
                    let (from, to) = (text(&package["name"]), text(&dependency["name"]));
                    (from, to, Kind::read(dependency), text(&dependency["req"]))
                })
            })
            .collect();
        let graph = list(&metadata["resolve"]["nodes"])
            .map(|node| {
                let edges = list(&node["deps"]).map(|edge| {
                    (text(&edge["pkg"]), list(&edge["dep_kinds"]).map(Kind::read).collect())
                });
                (text(&node["id"]), edges.collect())
            })
            .collect();
        Self {
            names: packages().map(|it| (text(&it["id"]), text(&it["name"]))).collect(),
            named,
            graph,
            root: PathBuf::from(text(&metadata["workspace_root"])),
        }
    }

    /// The names of everything that `member` is built from: its dependencies and theirs.
    fn parts(&self, member: &str) -> BTreeSet<&str> {
        let start = self.names.iter().find(|(_, name)| *name == member);
        let mut open = vec![start.unwrap_or_else(|| panic!("no package {member}")).0];
        let mut seen = BTreeSet::new();
        while let Some(package) = open.pop() {
            if !seen.insert(package) {
                continue;
            }
            let normal = self.graph[package].iter().filter(|(_, it)| it.contains(&Kind::Normal));
            open.extend(normal.map(|(id, _)| id));
        }
        seen.into_iter().map(|id| self.names[id].as_str()).filter(|name| *name != member).collect()
    }
}

#[test]
fn pure_crates_are_built_from_nothing_that_does_io() {
    let workspace = Workspace::read();
    for member in PURE {
        let parts = workspace.parts(member);
        assert!(parts.contains("tracing"), "the graph of {member} is not as expected");
        let found: Vec<&str> = IO.into_iter().filter(|name| parts.contains(name)).collect();
        assert!(found.is_empty(), "{member} must stay pure, but depends on {found:?}");
    }
    for (from, to, kind, _) in &workspace.named {
        let banned = PURE.contains(&from.as_str()) && *kind == Kind::Normal;
        let banned = banned && DIRECT_IO.contains(&to.as_str());
        assert!(!banned, "{from} must stay pure, but names {to}");
    }
}

#[test]
fn client_and_gateway_never_import_each_other() {
    let workspace = Workspace::read();
    let client = ["whimbrel", "whimbrel-client-core"];
    let gateway = ["whimbrel-gateway", "whimbrel-gateway-core"];
    for (ours, theirs) in [(client, gateway), (gateway, client)] {
        for (from, to, _, _) in &workspace.named {
            let crossed = ours.contains(&from.as_str()) && theirs.contains(&to.as_str());
            assert!(!crossed, "{from} imports {to}");
        }
    }
}

#[test]
fn what_both_ends_share_imports_neither() {
    let workspace = Workspace::read();
    for shared in ["whimbrel-common", "whimbrel-carrier", "whimbrel-host"] {
        let parts = workspace.parts(shared);
        let ours: Vec<&str> =
            parts.into_iter().filter(|name| name.starts_with("whimbrel")).collect();
        let allowed: &[&str] = if shared == "whimbrel-common" { &[] } else { &["whimbrel-common"] };
        assert_eq!(ours, allowed, "of {shared}");
    }
}

#[test]
fn only_the_carrier_names_the_engine_and_pins_it() {
    let workspace = Workspace::read();
    let mut pinned = 0;
    for (from, to, _, requirement) in &workspace.named {
        if to == "noq" || to == "quinn" || to == "quinn-proto" {
            panic!("{from} depends on {to}; the carrier is built on noq-proto itself");
        }
        if ENGINE.contains(&to.as_str()) {
            assert_eq!(from, "whimbrel-carrier", "names the QUIC engine");
            assert_eq!(requirement, &format!("={ENGINE_VERSION}"), "of {to}");
            pinned += 1;
        }
    }
    assert_eq!(pinned, ENGINE.len());
}

#[test]
fn sources_speak_of_the_project_alone() {
    let root = Workspace::read().root;
    // In pieces, so that this file does not say them either.
    let banned = [
        (concat!("/wo", "rk/"), "a path of one machine"),
        (concat!("/ho", "me/"), "a path of one machine"),
        (concat!("/tmp/", "bash"), "a path of one machine"),
        (concat!("FIX", "ME"), "a note to nobody"),
        (concat!("XX", "X:"), "a note to nobody"),
        (concat!("TO", "DO"), "a note without a link"),
        (concat!("to", "do!("), "an unfinished function"),
        (concat!("unimple", "mented!("), "an unfinished function"),
    ];
    let mut found = Vec::new();
    let mut files = 0;
    visit(&root, &mut |path, content| {
        files += 1;
        for (number, line) in (1..).zip(content.lines()) {
            for (word, what) in banned {
                let linked = word.starts_with("TO") && line.contains("https://");
                if line.contains(word) && !linked {
                    let path = path.strip_prefix(&root).unwrap_or(path).display();
                    found.push(format!("{path}:{number}: {word:?} is {what}"));
                }
            }
        }
    });
    assert!(files > 100, "only {files} files were read");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Calls `look` with every text file of the project.
fn visit(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    const SKIPPED: [&str; 5] = [".git", "target", "corpus", "artifacts", "proptest-regressions"];
    const ENDINGS: [&str; 8] = ["rs", "toml", "md", "sh", "conf", "service", "socket", ""];
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if SKIPPED.contains(&name) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            visit(&path, look);
            continue;
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        // A file may vanish while an editor replaces it; what is not text says nothing.
        if ENDINGS.contains(&ending)
            && let Ok(content) = fs::read_to_string(&path)
        {
            look(&path, &content);
        }
    }
}

fn host_triple() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
