//! `iperf3`, in both directions.

use crate::ssh::listens;
use crate::stage::{Loss, ORIGIN, Stage, command};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What each direction transfers, as its command line has it.
const BYTES: u64 = 400_000_000;

pub(crate) fn measure() -> Result<()> {
    let stage = Stage::raise()?;
    let address = ORIGIN.to_string();
    let server = command("iperf3", ["-s", "-B", &address]);
    let mut server = stage.start("origin", "iperf3-server", server)?;
    server.until("listened", || Ok(listens(&stage, 5201)))?;
    for (name, direction, loss) in
        [("up", None, Loss::BlackHole), ("down", Some("--reverse"), Loss::LinkDown)]
    {
        let bytes = BYTES.to_string();
        let arguments = ["-c", &address, "-n", &bytes, "--json"];
        let client = command("iperf3", arguments.into_iter().chain(direction));
        let mut job = stage.start("laptop", &format!("iperf3-{name}"), client)?;
        stage.move_twice(&mut job, loss)?;
        let report: Value = serde_json::from_str(&job.succeed()?).context("iperf3's report")?;
        ensure!(report["error"].is_null(), "iperf3 {name}: {}", report["error"]);
        let received = report["end"]["sum_received"]["bytes"].as_u64();
        let enough = received.is_some_and(|bytes| bytes >= BYTES * 9 / 10);
        ensure!(enough, "iperf3 {name}: {}", report["end"]);
    }
    server.must_run("before its time")
}
