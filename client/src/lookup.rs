//! The addresses of a name, asked of name servers past the capture.
//!
//! The host's own way to look names up may lead through the gateway, or nowhere while that is out of
//! reach. The gateway's own name must be found nevertheless.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use whimbrel_client_core::dns::{self, Kind};

/// A server that has not answered by then is passed over.
const ANSWER: Duration = Duration::from_secs(2);

/// What the first server knows that knows anything; empty if none does. The questions carry `mark`.
pub(crate) async fn lookup(name: &str, servers: &[IpAddr], mark: u32) -> Vec<IpAddr> {
    for server in servers {
        let [v4, v6] = Kind::ALL.map(|kind| ask(name, kind, *server, mark));
        let (v4, v6) = tokio::join!(v4, v6);
        let found: Vec<IpAddr> = [v4, v6].into_iter().flatten().flatten().collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

async fn ask(name: &str, kind: Kind, server: IpAddr, mark: u32) -> std::io::Result<Vec<IpAddr>> {
    let id = u16::from_ne_bytes(whimbrel_host::random::bytes().map_err(std::io::Error::other)?);
    let question = dns::question(id, name, kind)
        .ok_or_else(|| std::io::Error::from(ErrorKind::InvalidInput))?;
    let socket = socket(server, mark)?;
    let answered = async {
        socket.connect(SocketAddr::new(server, dns::PORT)).await?;
        socket.send(&question).await?;
        let mut answer = [0; 1500];
        loop {
            let length = socket.recv(&mut answer).await?;
            if let Some(found) = dns::addresses(&question, &answer[..length]) {
                return Ok(found);
            }
        }
    };
    let silent = || std::io::Error::from(ErrorKind::TimedOut);
    tokio::time::timeout(ANSWER, answered).await.unwrap_or_else(|_| Err(silent()))
}

fn socket(server: IpAddr, mark: u32) -> std::io::Result<UdpSocket> {
    let any: IpAddr = match server {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let any = SocketAddr::new(any, 0);
    let socket = Socket::new(Domain::for_address(any), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_mark(mark)?;
    socket.set_nonblocking(true)?;
    socket.bind(&any.into())?;
    UdpSocket::from_std(socket.into())
}
