//! The lab with both daemons up, and what the tests do with connections in it.
//!
//! Sockets are opened on a host's own thread and stay in its network, so that a test holds both
//! ends of a connection itself.

#![allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "several test programs share this file, each uses its part"
)]

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use socket2::SockRef;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use whimbrel_tests::daemon::{Daemon, edit};
use whimbrel_tests::lab::{
    GATEWAY_V4, GATEWAY_V6, Host, Layout, ORIGIN_V4, ORIGIN_V6, Process, World,
};
use whimbrel_tests::traffic::Program;

/// Whatever takes longer than this on a busy machine with two cores does not happen any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often something is looked at while somebody waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Bytes read or written at a time.
pub(crate) const PIECE: usize = 64 << 10;

/// The origin in both families.
pub(crate) const ORIGIN: [IpAddr; 2] = [IpAddr::V4(ORIGIN_V4), IpAddr::V6(ORIGIN_V6)];

/// Both daemons in the lab, attached.
pub(crate) struct Stage {
    pub(crate) client: Daemon,
    pub(crate) gateway: Daemon,
    pub(crate) origin: Program,
    pub(crate) world: World,
}

impl Stage {
    /// The lab as it is, everything running.
    pub(crate) fn raise() -> Result<Self> {
        Self::raise_with(Layout::standard(), |_| {}, |_| {})
    }

    /// A lab of one's own, with changed configurations.
    pub(crate) fn raise_with(
        layout: Layout,
        gateway: impl FnOnce(&mut toml::Table),
        client: impl FnOnce(&mut toml::Table),
    ) -> Result<Self> {
        let (world, origin) = prepare(layout, gateway)?;
        let gateway = world.start_gateway()?;
        world.join_client("laptop")?;
        edit(&world.client_config("laptop"), client)?;
        let client = world.start_client("laptop")?;
        Ok(Self { client, gateway, origin, world })
    }

    /// The lab as it is, with a gateway under a service manager that keeps what it stores.
    pub(crate) fn raise_kept() -> Result<Self> {
        Self::raise_kept_with(|_| {})
    }

    /// The same with a changed configuration of the gateway.
    pub(crate) fn raise_kept_with(gateway: impl FnOnce(&mut toml::Table)) -> Result<Self> {
        Self::raise_kept_for(gateway, |_| {})
    }

    /// The same with a changed configuration of both.
    pub(crate) fn raise_kept_for(
        gateway: impl FnOnce(&mut toml::Table),
        client: impl FnOnce(&mut toml::Table),
    ) -> Result<Self> {
        let (world, origin) = prepare(Layout::standard(), gateway)?;
        let gateway = world.start_kept_gateway()?;
        world.join_client("laptop")?;
        edit(&world.client_config("laptop"), client)?;
        let client = world.start_client("laptop")?;
        Ok(Self { client, gateway, origin, world })
    }

    /// A connection from the laptop to the origin, both ends; it must have gone through the
    /// gateway.
    pub(crate) fn pair(&self, origin: IpAddr) -> Result<Pair> {
        let pair = pair(&self.world, origin)?;
        ensure!(pair.captured(), "a connection from {} was not captured", pair.peer);
        Ok(pair)
    }

    /// Waits until neither daemon knows a flow any more.
    pub(crate) fn quiet(&mut self) -> Result<()> {
        self.gateway.wait_until(&self.world, "forgot its flows", |it| it["flows"] == 0)?;
        self.client.wait_until(&self.world, "forgot its flows", |it| it["flows"]["open"] == 0)?;
        Ok(())
    }

    /// The session at the gateway.
    pub(crate) fn session(&self) -> Result<Value> {
        Ok(self.client.status(&self.world)?["session"].clone())
    }
}

/// The lab with the origin's services and a configured gateway that does not run yet.
pub(crate) fn prepare(
    layout: Layout,
    gateway: impl FnOnce(&mut toml::Table),
) -> Result<(World, Program)> {
    let world = World::build(layout)?;
    let origin = world.start_origin()?;
    world.init_gateway(SocketAddr::new(GATEWAY_V4.into(), 443))?;
    edit(&world.gateway_config(), gateway)?;
    Ok((world, origin))
}

