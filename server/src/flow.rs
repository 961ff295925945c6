//! One flow at the gateway: a stream of a client on one side, kernel TCP on the other.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_carrier::{Connection, Endpoint, Pipe, Pulled, StreamEnd};
use whimbrel_common::identity::PublicKey;
use whimbrel_common::session::{Receiver, Sender, Violation};
use whimbrel_common::wire::{FlowAnswer, RefuseReason, StreamCode};

use crate::dial::{Destination, Dialler, Ready};
use crate::keep::{KeptFlow, Shelf};

/// The most taken from a stream at a time, in bytes.
const PIECE: usize = 512 * 1024;

/// Bytes a flow may have waiting for its stream before the destination is left unread: the engine
/// buffers on its own.
const UNSENT: u64 = 256 * 1024;

/// What all flows of a client are moved by at the moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The round trip of the path that carries.
    pub(crate) rtt: Duration,
    /// The largest window of a flow, in bytes.
    pub(crate) window: u64,
    /// How much the flow may hold before its destination is left unread, in bytes.
    pub(crate) allowance: u64,
    /// Bytes to the destination before others get their turn.
    pub(crate) up: usize,
    /// Bytes from the destination before others get their turn.
    pub(crate) down: usize,
}

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) owner: PublicKey,
    pub(crate) client: Connection,
    pub(crate) pipe: Pipe,
    pub(crate) destination: SocketAddr,
    /// Bytes written to the destination.
    pub(crate) up_bytes: u64,
    /// Bytes read from the destination.
    pub(crate) down_bytes: u64,
    /// Whether the flow waits for its turn already.
    pub(crate) queued: bool,
    /// What the flow holds as last counted for its client.
    pub(crate) counted: u64,
    /// The connection that carried the flow is lost, and no stream of another carries it yet.
    pub(crate) parked: bool,
    /// Whether somebody looks if it has come to rest.
    pub(crate) watched: bool,
    /// Where the flow outlives the process, if it does.
    pub(crate) shelf: Option<Shelf>,
    socket: Destination,
    dialling: bool,
    can_read: bool,
    can_write: bool,
    /// The kernel announced an end or an error: reads go on until they find it.
    closing: bool,
    read_end: bool,
    write_end: bool,
    ended: bool,
}

/// What a turn left to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing until something becomes ready.
    Rest,
    /// More could be moved at once.
    Again,
    /// The flow is over.
    Over(End),
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both directions were ended and the client knows.
    Complete,
    /// The dial failed; the client was told.
    Refused(RefuseReason),
    /// The destination reset the connection.
    ByDestination,
    /// The client reset the flow.
    ByClient,
    /// The client broke the rules of the flow.
    Violation(Violation),
}

impl Flow {
    /// A flow that is being dialled.
    pub(crate) fn new(
        (owner, client): (PublicKey, Connection),
        pipe: Pipe,
        destination: SocketAddr,
        socket: Destination,
    ) -> Self {
        Self {
            owner,
            client,
            pipe,
            destination,
            up_bytes: 0,
            down_bytes: 0,
            queued: false,
            counted: 0,
            parked: false,
            watched: false,
            shelf: None,
            socket,
            dialling: true,
            can_read: false,
            can_write: false,
            closing: false,
            read_end: false,
            write_end: false,
            ended: false,
        }
    }

    /// A flow of a process before, whose client has not come back yet.
    pub(crate) fn restored(
        owner: PublicKey,
        kept: KeptFlow,
        adopt: impl FnOnce(TcpStream) -> io::Result<Destination>,
    ) -> io::Result<Self> {
        let sender = Sender::restored(kept.taken, kept.bytes, kept.read_end);
        let receiver = Receiver::restored(kept.written, kept.ended);
        let pipe = Pipe::resting(kept.flow, kept.epoch, sender, receiver);
        let socket = adopt(kept.socket)?;
        Ok(Self {
            parked: true,
            dialling: kept.dialling,
            read_end: kept.read_end,
            write_end: kept.ended,
            ended: kept.ended,
            // What the kernel announced to another process is not announced again.
            can_read: true,
            can_write: !kept.dialling,
            closing: true,
            shelf: Some(kept.shelf),
            ..Self::new((owner, Connection::NONE), pipe, kept.destination, socket)
        })
    }

