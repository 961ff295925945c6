//! ICMP echo over one link, to measure what the line does.

use super::host::Host;
use crate::internet::packet::{self, ICMP};
use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Echo requests to send.
#[derive(Clone, Debug)]
pub struct Ping {
    /// Where to.
    pub to: IpAddr,
    /// Over which interface; `None`: as routed.
    pub over: Option<String>,
    /// How many.
    pub count: u16,
    /// Time between two requests.
    pub every: Duration,
    /// How long to wait for answers after the last request.
    pub patience: Duration,
}

impl Ping {
    /// Ten requests over one interface, 10 ms apart.
    #[must_use]
    pub fn new(to: IpAddr, over: &str) -> Self {
        let every = Duration::from_millis(10);
        Self { to, over: Some(over.to_owned()), count: 10, every, patience: Duration::from_secs(1) }
    }
}

/// Sends the requests from a host; the round-trip time of each, `None` where no answer came.
///
/// # Errors
/// When the socket cannot be made.
pub fn ping(host: &Host, ping: &Ping) -> Result<Vec<Option<Duration>>> {
    let ping = ping.clone();
    let name = host.name().to_owned();
    let thread = host.thread(move || exchange(&ping));
    thread.join().unwrap_or_else(|_| panic!("pinging from {name} panicked"))
}

/// The shortest of the round trips that were answered.
#[must_use]
pub fn shortest(round_trips: &[Option<Duration>]) -> Option<Duration> {
    round_trips.iter().flatten().min().copied()
}

fn exchange(ping: &Ping) -> Result<Vec<Option<Duration>>> {
    let socket = open(ping)?;
    let to = SockAddr::from(SocketAddr::new(ping.to, 0));
    let identifier = u16::from_le_bytes(std::process::id().to_le_bytes()[..2].try_into()?);
    let mut sent = Vec::new();
    let mut answered = vec![None; usize::from(ping.count)];
    let begin = Instant::now();
    for sequence in 0..ping.count {
        let request = request(ping.to, identifier, sequence);
        sent.push(Instant::now());
        // A link that is down refuses: that is an unanswered request, not a failure.
        drop(socket.send_to(&request, &to));
        let next = begin + ping.every * u32::from(sequence + 1);
        listen(&socket, identifier, next, &sent, &mut answered)?;
    }
    listen(&socket, identifier, Instant::now() + ping.patience, &sent, &mut answered)?;
    Ok(answered)
}

fn open(ping: &Ping) -> Result<Socket> {
    let (domain, protocol) = match ping.to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("opening a raw socket")?;
    if let Some(name) = &ping.over {
        socket.bind_device(Some(name.as_bytes())).context("binding to the interface")?;
    }
    Ok(socket)
}

fn request(to: IpAddr, identifier: u16, sequence: u16) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let [id_high, id_low] = identifier.to_be_bytes();
    let [high, low] = sequence.to_be_bytes();
    let mut request = vec![kind, 0, 0, 0, id_high, id_low, high, low];
    request.extend_from_slice(&[0x77; 56]);
    if to.is_ipv4() {
        // The kernel fills in the checksum of ICMPv6 only.
        let any = IpAddr::from([0, 0, 0, 0]);
        let whole = packet::build(any, any, ICMP, request, 2);
        request = whole[20..].to_vec();
    }
    request
}

fn listen(
    socket: &Socket,
    identifier: u16,
    until: Instant,
    sent: &[Instant],
    answered: &mut [Option<Duration>],
) -> Result<()> {
    let mut buffer = [0; 1500];
    while answered.iter().any(Option::is_none) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // Less than a microsecond would become zero, which means for ever.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let Ok(length) = (&*socket).read(&mut buffer) else { continue };
        if let Some(sequence) = reply_sequence(&buffer[..length], identifier)
            && let Some(when) = sent.get(usize::from(sequence))
        {
            answered[usize::from(sequence)].get_or_insert_with(|| when.elapsed());
        }
    }
    Ok(())
}

/// Raw IPv4 sockets give the IP header too, raw IPv6 sockets do not.
fn reply_sequence(bytes: &[u8], identifier: u16) -> Option<u16> {
    let first = *bytes.first()?;
    let message = if first >> 4 == 4 { bytes.get(usize::from(first & 15) * 4..)? } else { bytes };
    let reply = matches!(message.first()?, 0 | 129);
    let own = message.get(4..6)? == identifier.to_be_bytes();
    let sequence = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
    (reply && own).then_some(sequence)
}
