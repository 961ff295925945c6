//! What outlives the gateway process: flows, their kept bytes and their sockets.
//!
//! A gateway that is killed without warning loses nothing that the service manager still holds:
//! - the `journal`, one shared memory file with a record of every session and flow, and with the
//!   bytes that were read from a destination but not yet taken by the client;
//! - the `lot`s, one of each slot, where a duplicate of every destination's socket is parked;
//! - the kernel itself, which knows how far both directions of every socket came (`kernel`).
//!
//! The next process opens all three and goes on, with as many slots as it has. What cannot be
//! restored is named and closed; the rest carries on.
//!
//! A session that moves to another slot keeps its records: its sockets are parked in the other
//! slot's lot too before the lot they came from may give them up, so a process that is killed
//! anywhere in between has lost nothing and has nothing twice.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tracing::{debug, info, warn};
use whimbrel_common::identity::PublicKey;
use whimbrel_common::wire::{SessionId, WireFlow};
use whimbrel_gateway_core::seen::Seen;

mod journal;
mod kernel;
mod lot;
mod store;

use journal::{FlowRecord, Journal, SessionRecord};
pub(crate) use journal::{Place, Shelf};
use lot::Lot;
pub(crate) use lot::Ticket;
pub use store::Store;
pub(crate) use store::{PREFIX, ServiceManager};

/// What outlives this process of one slot.
#[derive(Debug)]
pub struct Keep {
    journal: Journal,
    lot: Lot,
    /// Sockets that moved to other slots and may not be parked there yet.
    leaving: usize,
}

/// What outlives the process, of every slot, and the sessions each slot goes on with.
pub type Kept = Vec<(Keep, Vec<KeptSession>)>;

/// A session another process of this gateway had.
#[derive(Debug)]
pub struct KeptSession {
    /// Its name.
    pub id: SessionId,
    /// Whose it is.
    pub key: PublicKey,
    pub(crate) epoch: u64,
    /// The flow ids it has used.
    pub(crate) seen: Seen,
    pub(crate) place: Place,
    pub(crate) flows: Vec<KeptFlow>,
}

/// A flow another process of this gateway had.
#[derive(Debug)]
pub(crate) struct KeptFlow {
    pub(crate) flow: WireFlow,
    pub(crate) epoch: u64,
    pub(crate) destination: SocketAddr,
    pub(crate) socket: TcpStream,
    pub(crate) shelf: Shelf,
    /// The client was not told that the destination answered.
    pub(crate) dialling: bool,
    /// Bytes written to the destination.
    pub(crate) written: u64,
    /// Our end was written after them.
    pub(crate) ended: bool,
    /// What the client has taken, and the bytes read after that.
    pub(crate) taken: u64,
    pub(crate) bytes: Vec<u8>,
    /// Everything was read, the destination's end included.
    pub(crate) read_end: bool,
}

