//! A client of our own making: it proves its key like any other and then says what it likes.

#![allow(dead_code, reason = "several test programs share this file, each uses its part")]

use crate::stage::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use whimbrel_carrier::{
    Connection, Endpoint, Event, Identity, Lost, Read, Role, Stream, Transmit, Tuning,
};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::invite::Invite;
use whimbrel_common::wire::{self, Control, FlowAnswer, FlowHeader, SessionId, VERSION, WireFlow};
use whimbrel_tests::lab::World;

/// How long a receive waits before the clock is looked at again.
const TICK: Duration = Duration::from_millis(2);

/// A client made of nothing but the carrier.
pub(crate) struct Rogue {
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) lost: Option<Lost>,
    pub(crate) session: Option<SessionId>,
    events: VecDeque<Event>,
    socket: UdpSocket,
    input: BytesMut,
}

/// Keys that are nobody's.
pub(crate) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

/// The gateway's key.
pub(crate) fn gateway_key(world: &World) -> Result<SecretKey> {
    let file = world.gateway_config().with_extension("key");
    Ok(SecretKey::from_key_file(&std::fs::read_to_string(file)?)?)
}

impl Rogue {
    /// Connects from the origin's host, which has a public address, and proves a key.
    pub(crate) fn connect(world: &World, own: SecretKey) -> Result<Self> {
        let gateway: PublicKey = gateway_key(world)?.public();
        let socket = bind(world)?;
        let identity = Identity { key: own, role: Role::Client { gateway } };
        let tuning = Tuning { segments: 1, ..Tuning::default() };
        let mut endpoint = Endpoint::new(&identity, &tuning)?;
        let to = SocketAddr::new(whimbrel_tests::lab::GATEWAY_V4.into(), 443);
        let connection = endpoint.connect(to, Instant::now())?;
        let mut rogue = Self {
            endpoint,
            connection,
            lost: None,
            session: None,
            events: VecDeque::new(),
            socket,
            input: BytesMut::new(),
        };
        rogue.until("connected", |rogue| {
            Ok(rogue.events.iter().any(|event| matches!(event, Event::Connected { .. })))
        })?;
        Ok(rogue)
    }

    /// Connects and becomes a client that the gateway knows, under a name of its own.
    pub(crate) fn admitted(world: &World, name: &str, number: u8) -> Result<Self> {
        let config = world.gateway_config().display().to_string();
        let invite = world.ask_gateway(&["invite", name, "--config", &config])?;
        let invite: Invite = invite.trim().parse()?;
        let mut rogue = Self::connect(world, key(number))?;
        rogue.open().context("no control stream")?;
        rogue.say(&Control::Hello { version: VERSION, capabilities: 0 })?;
        rogue.say(&Control::Enrol { token: *invite.token.as_bytes() })?;
        rogue.attach(None, 1)?;
        Ok(rogue)
    }

    /// A client admitted before, once more.
    pub(crate) fn again(world: &World, number: u8) -> Result<Self> {
        Self::back(world, number, None, 1)
    }

    /// A client admitted before, who asks for a session it has or claims to have.
    pub(crate) fn back(
        world: &World,
        number: u8,
        session: Option<SessionId>,
        epoch: u64,
    ) -> Result<Self> {
        let mut rogue = Self::asking(world, number, session, epoch)?;
        rogue.until("attached", Self::is_attached)?;
        Ok(rogue)
    }

    fn attach(&mut self, session: Option<SessionId>, epoch: u64) -> Result<()> {
        self.say(&Control::Attach { session, epoch })?;
        self.until("attached", Self::is_attached)
    }

    /// A client admitted before, who has asked for a session and does not wait for the answer.
    pub(crate) fn asking(
        world: &World,
        number: u8,
        session: Option<SessionId>,
        epoch: u64,
    ) -> Result<Self> {
        let mut rogue = Self::connect(world, key(number))?;
        rogue.ask(session, epoch)?;
        Ok(rogue)
    }

    /// Asks for a session, as the first thing it says.
    pub(crate) fn ask(&mut self, session: Option<SessionId>, epoch: u64) -> Result<()> {
        self.open().context("no control stream")?;
        self.say(&Control::Hello { version: VERSION, capabilities: 0 })?;
        self.say(&Control::Attach { session, epoch })
    }

    /// Whether the gateway has said that it is attached.
    pub(crate) fn is_attached(&mut self) -> Result<bool> {
        if let Some(Control::Attached { session, .. }) = self.hear()? {
            self.session = Some(session);
        }
        Ok(self.session.is_some())
    }

    /// Goes on from another port, as behind a NAT that forgot it. It does not know itself.
    pub(crate) fn rebind(&mut self, world: &World) -> Result<()> {
        self.socket = bind(world)?;
        Ok(())
    }

    /// Says something to an echo, and waits until all of it has come back.
    pub(crate) fn converse(&mut self, stream: Stream, words: &[u8]) -> Result<()> {
        self.write_all(stream, words)?;
        let mut heard = Vec::new();
        self.until("the echo", |rogue| {
            if let Read::Data(bytes) = rogue.endpoint.read(rogue.connection, stream, 64) {
                heard.extend_from_slice(&bytes);
            }
            Ok(heard.len() >= words.len())
        })?;
        ensure!(heard == words, "{heard:?} instead of {words:?}");
        Ok(())
    }

    /// Opens a stream; the first one is the control stream.
    pub(crate) fn open(&mut self) -> Option<Stream> {
        self.endpoint.open(self.connection)
    }

    /// Sends a control frame.
    pub(crate) fn say(&mut self, frame: &Control) -> Result<()> {
        let mut bytes = BytesMut::new();
        wire::encode_control(frame, &mut bytes);
        self.write_all(Stream::CONTROL, &bytes)
    }

