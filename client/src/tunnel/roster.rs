//! The links there are: what is known of each beyond its sockets, and the names of those that left.

use std::collections::BTreeMap;

use whimbrel_client_core::links::{Class, Terms};
use whimbrel_common::path::{Input, PathKey};

/// What is known of a link beyond its sockets.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) class: Class,
    pub(super) terms: Terms,
}

impl Described {
    /// The news that this link is up, for the path decisions.
    pub(super) fn up(&self, path: PathKey) -> Input {
        let (name, Terms { rank, metered, .. }) = (self.name.clone(), self.terms);
        Input::LinkUp { path, name, rank, metered, cold: false }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Roster {
    up: BTreeMap<PathKey, Described>,
    /// The interface name of every link there ever was.
    names: BTreeMap<PathKey, String>,
}

impl Roster {
    /// A link came up, or what is known of it changed.
    pub(super) fn add(&mut self, link: PathKey, described: Described) {
        self.names.insert(link, described.name.clone());
        self.up.insert(link, described);
    }

    /// A link went down. Its name stays known.
    pub(super) fn remove(&mut self, link: PathKey) {
        self.up.remove(&link);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.up.is_empty()
    }

    /// Whether this link is up.
    pub(super) fn contains(&self, link: PathKey) -> bool {
        self.up.contains_key(&link)
    }

    /// The class of a link, if it is up.
    pub(super) fn class(&self, link: PathKey) -> Class {
        self.up.get(&link).map(|described| described.class).unwrap_or_default()
    }

    /// The links that are up.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PathKey, &Described)> {
        self.up.iter().map(|(link, described)| (*link, described))
    }

    /// The links that are up, the one to try first in front.
    pub(super) fn by_preference(&self) -> Vec<PathKey> {
        let mut links: Vec<(PathKey, &Described)> = self.iter().collect();
        links.sort_by_key(|(link, described)| {
            (described.terms.metered, described.terms.rank, *link)
        });
        links.into_iter().map(|(link, _)| link).collect()
    }

    /// The link of this name, if it is up.
    pub(super) fn named(&self, name: &str) -> Option<PathKey> {
        self.iter().find(|(_, described)| described.name == name).map(|(link, _)| link)
    }

    /// The name of a link, for a person; it may have left.
    pub(super) fn name_of(&self, link: PathKey) -> String {
        self.names.get(&link).cloned().unwrap_or_else(|| format!("link {link}"))
    }
}