impl Keep {
    /// Opens what `store` has kept, or begins anew with its help, for this many slots.
    ///
    /// # Errors
    /// The system has no shared memory or no descriptors for it.
    pub fn open(
        kept: Vec<(String, OwnedFd)>,
        slots: usize,
        store: &Arc<dyn Store>,
    ) -> io::Result<Kept> {
        let (journals, lots): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|(name, _)| name == store::JOURNAL);
        let mut journal = open_journal(journals.into_iter().map(|(_, file)| file), store.as_ref())?;
        let (parked, names) = lot::inspect(lots);
        let numbers = lot::Numbers::beside(&names);
        let sessions = restore(&mut journal, parked);
        let keep = || {
            let lot = Lot::new(numbers.clone(), Arc::clone(store));
            Self { journal: journal.clone(), lot, leaving: 0 }
        };
        let mut kept: Kept = (0..slots).map(|_| (keep(), Vec::new())).collect();
        for (session, slot) in sessions.into_iter().zip((0..slots).cycle()) {
            kept[slot].1.push(session);
        }
        for (keep, sessions) in &mut kept {
            let flows = sessions.iter().flat_map(|session| &session.flows);
            keep.park_again(flows.map(|flow| (flow.shelf.ticket(), flow.socket.as_fd())))?;
        }
        // The places of before are given up once every socket has a new one.
        names.iter().try_for_each(|name| store.forget(name))?;
        Ok(kept)
    }

    /// A place for a session; `None` when there is no more room for one.
    pub(crate) fn open_session(&mut self, id: SessionId, key: PublicKey) -> Option<Place> {
        self.journal.open_session(id, key)
    }

    /// The session was attached once more, or has dialled.
    pub(crate) fn note_session(&mut self, place: Place, epoch: u64, seen: &Seen) {
        self.journal.note_session(place, epoch, seen);
    }

    /// The session is over, and so were its flows.
    pub(crate) fn close_session(&mut self, place: Place) {
        self.journal.close_session(place);
    }

    /// A place for a flow, before its socket exists; `None` when there is no more room for one.
    pub(crate) fn open_flow(
        &mut self,
        session: Place,
        flow: WireFlow,
        destination: SocketAddr,
    ) -> Option<Shelf> {
        self.journal.open_flow(session, flow, destination)
    }

    /// Keeps a duplicate of the flow's socket.
    ///
    /// # Errors
    /// The service manager or the kernel takes no more.
    pub(crate) fn park(&mut self, shelf: &Shelf, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.lot.park(shelf.ticket(), socket)
    }

    /// The flow is over, and its socket closed as it should be.
    pub(crate) fn close_flow(&mut self, shelf: Shelf) {
        self.journal.remove(shelf);
        self.lot.leave();
    }

    /// Takes in sockets that are parked in another slot's lot, which keeps them until it is
    /// [told](Self::left).
    ///
    /// # Errors
    /// The service manager or the kernel takes no more.
    pub(crate) fn house(&mut self, flows: &[(Ticket, BorrowedFd<'_>)]) -> io::Result<()> {
        let (tickets, sockets): (Vec<Ticket>, Vec<BorrowedFd<'_>>) = flows.iter().copied().unzip();
        self.lot.park_all(&tickets, &sockets)
    }

    /// This many sockets are on their way to another slot.
    pub(crate) fn part(&mut self, sockets: usize) {
        self.leaving += sockets;
    }

    /// This many sockets have arrived there, or are over.
    pub(crate) fn left(&mut self, sockets: usize) {
        self.leaving = self.leaving.saturating_sub(sockets);
        (0..sockets).for_each(|_| self.lot.leave());
    }

    /// A session that nobody goes on with: destinations get a reset, and its places are free.
    pub(crate) fn discard(&mut self, session: KeptSession) {
        for flow in session.flows {
            // A connection that nobody ends would stay half open at the destination.
            let _ = rustix::net::connect_unspec(&flow.socket);
            self.close_flow(flow.shelf);
        }
        self.close_session(session.place);
    }

    /// Whether so much of what is parked is over that it should be [parked
    /// again](Self::park_again), and may be.
    pub(crate) fn is_littered(&self) -> bool {
        self.leaving == 0 && self.lot.is_littered()
    }

    /// Parks the sockets that are still in use in a new place, and gives up all others.
    ///
    /// # Errors
    /// The service manager or the kernel takes no more; the old places stay.
    pub(crate) fn park_again<'a>(
        &mut self,
        sockets: impl Iterator<Item = (Ticket, BorrowedFd<'a>)>,
    ) -> io::Result<()> {
        self.lot.renew(sockets)
    }
}

/// The sessions of the process before, with their sockets.
fn restore(journal: &mut Journal, parked: Vec<(Ticket, OwnedFd)>) -> Vec<KeptSession> {
    let mut sockets: HashMap<Ticket, OwnedFd> = parked.into_iter().collect();
    let (sessions, flows) = journal.records();
    let mut found: Vec<KeptSession> = sessions.into_iter().map(kept_session).collect();
    let at: HashMap<Place, usize> =
        found.iter().enumerate().map(|(at, session)| (session.place, at)).collect();
    let (mut restored, mut lost) = (0_usize, 0_usize);
    for record in flows {
        let session = at.get(&record.session).and_then(|at| found.get_mut(*at));
        let Some(session) = session else {
            journal.remove(record.shelf);
            continue;
        };
        let Some(socket) = sockets.remove(&record.shelf.ticket()) else {
            // A socket that was not parked yet was not connected either: the client may dial
            // again.
            session.seen.remove(record.flow);
            journal.remove(record.shelf);
            continue;
        };
        let (number, opened) = (record.flow, record.opened);
        match kept_flow(record, socket) {
            Ok(flow) => {
                session.flows.push(flow);
                restored += 1;
            }
            Err((shelf, reason)) => {
                debug!(reason, "A flow cannot be restored");
                if !opened {
                    session.seen.remove(number);
                }
                journal.remove(shelf);
                lost += 1;
            }
        }
    }
    // The flows of the others were over. What the kernel has still to send for them, it sends.
    drop(sockets);
    if restored + lost > 0 {
        info!(restored, lost, sessions = found.len(), "Flows of the process before");
    }
    found
}

/// The journal of the process before, or a new one.
fn open_journal(files: impl Iterator<Item = OwnedFd>, store: &dyn Store) -> io::Result<Journal> {
    let (mut found, mut refused) = (None, false);
    for file in files {
        match Journal::open(file) {
            Ok(journal) => found = Some(journal),
            Err(reason) => {
                warn!(reason, "A stored journal cannot be used");
                refused = true;
            }
        }
    }
    match found {
        Some(journal) if !refused => Ok(journal),
        found => {
            // Whatever has its name goes, and the one in use comes back.
            store.forget(store::JOURNAL)?;
            let journal = found.map_or_else(Journal::create, Ok)?;
            store.keep(store::JOURNAL, journal.as_fd())?;
            Ok(journal)
        }
    }
}

fn kept_session(record: SessionRecord) -> KeptSession {
    KeptSession {
        id: record.id,
        key: record.key,
        epoch: record.epoch,
        seen: record.seen,
        place: record.place,
        flows: Vec::new(),
    }
}

fn kept_flow(record: FlowRecord, socket: OwnedFd) -> Result<KeptFlow, (Shelf, &'static str)> {
    let FlowRecord { flow, epoch, destination, opened, ending, taken, mut shelf, .. } = record;
    let refuse = |shelf: Shelf, socket: &OwnedFd, reason| {
        kernel::disconnect(socket);
        Err((shelf, reason))
    };
    let Some(destination) = destination else {
        return refuse(shelf, &socket, "its record has no address");
    };
    let progress = match kernel::progress(&socket, ending) {
        Ok(progress) => progress,
        Err(reason) => return refuse(shelf, &socket, reason),
    };
    let Some(bytes) = shelf.bytes(taken, progress.read) else {
        return refuse(shelf, &socket, "its record contradicts its socket");
    };
    Ok(KeptFlow {
        flow,
        epoch,
        destination,
        socket: socket.into(),
        shelf,
        dialling: !opened,
        written: progress.written,
        ended: progress.ended,
        taken,
        bytes,
        read_end: progress.read_end,
    })
}

#[cfg(test)]
mod tests;
