//! What a person is shown of the links and of the paths over them.

use std::time::Instant;

use whimbrel_carrier::PathView;
use whimbrel_client_core::links::Class;
use whimbrel_common::path::{PathKey, State};

use super::Tunnel;

/// A link, for the list of paths.
#[derive(Debug, Clone)]
pub(crate) struct LinkView {
    pub(crate) link: String,
    pub(crate) state: State,
    pub(crate) metered: bool,
    pub(crate) captive: bool,
    pub(crate) class: Class,
    pub(crate) active: bool,
    pub(crate) path: Option<PathView>,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
}

impl Tunnel {
    /// The links, for a person.
    pub(crate) fn links(&mut self) -> Vec<LinkView> {
        let Some(live) = self.live.as_ref() else { return self.links_without_connection() };
        let active = live.paths.active();
        live.paths
            .paths()
            // A device that was pulled out does not come back under its old key.
            .filter(|view| view.state != State::Absent || self.links.contains(view.path))
            .map(|view| {
                let open = live.path_of(view.path);
                let path = open.and_then(|path| self.endpoint.path(live.connection, path));
                let (tx_bytes, rx_bytes) = self.uplinks.traffic(view.path);
                LinkView {
                    link: view.name.to_owned(),
                    state: view.state,
                    metered: view.metered,
                    captive: self.portals.is_captive(view.path),
                    class: self.links.class(view.path),
                    active: active == Some(view.path),
                    path,
                    tx_bytes,
                    rx_bytes,
                }
            })
            .collect()
    }

    fn links_without_connection(&self) -> Vec<LinkView> {
        self.links
            .iter()
            .map(|(key, link)| {
                let (tx_bytes, rx_bytes) = self.uplinks.traffic(key);
                let trying = self.search.uses(key);
                LinkView {
                    link: link.name.clone(),
                    state: if trying { State::Probing } else { State::Absent },
                    metered: link.terms.metered,
                    captive: self.portals.is_captive(key),
                    class: link.class,
                    active: false,
                    path: None,
                    tx_bytes,
                    rx_bytes,
                }
            })
            .collect()
    }

    /// The link of this name.
    pub(crate) fn link_named(&self, name: &str) -> Option<PathKey> {
        self.links.named(name)
    }

    /// The names of the links that are up.
    pub(crate) fn link_names(&self) -> Vec<String> {
        self.links.iter().map(|(_, link)| link.name.clone()).collect()
    }

    /// Bytes deemed lost on the paths that are open.
    pub(crate) fn lost_bytes(&self) -> u64 {
        let Some(live) = self.live.as_ref() else { return 0 };
        live.open_paths()
            .filter_map(|path| self.endpoint.progress(live.connection, path))
            .map(|progress| progress.lost_bytes)
            .sum()
    }

    /// When the link's path last made progress.
    pub(crate) fn progress_of(&self, link: PathKey) -> Option<Instant> {
        let live = self.live.as_ref()?;
        self.endpoint.progress(live.connection, live.path_of(link)?)?.last_ack
    }
}
