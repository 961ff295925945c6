//! One terminated connection: a smoltcp socket in a set of its own, because
//! smoltcp scans a whole set for every packet.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant as Tick;
use smoltcp::wire::IpListenEndpoint;

use super::device::Port;
use super::ledger::{Ledger, Verdict};
use super::{DeviceId, PacketSink, Read};
use crate::packet::{Numbers, Segment};

/// Packets one flow may emit in one flush; the largest buffer (1 MiB in
/// super-segments of 64 KiB) needs 17, so only a fault in smoltcp gets there.
const BURST: usize = 256;
/// How long after its last byte a flow's buffers are given back. Longer than
/// the pauses between requests of a busy connection, so that it does not fault
/// its pages in again and again; short enough that memory follows load.
const TRIM_AFTER: Duration = Duration::from_secs(1);
/// Bytes that must have passed before a trim pays: four pages.
const TRIM_FLOOR: usize = 16 * 1024;
/// How long an unanswered SYN|ACK is repeated. Linux gives up after 63 s
/// (`tcp_synack_retries` = 5).
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(63);
/// How often the application is reminded of what smoltcp forgot: its own initial
/// RTO (RFC 6298 §2.1).
const REMIND_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Connection {
    set: SocketSet<'static>,
    socket: SocketHandle,
    pub(super) lease: u32,
    ledger: Ledger,
    device: DeviceId,
    accepted: Instant,
    /// No more will be written; the FIN goes out when the state allows it.
    finishing: bool,
    /// The owner has been told that the application's direction ended.
    fin_read: bool,
    /// The owner gave the flow up.
    aborted: bool,
    /// The last ACK of TIME-WAIT is out. smoltcp must not be polled again: at
    /// the end of TIME-WAIT it throws away what was not read.
    resting: bool,
    /// When the last segment before TIME-WAIT was taken.
    heard: Tick,
    /// When to remind the application of what smoltcp forgot.
    remind_at: Option<Instant>,
    /// Bytes through the rings since the pages were last released.
    touched: usize,
    /// `touched` at the last flush, and the time of the last change.
    settled: usize,
    active: Instant,
}

/// smoltcp panicked; the socket must not be used again.
#[derive(Debug)]
pub(super) struct Panicked;

/// A segment that smoltcp should have sent: its numbers, and the window as it stands in the
/// header.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reminder {
    /// The FIN again.
    Fin(Numbers, u16),
    /// An ACK from before the window, which is answered with the window as it is (RFC 9293
    /// §3.10.7.4).
    Window(Numbers, u16),
}

/// What one segment changed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Change {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) reset: bool,
    /// The segment reached beyond the receive ring.
    pub(super) excess: bool,
}

/// The interface and its clock.
pub(super) struct Stack<'a> {
    pub(super) interface: &'a mut Interface,
    pub(super) tick: Tick,
}

pub(super) struct Lease {
    pub(super) id: u32,
    pub(super) receive: SocketBuffer<'static>,
    pub(super) send: SocketBuffer<'static>,
}

impl Connection {
    /// A socket that has taken `syn`, or the lease of one that would not.
    pub(super) fn open(
        syn: &Segment<'_>,
        device: DeviceId,
        lease: Lease,
        stack: &mut Stack<'_>,
        sink: &mut dyn PacketSink,
        now: Instant,
    ) -> Result<Self, u32> {
        let ledger = Ledger::new(syn, lease.receive.capacity());
        let mut socket = Socket::new(lease.receive, lease.send);
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let endpoint = IpListenEndpoint {
            addr: Some(syn.destination().ip().into()),
            port: syn.destination().port(),
        };
        if socket.listen(endpoint).is_err() {
            return Err(lease.id);
        }
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let socket = set.add(socket);
        let mut connection = Self {
            set,
            socket,
            lease: lease.id,
            ledger,
            device,
            accepted: now,
            finishing: false,
            fin_read: false,
            aborted: false,
            resting: false,
            heard: stack.tick,
            remind_at: None,
            touched: 0,
            settled: 0,
            active: now,
        };
        let taken = connection.ingress(syn.packet(), stack, sink);
        if taken.is_err() || connection.state() != State::SynReceived {
            return Err(lease.id);
        }
        Ok(connection)
    }

    pub(super) fn state(&self) -> State {
        self.socket().state()
    }

    /// Whether the application and we have both said all: what remains is
    /// for the owner to read.
    pub(super) fn is_spent(&self) -> bool {
        matches!(self.state(), State::Closed | State::TimeWait)
    }

