//! What of a gateway outlives its process, and what does not.

use std::collections::BTreeMap;
use std::time::Instant;

use whimbrel_carrier::Endpoint;

use super::{Gateway, Session};
use crate::flow::Flow;
use crate::story::Stories;

impl Gateway {
    /// Everything a process knows is gone. The next one has the sockets, and the journal.
    pub(crate) fn restart(
        &mut self,
        endpoint: Endpoint,
        stories: &mut Stories,
        mut unparked: impl FnMut() -> bool,
        now: Instant,
    ) {
        self.endpoint = endpoint;
        self.peers.clear();
        self.parked.clear();
        self.flows.clear();
        self.work.clear();
        for (id, kept) in &self.journal.sessions {
            let session = Session {
                id: *id,
                key: kept.key,
                epoch: kept.epoch,
                flows: BTreeMap::new(),
                seen: kept.seen(),
            };
            self.parked.insert(*id, (now, session));
        }
        for ((id, wire), record) in std::mem::take(&mut self.journal.flows) {
            let (_, session) = self.parked.get_mut(&id).expect("a flow's session");
            let story = stories.get_mut(&wire).expect("every flow has one");
            if !record.opened && unparked() {
                // Killed before its socket was in the service manager's care.
                session.seen.remove(wire);
                self.journal.note_session(id, session.key, session.epoch, &session.seen);
                if let Some(socket) = story.destination.take() {
                    assert_eq!(socket.given, 0);
                }
                continue;
            }
            let restored = Flow::restored(id, wire, &record, story.destination.as_ref(), now);
            let Some(flow) = restored else { continue };
            self.journal.flows.insert((id, wire), record);
            session.flows.insert(wire, self.next_flow);
            self.flows.insert(self.next_flow, flow);
            self.next_flow += 1;
            self.restored += 1;
        }
    }

    /// Not even the sockets are left.
    pub(crate) fn forget(&mut self, endpoint: Endpoint, stories: &mut Stories) {
        for story in stories.values_mut() {
            story.excuse("the gateway's host was restarted");
            if let Some(socket) = &mut story.destination {
                socket.tear();
            }
        }
        self.endpoint = endpoint;
        self.peers.clear();
        self.parked.clear();
        self.flows.clear();
        self.work.clear();
        self.journal.clear();
    }
}
