//! Reading the configuration again.

use std::time::Instant;

use tracing::{info, warn};
use whimbrel_common::config::ClientConfig;
use whimbrel_host::service;

use super::Daemon;

impl Daemon {
    /// Reads the configuration again. What is wrong with it is told, and the one before stays.
    pub(super) fn reload(&mut self) {
        service::reloading();
        match (self.reread)(&self.layout) {
            Ok(config) => self.adopt(config),
            Err(error) => warn!(error = format!("{error:#}"), "The configuration stays as it was"),
        }
        // Whoever asked waits for this word, whatever came of it.
        service::ready();
        self.ready = true;
    }

    fn adopt(&mut self, config: ClientConfig) {
        let fixed = |config: &ClientConfig| {
            let ClientConfig { gateway, gateway_key, capture, paths, metrics, .. } = config;
            (
                (gateway.clone(), *gateway_key, *metrics),
                (capture.interface.clone(), capture.address4, capture.address6),
                paths.mark,
            )
        };
        if fixed(&config) != fixed(&self.config) {
            warn!("The gateway, metrics, the TUN and paths.mark change with the next start only");
        }
        let (before, now) = (std::mem::replace(&mut self.config, config), Instant::now());
        let Self { config, .. } = self;
        config.gateway = before.gateway;
        config.gateway_key = before.gateway_key;
        config.capture.interface = before.capture.interface;
        config.capture.address4 = before.capture.address4;
        config.capture.address6 = before.capture.address6;
        config.paths.mark = before.paths.mark;
        self.client.configure(config.capture.offline, config.session.hold);
        self.client.carry(config.capture.mode);
        self.client.tunnel.portals.enable(config.paths.captive_probe);
        self.monitor.set_asked(super::asked(&config.paths));
        for uplink in self.uplinks.clone().into_values() {
            self.use_link(&uplink, now);
        }
        info!("The configuration was read again");
    }
}