    /// The flow has come from another slot, and no stream of this one carries it yet. What the
    /// kernel had announced is looked for again.
    pub(crate) fn settle(&mut self) {
        self.client = Connection::NONE;
        self.parked = true;
        self.queued = false;
        self.watched = false;
        self.can_read = true;
        self.can_write = !self.dialling;
        self.closing = true;
    }

    /// Whether the destination has not answered yet.
    pub(crate) fn is_dialling(&self) -> bool {
        self.dialling
    }

    /// Whether the destination has answered a dial that nobody has looked at since: flows that no
    /// stream carries have no turn.
    pub(crate) fn has_connected(&self) -> bool {
        self.can_write && self.socket.outcome().is_ok()
    }

    /// Whether both directions were ended, which the client may not have acknowledged.
    pub(crate) fn is_complete(&self) -> bool {
        self.read_end && self.ended
    }

    /// Takes what the kernel says about the socket.
    pub(crate) fn note(&mut self, ready: Ready) {
        self.can_read |= ready.read;
        self.can_write |= ready.write;
        self.closing |= ready.closing;
    }

    /// Whether the destination may have more to read.
    pub(crate) fn waits_to_read(&self) -> bool {
        self.can_read && !self.read_end && !self.dialling
    }

    /// Bytes of the flow in this process.
    pub(crate) fn held(&self) -> u64 {
        self.pipe.sender.held()
    }

    /// Gives the flow up because its dial took too long.
    pub(crate) fn time_out(&mut self, endpoint: &mut Endpoint) -> Turn {
        self.refuse(RefuseReason::TimedOut, endpoint)
    }

    fn refuse(&mut self, reason: RefuseReason, endpoint: &mut Endpoint) -> Turn {
        self.pipe.part(&FlowAnswer::Refused { reason }, endpoint, self.client);
        Turn::Over(End::Refused(reason))
    }

    /// Moves what can be moved.
    pub(crate) fn turn(
        &mut self,
        endpoint: &mut Endpoint,
        scratch: &mut [u8],
        terms: Terms,
        now: Instant,
    ) -> Turn {
        if self.dialling {
            if !self.can_write {
                return Turn::Rest;
            }
            if let Err(reason) = self.socket.outcome() {
                return self.refuse(reason, endpoint);
            }
            self.dialling = false;
            // Whatever came with the connection must be looked for.
            self.can_read = true;
            if let Some(shelf) = &self.shelf {
                shelf.open();
            }
            self.pipe.answer(&FlowAnswer::Opened { limit: self.pipe.receiver.limit() });
        }
        let up = match self.carry_up(endpoint, terms, now) {
            Ok(more) => more,
            Err(end) => return Turn::Over(end),
        };
        let down = match self.carry_down(endpoint, scratch, terms) {
            Ok(more) => more,
            Err(end) => return Turn::Over(end),
        };
        if self.pipe.is_done() {
            Turn::Over(End::Complete)
        } else if up || down {
            Turn::Again
        } else {
            Turn::Rest
        }
    }

