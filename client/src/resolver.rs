//! Names: the gateway's, looked up again and again, and who is asked for those that wrapped
//! commands look up.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use whimbrel_client_core::dns::is_public;
use whimbrel_common::config::HostPort;
use whimbrel_common::wire::RESOLVER;
use whimbrel_host::nameservers;

/// A gateway's name is looked up this often, and this long after a failure.
const RESOLVE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(2));

/// Whom wrapped commands ask where the host itself asks somebody that a gateway cannot reach: the
/// gateway's own resolver.
pub(crate) const FALLBACK: IpAddr = RESOLVER.ip();

/// Where a host says whom it asks; the first names those behind systemd-resolved.
const SETTINGS: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// Whom wrapped commands ask: as configured, else as the host does, if a gateway can.
pub(crate) fn choose(configured: &[IpAddr]) -> Vec<IpAddr> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let texts = SETTINGS.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let own =
        texts.flat_map(|text| nameservers::parse(&text)).filter(|address| is_public(*address));
    let own: Vec<IpAddr> = own.collect();
    if own.is_empty() { vec![FALLBACK] } else { own }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_is_asked() {
        let wanted = IpAddr::from([192, 0, 2, 53]);
        assert_eq!(choose(&[wanted, FALLBACK]), [wanted, FALLBACK]);
    }
}