/// Sets one value in a section of a configuration.
pub(crate) fn put(
    table: &mut toml::Table,
    section: &str,
    key: &str,
    value: impl Into<toml::Value>,
) {
    let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
    if let Some(section) = section.as_table_mut() {
        section.insert(key.to_owned(), value.into());
    }
}

/// Both ends of one connection.
pub(crate) struct Pair {
    /// The application's end.
    pub(crate) app: TcpStream,
    /// The server's end.
    pub(crate) server: TcpStream,
    /// Whom the server sees.
    pub(crate) peer: SocketAddr,
}

impl Pair {
    /// Whether the gateway made the server's connection.
    pub(crate) fn captured(&self) -> bool {
        [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)].contains(&self.peer.ip().to_canonical())
    }

    /// Sends a few bytes there and back.
    pub(crate) fn converse(&mut self) -> Result<()> {
        for text in [b"are you there?".as_slice(), b"!"] {
            self.app.write_all(text).context("the application's write")?;
            expect(&mut self.server, text).context("at the server")?;
            self.server.write_all(text).context("the server's write")?;
            expect(&mut self.app, text).context("at the application")?;
        }
        Ok(())
    }
}

/// Connects from the laptop to a listener at the origin, wherever that leads through.
pub(crate) fn pair(world: &World, origin: IpAddr) -> Result<Pair> {
    let listener = listen(world.host("origin"))?;
    let to = SocketAddr::new(origin, listener.local_addr()?.port());
    let app = connect(world, to).with_context(|| format!("connecting to {to}"))?;
    let (server, peer) = accept(&listener)?;
    Ok(Pair { app, server, peer })
}

/// Listens on every address of a host, both families.
pub(crate) fn listen(host: &Host) -> Result<TcpListener> {
    let listener = host.run(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
    // It applies to accept(2) too.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    Ok(listener)
}

/// The next connection of a listener.
pub(crate) fn accept(listener: &TcpListener) -> Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().context("nobody connected")?;
    patient(&stream)?;
    Ok((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}

/// Connects from the laptop.
pub(crate) fn connect(world: &World, to: SocketAddr) -> io::Result<TcpStream> {
    connect_within(world.host("laptop"), to, PATIENCE)
}

/// Connects from a host.
pub(crate) fn connect_within(
    host: &Host,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    let attempt = host.thread(move || TcpStream::connect_timeout(&to, patience));
    let stream = join(attempt)?;
    patient(&stream)?;
    Ok(stream)
}

/// Makes a connection wait no longer than a test does, and send at once.
fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// Reads exactly these bytes.
pub(crate) fn expect(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes)?;
    ensure!(bytes == text, "{bytes:?} instead of {text:?}");
    Ok(())
}

/// Reads the orderly end and nothing before it.
pub(crate) fn expect_end(stream: &mut TcpStream) -> Result<()> {
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => bail!("a byte instead of the end"),
        Err(error) => Err(error).context("instead of the end"),
    }
}

/// Reads until the connection is reset; the bytes before that.
pub(crate) fn expect_reset(stream: &mut TcpStream) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => bail!("an orderly end instead of a reset, after {bytes} bytes"),
            Ok(count) => bytes += count as u64,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(bytes),
            Err(error) => return Err(error).context(format!("after {bytes} bytes")),
        }
    }
}

/// Resets a connection.
pub(crate) fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Whether these are the bytes of a numbered stream from an offset on.
pub(crate) fn is_numbered(stream: u64, from: u64, bytes: &[u8]) -> bool {
    numbered(stream, from, bytes.len()) == bytes
}

/// Bytes of a numbered stream: each 8 of them are their own number, mixed with a number of the
/// stream, so that a byte lost, repeated or of another stream shows.
pub(crate) fn numbered(stream: u64, from: u64, length: usize) -> Vec<u8> {
    let skip = usize::try_from(from % 8).expect("below eight");
    let mut bytes = Vec::with_capacity(length + 16);
    let mut word = from / 8;
    while bytes.len() < skip + length {
        let mixed = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream);
        bytes.extend_from_slice(&mixed.to_be_bytes());
        word += 1;
    }
    bytes.truncate(skip + length);
    bytes.drain(..skip);
    bytes
}

