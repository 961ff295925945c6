//! The configuration files: what every key means, its default and its limits.
//!
//! A file is read in two steps. `raw` checks that it is TOML and that every key exists; each
//! value is then read by its type, and a missing one is read from the default text of its
//! `schema::Key`. The samples come from the same keys, so they cannot drift from what is read.

mod client;
mod error;
mod gateway;
mod host_port;
mod interface;
mod metrics_port;
mod raw;
mod schema;
mod value;

#[cfg(test)]
mod tests;

pub use client::{Capture, CaptureMode, ClientConfig, Dns, Offline, Paths, Run, SessionHold};
pub use error::ConfigError;
pub use gateway::{Egress, GatewayConfig, Limits};
pub use host_port::{HostPort, HostPortError};
pub use interface::{InterfaceName, InterfaceNameError};
pub use metrics_port::MetricsPort;
pub use schema::Entry;

/// The exit code of a program that finds its configuration wrong (`EX_CONFIG` of sysexits).
pub const EXIT_BAD_CONFIG: u8 = 78;