    /// Client to destination; whether more could be moved at once.
    fn carry_up(
        &mut self,
        endpoint: &mut Endpoint,
        terms: Terms,
        now: Instant,
    ) -> Result<bool, End> {
        let mut moved = 0;
        while !self.ended {
            self.fetch(endpoint)?;
            if self.socket.queued() == 0 {
                if self.write_end {
                    if let Some(shelf) = &self.shelf {
                        shelf.end();
                    }
                    self.socket.end().map_err(|_| End::ByDestination)?;
                    self.pipe.receiver.take_end();
                    self.ended = true;
                }
                return Ok(false);
            }
            if !self.can_write {
                return Ok(false);
            }
            if moved >= terms.up {
                return Ok(true);
            }
            match self.socket.write() {
                Ok(count) => {
                    self.pipe.receiver.take(count, now, terms.rtt).map_err(End::Violation)?;
                    self.pipe.receiver.bound(terms.window);
                    self.up_bytes += count as u64;
                    moved += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_write = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(End::ByDestination),
            }
        }
        Ok(false)
    }

    fn fetch(&mut self, endpoint: &mut Endpoint) -> Result<(), End> {
        while !self.write_end && self.socket.takes_more() {
            match self.pipe.pull(endpoint, self.client, PIECE) {
                Pulled::Data(bytes) => self.socket.queue(bytes),
                Pulled::Blocked | Pulled::Superseded => break,
                Pulled::End => self.write_end = true,
                Pulled::Reset => return Err(End::ByClient),
            }
        }
        Ok(())
    }

    /// Destination to client; whether more could be moved at once.
    fn carry_down(
        &mut self,
        endpoint: &mut Endpoint,
        scratch: &mut [u8],
        terms: Terms,
    ) -> Result<bool, End> {
        let mut moved = 0;
        self.push(endpoint)?;
        if let Some(shelf) = &mut self.shelf {
            shelf.take(self.pipe.sender.taken());
        }
        let may_read = self.held() < terms.allowance;
        while self.can_read && !self.read_end && may_read && self.unsent() < UNSENT {
            let room = self.pipe.sender.room().min(scratch.len());
            if room == 0 {
                break;
            }
            if moved >= terms.down {
                return Ok(true);
            }
            let offset = self.pipe.sender.total();
            let space = match &mut self.shelf {
                Some(shelf) => shelf.space(offset, room),
                None => &mut scratch[..room],
            };
            match self.socket.read(space) {
                Ok(0) => {
                    self.read_end = true;
                    self.pipe.sender.finish();
                }
                Ok(count) => {
                    // A short read has emptied the socket; an end still to come is announced.
                    self.can_read = count == space.len() || self.closing;
                    self.pipe.sender.push(Bytes::copy_from_slice(&space[..count]));
                    if let Some(shelf) = &mut self.shelf {
                        shelf.fill(offset + count as u64);
                    }
                    self.down_bytes += count as u64;
                    moved += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(End::ByDestination),
            }
            self.push(endpoint)?;
        }
        Ok(false)
    }

    fn unsent(&self) -> u64 {
        self.pipe.sender.held() - self.pipe.sender.in_flight()
    }

    fn push(&mut self, endpoint: &mut Endpoint) -> Result<(), End> {
        match self.pipe.push(endpoint, self.client) {
            Ok(()) => Ok(()),
            Err(StreamEnd::Stopped(code)) => match StreamCode::from_code(code) {
                StreamCode::Reset => Err(End::ByClient),
                StreamCode::Superseded => Ok(()),
            },
            // Everything was said and acknowledged.
            Err(StreamEnd::Gone) => Ok(()),
        }
    }

    /// Bytes read from the stream but not written are sent again on the next one.
    pub(crate) fn forget_queued(&mut self) {
        self.socket.forget_queued();
        self.write_end = self.ended;
    }

    /// Ends the kernel's connection the way the flow ended. What outlives the process is the
    /// caller's to give up, after this.
    pub(crate) fn close(self, end: End) -> Option<Shelf> {
        match end {
            End::ByClient | End::Violation(_) | End::Refused(_) => self.socket.reset(),
            End::Complete => self.socket.complete(),
            End::ByDestination => {}
        }
        self.shelf
    }

    /// Starts connecting.
    pub(crate) fn dial(&self, number: u64, dialler: &Dialler) -> io::Result<()> {
        dialler.dial(number, &self.socket, self.destination)
    }

    /// What is left of a flow that could not be dialled.
    pub(crate) fn abandon(self) -> (Pipe, Option<Shelf>) {
        (self.pipe, self.shelf)
    }

    /// The flow goes on in this place if the process ends.
    pub(crate) fn outlive(&mut self, shelf: Shelf) -> io::Result<()> {
        self.shelf = Some(shelf);
        self.socket.outlive()
    }

    /// The destination's socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests;
