//! The links as they come, go and are told of, and what is made of that.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::{debug, info, warn};
use whimbrel_client_core::links::{Terms, Wishes};
use whimbrel_common::config::{InterfaceName, Paths};
use whimbrel_common::path::{DownReason, PathKey};

use super::Daemon;
use crate::link::{self, LinkEvent, Uplink};
use crate::manager::News;
use crate::portal;
use crate::report::EventKind;
use crate::uplinks::Families;

/// The interfaces a person wants to be used.
pub(crate) fn asked(paths: &Paths) -> Vec<String> {
    paths.prefer.iter().map(|name| name.as_str().to_owned()).collect()
}

fn wishes(paths: &Paths, link: &str) -> Wishes {
    let names = |list: &[InterfaceName]| list.iter().position(|name| name.as_str() == link);
    Wishes {
        preferred: names(&paths.prefer),
        metered: names(&paths.metered).is_some(),
        unmetered: names(&paths.unmetered).is_some(),
    }
}

impl Daemon {
    pub(super) fn handle_link(&mut self, event: LinkEvent) {
        let now = Instant::now();
        self.names.look_again();
        match event {
            LinkEvent::Up(uplink) => {
                let text = format!("{} is up", uplink.name);
                self.client.journal.tell_of(EventKind::LinkUp, &uplink.name, text);
                info!(link = uplink.name, "Link up");
                self.use_link(&uplink, now);
                self.uplinks.insert(uplink.index, uplink);
            }
            LinkEvent::Changed(uplink) => {
                self.use_link(&uplink, now);
                self.uplinks.insert(uplink.index, uplink);
            }
            LinkEvent::Down { index, name, reason } => {
                self.uplinks.remove(&index);
                info!(link = name, %reason, "Link down");
                let text = format!("{name} is down: {reason}");
                self.client.journal.tell_of(EventKind::LinkDown, &name, text);
                self.client.tunnel.link_down(PathKey(index), translate(reason), now);
            }
            LinkEvent::OwnAddresses(addresses) => self.own_v6 = Some(addresses),
            LinkEvent::Stripped => self.mend_capture(),
            LinkEvent::Woke { asleep } => {
                info!(?asleep, "The machine slept");
                self.client.slept(asleep, now);
            }
        }
        let lonely = self.uplinks.values().filter(|link| link.v4.is_empty() && !link.v6.is_empty());
        let lonely: BTreeSet<String> = lonely.map(|link| link.name.clone()).collect();
        self.lonely.send_if_modified(|before| {
            *before != lonely && {
                *before = lonely;
                true
            }
        });
    }

    pub(super) fn use_link(&mut self, uplink: &Uplink, now: Instant) {
        let key = PathKey(uplink.index);
        let families = Families { v4: !uplink.v4.is_empty(), v6: !uplink.v6.is_empty() };
        if let Err(error) = self.client.tunnel.uplinks.add(key, &uplink.name, families) {
            // It may be gone again already; if not, the next change tries again.
            warn!(link = uplink.name, %error, "Cannot use the link");
            return;
        }
        let known = self.networks.get(&uplink.name).copied().unwrap_or_default();
        let wishes = wishes(&self.config.paths, &uplink.name);
        let terms = Terms::of(uplink.class, known.metering, uplink.metric, wishes);
        debug!(link = uplink.name, class = %uplink.class, ?terms, "Link in use");
        self.client.tunnel.link_up(key, &uplink.name, uplink.class, terms, now);
        self.client.tunnel.portals.tell(key, known.portal);
    }

    /// The network manager knows something else of the networks than before.
    pub(super) fn handle_networks(&mut self, news: News) {
        let now = Instant::now();
        self.networks = news;
        for uplink in self.uplinks.clone().into_values() {
            self.use_link(&uplink, now);
        }
    }

    /// Asks networks over which the gateway does not answer whether they want a sign-in, and tells
    /// of those that do.
    pub(super) fn ask_networks(&mut self) {
        while let Some(link) = self.client.tunnel.portals.poll_found() {
            self.tell_captive(link);
        }
        while let Some(link) = self.client.tunnel.portals.poll_question() {
            let Some(uplink) = self.uplinks.get(&link.0) else { continue };
            let (name, v4) = (uplink.name.clone(), !uplink.v4.is_empty());
            // Without a capture there is nothing to keep the question out of.
            let mark = self.capture.as_ref().map_or(0, |_| self.config.paths.mark);
            let answers = self.portals.clone();
            debug!(link = name, "Asks for a sign-in page");
            self.monitor.accompany(async move {
                let captive = portal::is_captive(&name, v4, mark).await;
                // Without a receiver the daemon has ended.
                let _ended = answers.send((link, captive));
            });
        }
    }

    fn tell_captive(&mut self, link: PathKey) {
        let Some(uplink) = self.uplinks.get(&link.0) else { return };
        info!(link = uplink.name, "The network wants a sign-in");
        let text = format!("{}: the network wants a sign-in; nothing moves onto it", uplink.name);
        self.client.journal.tell_of(EventKind::Captive, &uplink.name, text);
    }
}

fn translate(reason: link::DownReason) -> DownReason {
    match reason {
        link::DownReason::NoAddress => DownReason::AddressRemoved,
        link::DownReason::Disabled | link::DownReason::NoCarrier => DownReason::Carrier,
        link::DownReason::Removed | link::DownReason::Unsuitable => DownReason::Gone,
    }
}
