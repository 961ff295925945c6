//! Where a monitoring system may ask for figures.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::ConfigError;
use super::raw::Raw;

/// The key `metrics`: a port of this machine alone, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MetricsPort(pub Option<SocketAddr>);

pub(super) const COMMENT: &str = "Where a monitoring system of this machine may read figures over HTTP (/metrics, as Prometheus\n\
     does), as \"127.0.0.1:9464\" or \"[::1]:9464\"; empty for nowhere. Every user of the machine can\n\
     read them there; members of the group whimbrel see the same by `metrics`.";

/// Reads the key. Figures tell who does what when: they are for this machine.
pub(super) fn read(raw: &Raw<'_>) -> Result<MetricsPort, ConfigError> {
    let port: MetricsPort = raw.read("metrics")?;
    let Some(address) = port.0 else { return Ok(port) };
    if !address.ip().to_canonical().is_loopback() {
        let because = format!(
            "is {address}, which others could reach; write an address of this machine alone, as in \
             \"127.0.0.1:{}\"",
            address.port()
        );
        return Err(raw.refuse("metrics", &because));
    }
    if address.port() == 0 {
        return Err(raw.refuse("metrics", "has no port; write one, as in \"127.0.0.1:9464\""));
    }
    Ok(port)
}

impl FromStr for MetricsPort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(|_| ())
    }
}

impl fmt::Display for MetricsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => Ok(()),
        }
    }
}
