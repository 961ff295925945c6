//! The client's event loop.

use whimbrel_common::config::ClientConfig;
use whimbrel_common::identity::SecretKey;
use whimbrel_host::Layout;

/// What the daemon starts with.
#[derive(Debug)]
pub struct Launch {
    /// The validated configuration.
    pub config: ClientConfig,
    /// Where the files are.
    pub layout: Layout,
    /// The client's private key.
    pub key: SecretKey,
}

/// Runs the client until it is told to stop.
///
/// # Errors
/// It cannot start.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    anyhow::bail!("the daemon for {} is not part of this build", launch.config.gateway)
}
