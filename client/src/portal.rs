//! Asks a network whether it answers for others: one HTTP request to an address that nobody has.
//!
//! The address is reserved for documentation (RFC 5737, RFC 3849) and never routed, so the request
//! reaches nobody but the network itself. When it is asked is decided by
//! [`whimbrel_client_core::portal`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tracing::debug;

/// A sign-in page is on the first router; whatever takes longer is none.
const PATIENCE: Duration = Duration::from_secs(5);

const NOBODY: [SocketAddr; 2] = [
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80),
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 80),
];

/// As little as HTTP asks for (RFC 9112 §3.2): who asks is nobody's business.
const REQUEST: [&str; 2] = [
    "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\nConnection: close\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\nConnection: close\r\n\r\n",
];

/// Whether the network behind the interface `name` answers in the place of others. `mark` keeps the
/// request out of the capture; zero sets none.
pub(crate) async fn is_captive(name: &str, v4: bool, mark: u32) -> bool {
    let family = usize::from(!v4);
    let asked = tokio::time::timeout(PATIENCE, ask(name, family, mark)).await;
    match asked {
        Ok(Ok(answer)) => is_answer(&answer),
        Ok(Err(error)) => {
            debug!(link = name, %error, "Nobody answers for others");
            false
        }
        Err(_) => false,
    }
}

async fn ask(name: &str, family: usize, mark: u32) -> io::Result<Vec<u8>> {
    let domain = Domain::for_address(NOBODY[family]);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.bind_device(Some(name.as_bytes()))?;
    socket.set_nonblocking(true)?;
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(NOBODY[family]).await?;
    stream.write_all(REQUEST[family].as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(STATUS_LINE).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Bytes of an answer up to its status.
const STATUS_LINE: u64 = "HTTP/1.1 302".len() as u64;

/// Whether these are the first bytes of a page, or of the way to one. A proxy that cannot reach the
/// address answers as well, with an error of its own: it wants no sign-in.
fn is_answer(answer: &[u8]) -> bool {
    let Some(rest) = answer.strip_prefix(b"HTTP/1.") else { return false };
    match rest {
        [_, b' ', b'2' | b'3', ..] => true,
        // "Network Authentication Required" (RFC 6585 §6).
        [_, b' ', b'5', b'1', b'1'] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_from_an_error() {
        for page in ["HTTP/1.1 302", "HTTP/1.0 200", "HTTP/1.1 511"] {
            assert!(is_answer(page.as_bytes()), "{page}");
        }
        for other in ["HTTP/1.1 503", "HTTP/1.1 404", "SSH-2.0-Open", "HTTP/1.1", ""] {
            assert!(!is_answer(other.as_bytes()), "{other}");
        }
    }
}
