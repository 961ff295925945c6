//! Where duplicates of sockets are parked: as messages that nobody receives, in sockets that the
//! service manager stores.
//!
//! Storing every socket itself would cost a system call and a wait per flow, and names for all of
//! them at the next start. A message in flight costs one call. Messages cannot be taken out one by
//! one, so what is over stays until everything still in use is parked in a new place.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tracing::warn;

use super::{Store, kernel};

/// Descriptors in one message; the kernel's limit is 253 (`SCM_MAX_FD`).
const BATCH: usize = 200;

/// Bytes of a ticket on the wire.
const TICKET: usize = 12;

/// Messages a pair is asked to hold, in bytes; the kernel grants what `net.core.wmem_max` allows.
const CAPACITY: usize = 1 << 20;

/// Parked sockets that are over, or one to a message, before it is worth to park all again.
const LITTER: u64 = 1024;

/// What the names of the pairs begin with, before a number.
const NAME: &str = "keep-lot-";

/// Tells whose socket a parked one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket {
    pub(super) slot: u32,
    pub(super) generation: u64,
}

/// The numbers of pairs, for all lots of a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Numbers(Arc<AtomicU64>);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Lot {
    pairs: Vec<Pair>,
    numbers: Numbers,
    store: Arc<dyn Store>,
    /// Sockets parked since the last renewal, and of all how many are over.
    arrivals: u64,
    departures: u64,
    /// Sockets in use at the last renewal.
    renewed: u64,
}

/// Two connected sockets: what is sent into one stays there, because nobody reads the other.
#[derive(Debug)]
struct Pair {
    name: String,
    entrance: OwnedFd,
    /// The service manager has a duplicate. This one lives as long as the pair is in use here.
    _exit: OwnedFd,
}

impl Numbers {
    /// Those that none of the pairs named `old` has.
    pub(super) fn beside(old: &[String]) -> Self {
        let number = |name: &String| name.strip_prefix(NAME)?.parse::<u64>().ok();
        let next = old.iter().filter_map(number).max().map_or(0, |newest| newest.wrapping_add(1));
        Self(Arc::new(AtomicU64::new(next)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

impl Lot {
    /// An empty lot, whose pairs are kept in `store`.
    pub(super) fn new(numbers: Numbers, store: Arc<dyn Store>) -> Self {
        Self { pairs: Vec::new(), numbers, store, arrivals: 0, departures: 0, renewed: 0 }
    }

    /// Parks a duplicate of `socket`.
    pub(super) fn park(&mut self, ticket: Ticket, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&[ticket], &[socket])?;
        self.arrivals += 1;
        Ok(())
    }

    /// Parks duplicates of `sockets`, which are parked elsewhere too.
    pub(super) fn park_all(
        &mut self,
        tickets: &[Ticket],
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        for (tickets, sockets) in tickets.chunks(BATCH).zip(sockets.chunks(BATCH)) {
            self.send(tickets, sockets)?;
            self.arrivals += tickets.len() as u64;
        }
        Ok(())
    }

    /// One of the parked sockets is not needed any more.
    pub(super) fn leave(&mut self) {
        self.departures += 1;
    }

    /// Whether a renewal is worth its cost, which is that of every socket in use.
    pub(super) fn is_littered(&self) -> bool {
        self.arrivals.max(self.departures) > LITTER + self.renewed
    }

    /// Parks `sockets` anew and gives up everything that was parked before.
    pub(super) fn renew<'a>(
        &mut self,
        sockets: impl Iterator<Item = (Ticket, BorrowedFd<'a>)>,
    ) -> io::Result<()> {
        let before = std::mem::take(&mut self.pairs);
        let (tickets, sockets): (Vec<Ticket>, Vec<BorrowedFd<'_>>) = sockets.unzip();
        for (tickets, sockets) in tickets.chunks(BATCH).zip(sockets.chunks(BATCH)) {
            if let Err(error) = self.send(tickets, sockets) {
                // Both places are true: what is in two of them is the same socket.
                self.pairs.splice(0..0, before);
                self.renewed = self.arrivals.max(self.departures);
                return Err(error);
            }
        }
        (self.arrivals, self.departures) = (0, 0);
        self.renewed = u64::try_from(tickets.len()).unwrap_or(u64::MAX);
        for pair in before {
            self.store.forget(&pair.name)?;
        }
        Ok(())
    }

    fn send(&mut self, tickets: &[Ticket], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let payload: Vec<u8> = tickets.iter().flat_map(|ticket| ticket.to_bytes()).collect();
        if let Some(pair) = self.pairs.last() {
            match pair.send(&payload, sockets) {
                Err(Errno::AGAIN) => {}
                outcome => return Ok(outcome?),
            }
        }
        let name = format!("{NAME}{}", self.numbers.next());
        let pair = Pair::keep(name, self.store.as_ref())?;
        pair.send(&payload, sockets)?;
        self.pairs.push(pair);
        Ok(())
    }
}

impl Pair {
    fn keep(name: String, store: &dyn Store) -> io::Result<Self> {
        let (entrance, exit) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::sockopt::set_socket_send_buffer_size(&entrance, CAPACITY)?;
        store.keep(&name, exit.as_fd())?;
        Ok(Self { name, entrance, _exit: exit })
    }

    fn send(&self, payload: &[u8], sockets: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(sockets));
        debug_assert!(fits, "no more than a batch");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.entrance, &[IoSlice::new(payload)], &mut control, flags)?;
        Ok(())
    }
}

impl Ticket {
    fn to_bytes(self) -> [u8; TICKET] {
        let mut bytes = [0; TICKET];
        bytes[..4].copy_from_slice(&self.slot.to_le_bytes());
        bytes[4..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; TICKET]) -> Self {
        let [a, b, c, d, generation @ ..] = *bytes;
        Self { slot: u32::from_le_bytes([a, b, c, d]), generation: u64::from_le_bytes(generation) }
    }
}

/// Duplicates of everything that is parked in `lots`, and their names. All of it stays parked: a
/// process that is killed while it starts loses nothing either.
pub(super) fn inspect(lots: Vec<(String, OwnedFd)>) -> (Vec<(Ticket, OwnedFd)>, Vec<String>) {
    let mut parked = Vec::new();
    let mut names = Vec::new();
    for (name, exit) in lots {
        if let Err(error) = look_into(&exit, &mut parked) {
            warn!(name, %error, "Stored sockets cannot be read");
        }
        names.push(name);
    }
    (parked, names)
}

fn look_into(exit: &OwnedFd, parked: &mut Vec<(Ticket, OwnedFd)>) -> io::Result<()> {
    kernel::peek_onwards(exit)?;
    let mut payload = [0; BATCH * TICKET];
    loop {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut slices = [IoSliceMut::new(&mut payload)];
        let message = match rustix::net::recvmsg(exit, &mut slices, &mut control, flags) {
            Ok(message) => message,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            RecvAncillaryMessage::ScmCredentials(_) | _ => None,
        });
        let sockets: Vec<OwnedFd> = sockets.flatten().collect();
        if message.bytes == 0 && sockets.is_empty() {
            // Its other end is closed, and this was everything.
            return Ok(());
        }
        let tickets = payload[..message.bytes].as_chunks::<TICKET>().0;
        if tickets.len() != sockets.len() {
            warn!(tickets = tickets.len(), sockets = sockets.len(), "A stored message is damaged");
            continue;
        }
        parked.extend(tickets.iter().map(Ticket::from_bytes).zip(sockets));
    }
}

#[cfg(test)]
mod tests;
