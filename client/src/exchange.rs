//! One question to a gateway over a connection of its own, outside the daemon.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::BytesMut;
use tracing::debug;
use whimbrel_carrier::udp::{Port, RECEIVE_BUFFER};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Lost, Role, Stream, Transmit, Tuning,
};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::wire::{Control, VERSION};

/// What is asked of whom.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) gateway: SocketAddr,
    /// The key it must prove.
    pub(crate) gateway_key: PublicKey,
    /// Our own.
    pub(crate) key: &'a SecretKey,
    /// Sent once the gateway has proved its key; without one that proof is the answer.
    pub(crate) words: Option<Control>,
    /// How long the answer may take.
    pub(crate) patience: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// This machine cannot ask.
    Here(anyhow::Error),
    /// Nothing came in time.
    Silence,
    /// Nothing came, and a firewall of this machine let nothing out.
    Forbidden,
    /// The connection ended; before anything was asked, or after.
    Lost { reason: Lost, asked: bool },
}

impl From<anyhow::Error> for NoAnswer {
    fn from(error: anyhow::Error) -> Self {
        Self::Here(error)
    }
}

/// Asks, and ends the connection. The answer is the first frame that `is_answer` takes; `None` if
/// nothing was asked.
pub(crate) async fn ask(
    question: Question<'_>,
    is_answer: fn(&Control) -> bool,
) -> Result<Option<Control>, NoAnswer> {
    let any: IpAddr = match question.gateway {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).context("cannot open a UDP socket")?;
    let identity = Identity {
        key: SecretKey::from_seed(*question.key.seed()),
        role: Role::Client { gateway: question.gateway_key },
    };
    let mut endpoint = Endpoint::new(&identity, &Tuning::default()).map_err(anyhow::Error::from)?;
    let connection =
        endpoint.connect(question.gateway, Instant::now()).map_err(anyhow::Error::from)?;
    let mut exchange = Exchange {
        port: Port::new(socket).context("cannot set up a UDP socket")?,
        endpoint,
        connection,
        control: None,
        words: question.words,
        is_answer,
        patience: question.patience,
        forbidden: false,
        buffer: vec![0; RECEIVE_BUFFER],
    };
    let answer = tokio::time::timeout(question.patience, exchange.run()).await;
    exchange.endpoint.close(connection, 0, "answered", Instant::now());
    exchange.transmit(Instant::now());
    let silence = if exchange.forbidden { NoAnswer::Forbidden } else { NoAnswer::Silence };
    answer.unwrap_or(Err(silence))
}

struct Exchange {
    port: Port,
    endpoint: Endpoint,
    connection: Connection,
    control: Option<ControlStream>,
    words: Option<Control>,
    is_answer: fn(&Control) -> bool,
    patience: Duration,
    /// The kernel refused to send.
    forbidden: bool,
    buffer: Vec<u8>,
}

impl Exchange {
    async fn run(&mut self) -> Result<Option<Control>, NoAnswer> {
        loop {
            let now = Instant::now();
            self.receive(now);
            self.endpoint.handle_timeout(now);
            self.endpoint.advance();
            while let Some((_, event)) = self.endpoint.poll_event() {
                if let Some(answer) = self.handle_event(event)? {
                    return Ok(answer);
                }
            }
            self.transmit(now);
            let deadline = self.endpoint.poll_timeout().unwrap_or(now + self.patience);
            let port = &self.port;
            let readable =
                poll_fn(|cx| if port.poll_readable(cx) { Poll::Ready(()) } else { Poll::Pending });
            tokio::select! {
                () = readable => {}
                () = tokio::time::sleep_until(deadline.into()) => {}
            }
        }
    }

    fn receive(&mut self, now: Instant) {
        loop {
            match self.port.receive(&mut self.buffer) {
                Ok(batch) => {
                    for datagram in self.buffer[..batch.size].chunks(batch.stride) {
                        let data = BytesMut::from(datagram);
                        self.endpoint.handle_datagram(batch.remote, None, batch.ecn, data, now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // "Port unreachable" may be a passing state of a gateway that starts.
                Err(error) => {
                    debug!(%error, "Receive failed");
                    return;
                }
            }
        }
    }

    fn transmit(&mut self, now: Instant) {
        let mut bytes = Vec::new();
        while let Some(transmit) = self.endpoint.poll_transmit(now, &mut bytes) {
            let transmit = Transmit { source: None, ..transmit };
            if let Err(error) = self.port.send(&transmit, &bytes, None) {
                debug!(%error, "Send failed");
                self.forbidden |= error.kind() == io::ErrorKind::PermissionDenied;
            }
            bytes.clear();
        }
    }

    fn handle_event(&mut self, event: Event) -> Result<Option<Option<Control>>, NoAnswer> {
        match event {
            Event::Connected { .. } => {
                let Some(words) = self.words.take() else { return Ok(Some(None)) };
                let stream = self.endpoint.open(self.connection);
                let mut control = ControlStream::new(stream.context("the gateway is busy")?);
                control.send(&Control::Hello { version: VERSION, capabilities: 0 });
                control.send(&words);
                control.flush(&mut self.endpoint, self.connection).map_err(anyhow::Error::from)?;
                self.control = Some(control);
                Ok(None)
            }
            Event::Lost(reason) => Err(NoAnswer::Lost { reason, asked: self.control.is_some() }),
            Event::Readable(stream) if stream == Stream::CONTROL => {
                let Some(control) = self.control.as_mut() else { return Ok(None) };
                while let Some(frame) = control
                    .receive(&mut self.endpoint, self.connection)
                    .map_err(anyhow::Error::from)?
                {
                    if (self.is_answer)(&frame) {
                        return Ok(Some(Some(frame)));
                    }
                }
                Ok(None)
            }
            Event::Opened
            | Event::StreamsAvailable
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Stopped(..)
            | Event::PathOpened(_)
            | Event::PathClosed(_)
            | Event::Datagrams
            | Event::PathStatus { .. } => Ok(None),
        }
    }
}
