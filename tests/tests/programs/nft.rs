//! A firewall on the laptop, by `nft`.

use crate::stage::{Stage, command};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use whimbrel_tests::lab::ORIGIN_V4;

/// A table as Debian's `/etc/nftables.conf` has it, with one chain that drops.
fn table(chain: &str, rules: &str) -> String {
    format!(
        "table inet filter {{
           chain input {{ type filter hook input priority 0; {}; {} }}
           chain output {{ type filter hook output priority 0; {}; {} }}
         }}",
        if chain == "input" { "policy drop" } else { "policy accept" },
        if chain == "input" { rules } else { "" },
        "policy accept",
        if chain == "output" { rules } else { "" },
    )
}

fn nft(stage: &Stage, name: &str, words: &[&str]) -> Result<String> {
    stage.run("laptop", name, command("nft", words))
}

/// What `doctor` says about a subject: its text and its commands.
fn found(stage: &Stage, subject: &str) -> Result<(String, Vec<String>)> {
    let config = stage.world().client_config("laptop");
    let config = config.to_str().context("a plain name")?;
    let output = stage.world().run_client("laptop", &["doctor", "--json", "--config", config])?;
    let document: Value = serde_json::from_slice(&output.stdout)?;
    let all = document["findings"].as_array().into_iter().flatten();
    let mut about = all.filter(|finding| finding["subject"] == subject);
    let Some(finding) = about.next() else { return Ok(Default::default()) };
    let remedies = finding["remedies"].as_array().into_iter().flatten();
    let commands = remedies.filter_map(|remedy| remedy["command"].as_str().map(str::to_owned));
    Ok((finding["text"].as_str().unwrap_or_default().to_owned(), commands.collect()))
}

/// Follows the commands that change something.
fn follow(stage: &Stage, commands: &[String]) -> Result<()> {
    for (number, line) in commands.iter().filter(|it| it.contains("insert")).enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        let [sudo, nft, rest @ ..] = words.as_slice() else { continue };
        ensure!(*sudo == "sudo" && *nft == "nft", "{line}");
        self::nft(stage, &format!("remedy{number}"), rest)?;
    }
    Ok(())
}

/// Whether a new connection is made through the gateway.
fn connects(stage: &Stage) -> Result<bool> {
    let listener = stage.world().host("origin").run(|_| TcpListener::bind((ORIGIN_V4, 0)))?;
    let to = SocketAddr::new(IpAddr::V4(ORIGIN_V4), listener.local_addr()?.port());
    let attempt = stage
        .world()
        .host("laptop")
        .thread(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)));
    Ok(attempt.join().is_ok_and(|outcome| outcome.is_ok()))
}

pub(crate) fn drop_what_comes_back() -> Result<()> {
    let stage = Stage::raise()?;
    ensure!(connects(&stage)?, "nothing is carried to begin with");
    ensure!(found(&stage, "firewall")?.0.is_empty(), "{:?}", found(&stage, "firewall")?);
    let rules = "iif lo accept; iifname { wifi0, cell0 } accept;";
    nft(&stage, "firewall", &[&table("input", rules)])?;
    ensure!(!connects(&stage)?, "the firewall drops nothing");
    let (text, commands) = found(&stage, "firewall")?;
    ensure!(text.contains("Nothing comes back through whimbrel0"), "{text}");
    follow(&stage, &commands)?;
    ensure!(connects(&stage)?, "the remedy does not help: {commands:?}");
    ensure!(found(&stage, "firewall")?.0.is_empty(), "{:?}", found(&stage, "firewall")?);
    Ok(())
}

pub(crate) fn forbid_what_goes_out() -> Result<()> {
    let stage = Stage::raise()?;
    nft(&stage, "firewall", &[&table("output", "udp dport 443 drop;")])?;
    stage.until("the firewall is named", |status| status["trouble_kind"] == "forbidden")?;
    let (text, commands) = found(&stage, "gateway")?;
    ensure!(text.contains("firewall of this machine forbids UDP"), "{text}");
    // Without a daemon that could be asked.
    let config = stage.world().client_config("laptop").with_file_name("other.toml");
    std::fs::copy(stage.world().client_config("laptop"), &config)?;
    let config = config.to_str().context("a plain name")?;
    let output = stage.world().run_client("laptop", &["doctor", "--config", config])?;
    let said = String::from_utf8_lossy(&output.stdout).replace("\n  ", " ");
    ensure!(said.contains("firewall of this machine forbids UDP"), "{said}");
    follow(&stage, &commands)?;
    stage.until("the gateway is reached again", |status| status["state"] == "attached")
}
