//! Figures for a monitoring system: those of the process itself, and a port where all are read.
//!
//! The port speaks as much HTTP as a scraper needs: `GET /metrics`, one answer per connection. It
//! asks the daemon as the control socket does, by the verb `metrics`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use whimbrel_common::metrics::{CONTENT_TYPE, Process};

use crate::control::Asker;

/// The verb that asks for the figures.
pub const VERB: &str = "metrics";

/// What the process uses. Zero is what cannot be known.
#[must_use]
pub fn process() -> Process {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::from_secs(cpu.tv_sec.try_into().unwrap_or(0));
    let cpu = seconds + Duration::from_nanos(cpu.tv_nsec.try_into().unwrap_or(0));
    Process {
        resident: resident().unwrap_or(0),
        cpu,
        descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64),
        started: started().unwrap_or_default(),
    }
}

fn resident() -> Option<u64> {
    let status = read("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// See proc(5): field 22 of `stat`, counted from after the name, which may contain anything.
fn started() -> Option<Duration> {
    /// USER_HZ, which Linux has kept at this for every architecture in use.
    const TICKS_PER_SECOND: u32 = 100;
    let own = read("/proc/self/stat")?;
    let ticks: u64 = own.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()?;
    let machine = read("/proc/stat")?;
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime "))?;
    let boot = Duration::from_secs(boot.trim().parse().ok()?);
    Some(boot + Duration::from_secs(ticks) / TICKS_PER_SECOND)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// A scraper asks once in seconds; the rest waits in the kernel.
const CONNECTIONS: usize = 8;

/// A scraper of the same machine asks and reads at once, or something is wrong with it. So long
/// those who say nothing keep it waiting, too.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest request, in bytes: a line and the headers a scraper sends.
const LONGEST_REQUEST: usize = 8 << 10;

/// The port. Dropped, it is closed.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl MetricsServer {
    /// Answers at `address`, a loopback one, with what the daemon says. Needs a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn open(address: SocketAddr, asker: Asker) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(address).with_context(|| {
            format!(
                "cannot listen on {address} for `metrics`; stop who else uses the port, or \
                     write another one"
            )
        })?;
        listener.set_nonblocking(true).context("cannot listen for `metrics`")?;
        let listener = TcpListener::from_std(listener).context("cannot listen for `metrics`")?;
        let address = listener.local_addr().context("cannot listen for `metrics`")?;
        Ok(Self { address, accepting: tokio::spawn(accept(listener, asker)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, asker: Asker) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let asker = asker.clone();
                tokio::spawn(async move {
                    // Whoever hangs up or says nothing has no use for an answer.
                    let _ = tokio::time::timeout(PATIENCE, serve(stream, asker)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "Cannot accept a connection for metrics");
                // Out of descriptors: the next attempt would fail the same way at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream, asker: Asker) -> std::io::Result<()> {
    let request = read_request(&mut stream).await?;
    let (status, body) = match judge(&request) {
        Ok(()) => match asker.ask(VERB).await {
            Ok(answer) => {
                ("200 OK", answer.get("text").and_then(Value::as_str).unwrap_or("").to_owned())
            }
            Err(sentence) => ("503 Service Unavailable", format!("{sentence}\n")),
        },
        Err(status) => (status, format!("{status}\n")),
    };
    let kind = if status == "200 OK" { CONTENT_TYPE } else { "text/plain; charset=utf-8" };
    let allow = if status == NOT_ALLOWED { "Allow: GET, HEAD\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{allow}Content-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if !request.starts_with("HEAD ") {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Everything up to the empty line.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut piece).await?;
        if count == 0 || request.len() + count > LONGEST_REQUEST {
            break;
        }
        request.extend_from_slice(&piece[..count]);
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

const NOT_ALLOWED: &str = "405 Method Not Allowed";

/// What is answered where it is not with figures.
fn judge(request: &str) -> Result<(), &'static str> {
    const BAD: &str = "400 Bad Request";
    let (head, _) = request.split_once("\r\n\r\n").ok_or(BAD)?;
    let mut lines = head.lines();
    let mut words = lines.next().ok_or(BAD)?.split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    if !version.starts_with("HTTP/1.") {
        return Err(BAD);
    }
    let mut hosts = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    // RFC 9112 §3.2: there is one, but in HTTP/1.0.
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && version != "HTTP/1.0") {
        return Err(BAD);
    }
    // A page in a browser reaches this port under a name of its own, but not under ours.
    if !host.is_none_or(is_own) {
        return Err("403 Forbidden");
    }
    if !matches!(method, "GET" | "HEAD") {
        return Err(NOT_ALLOWED);
    }
    match target.split('?').next() {
        Some("/metrics") => Ok(()),
        Some(_) | None => Err("404 Not Found"),
    }
}

fn is_own(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
    });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|it| it.is_loopback())
}

#[cfg(test)]
mod tests;
