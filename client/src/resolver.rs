//! Names: the gateway's, looked up again and again, and who is asked for those that wrapped
//! commands look up.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use whimbrel_client_core::dns::is_public;
use whimbrel_client_core::nat64::{self, Prefix};
use whimbrel_common::config::HostPort;
use whimbrel_common::wire::RESOLVER;
use whimbrel_host::nameservers;

/// A gateway's name is looked up this often, and this long after a failure.
const RESOLVE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(2));

/// Where nobody translates, it is asked again this often: the network's own name server may have been
/// unknown yet.
const TRANSLATOR: Duration = Duration::from_secs(10);

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

/// Looks the gateway's name up for as long as anybody listens. `lonely` has the links that know IPv6
/// alone; for them a gateway of IPv4 alone is looked for behind the network's translator.
pub(crate) async fn follow(
    gateway: HostPort,
    mut lonely: watch::Receiver<BTreeSet<String>>,
    resolved: UnboundedSender<Result<Vec<SocketAddr>, String>>,
) {
    loop {
        let alone = !lonely.borrow_and_update().is_empty();
        let lookup = tokio::net::lookup_host((gateway.host.as_str(), gateway.port)).await;
        let mut pause = Some(RESOLVE.0).filter(|_| gateway.literal().is_none());
        let outcome = match lookup {
            Ok(addresses) => {
                let mut addresses: Vec<SocketAddr> = addresses.collect();
                let translated = if alone { translated(&addresses).await } else { Vec::new() };
                if alone && translated.is_empty() && addresses.iter().all(SocketAddr::is_ipv4) {
                    pause = Some(TRANSLATOR);
                }
                addresses.extend(translated);
                Ok(addresses)
            }
            Err(error) => {
                pause = Some(RESOLVE.1);
                Err(format!("cannot find the gateway {gateway}: {error}"))
            }
        };
        if resolved.send(outcome).is_err() {
            return;
        }
        let over = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            changed = lonely.changed() => if changed.is_err() { return },
        }
    }
}

/// How a network of IPv6 alone reaches addresses that are all of IPv4; nothing for others, and where
/// nobody translates.
pub(crate) async fn translated(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let v4: Option<Vec<SocketAddrV4>> = addresses.iter().map(of_v4).collect();
    let Some(v4) = v4 else { return Vec::new() };
    let Ok(answers) = tokio::net::lookup_host((nat64::NAME, 0)).await else { return Vec::new() };
    let prefixes = answers.filter_map(|answer| match answer {
        SocketAddr::V6(v6) => Prefix::of(*v6.ip()),
        SocketAddr::V4(_) => None,
    });
    let prefixes: BTreeSet<Prefix> = prefixes.collect();
    let reach = |prefix: &Prefix| {
        let prefix = *prefix;
        v4.iter().map(move |address| (prefix.reach(*address.ip()), address.port()).into())
    };
    prefixes.iter().flat_map(reach).collect()
}

fn of_v4(address: &SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(v4) => Some(*v4),
        SocketAddr::V6(_) => None,
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
