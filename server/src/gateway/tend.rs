//! What is done for connected clients without their asking: paths judged, progress reported, and
//! those who say nothing sent away.

use std::time::Instant;

use tracing::{debug, info, warn};
use whimbrel_carrier::{Endpoint, Path};
use whimbrel_common::path::{Action, MoveReason};
use whimbrel_common::wire::{DETACH, Denial};

use crate::peer::Peer;

use super::Gateway;

impl Gateway {
    pub(super) fn tend_peers(&mut self, now: Instant) {
        let (mut late, mut broken) = (Vec::new(), Vec::new());
        for peer in self.peers.values_mut() {
            let connection = peer.connection;
            if peer.session.is_none() && now >= peer.since + crate::peer::ADMISSION {
                late.push(connection);
                continue;
            }
            self.stats.readdressed += peer.judge(&mut self.endpoint, now);
            while let Some(action) = peer.paths.poll_action() {
                if let Some(reason) = act(&mut self.endpoint, peer, action, now) {
                    self.figures.moves.count(&reason.to_string());
                }
            }
            if let Some(gap) = peer.end_gap() {
                self.figures.move_gaps.observe(gap);
            }
            let (flows, session) = (&mut self.flows, peer.session.as_ref());
            let frames = peer.reports.collect(now, |flow| {
                let flow = flows.get_mut(session?.flows.get(&flow)?)?;
                Some(flow.pipe.receiver.report())
            });
            let Some(control) = peer.control.as_mut() else { continue };
            frames.iter().for_each(|frame| control.send(frame));
            if let Err(error) = control.flush(&mut self.endpoint, connection) {
                debug!(%error, "Control stream ended");
                broken.push(connection);
            }
        }
        for connection in broken {
            self.deny(connection, Denial::Protocol, now);
        }
        for connection in late {
            // A client whose words are lost on a bad network has done nothing wrong: its session is
            // not to end by this.
            debug!("A client says nothing");
            self.endpoint.close(connection, DETACH, "it says nothing", now);
            self.lose(connection, "it says nothing");
        }
    }

    /// Parks the sockets of flows anew when too many of those parked are over.
    pub(super) fn tidy_keep(&mut self) {
        let Some(keep) = self.keep.as_mut().filter(|keep| keep.is_littered()) else { return };
        let kept = self
            .flows
            .values()
            .filter_map(|flow| flow.shelf.as_ref().map(|shelf| (shelf.ticket(), flow.socket())));
        if let Err(error) = keep.park_again(kept) {
            warn!(%error, "Sockets cannot be parked anew");
        }
    }
}

/// The gateway's half of path decisions: it probes, prefers and tells. Why the traffic moved, if it
/// did.
fn act(
    endpoint: &mut Endpoint,
    peer: &mut Peer,
    action: Action,
    now: Instant,
) -> Option<MoveReason> {
    match action {
        Action::Probe { path } => endpoint.ping(peer.connection, Path(path.0)),
        Action::Carry { path } => endpoint.carry(peer.connection, Path(path.0), now),
        Action::Close { path } => endpoint.close_path(peer.connection, Path(path.0), now),
        Action::Moved(step) => {
            step.from?;
            let session = peer.session.as_mut()?;
            session.moves += 1;
            info!(client = %session.name, to = %step.to, reason = %step.reason, "Moved");
            peer.note_move(step);
            return Some(step.reason);
        }
        Action::StateChanged { path, from, to } => {
            debug!(%path, %from, %to, "Path state");
        }
        // A gateway opens and steers nothing, and a client that moves asks for what it lacks.
        Action::Open { .. }
        | Action::Steer { .. }
        | Action::Unsteer { .. }
        | Action::Replay { .. } => {}
    }
    None
}
