//! The addresses of this machine.

use std::net::IpAddr;

use anyhow::Context as _;
use nix::ifaddrs::getifaddrs;

/// Every address of every interface, in this network namespace, at this moment.
///
/// # Errors
/// The kernel does not answer.
pub fn own() -> anyhow::Result<Vec<IpAddr>> {
    let interfaces = getifaddrs().context("cannot list the addresses of this machine")?;
    let mut addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_listed_once() {
        let addresses = own().unwrap();
        let mut unique = addresses.clone();
        unique.dedup();
        assert_eq!(addresses, unique);
    }
}