    /// Whether nothing remains at all. TIME-WAIT is not kept: both ends of
    /// this wire are one host, so no old segment can be on its way. An
    /// application whose last FIN must be repeated gets a RST in LAST-ACK,
    /// where it has closed already.
    pub(super) fn is_done(&self) -> bool {
        self.is_spent() && (self.fin_read || self.aborted)
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.ledger.numbers()
    }

    pub(super) fn receive(
        &mut self,
        segment: &Segment<'_>,
        stack: &mut Stack<'_>,
        sink: &mut dyn PacketSink,
    ) -> Result<Change, Panicked> {
        let before = self.state();
        let (received, queued) = (self.socket().recv_queue(), self.socket().send_queue());
        let verdict = self.ledger.judge(segment, has_fin(before).then_some(received));
        match verdict {
            Verdict::Take => self.ingress(segment.packet(), stack, sink)?,
            Verdict::TakeApart => {
                self.ingress(&segment.part(segment.payload_len()), stack, sink)?;
                if self.ledger.is_whole(segment, self.socket().recv_queue()) {
                    self.ingress(&segment.fin_alone(), stack, sink)?;
                }
            }
            Verdict::Cut(count) => self.ingress(&segment.part(count), stack, sink)?,
        }
        self.close_when_possible();
        let after = self.state();
        let grown = self.socket().recv_queue().saturating_sub(received);
        let opened = before == State::SynReceived && self.socket().may_send();
        self.touched += grown;
        Ok(Change {
            readable: grown > 0 || (has_fin(after) && !has_fin(before)),
            writable: self.socket().may_send() && (opened || self.socket().send_queue() < queued),
            reset: segment.resets()
                && matches!(after, State::Closed | State::Listen)
                && !matches!(before, State::Closed | State::TimeWait)
                && !self.aborted,
            excess: matches!(verdict, Verdict::Cut(_)),
        })
    }

