//! The carrying out of decisions about paths, at the engine and at the sockets.

use std::time::{Duration, Instant};

use tracing::debug;
use whimbrel_carrier::OpenPathError;
use whimbrel_common::path::{Action, Input, PathKey, State};

use super::{Live, Surroundings};
use crate::tunnel::News;

/// A path that could not be opened for want of credit from the peer is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_millis(250);

impl Live {
    /// Carries a decision out.
    pub(super) fn act(&mut self, action: Action, around: &mut Surroundings<'_>, now: Instant) {
        match action {
            Action::Open { path } => self.open_path(path, around, now),
            Action::Probe { path } => self.ping(path, around),
            Action::Carry { path: link } => {
                if let Some(path) = self.path_of(link) {
                    around.uplinks.prefer(link);
                    around.endpoint.carry(self.connection, path, now);
                }
            }
            Action::Steer { from, onto } => self.steer(from, onto, around),
            Action::Unsteer { path } => self.unsteer(path, around, now),
            Action::Close { path: link } => {
                self.again.remove(&link);
                if let Some(path) = self.path_of(link) {
                    around.endpoint.close_path(self.connection, path, now);
                }
            }
            Action::Replay { silent_since, .. } => {
                around.news.push_back(News::Replay { silent_since });
            }
            Action::Moved(step) => {
                let from = step.from.map(|link| around.links.name_of(link));
                let to = around.links.name_of(step.to);
                around.news.push_back(News::Moved { step, from, to });
            }
            Action::StateChanged { path, from, to } => {
                let link = around.links.name_of(path);
                debug!(link, %from, %to, "Path state");
                match to {
                    State::Cooldown => around.portals.doubt(path, now),
                    State::Warm | State::Active => around.portals.clear(path),
                    State::Absent
                    | State::Probing
                    | State::Suspect
                    | State::Steered
                    | State::Draining => {}
                }
                around.news.push_back(News::Path { link, from, to });
            }
        }
    }

    /// Opens a path over a link that has none, to the first address of the gateway it reaches.
    pub(super) fn open_path(&mut self, link: PathKey, around: &mut Surroundings<'_>, now: Instant) {
        if self.open.contains_key(&link) {
            return;
        }
        let uplinks = &mut *around.uplinks;
        let remote = around.gateway.iter().find(|remote| uplinks.reaches(link, remote.ip()));
        let Some(remote) = remote.copied() else {
            self.paths.handle(Input::OpenFailed { path: link }, now);
            return;
        };
        uplinks.renew_stand_in(link);
        let local = uplinks.stand_in(link);
        match around.endpoint.open_path(self.connection, remote, local, now) {
            Ok(path) => {
                self.lent.remove(&link);
                self.open.insert(link, (path, false));
            }
            Err(OpenPathError::NotYet) => {
                self.again.insert(link, now + OPEN_AGAIN);
            }
            Err(error) => {
                debug!(%link, %error, "Cannot open a path");
                self.paths.handle(Input::OpenFailed { path: link }, now);
            }
        }
    }

    fn ping(&self, link: PathKey, around: &mut Surroundings<'_>) {
        if let Some(path) = self.path_of(link) {
            around.endpoint.ping(self.connection, path);
        }
    }

    fn steer(&mut self, from: PathKey, onto: PathKey, around: &mut Surroundings<'_>) {
        around.uplinks.steer(from, onto);
        self.lent.retain(|_, borrower| *borrower != from);
        if !self.open.contains_key(&onto) {
            self.lent.insert(onto, from);
        }
        self.ping(from, around);
    }

    fn unsteer(&mut self, link: PathKey, around: &mut Surroundings<'_>, now: Instant) {
        around.uplinks.unsteer(link);
        self.lent.retain(|_, borrower| *borrower != link);
        // Answers that came in on the other link taught the engine its address: left alone,
        // the path would go on leaving there. A new one takes its place.
        let strayed = self.path_of(link).filter(|path| {
            let local = around.endpoint.local(self.connection, *path);
            local.is_some_and(|local| local != around.uplinks.stand_in(link))
        });
        if let Some(path) = strayed {
            around.endpoint.close_path(self.connection, path, now);
        }
    }
}
