//! One connection of an application to a destination: the programs at both ends, and what each may
//! rightly see of the other.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::chance::Chance;
use crate::kernel::{Descriptor, Kernel};

/// Bytes of a read or write.
const CHUNK: usize = 16 * 1024;

/// An application gives up a connection that is not answered.
const PATIENCE: Duration = Duration::from_secs(45);

/// Which program of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Application,
    Destination,
}

/// What a read finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Bytes(usize),
    Nothing,
    End,
    Reset,
}

/// A program's socket.
pub(crate) trait Line {
    /// It is not connected yet.
    fn is_asking(&self) -> bool {
        false
    }

    /// How many bytes its kernel took.
    fn write(&mut self, bytes: &[u8]) -> usize;

    fn read(&mut self, buffer: &mut [u8]) -> Heard;

    /// Whether its kernel knows that the connection was broken off. `ended` if the program has ended
    /// its own direction.
    fn is_reset(&mut self, ended: bool) -> bool;

    fn end(&mut self);

    fn reset(&mut self);
}

impl Line for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> usize {
        (&*self).write(bytes).unwrap_or(0)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Heard {
        match (&*self).read(buffer) {
            Ok(0) => Heard::End,
            Ok(count) => Heard::Bytes(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Heard::Nothing,
            Err(_) => Heard::Reset,
        }
    }

    fn is_reset(&mut self, _: bool) -> bool {
        self.take_error().expect("a socket has an option for it").is_some()
    }

    fn end(&mut self) {
        // It fails for a connection that was reset, which is noticed anyhow.
        let _ = self.shutdown(Shutdown::Write);
    }

    fn reset(&mut self) {
        // It fails for a connection that is over already.
        let _ = rustix::net::connect_unspec(&*self);
    }
}

/// The byte at an offset of the direction with this salt.
fn byte(salt: u64, at: u64) -> u8 {
    (at.wrapping_add(salt)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// A program: what it says, and what became of that.
#[derive(Debug)]
pub(crate) struct Program {
    /// Names the bytes it says.
    says: u64,
    /// Names the bytes it is to be told.
    hears: u64,
    /// Its connection has been answered.
    opened: bool,
    /// What it will have said in the end.
    total: u64,
    said: u64,
    /// It has ended its direction.
    fin: bool,
    heard: u64,
    /// It has read the end of the other direction.
    heard_end: bool,
    /// It reset the connection.
    broken: bool,
    /// The connection was reset under it.
    torn: bool,
}

impl Program {
    fn new(says: u64, hears: u64, chance: &mut Chance) -> Self {
        Self {
            says,
            hears,
            opened: false,
            total: chance.spread(400_000),
            said: 0,
            fin: false,
            heard: 0,
            heard_end: false,
            broken: false,
            torn: false,
        }
    }

    fn is_dead(&self) -> bool {
        self.broken || self.torn
    }

    fn is_over(&self) -> bool {
        self.fin && self.heard_end
    }

    /// Sees what its kernel knows.
    fn notice(&mut self, line: &mut dyn Line) {
        let alive = !self.is_dead() && !self.is_over();
        self.torn |= alive && line.is_reset(self.fin);
        self.opened |= !self.is_dead() && !line.is_asking();
    }

    pub(crate) fn say(&mut self, line: &mut dyn Line, count: u64) {
        let mut left = count.min(self.total - self.said);
        while left > 0 && !self.is_dead() && !self.fin {
            let most = left.min(CHUNK as u64);
            let chunk: Vec<u8> =
                (self.said..self.said + most).map(|at| byte(self.says, at)).collect();
            let taken = line.write(&chunk) as u64;
            if taken == 0 {
                return;
            }
            self.said += taken;
            left -= taken;
        }
    }

    pub(crate) fn hear(&mut self, line: &mut dyn Line, count: u64) {
        let mut left = count;
        let mut buffer = [0; CHUNK];
        while left > 0 && !self.is_dead() && !self.heard_end {
            let most = usize::try_from(left.min(CHUNK as u64)).expect("a chunk");
            match line.read(&mut buffer[..most]) {
                Heard::Bytes(count) => {
                    let got = (self.heard..).zip(&buffer[..count]);
                    let wrong = got.into_iter().find(|(at, got)| byte(self.hears, *at) != **got);
                    assert_eq!(wrong, None, "I1: offset and byte that were never said there");
                    self.heard += count as u64;
                    left -= count as u64;
                }
                Heard::Nothing => return,
                Heard::End => self.heard_end = true,
                Heard::Reset => self.torn = true,
            }
        }
    }

    /// It says no more, whatever it was going to say.
    pub(crate) fn end(&mut self, line: &mut dyn Line) {
        if !self.is_dead() && !self.fin && !line.is_asking() {
            self.total = self.said;
            self.fin = true;
            line.end();
        }
    }

    pub(crate) fn break_off(&mut self, line: &mut dyn Line) {
        if !self.is_dead() && !self.is_over() {
            self.broken = true;
            line.reset();
        }
    }

    /// A patient program: it reads, says all it has to say, and ends.
    fn go_on(&mut self, line: &mut dyn Line) {
        self.hear(line, u64::MAX);
        self.say(line, u64::MAX);
        if self.said == self.total {
            self.end(line);
        }
    }
}

/// What is at the address an application connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A program that accepts.
    Ready,
    /// Nobody.
    Refusing,
    /// A host that does not answer.
    Mute,
    /// Something that no client may reach.
    Denied,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Story {
    kind: Kind,
    application: Program,
    destination: Program,
    near: Descriptor,
    since: Instant,
    listener: Option<TcpListener>,
    stream: Option<TcpStream>,
    /// What the destination is like.
    future: Chance,
    /// New connections were refused while it waited for an answer.
    refusable: bool,
    /// Why either end may see a reset that neither program asked for.
    excuse: Option<&'static str>,
}

impl Story {
    pub(crate) fn new(kernel: &mut Kernel, number: u16, mut chance: Chance, now: Instant) -> Self {
        let salts = (chance.next(), chance.next());
        let application = Program::new(salts.0, salts.1, &mut chance);
        let future = Chance::new(chance.next());
        let destination = Program::new(salts.1, salts.0, &mut future.clone());
        let kind = match chance.below(100) {
            0..=3 => Kind::Refusing,
            4 => Kind::Mute,
            5..=6 => Kind::Denied,
            _ => Kind::Ready,
        };
        let listener = (kind == Kind::Ready).then(|| listen(&mut chance));
        let address = mapped(match (&listener, kind) {
            (Some(listener), _) => listener.local_addr().expect("it is bound"),
            (None, Kind::Mute) => mute(),
            (None, Kind::Denied) => ([10, 66, 0, 1], 80).into(),
            // Nobody listens at port 1 of so strange an address.
            (None, Kind::Ready | Kind::Refusing) => ([127, 66, 0, 1], 1).into(),
        });
        let (port, room) = (20_000 + number, 1 << chance.within(11, 17));
        let near = kernel.connect(port, address, room);
        Self {
            kind,
            application,
            destination,
            near,
            since: now,
            listener,
            stream: None,
            future,
            refusable: false,
            excuse: None,
        }
    }

    /// One of the programs does something, if it has a socket.
    pub(crate) fn with(
        &mut self,
        kernel: &mut Kernel,
        side: Side,
        what: impl FnOnce(&mut Program, &mut dyn Line),
    ) {
        match (side, &mut self.stream) {
            (Side::Application, _) => {
                what(&mut self.application, &mut kernel.near(&mut self.near));
            }
            (Side::Destination, Some(stream)) => what(&mut self.destination, stream),
            (Side::Destination, None) => {}
        }
    }

    /// Both programs do all they can.
    pub(crate) fn go_on(&mut self, kernel: &mut Kernel) {
        for side in [Side::Application, Side::Destination] {
            self.with(kernel, side, Program::go_on);
        }
    }

    /// Sees what both kernels know.
    pub(crate) fn notice(&mut self, kernel: &mut Kernel, now: Instant) {
        let unreachable = kernel.is_unreachable(self.near.port);
        let mut near = kernel.near(&mut self.near);
        near.save();
        if unreachable && near.is_asking() {
            near.reset();
            self.application.torn |= !self.application.is_dead();
        }
        if let Some((stream, _)) = self.listener.as_ref().and_then(|it| it.accept().ok()) {
            stream.set_nonblocking(true).expect("a socket can be");
            self.answer(stream);
        }
        for side in [Side::Application, Side::Destination] {
            self.with(kernel, side, Program::notice);
        }
        if self.is_asking(kernel) && now >= self.since + PATIENCE {
            self.with(kernel, Side::Application, Program::break_off);
        }
    }

    /// The destination was dialled.
    fn answer(&mut self, stream: TcpStream) {
        if self.stream.is_some() {
            let may = self.excuse.is_some() && self.application.said == 0;
            assert!(may, "dialled again: {self:#?}");
            let salts = (self.destination.says, self.destination.hears);
            self.destination = Program::new(salts.0, salts.1, &mut self.future.clone());
        }
        self.stream = Some(stream);
    }

    /// Whether the application waits for an answer.
    fn is_asking(&mut self, kernel: &mut Kernel) -> bool {
        !self.application.is_dead() && kernel.near(&mut self.near).is_asking()
    }

    /// When the application loses its patience.
    pub(crate) fn poll_timeout(&mut self, kernel: &mut Kernel) -> Option<Instant> {
        self.is_asking(kernel).then(|| self.since + PATIENCE)
    }

    /// Either end may be reset from here on.
    pub(crate) fn excuse(&mut self, why: &'static str) {
        let over = |program: &Program| program.is_dead() || program.is_over();
        if !(over(&self.application) && over(&self.destination)) {
            self.excuse.get_or_insert(why);
        }
    }

    /// New connections are refused at the moment.
    pub(crate) fn allow_refusal(&mut self) {
        self.refusable |= !self.application.opened;
    }

    /// Whether the connection was refused, as it may have been.
    fn is_refused(&self) -> bool {
        let application = &self.application;
        application.torn && !application.opened && (self.refusable || self.kind != Kind::Ready)
    }

    pub(crate) fn is_excused(&self) -> bool {
        self.excuse.is_some()
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.application.is_over() && self.destination.is_over()
    }

    /// Whether neither program waits for anything.
    pub(crate) fn is_at_rest(&self) -> bool {
        let rests = |program: &Program| program.is_dead() || program.is_over();
        rests(&self.application) && (self.stream.is_none() || rests(&self.destination))
    }

    /// Bytes that were read at either end.
    pub(crate) fn bytes(&self) -> u64 {
        self.application.heard + self.destination.heard
    }

    /// At any moment: nobody was given more than was said, nor an end before its time (I1).
    pub(crate) fn check(&self) {
        let (application, destination) = (&self.application, &self.destination);
        for (from, to) in [(application, destination), (destination, application)] {
            assert!(to.heard <= from.said, "I1: {self:#?}");
            let whole = from.fin && to.heard == from.said;
            assert!(!to.heard_end || whole, "I1: an early end: {self:#?}");
            let cause = from.broken || self.is_refused() || self.excuse.is_some();
            assert!(!to.torn || cause, "reset for no reason: {self:#?}");
        }
    }

    /// When everything has come to rest (I5).
    pub(crate) fn check_end(&self) {
        let (application, destination) = (&self.application, &self.destination);
        if self.stream.is_none() {
            let known = application.broken || self.is_refused() || self.excuse.is_some();
            assert!(known, "I5: never dialled: {self:#?}");
        } else if application.is_dead() || destination.is_dead() {
            for program in [application, destination] {
                assert!(program.is_dead() || program.is_over(), "I5: half reset: {self:#?}");
            }
        } else {
            assert!(self.is_whole(), "I5: it hangs: {self:#?}");
        }
    }
}

/// A destination that accepts, with little room or much.
fn listen(chance: &mut Chance) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    if chance.per_mille(500) {
        socket.set_recv_buffer_size(4096).expect("a size");
    }
    if chance.per_mille(300) {
        socket.set_send_buffer_size(4096).expect("a size");
    }
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port is free");
    socket.listen(8).expect("it is bound");
    socket.set_nonblocking(true).expect("a socket can be");
    socket.into()
}

/// A destination whose kernel answers nothing: nobody accepts, and no more may wait for it.
fn mute() -> SocketAddr {
    static MUTE: OnceLock<(Socket, Vec<TcpStream>)> = OnceLock::new();
    let (listener, _) = MUTE.get_or_init(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port is free");
        socket.listen(0).expect("it is bound");
        let address = address_of(&socket);
        let patience = Duration::from_millis(100);
        let waiting = std::iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok());
        let waiting = waiting.take(8).collect();
        (socket, waiting)
    });
    address_of(listener)
}

/// The same address as one of IPv6 (RFC 4291 §2.5.5.2): loopback in a packet is nobody's.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

fn address_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().expect("it is bound").as_socket().expect("an IPv4 address")
}
