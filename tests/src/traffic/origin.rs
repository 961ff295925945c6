//! The services of the origin.

use super::pattern::{self, Check};
use super::{Event, Moment, port};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Bytes read or written at a time.
const PIECE: usize = 64 << 10;

/// Connections that may wait to be accepted: bursts of thousands are part of the tests.
const BACKLOG: i32 = 4096;

pub(super) fn serve() -> ExitCode {
    let since = Moment::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(serve_all()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Event::failed(since, &error).report();
            ExitCode::FAILURE
        }
    }
}

async fn serve_all() -> io::Result<()> {
    let services = [
        port::SOURCE,
        port::SINK,
        port::ECHO,
        port::LAST_WORD,
        port::EARLY_END,
        port::RESET,
        port::DEAF,
        port::WITNESS,
        port::HTTP,
    ];
    let mut listening = tokio::task::JoinSet::new();
    for service in services {
        let listener = listen(service)?;
        listening.spawn(accept_all(service, listener));
    }
    Event::Ready.report();
    while let Some(ended) = listening.join_next().await {
        ended??;
    }
    Ok(())
}

fn listen(service: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, service)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept_all(service: u16, listener: TcpListener) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(attend(service, stream, peer))),
            // Out of descriptors, or the client went away: later ones may fare better.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn attend(service: u16, mut stream: TcpStream, peer: SocketAddr) {
    drop(stream.set_nodelay(true));
    let mut bytes = 0;
    let outcome = match service {
        port::SOURCE => source(&mut stream).await,
        port::SINK => sink(&mut stream, &mut bytes).await,
        port::ECHO => echo(&mut stream, &mut bytes).await,
        port::LAST_WORD => last_word(&mut stream, &mut bytes).await,
        port::EARLY_END => early_end(&mut stream, &mut bytes).await,
        port::RESET => reset(&mut stream).await,
        port::DEAF => std::future::pending().await,
        port::HTTP => http(&mut stream).await,
        _ => witness(&mut stream, &mut bytes).await,
    };
    let reset = outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
    Event::Closed { service, peer, bytes, reset }.report();
}

/// Sends what was asked for, or until any byte arrives, then the last word.
async fn source(stream: &mut TcpStream) -> io::Result<()> {
    let (bytes, rate) = (stream.read_u64().await?, stream.read_u64().await?);
    let (mut reader, mut writer) = stream.split();
    let mut buffer = vec![0; PIECE];
    let mut sent = 0;
    let begin = Instant::now();
    let mut stop = [0];
    while sent < bytes {
        // A paced stream in small pieces is smooth; an unpaced one is as fast as it goes.
        let piece = if rate == 0 {
            PIECE
        } else {
            PIECE.min(usize::try_from(rate / 800).unwrap_or(PIECE)).max(1)
        };
        let length = usize::try_from(bytes - sent).unwrap_or(piece).min(piece);
        pattern::fill(&mut buffer[..length], sent);
        tokio::select! {
            biased;
            stopped = reader.read(&mut stop) => {
                stopped?;
                break;
            }
            written = write_some(&mut writer, &buffer[..length]) => sent += written?,
        }
        if rate > 0 {
            let due = Duration::from_secs_f64(sent as f64 * 8.0 / rate as f64);
            tokio::time::sleep_until(begin + due).await;
        }
    }
    writer.write_all(&pattern::last_word(sent)).await?;
    writer.shutdown().await?;
    drain(&mut reader, &mut 0).await
}

/// One write, so that being interrupted never loses count.
async fn write_some(writer: &mut tokio::net::tcp::WriteHalf<'_>, bytes: &[u8]) -> io::Result<u64> {
    Ok(writer.write(bytes).await? as u64)
}

async fn sink(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    let mut check = Check::default();
    let mut buffer = vec![0; PIECE];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        check.take(&buffer[..length]);
        *bytes = check.bytes();
    }
    let taken = if check.is_right_so_far() && check.finish().is_ok() {
        check.bytes() - 8
    } else {
        u64::MAX
    };
    stream.write_u64(taken).await?;
    stream.shutdown().await
}

async fn echo(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    // Small, because thousands of idle connections hold one each.
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        *bytes += length as u64;
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn last_word(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    drain(stream, bytes).await?;
    stream.write_all(format!("{bytes} bytes\n").as_bytes()).await?;
    stream.shutdown().await
}

async fn early_end(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    stream.write_all(b"that is all\n").await?;
    stream.shutdown().await?;
    drain(stream, bytes).await
}

async fn reset(stream: &mut TcpStream) -> io::Result<()> {
    stream.read_u8().await?;
    SockRef::from(&*stream).set_linger(Some(Duration::ZERO))
}

/// Answers the first bytes, so that a client knows it is heard, and reads to the end.
async fn witness(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    let first = stream.read_u8().await?;
    *bytes = 1;
    stream.write_u8(first).await?;
    drain(stream, bytes).await
}

async fn drain(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
    bytes: &mut u64,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match reader.read(&mut buffer).await? {
            0 => return Ok(()),
            length => *bytes += length as u64,
        }
    }
}

const PAGE: &str = "This is the origin of the Whimbrel lab.\n\
    /bytes/N  N numbered bytes\n\
    /ticks    a line every 100 ms for a minute\n";

/// Just enough HTTP/1.0 for curl, wget and browsers.
async fn http(stream: &mut TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8192 {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    if path == "/ticks" {
        stream.write_all(head(None).as_bytes()).await?;
        for tick in 1..=600 {
            stream.write_all(format!("tick {tick}\n").as_bytes()).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    } else if let Some(bytes) = path.strip_prefix("/bytes/").and_then(|n| n.parse::<u64>().ok()) {
        stream.write_all(head(Some(bytes)).as_bytes()).await?;
        let mut buffer = vec![0; PIECE];
        let mut sent = 0;
        while sent < bytes {
            let length = usize::try_from(bytes - sent).unwrap_or(PIECE).min(PIECE);
            pattern::fill(&mut buffer[..length], sent);
            stream.write_all(&buffer[..length]).await?;
            sent += length as u64;
        }
    } else {
        stream.write_all(head(Some(PAGE.len() as u64)).as_bytes()).await?;
        stream.write_all(PAGE.as_bytes()).await?;
    }
    stream.shutdown().await
}

fn head(length: Option<u64>) -> String {
    let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
    format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n{length}\r\n")
}
