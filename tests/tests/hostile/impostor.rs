//! A gateway that proves the right key and then breaks every rule, against a real client.

use crate::frames::noise;
use crate::rogue::{gateway_key, receive_all, send_all};
use crate::stage::{
    PATIENCE, connect, connect_within, expect, expect_reset, join, no_panics, prepare, put, until,
};
use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Pipe, Role, Stream, Tuning,
};
use whimbrel_common::cid::ServerId;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::wire::{
    self, Control, FlowAnswer, FlowHeader, SessionId, Taken, VERSION, WireFlow,
};
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{GATEWAY_V4, Layout, ORIGIN_V4, World};
use whimbrel_tests::traffic::service;

/// What the impostor does with a flow, by the port the application asked for.
mod port {
    /// Answers as a gateway does, and sends everything back.
    pub(super) const HONEST: u16 = 1;
    /// Answers with something that is no frame.
    pub(super) const NOISE: u16 = 2;
    /// Accepts, and claims to have taken what was never sent.
    pub(super) const TAKEN: u16 = 3;
    /// Accepts, and claims to have taken an end that never was.
    pub(super) const END: u16 = 4;
    /// Resumes what was never interrupted, from beyond.
    pub(super) const RESUMED: u16 = 5;
    /// Never answers.
    pub(super) const SILENCE: u16 = 6;
    /// Accepts and floods, whatever the credit, until the application hangs up.
    pub(super) const FLOOD: u16 = 7;
    /// Says that it never heard of it.
    pub(super) const NEVER_SEEN: u16 = 8;
    /// Announces a frame without end.
    pub(super) const ENDLESS: u16 = 9;
    /// Ends the stream without an answer.
    pub(super) const NOTHING: u16 = 10;
    /// Answers with noise on the control stream: the whole connection is over.
    pub(super) const CONTROL: u16 = 11;
}

/// What is read of a flood, in bytes: more than any credit.
const FLOOD: u64 = 30 << 20;

struct Impostor {
    endpoint: Endpoint,
    socket: UdpSocket,
    control: BTreeMap<Connection, ControlStream>,
    headers: BTreeMap<(Connection, Stream), BytesMut>,
    echoes: Vec<(Connection, Stream)>,
    floods: Vec<(Connection, Stream)>,
}

