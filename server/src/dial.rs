//! Kernel TCP towards destinations: nonblocking dials and sockets behind one epoll instance.
//!
//! The owner waits for the [`Dialler`]'s own descriptor and then takes a batch of news, each
//! naming a flow by the owner's number. Readiness is edge-triggered: it lasts until a call here
//! says `WouldBlock`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::event::epoll;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use whimbrel_common::wire::RefuseReason;

/// News taken from the kernel in one call.
const BATCH: usize = 256;

/// Chunks gathered into one write call: about 90 KiB of stream frames.
const GATHER: usize = 64;

/// A destination that vanished without a word is noticed after 60 s + 6 × 30 s of silence, well
/// before the two hours of the kernel's default.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(30), 6);

/// What became possible on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The owner's number of the flow.
    pub(crate) flow: u64,
    /// Bytes, an end or an error can be read.
    pub(crate) read: bool,
    /// Bytes can be written, or the dial has an outcome.
    pub(crate) write: bool,
    /// The destination ended its direction, or the connection broke.
    pub(crate) closing: bool,
}

/// Dials, and tells when sockets are ready.
pub(crate) struct Dialler {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Dialler {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(BATCH),
        })
    }

    /// Starts connecting; the outcome is a [`Ready`] that can write.
    pub(crate) fn dial(
        &self,
        flow: u64,
        socket: &Destination,
        destination: SocketAddr,
    ) -> io::Result<()> {
        match SockRef::from(&socket.socket).connect(&destination.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        self.watch(flow, socket.socket.as_fd())
    }

    /// Takes over a socket that was dialled by another process.
    pub(crate) fn adopt(&self, flow: u64, socket: TcpStream) -> io::Result<Destination> {
        self.watch(flow, socket.as_fd())?;
        Ok(Destination { socket, pending: VecDeque::new() })
    }

    /// Tells of this socket from now on.
    pub(crate) fn watch(&self, flow: u64, socket: BorrowedFd<'_>) -> io::Result<()> {
        let wanted = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(flow), wanted)?;
        Ok(())
    }

    /// Tells of this socket no more.
    pub(crate) fn forget(&self, socket: BorrowedFd<'_>) {
        // It fails for a socket that was not dialled yet.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Takes the news the kernel has, without waiting.
    pub(crate) fn ready(&mut self) -> io::Result<Vec<Ready>> {
        self.events.clear();
        let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, spare, Some(&no_wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.events.iter().map(|event| translate(*event)).collect())
    }
}

impl AsFd for Dialler {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn translate(event: epoll::Event) -> Ready {
    let flags = event.flags;
    let hung = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
    let closing = hung || flags.contains(epoll::EventFlags::RDHUP);
    Ready {
        flow: event.data.u64(),
        read: closing || flags.contains(epoll::EventFlags::IN),
        write: hung || flags.contains(epoll::EventFlags::OUT),
        closing,
    }
}

/// A dialled socket and the bytes it has not accepted yet.
#[derive(Debug)]
pub(crate) struct Destination {
    socket: TcpStream,
    pending: VecDeque<Bytes>,
}

impl Destination {
    /// A socket for this destination that is not connected to it yet.
    pub(crate) fn unconnected(destination: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(destination);
        let socket =
            Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        let (idle, interval, retries) = KEEP_ALIVE;
        let keep_alive =
            TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
        socket.set_tcp_keepalive(&keep_alive)?;
        Ok(Self { socket: socket.into(), pending: VecDeque::new() })
    }

    /// The outcome of the dial, once it is ready to write.
    pub(crate) fn outcome(&self) -> Result<(), RefuseReason> {
        match self.socket.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(refusal(&error)),
        }
    }

    /// Takes bytes to be written later.
    pub(crate) fn queue(&mut self, bytes: Bytes) {
        self.pending.push_back(bytes);
    }

    /// Chunks waiting to be written.
    pub(crate) fn queued(&self) -> usize {
        self.pending.len()
    }

    /// Whether another chunk fits into the next write call.
    pub(crate) fn takes_more(&self) -> bool {
        self.pending.len() < GATHER
    }

    /// Forgets what was queued: the peer sends it again.
    pub(crate) fn forget_queued(&mut self) {
        self.pending.clear();
    }

    /// Writes what was queued; how many bytes the kernel took. `WouldBlock` is an error here.
    pub(crate) fn write(&mut self) -> io::Result<usize> {
        let slices: Vec<IoSlice<'_>> =
            self.pending.iter().take(GATHER).map(|chunk| IoSlice::new(chunk)).collect();
        let count = io::Write::write_vectored(&mut &self.socket, &slices)?;
        let mut left = count;
        while left > 0 {
            let Some(front) = self.pending.front_mut() else { break };
            let take = left.min(front.len());
            front.advance(take);
            if front.is_empty() {
                self.pending.pop_front();
            }
            left -= take;
        }
        Ok(count)
    }

    /// Reads into `buffer`; zero is the end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &self.socket, buffer)
    }

    /// Says FIN after everything written.
    pub(crate) fn end(&self) -> io::Result<()> {
        self.socket.shutdown(std::net::Shutdown::Write)
    }

    /// Makes the connection end with RST, not FIN, if every duplicate of it is closed before
    /// [`complete`](Self::complete): the destination must not take what was cut off for whole.
    pub(crate) fn outlive(&self) -> io::Result<()> {
        SockRef::from(&self.socket).set_linger(Some(Duration::ZERO))
    }

    /// Both directions were ended in good order: the kernel sends what is left.
    pub(crate) fn complete(self) {
        // It fails for sockets that are closed already.
        let _ = SockRef::from(&self.socket).set_linger(None);
    }

    /// Gives the connection up at once: RST to the destination, unless it is over already. Closing
    /// the descriptor would not do, as there may be a duplicate elsewhere.
    pub(crate) fn reset(self) {
        // If it fails the destination sees FIN and then RST at its next segment.
        let _ = rustix::net::connect_unspec(&self.socket);
    }
}

impl AsFd for Destination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a failed dial means for the application.
#[expect(clippy::wildcard_enum_match_arm, reason = "an enum of the standard library, and long")]
pub(crate) fn refusal(error: &io::Error) -> RefuseReason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => RefuseReason::Refused,
        io::ErrorKind::HostUnreachable => RefuseReason::HostUnreachable,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => {
            RefuseReason::NetworkUnreachable
        }
        io::ErrorKind::TimedOut => RefuseReason::TimedOut,
        // A firewall at the gateway (EACCES, EPERM), or an address the kernel does not dial.
        io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => RefuseReason::Denied,
        _ if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            RefuseReason::NetworkUnreachable
        }
        _ if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => RefuseReason::Refused,
        _ => RefuseReason::Failed,
    }
}
