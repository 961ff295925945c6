//! Makes a gateway know this client's key, with the token of an invite.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::BytesMut;
use tracing::debug;
use whimbrel_carrier::udp::{Port, RECEIVE_BUFFER};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Lost, Role, Stream, Transmit, Tuning,
};
use whimbrel_common::identity::{ClientName, SecretKey};
use whimbrel_common::invite::Invite;
use whimbrel_common::wire::{Control, DETACH, VERSION};

use crate::tunnel::describe;

/// A gateway that has not answered by then is out of reach.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the gateway said.
#[derive(Debug)]
pub struct Enrolled {
    /// What it calls this client.
    pub name: ClientName,
}

/// Uses up the invite.
///
/// # Errors
/// A sentence about why the gateway did not enrol this key.
pub fn enrol(invite: &Invite, key: &SecretKey) -> anyhow::Result<Enrolled> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let gateway = invite.gateway();
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((gateway.host.as_str(), gateway.port))
                .await
                .with_context(|| format!("cannot find the gateway {gateway}"))?
                .collect();
        let mut failure = anyhow!("the gateway {gateway} has no address");
        for address in addresses {
            match ask(invite, key, address).await {
                Ok(name) => return Ok(Enrolled { name }),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    })
}

async fn ask(invite: &Invite, key: &SecretKey, address: SocketAddr) -> anyhow::Result<ClientName> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).context("cannot open a UDP socket")?;
    let identity = Identity {
        key: SecretKey::from_seed(*key.seed()),
        role: Role::Client { gateway: invite.gateway_key },
    };
    let mut endpoint = Endpoint::new(&identity, &Tuning::default())?;
    let connection = endpoint.connect(address, Instant::now())?;
    let mut exchange = Exchange {
        port: Port::new(socket).context("cannot set up a UDP socket")?,
        endpoint,
        connection,
        control: None,
        token: *invite.token.as_bytes(),
        buffer: vec![0; RECEIVE_BUFFER],
        address,
    };
    let answer = tokio::time::timeout(PATIENCE, exchange.run()).await;
    let name = answer.unwrap_or_else(|_| {
        Err(anyhow!(
            "the gateway at {address} does not answer; is it running, and is UDP port {} open?",
            address.port()
        ))
    });
    exchange.endpoint.close(connection, 0, "enrolled", Instant::now());
    exchange.transmit(Instant::now());
    let name = name?;
    name.parse().with_context(|| format!("the gateway calls this client {name:?}"))
}

struct Exchange {
    port: Port,
    endpoint: Endpoint,
    connection: Connection,
    control: Option<ControlStream>,
    token: [u8; 16],
    buffer: Vec<u8>,
    address: SocketAddr,
}

impl Exchange {
    async fn run(&mut self) -> anyhow::Result<String> {
        loop {
            let now = Instant::now();
            self.receive(now);
            self.endpoint.handle_timeout(now);
            self.endpoint.advance();
            while let Some((_, event)) = self.endpoint.poll_event() {
                if let Some(name) = self.handle_event(event)? {
                    return Ok(name);
                }
            }
            self.transmit(now);
            let deadline = self.endpoint.poll_timeout().unwrap_or(now + PATIENCE);
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
            }
            bytes.clear();
        }
    }

    fn handle_event(&mut self, event: Event) -> anyhow::Result<Option<String>> {
        match event {
            Event::Connected { .. } => {
                let stream = self.endpoint.open(self.connection);
                let mut control = ControlStream::new(stream.context("the gateway is busy")?);
                control.send(&Control::Hello { version: VERSION, capabilities: 0 });
                control.send(&Control::Enrol { token: self.token });
                control.flush(&mut self.endpoint, self.connection)?;
                self.control = Some(control);
                Ok(None)
            }
            Event::Lost(Lost::Closed | Lost::TimedOut) if self.control.is_none() => bail!(
                "the gateway does not answer at {}; does it run there, and does UDP reach it?",
                self.address
            ),
            Event::Lost(Lost::ClosedByPeer(DETACH)) => {
                bail!("the gateway at {} heard nothing of this client in time", self.address)
            }
            Event::Lost(reason) => bail!("{} ({})", describe(&reason), self.address),
            Event::Readable(stream) if stream == Stream::CONTROL => {
                let Some(control) = self.control.as_mut() else { return Ok(None) };
                while let Some(frame) = control.receive(&mut self.endpoint, self.connection)? {
                    if let Control::Enrolled { name } = frame {
                        return Ok(Some(name));
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
            | Event::DatagramsUnblocked
            | Event::PathStatus { .. } => Ok(None),
        }
    }
}
