//! `ping`, through the gateway, in both families.

use crate::stage::{ORIGIN, Stage, command};
use anyhow::{Result, ensure};
use std::net::IpAddr;
use whimbrel_tests::lab::ORIGIN_V6;

pub(crate) fn answer() -> Result<()> {
    answer_on(&Stage::raise_for_pings(false)?)
}

pub(crate) fn answer_wrapped() -> Result<()> {
    answer_on(&Stage::raise_for_pings(true)?)
}

fn answer_on(stage: &Stage) -> Result<()> {
    for to in [IpAddr::V4(ORIGIN), ORIGIN_V6.into()] {
        let family = if to.is_ipv4() { "-4" } else { "-6" };
        let before = stage.pings()?;
        let to = to.to_string();
        let ping = command("ping", [family, "-n", "-c", "5", "-i", "0.2", "-W", "5", &to]);
        let said = stage.start("laptop", &format!("ping{family}"), ping)?.succeed()?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        let asked = stage.pings()? - before;
        ensure!(asked >= 5, "{asked} of 5 pings of {to} went through the gateway");
    }
    Ok(())
}