impl Impostor {
    fn new(key: SecretKey, socket: UdpSocket) -> Result<Self> {
        let identity = Identity { key, role: Role::Gateway { server: ServerId::default() } };
        let tuning = Tuning { segments: 1, ..Tuning::default() };
        Ok(Self {
            endpoint: Endpoint::new(&identity, &tuning)?,
            socket,
            control: BTreeMap::new(),
            headers: BTreeMap::new(),
            echoes: Vec::new(),
            floods: Vec::new(),
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.endpoint.handle_timeout(Instant::now());
            self.endpoint.advance();
            while let Some((connection, event)) = self.endpoint.poll_event() {
                match event {
                    Event::Opened => self.accept(connection),
                    Event::Lost(_) => self.forget(connection),
                    Event::Connected { .. }
                    | Event::StreamsAvailable
                    | Event::Readable(_)
                    | Event::Writable(_)
                    | Event::Stopped(..)
                    | Event::PathOpened(_)
                    | Event::PathClosed(_)
                    | Event::Datagrams
                    | Event::PathStatus { .. } => {}
                }
            }
            self.listen();
            self.misbehave();
            send_all(&mut self.endpoint, &self.socket, |_| None)?;
            receive_all(&mut self.endpoint, &self.socket)?;
        }
        Ok(())
    }

    fn forget(&mut self, connection: Connection) {
        self.control.remove(&connection);
        self.headers.retain(|(own, _), _| *own != connection);
        self.echoes.retain(|(own, _)| *own != connection);
        self.floods.retain(|(own, _)| *own != connection);
    }

    fn accept(&mut self, connection: Connection) {
        while let Some(stream) = self.endpoint.accept(connection) {
            match self.control.entry(connection) {
                Entry::Occupied(_) => {
                    self.headers.insert((connection, stream), BytesMut::new());
                }
                Entry::Vacant(first) => {
                    first.insert(ControlStream::new(stream));
                }
            }
        }
    }

    /// Admits everybody, and reads what flows are asked for.
    fn listen(&mut self) {
        for (connection, control) in &mut self.control {
            while let Ok(Some(frame)) = control.receive(&mut self.endpoint, *connection) {
                if let Control::Attach { epoch, .. } = frame {
                    self.endpoint.grant(*connection, 1000);
                    control.send(&Control::Hello { version: VERSION, capabilities: 0 });
                    let session = SessionId([7; 16]);
                    control.send(&Control::Attached { session, epoch, hold: 1, flows: 999 });
                }
            }
            drop(control.flush(&mut self.endpoint, *connection));
        }
        for ((connection, stream), mut partial) in std::mem::take(&mut self.headers) {
            match Pipe::read_header(&mut self.endpoint, connection, stream, &mut partial) {
                Ok(None) => drop(self.headers.insert((connection, stream), partial)),
                Ok(Some(FlowHeader::Open { flow, destination, .. })) => {
                    self.answer(connection, stream, flow, destination.port());
                }
                Ok(Some(FlowHeader::Resume { .. } | FlowHeader::Parcels)) | Err(_) => {}
            }
        }
    }

    fn answer(&mut self, connection: Connection, stream: Stream, flow: WireFlow, port: u16) {
        let opened = FlowAnswer::Opened { limit: 1 << 20 };
        let resumed = FlowAnswer::Resumed {
            taken: 9,
            fin_taken: true,
            offset: 7,
            limit: 1 << 40,
            repeated: 0,
        };
        let taken = |offset, fin| Taken { flow, offset, limit: 1 << 40, fin };
        match port {
            port::NOISE => {
                self.write(connection, stream, &[&[0x3e, 8], &noise(2, 40)[..]].concat())
            }
            port::TAKEN | port::END => {
                self.say(connection, stream, opened);
                let lie = taken(if port == port::TAKEN { 1_000_000 } else { 0 }, port == port::END);
                if let Some(control) = self.control.get_mut(&connection) {
                    control
                        .send(&Control::Taken(vec![lie, Taken { flow: WireFlow(1 << 50), ..lie }]));
                }
            }
            port::RESUMED => self.say(connection, stream, resumed),
            port::SILENCE => {}
            port::FLOOD => {
                self.say(connection, stream, opened);
                self.floods.push((connection, stream));
            }
            port::NEVER_SEEN => self.say(connection, stream, FlowAnswer::NeverSeen),
            port::ENDLESS => self.write(
                connection,
                stream,
                &[0x24, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            ),
            port::NOTHING => {
                let _ = self.endpoint.finish(connection, stream);
            }
            port::CONTROL => self.write(connection, Stream::CONTROL, &[0xff; 64]),
            _ => {
                self.say(connection, stream, opened);
                self.echoes.push((connection, stream));
            }
        }
    }

    fn say(&mut self, connection: Connection, stream: Stream, answer: FlowAnswer) {
        let mut bytes = BytesMut::new();
        wire::encode_answer(&answer, &mut bytes);
        self.write(connection, stream, &bytes);
    }

    fn write(&mut self, connection: Connection, stream: Stream, bytes: &[u8]) {
        // A client that hung up already needs to hear no more.
        let _ = self.endpoint.write(connection, stream, Bytes::copy_from_slice(bytes));
    }

    fn misbehave(&mut self) {
        for (connection, stream) in self.echoes.clone() {
            while let whimbrel_carrier::Read::Data(bytes) =
                self.endpoint.read(connection, stream, 4096)
            {
                self.write(connection, stream, &bytes);
            }
        }
        for (connection, stream) in self.floods.clone() {
            self.write(connection, stream, &[0x66; 64 << 10]);
        }
    }
}

/// An impostor at work in the place of the gateway.
struct AtWork {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Result<()>>,
}

impl AtWork {
    /// Lets the laptop join, and takes the gateway's place.
    fn begin(world: &World) -> Result<Self> {
        let mut gateway = world.start_gateway()?;
        world.join_client("laptop")?;
        gateway.process().signal(rustix::process::Signal::TERM)?;
        gateway.process().wait(PATIENCE)?;
        let socket =
            world.host("gateway").run(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 443)))?;
        socket.set_read_timeout(Some(Duration::from_millis(2)))?;
        let impostor = Impostor::new(gateway_key(world)?, socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let running = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || impostor.run(&stop)
        });
        Ok(Self { stop, running })
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.running)
    }
}

