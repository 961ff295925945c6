//! A host and a port, as in `gw.example.org:443` or `[2001:db8::1]:443`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::units::serde_as_text;

/// A name or address with a port. A name may resolve to IPv4 and IPv6 addresses alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HostPort {
    /// A DNS name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// 1..=65535.
    pub port: u16,
}

impl HostPort {
    /// The address, if the host is one and needs no resolving.
    #[must_use]
    pub fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// Why a text is no host and port.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostPortError {
    /// No colon and number at the end.
    #[error("{0:?} has no port: write host:port, as in gw.example.org:443")]
    NoPort(String),
    /// The port is no port.
    #[error("{0:?} is not a port: write a number from 1 to 65535")]
    Port(String),
    /// Several colons outside brackets.
    #[error("{0:?} is ambiguous: write an IPv6 address in brackets, as in [2001:db8::1]:443")]
    Brackets(String),
    /// The host is neither a name nor an address.
    #[error(
        "{0:?} is not a host: write a DNS name, an IPv4 address or an IPv6 address in brackets"
    )]
    Host(String),
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) =
                rest.split_once(']').ok_or_else(|| HostPortError::Brackets(shown(text)))?;
            let port = after.strip_prefix(':').ok_or_else(|| HostPortError::NoPort(shown(text)))?;
            let _: Ipv6Addr = host.parse().map_err(|_| HostPortError::Host(shown(host)))?;
            (host, port)
        } else {
            let (host, port) =
                text.rsplit_once(':').ok_or_else(|| HostPortError::NoPort(shown(text)))?;
            if host.contains(':') {
                return Err(HostPortError::Brackets(shown(text)));
            }
            if !is_host(host) {
                return Err(HostPortError::Host(shown(host)));
            }
            (host, port)
        };
        Ok(Self { host: host.to_owned(), port: parse_port(port)? })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

serde_as_text!(HostPort);

fn parse_port(text: &str) -> Result<u16, HostPortError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|&port: &u16| digits && port != 0);
    port.ok_or_else(|| HostPortError::Port(shown(text)))
}

/// RFC 1123 §2.1, with underscores, which some networks use.
fn is_host(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    (1..=253).contains(&name.len())
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// Bounds what an error repeats.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
