//! The service that writes the host's DNS settings for a daemon that may not, and what restores them.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tracing::level_filters::LevelFilter;
use tracing::warn;
use whimbrel_host::output::line;
use whimbrel_host::{Layout, logging};

use crate::dns::lease;
use crate::dns::scribe::{SERVICE_STATE, Scribe, service_state};
use crate::run::NAMESERVER;

/// `whimbrel lead-names`: serves the socket that is the standard input.
pub(super) fn names(restore: bool) -> anyhow::Result<()> {
    logging::init(LevelFilter::INFO)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let mut scribe = Scribe::new(&service_state(), NAMESERVER);
    runtime.block_on(async {
        if restore {
            return scribe.restore().await.map(drop).map_err(anyhow::Error::msg);
        }
        let given = io::stdin().as_fd().try_clone_to_owned().context("the standard input")?;
        let listener = UnixListener::from(given);
        listener
            .local_addr()
            .and_then(|_| listener.set_nonblocking(true))
            .context("the standard input is no socket; whimbrel-names.socket passes one")?;
        lease::serve(tokio::net::UnixListener::from_std(listener)?, &mut scribe).await
    })
}

/// Restores what a daemon left behind, or the service.
pub(super) async fn restore(layout: &Layout) {
    let places = [layout.state.clone(), PathBuf::from(SERVICE_STATE)];
    // What was kept by the service only root may see.
    let known = places.iter().filter(|state| Path::exists(&state.join("resolv.conf.before")));
    let state = known.into_iter().next().unwrap_or(&layout.state);
    match Scribe::new(state, NAMESERVER).restore().await {
        Ok(true) => line("Restored /etc/resolv.conf."),
        Ok(false) => {}
        // Without privilege: whoever wrote it restores it.
        Err(_) if !rustix::process::geteuid().is_root() && lease::is_offered() => {}
        Err(trouble) => warn!(trouble, "The host's DNS settings stay behind"),
    }
}
