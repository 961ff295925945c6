//! Whom a machine asks for names (resolv.conf(5)).

use std::net::IpAddr;

/// The servers in the text of a `resolv.conf`, in their order.
#[must_use]
pub fn parse(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

/// Those this machine asks; none if it does not say.
#[must_use]
pub fn own() -> Vec<IpAddr> {
    std::fs::read_to_string("/etc/resolv.conf").map(|text| parse(&text)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn servers_are_read_as_the_resolver_reads_them() {
        let text =
            "# nameserver 1.1.1.1\nnameserver 192.168.1.1\n nameserver\t2620:fe::fe\nsearch x\n";
        let expected: [IpAddr; 2] =
            [Ipv4Addr::new(192, 168, 1, 1).into(), "2620:fe::fe".parse().unwrap()];
        assert_eq!(parse(text), expected);
    }
}