    /// The next control frame that has arrived.
    pub(crate) fn hear(&mut self) -> Result<Option<Control>> {
        loop {
            if let Some(frame) = wire::decode_control(&mut self.input)? {
                return Ok(Some(frame));
            }
            match self.endpoint.read(self.connection, Stream::CONTROL, 1 << 16) {
                Read::Data(bytes) => self.input.extend_from_slice(&bytes),
                Read::Blocked | Read::End | Read::Reset(_) => return Ok(None),
            }
        }
    }

    /// What the stream takes now.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        match self.endpoint.write(self.connection, stream, chunk) {
            Ok(count) => Ok(count),
            Err(end) => bail!("the stream {stream:?} ended: {end:?}"),
        }
    }

    /// Writes everything, however long that takes.
    pub(crate) fn write_all(&mut self, stream: Stream, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        self.until("everything was written", |rogue| {
            let count = rogue.write(stream, rest)?;
            rest = &rest[count..];
            Ok(rest.is_empty())
        })
    }

    /// Asks for a flow on a new stream.
    pub(crate) fn dial(
        &mut self,
        flow: u64,
        destination: SocketAddr,
        limit: u64,
    ) -> Result<Stream> {
        let header = FlowHeader::Open { flow: WireFlow(flow), destination, limit };
        self.send_header(&header)
    }

    /// Sends a header on a new stream.
    pub(crate) fn send_header(&mut self, header: &FlowHeader) -> Result<Stream> {
        let mut bytes = BytesMut::new();
        wire::encode_header(header, &mut bytes);
        let mut stream = None;
        self.until("another stream was granted", |rogue| {
            stream = rogue.open();
            Ok(stream.is_some())
        })?;
        let stream = stream.context("no stream")?;
        self.write_all(stream, &bytes)?;
        Ok(stream)
    }

    /// What the gateway answers on a stream; `None` if it resets it.
    pub(crate) fn answer(&mut self, stream: Stream) -> Result<Option<FlowAnswer>> {
        let mut partial = BytesMut::new();
        let mut outcome = None;
        self.until("an answer", |rogue| {
            match rogue.endpoint.read(rogue.connection, stream, 64) {
                Read::Data(bytes) => partial.extend_from_slice(&bytes),
                Read::Blocked => {}
                Read::End | Read::Reset(_) => {
                    outcome = Some(None);
                    return Ok(true);
                }
            }
            outcome = wire::decode_answer(&mut partial)?.map(Some);
            Ok(outcome.is_some())
        })?;
        Ok(outcome.flatten())
    }

    /// Waits until a stream is reset.
    pub(crate) fn reset_of(&mut self, stream: Stream) -> Result<()> {
        self.until("the stream is reset", |rogue| {
            Ok(match rogue.endpoint.read(rogue.connection, stream, 1 << 16) {
                Read::Reset(_) => true,
                Read::End => bail!("an orderly end"),
                Read::Data(_) | Read::Blocked => false,
            })
        })
    }

    /// Waits until the gateway has ended the connection; with which code.
    pub(crate) fn code_of_the_end(&mut self) -> Result<u64> {
        self.until("the gateway ends it", |rogue| Ok(rogue.lost.is_some()))?;
        match &self.lost {
            Some(Lost::ClosedByPeer(code)) => Ok(*code),
            other => bail!("it ended with {other:?}"),
        }
    }

    /// Drives the connection until something is true.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if condition(self)? {
                return send_all(&mut self.endpoint, &self.socket, |_| None);
            }
            ensure!(Instant::now() < deadline, "never: {what} (lost: {:?})", self.lost);
            self.turn()?;
        }
    }

    /// Drives the connection for a while.
    pub(crate) fn linger(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.until("time passed", |_| Ok(Instant::now() >= end))
    }

    fn turn(&mut self) -> Result<()> {
        let now = Instant::now();
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((_, event)) = self.endpoint.poll_event() {
            if let Event::Lost(reason) = &event {
                self.lost = Some(reason.clone());
            }
            self.events.push_back(event);
        }
        send_all(&mut self.endpoint, &self.socket, |_| None)?;
        receive_all(&mut self.endpoint, &self.socket)
    }
}

fn bind(world: &World) -> Result<UdpSocket> {
    let socket = world.host("origin").run(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

/// Sends what an endpoint has to send; `to` may say another destination.
pub(crate) fn send_all(
    endpoint: &mut Endpoint,
    socket: &UdpSocket,
    to: impl Fn(&Transmit) -> Option<SocketAddr>,
) -> Result<()> {
    let mut buffer = Vec::new();
    while let Some(transmit) = endpoint.poll_transmit(Instant::now(), &mut buffer) {
        let destination = to(&transmit).unwrap_or(transmit.destination);
        for datagram in buffer[..transmit.size].chunks(transmit.segment.unwrap_or(transmit.size)) {
            match socket.send_to(datagram, destination) {
                Ok(_) => {}
                // As on any network: what does not fit is lost.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("sending"),
            }
        }
        buffer.clear();
    }
    Ok(())
}

/// Receives what has come, after waiting a little for the first.
pub(crate) fn receive_all(endpoint: &mut Endpoint, socket: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 2048];
    for _ in 0..256 {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let data = BytesMut::from(&buffer[..length]);
                endpoint.handle_datagram(from, None, None, data, Instant::now());
                socket.set_nonblocking(true)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // Port unreachable, of something sent before.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            Err(error) => return Err(error).context("receiving"),
        }
    }
    socket.set_nonblocking(false)?;
    Ok(())
}