    /// Emits everything due. True when more remains than one flush may carry.
    pub(super) fn emit(
        &mut self,
        stack: &mut Stack<'_>,
        sink: &mut dyn PacketSink,
    ) -> Result<bool, Panicked> {
        if self.resting {
            return Ok(false);
        }
        self.close_when_possible();
        let acks_only = self.sends_only_acks();
        // The last ACK may come so late that TIME-WAIT is over: what was not read stays.
        let tick = if self.state() == State::TimeWait { self.heard } else { stack.tick };
        let set = &mut self.set;
        let mut port = Port { inbound: None, device: self.device, ledger: &mut self.ledger, sink };
        let burst = if acks_only { 1 } else { BURST };
        let more = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..burst {
                if stack.interface.poll_egress(tick, &mut port, set) == PollResult::None {
                    return false;
                }
            }
            !acks_only
        }))
        .map_err(|_| Panicked)?;
        self.resting = self.state() == State::TimeWait;
        Ok(more)
    }

    /// Whether our direction is over, so that only ACKs remain to be sent, of which one says all.
    /// smoltcp would not stop: a probe of a closed window that was due before goes out as an ACK
    /// that leaves it due.
    fn sends_only_acks(&self) -> bool {
        self.state() == State::FinWait2
    }

    /// When smoltcp wants to be polled next.
    pub(super) fn poll_at(&mut self, stack: &mut Stack<'_>) -> Result<Option<Tick>, Panicked> {
        if self.resting || self.sends_only_acks() {
            return Ok(None);
        }
        let (set, tick) = (&self.set, stack.tick);
        catch_unwind(AssertUnwindSafe(|| stack.interface.poll_at(tick, set))).map_err(|_| Panicked)
    }

    /// smoltcp forgets in two cases, both recognised by something unacknowledged that waits for no
    /// time at all: three duplicate ACKs while only a FIN is unacknowledged stop its timer without
    /// sending anything, and so does a retransmission that falls due while the window is closed.
    /// Returns when to look again, and what is due.
    pub(super) fn forgotten(
        &mut self,
        retransmit: Option<Instant>,
        now: Instant,
    ) -> (Option<Instant>, Option<Reminder>) {
        let queued = self.send_queue() > 0;
        let waits = match self.state() {
            State::FinWait1 | State::Closing | State::LastAck => true,
            State::Established | State::CloseWait => queued,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::FinWait2
            | State::TimeWait => false,
        };
        if !waits || retransmit.is_some() {
            self.remind_at = None;
            return (None, None);
        }
        let due = self.remind_at.is_some_and(|at| at <= now);
        if due || self.remind_at.is_none() {
            self.remind_at = Some(now + REMIND_AGAIN);
        }
        let window = self.ledger.window();
        let reminder = if queued {
            Reminder::Window(self.ledger.probe_numbers(), window)
        } else {
            Reminder::Fin(self.ledger.fin_numbers(), window)
        };
        (self.remind_at, due.then_some(reminder))
    }

    /// When the handshake is given up, if it is still open.
    pub(super) fn handshake_limit(&self) -> Option<Instant> {
        (self.state() == State::SynReceived).then(|| self.accepted + HANDSHAKE_LIMIT)
    }

    /// When the pages of the rings may be released, if that would gain any.
    pub(super) fn trim_at(&mut self, now: Instant) -> Option<Instant> {
        if self.settled != self.touched {
            self.settled = self.touched;
            self.active = now;
        }
        let socket = self.socket();
        let empty = socket.recv_queue() == 0 && socket.send_queue() == 0;
        (empty && self.touched >= TRIM_FLOOR && self.ledger.is_gapless())
            .then(|| self.active + TRIM_AFTER)
    }

    pub(super) fn trimmed(&mut self) {
        self.touched = 0;
        self.settled = 0;
    }

    pub(super) fn readable(&self) -> usize {
        if self.aborted { 0 } else { self.socket().recv_queue() }
    }

    pub(super) fn send_queue(&self) -> usize {
        self.socket().send_queue()
    }

    pub(super) fn read(&mut self, max: usize, into: &mut BytesMut) -> Read {
        let mut bytes = 0;
        if self.aborted {
            return Read { bytes, fin: false };
        }
        let socket = self.set.get_mut::<Socket<'_>>(self.socket);
        // Twice, because the ring may wrap.
        while bytes < max {
            let taken = socket.recv(|slice| {
                let length = slice.len().min(max - bytes);
                into.extend_from_slice(&slice[..length]);
                (length, length)
            });
            match taken {
                Ok(0) | Err(_) => break,
                Ok(length) => bytes += length,
            }
        }
        let fin = matches!(socket.peek(0), Err(RecvError::Finished));
        self.fin_read |= fin;
        self.ledger.read(bytes);
        Read { bytes, fin }
    }

    pub(super) fn writable(&self) -> usize {
        let socket = self.socket();
        if self.finishing || !socket.may_send() {
            return 0;
        }
        socket.send_capacity() - socket.send_queue()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        if self.finishing {
            return 0;
        }
        let socket = self.set.get_mut::<Socket<'_>>(self.socket);
        let written = socket.send_slice(bytes).unwrap_or(0);
        self.touched += written;
        written
    }

    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.close_when_possible();
    }

    pub(super) fn abort(&mut self) {
        self.aborted = true;
        self.resting = false;
        self.set.get_mut::<Socket<'_>>(self.socket).abort();
    }

    /// smoltcp's close in SYN-RECEIVED would forget the SYN it still has to have acknowledged, so
    /// the FIN waits for the handshake. In LAST-ACK smoltcp is deaf to a window that opens, so
    /// there it waits until everything before it was acknowledged.
    fn close_when_possible(&mut self) {
        let possible = match self.state() {
            State::Established => true,
            State::CloseWait => self.send_queue() == 0,
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => false,
        };
        if self.finishing && possible {
            self.set.get_mut::<Socket<'_>>(self.socket).close();
        }
    }

    fn ingress(
        &mut self,
        packet: &[u8],
        stack: &mut Stack<'_>,
        sink: &mut dyn PacketSink,
    ) -> Result<(), Panicked> {
        if self.state() != State::TimeWait {
            self.heard = stack.tick;
        }
        let (set, tick) = (&mut self.set, stack.tick);
        let mut port =
            Port { inbound: Some(packet), device: self.device, ledger: &mut self.ledger, sink };
        catch_unwind(AssertUnwindSafe(|| {
            stack.interface.poll_ingress_single(tick, &mut port, set);
        }))
        .map_err(|_| Panicked)
    }

    fn socket(&self) -> &Socket<'static> {
        self.set.get::<Socket<'_>>(self.socket)
    }
}

/// Whether the application's FIN has been taken in this state.
fn has_fin(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}

/// The name of a state, as `ss` writes it.
pub(super) fn name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Listen => "listen",
        State::SynSent => "syn-sent",
        State::SynReceived => "syn-recv",
        State::Established => "established",
        State::FinWait1 => "fin-wait-1",
        State::FinWait2 => "fin-wait-2",
        State::CloseWait => "close-wait",
        State::Closing => "closing",
        State::LastAck => "last-ack",
        State::TimeWait => "time-wait",
    }
}