/// Sends bytes `[from, to)` of a numbered stream.
pub(crate) fn send(to_stream: &mut TcpStream, number: u64, from: u64, to: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let length = usize::try_from(to - offset).unwrap_or(PIECE).min(PIECE);
        to_stream.write_all(&numbered(number, offset, length))?;
        offset += length as u64;
    }
    Ok(())
}

/// Sends a numbered stream until that is not possible any more; how much the kernel took.
pub(crate) fn send_until_blocked(
    stream: &mut TcpStream,
    number: u64,
    from: u64,
) -> io::Result<u64> {
    let mut offset = from;
    stream.set_nonblocking(true)?;
    let outcome = loop {
        match stream.write(&numbered(number, offset, PIECE)) {
            Ok(count) => offset += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(offset),
            Err(error) => break Err(error),
        }
    };
    stream.set_nonblocking(false)?;
    outcome
}

/// Reads bytes `[from, to)` of a numbered stream and checks each.
pub(crate) fn receive(stream: &mut TcpStream, number: u64, from: u64, to: u64) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut offset = from;
    while offset < to {
        let want = usize::try_from(to - offset).unwrap_or(PIECE).min(PIECE);
        let count = stream.read(&mut buffer[..want]).context(format!("at offset {offset}"))?;
        ensure!(count > 0, "the end after {offset} of {to} bytes");
        let right = numbered(number, offset, count) == buffer[..count];
        ensure!(right, "wrong bytes between {offset} and {}", offset + count as u64);
        offset += count as u64;
    }
    Ok(())
}

/// Reads a numbered stream from `from` to its end and checks each byte; where it ended.
pub(crate) fn receive_to_end(stream: &mut TcpStream, number: u64, from: u64) -> Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut offset = from;
    loop {
        let count = stream.read(&mut buffer).context(format!("at offset {offset}"))?;
        if count == 0 {
            return Ok(offset);
        }
        let right = numbered(number, offset, count) == buffer[..count];
        ensure!(right, "wrong bytes between {offset} and {}", offset + count as u64);
        offset += count as u64;
    }
}

/// What a thread of a test returns.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("threads of the tests do not panic")
}

/// What a hook and a test share.
pub(crate) fn held<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what was measured, to those who asked for output.
macro_rules! tell {
    ($($what:tt)*) => {
        // Nobody may be listening.
        drop(std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($what)*))))
    };
}
pub(crate) use tell;

/// Waits until something is true.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Open descriptors.
    pub(crate) descriptors: usize,
    /// Resident memory, in KiB.
    pub(crate) resident: u64,
}

impl Footprint {
    /// Looks at a process.
    pub(crate) fn of(process: &Process) -> Result<Self> {
        let id = process.id();
        let descriptors = std::fs::read_dir(format!("/proc/{id}/fd"))?.count();
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        let resident = number.context("no VmRSS")?.parse()?;
        Ok(Self { descriptors, resident })
    }

    /// Waits until a process holds no more than `descriptors`: the question about its status is a
    /// connection too, and ends there a moment after it ended here.
    pub(crate) fn settled(process: &Process, descriptors: usize) -> Result<Self> {
        let mut now = Self::of(process)?;
        until(&format!("{descriptors} descriptors or fewer"), || {
            now = Self::of(process)?;
            Ok(now.descriptors <= descriptors)
        })
        .with_context(|| format!("now {now:?}"))?;
        Ok(now)
    }
}

/// Everything a daemon wrote to its log so far.
pub(crate) fn log_of(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.log(name)).unwrap_or_default()
}

/// Nobody may have panicked.
pub(crate) fn no_panics(world: &World) -> Result<()> {
    for name in ["laptop", "gateway"] {
        let log = log_of(world, name);
        ensure!(!log.contains("panicked"), "{name} panicked:\n{log}");
    }
    Ok(())
}

/// A network nobody lives in.
pub(crate) const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
