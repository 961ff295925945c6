//! Two UDP sockets: a program's on the laptop and a server's at the origin.

use crate::stage::{PATIENCE, Stage, until};
use anyhow::{Context, Result, ensure};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use whimbrel_tests::lab::{GATEWAY_V4, GATEWAY_V6, Layout, World};

/// How long a datagram may take before it counts as lost: the network loses none by itself, but
/// those under way when it breaks are.
const LOST: Duration = Duration::from_millis(250);

/// Both ends.
pub(crate) struct UdpPair {
    pub(crate) app: UdpSocket,
    pub(crate) server: UdpSocket,
    /// Where the server is.
    pub(crate) to: SocketAddr,
    /// Number of the next question.
    next: u32,
}

impl UdpPair {
    pub(crate) fn new(world: &World, origin: IpAddr) -> Result<Self> {
        let app = anywhere(world, "laptop", origin)?;
        let server = anywhere(world, "origin", origin)?;
        let to = SocketAddr::new(origin, server.local_addr()?.port());
        Ok(Self { app, server, to, next: 0 })
    }

    /// Asks until an answer has come; whom the server saw.
    pub(crate) fn converse(&mut self) -> Result<SocketAddr> {
        let mut seen = None;
        until("a question and its answer arrive", || {
            seen = self.ask()?;
            Ok(seen.is_some())
        })?;
        seen.context("it was seen")
    }

    /// Asks once; whom the server saw, if the answer came.
    pub(crate) fn ask(&mut self) -> Result<Option<SocketAddr>> {
        self.next += 1;
        let question = format!("question {}", self.next);
        let answer = format!("answer {}", self.next);
        self.app.send_to(question.as_bytes(), self.to).context("asking")?;
        let Some(from) = expect(&self.server, question.as_bytes())? else { return Ok(None) };
        self.server.send_to(answer.as_bytes(), from).context("answering")?;
        let Some(heard) = expect(&self.app, answer.as_bytes())? else { return Ok(None) };
        ensure!(heard == self.to, "the answer comes from {heard}");
        Ok(Some(from))
    }
}

/// A socket bound to any port of a host, in the family of an address.
pub(crate) fn anywhere(world: &World, host: &str, family: IpAddr) -> Result<UdpSocket> {
    let any: IpAddr = match family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    bound(world, host, (any, 0).into())
}

/// A socket bound to an address of a host.
pub(crate) fn bound(world: &World, host: &str, to: SocketAddr) -> Result<UdpSocket> {
    let socket = world.host(host).run(move |_| UdpSocket::bind(to))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Waits for exactly this datagram, and skips others; whom it came from, unless it is lost.
pub(crate) fn expect(socket: &UdpSocket, wanted: &[u8]) -> Result<Option<SocketAddr>> {
    socket.set_read_timeout(Some(LOST))?;
    let mut buffer = vec![0; 70_000];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if buffer[..length] == *wanted => return Ok(Some(from)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether this is the gateway.
pub(crate) fn is_gateway(peer: SocketAddr) -> bool {
    [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)].contains(&peer.ip())
}

/// Asks for everything to be carried.
pub(crate) fn all(table: &mut toml::Table) {
    crate::stage::put(table, "capture", "mode", "all");
}

impl Stage {
    /// The lab with everything carried.
    pub(crate) fn raise_for_all() -> Result<Self> {
        let mut stage = Self::raise_with(Layout::standard(), |_| {}, all)?;
        stage.await_udp()?;
        Ok(stage)
    }

    /// Waits until new datagrams are captured: the host's rules follow the first attachment.
    pub(crate) fn await_udp(&mut self) -> Result<()> {
        self.client.wait_until(&self.world, "carries UDP", |status| {
            status["datagrams"]["state"] == "carried"
        })?;
        self.await_capture()
    }

    /// Waits until the host's rules capture UDP.
    pub(crate) fn await_capture(&self) -> Result<()> {
        until("the host's rules capture UDP", || {
            self.world.host("laptop").run(|wiring| {
                let rules = [wiring.rules(false)?, wiring.rules(true)?];
                Ok(rules.iter().all(|rules| format!("{rules:?}").contains("IpProtocol(Udp)")))
            })
        })
    }
}