pub(crate) fn a_gateway_of_an_older_version_carries_tcp_and_leaves_the_rest_alone() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let impostor = AtWork::begin(&world)?;
    edit(&world.client_config("laptop"), |table| put(table, "capture", "mode", "all"))?;
    let mut client = world.start_client("laptop")?;
    client.wait_until(&world, "says what is not carried", |status| {
        let datagrams = &status["datagrams"];
        datagrams["state"] == "unsupported" && datagrams["echoes"] == "unsupported"
    })?;
    let said = client.command(&world, &["status"])?;
    ensure!(said.contains("UDP is not"), "{said}");
    let mut stream = connect(&world, service(ORIGIN_V4, port::HONEST))?;
    stream.write_all(b"hello")?;
    expect(&mut stream, b"hello").context("TCP goes on")?;
    let bind = |host| world.host(host).run(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let (app, server) = (bind("laptop")?, bind("origin")?);
    server.set_read_timeout(Some(PATIENCE))?;
    app.send_to(b"hello", (ORIGIN_V4, server.local_addr()?.port()))?;
    let (_, from) = server.recv_from(&mut [0; 100]).context("UDP goes direct")?;
    ensure!(from.ip() != GATEWAY_V4, "the server sees {from}");
    impostor.end()?;
    no_panics(&world)
}

pub(crate) fn a_gateway_that_breaks_every_rule_harms_only_its_own_flows() -> Result<()> {
    let (world, _origin) = prepare(Layout::standard(), |_| {})?;
    let impostor = AtWork::begin(&world)?;
    let mut client = world.start_client("laptop")?;
    let at = |port| -> SocketAddr { service(ORIGIN_V4, port) };
    let mut honest = connect(&world, at(port::HONEST))?;
    let mut converse = |when: &str| -> Result<()> {
        honest.write_all(b"hello")?;
        expect(&mut honest, b"hello").with_context(|| when.to_owned())
    };
    converse("at first")?;
    for port in [port::NOISE, port::RESUMED, port::NEVER_SEEN, port::ENDLESS, port::NOTHING] {
        let error = connect(&world, at(port)).err().with_context(|| format!("{port} opened"))?;
        ensure!(error.kind() != ErrorKind::TimedOut, "{port}: nobody told");
        converse(&format!("after {port}"))?;
    }
    // A flood goes to its own application alone, for as long as that reads.
    let mut flood = connect(&world, at(port::FLOOD))?;
    let drained = std::io::copy(&mut (&mut flood).take(FLOOD), &mut std::io::sink())?;
    ensure!(drained == FLOOD, "the flood ended after {drained} bytes");
    converse("during a flood that is not read")?;
    drop(flood);
    for port in [port::TAKEN, port::END] {
        // The lie may arrive before the answer: then the connection is never made.
        match connect(&world, at(port)) {
            Ok(mut stream) => {
                expect_reset(&mut stream).with_context(|| format!("{port}"))?;
            }
            Err(error) if is_refusal(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("{port}")),
        }
        converse(&format!("after {port}"))?;
    }
    let silence = connect_within(world.host("laptop"), at(port::SILENCE), Duration::from_secs(1));
    ensure!(silence.is_err_and(|error| error.kind() == ErrorKind::TimedOut));
    converse("after silence")?;
    // Noise on the control stream ends the connection; the client makes another.
    drop(connect_within(world.host("laptop"), at(port::CONTROL), Duration::from_secs(5)));
    expect_reset(&mut honest)?;
    client.wait_until(&world, "attached again", |status| status["state"] == "attached")?;
    until("flows are carried again", || {
        let Ok(mut stream) = connect(&world, at(port::HONEST)) else { return Ok(false) };
        stream.write_all(b"again")?;
        Ok(expect(&mut stream, b"again").is_ok())
    })?;
    ensure!(client.process().is_running(), "the client ended");
    impostor.end()?;
    no_panics(&world)
}

/// A reset that overtakes the end of the handshake is told in either way.
fn is_refusal(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}
