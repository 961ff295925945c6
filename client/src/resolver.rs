//! The gateway's name, looked up again and again.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use whimbrel_common::config::HostPort;

/// A gateway's name is looked up this often, and this long after a failure.
const RESOLVE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(2));

/// Looks the gateway's name up for as long as anybody listens.
pub(crate) async fn follow(
    gateway: HostPort,
    resolved: UnboundedSender<Result<Vec<SocketAddr>, String>>,
) {
    loop {
        let lookup = tokio::net::lookup_host((gateway.host.as_str(), gateway.port)).await;
        let outcome = match lookup {
            Ok(addresses) => Ok(addresses.collect::<Vec<_>>()),
            Err(error) => Err(format!("cannot find the gateway {gateway}: {error}")),
        };
        let pause = if outcome.is_ok() { RESOLVE.0 } else { RESOLVE.1 };
        if resolved.send(outcome).is_err() || gateway.literal().is_some() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}
