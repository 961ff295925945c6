//! Names: the gateway's, looked up again and again, and who is asked for those that wrapped
//! commands look up.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tracing::debug;
use whimbrel_client_core::dns::is_public;
use whimbrel_client_core::nat64::{self, Prefix};
use whimbrel_common::config::HostPort;
use whimbrel_common::wire::RESOLVER;
use whimbrel_host::nameservers;

use crate::lookup::lookup;
use crate::run::NAMESERVER;

/// A gateway's name is looked up this often, and this long after a failure.
const RESOLVE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(2));

/// The same while the gateway does not answer: its address may have changed.
const MISSED: Duration = Duration::from_secs(10);

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

/// What the looking up depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Circumstances {
    /// The links that know IPv6 alone: for them a gateway of IPv4 alone is looked for behind the
    /// network's translator.
    pub(crate) lonely: BTreeSet<String>,
    /// The gateway does not answer.
    pub(crate) missed: bool,
}

/// Looks the gateway's name up for as long as anybody listens; where the host's own way fails, past
/// the capture, with questions that carry `mark`.
pub(crate) async fn follow(
    gateway: HostPort,
    mark: u32,
    mut circumstances: watch::Receiver<Circumstances>,
    resolved: UnboundedSender<Result<Vec<SocketAddr>, String>>,
) {
    let mut servers = Vec::new();
    loop {
        let Circumstances { lonely, missed } = circumstances.borrow_and_update().clone();
        let alone = !lonely.is_empty();
        remember(&mut servers);
        let lookup = find(&gateway, &servers, mark).await;
        let often = if missed { MISSED } else { RESOLVE.0 };
        let mut pause = Some(often).filter(|_| gateway.literal().is_none());
        let outcome = match lookup {
            Ok(mut addresses) => {
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
            changed = circumstances.changed() => if changed.is_err() { return },
        }
    }
}

async fn find(
    gateway: &HostPort,
    servers: &[IpAddr],
    mark: u32,
) -> std::io::Result<Vec<SocketAddr>> {
    let failed = match tokio::net::lookup_host((gateway.host.as_str(), gateway.port)).await {
        Ok(found) => return Ok(found.collect()),
        Err(failed) => failed,
    };
    let found = lookup(&gateway.host, servers, mark).await;
    if found.is_empty() {
        return Err(failed);
    }
    debug!(%failed, "The gateway was found past the capture");
    Ok(found.into_iter().map(|address| SocketAddr::new(address, gateway.port)).collect())
}

/// Keeps in mind whom the host asks when it is not led to the gateway.
fn remember(servers: &mut Vec<IpAddr>) {
    let texts = SETTINGS.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let seen: Vec<IpAddr> = texts.flat_map(|text| foreign(&text)).collect();
    if !seen.is_empty() {
        *servers = seen;
    }
}

/// The servers of a `resolv.conf` that are elsewhere: neither here nor at the gateway.
fn foreign(text: &str) -> Vec<IpAddr> {
    let servers = nameservers::parse(text).into_iter();
    servers.filter(|server| *server != NAMESERVER && !server.is_loopback()).collect()
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
    fn the_name_server_inside_and_a_stub_lead_nowhere_without_the_gateway() {
        let text = "nameserver 10.213.52.53\nnameserver 127.0.0.53\nnameserver 192.168.1.1\n";
        assert_eq!(foreign(text), [IpAddr::from([192, 168, 1, 1])]);
    }

    #[test]
    fn what_is_configured_is_asked() {
        let wanted = IpAddr::from([192, 0, 2, 53]);
        assert_eq!(choose(&[wanted, FALLBACK]), [wanted, FALLBACK]);
    }
}
