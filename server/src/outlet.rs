//! A port of the gateway for one association of one client: a kernel UDP socket that talks to
//! whomever its client talks to, or one of ICMP that asks whomever its client pings.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use ring::hmac;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use whimbrel_carrier::Connection;
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::wire::{Association, Undelivered};

use crate::usage::PortLease;

mod bounce;
pub(crate) mod echo;
mod message;

pub(crate) use bounce::Bounce;

/// Why clients cannot ping, and what to do about it.
pub(crate) const NO_ECHOES: &str = "this machine does not let the gateway's group open ICMP \
    sockets; `sysctl net.ipv4.ping_group_range='0 2147483647'` allows it, and a restart takes notice";

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Outlet {
    socket: UdpSocket,
    pub(crate) association: Association,
    /// The connection that carries its session; `None` while the session is parked.
    pub(crate) client: Option<Connection>,
    /// Whose port it is.
    pub(crate) lease: PortLease,
    /// It is one of ICMP.
    pub(crate) echoes: bool,
    /// The name servers that were asked through it in the gateway's name, the last one last.
    asked: Vec<SocketAddr>,
    /// It waits for its turn to be read.
    pub(crate) queued: bool,
}

/// Name servers whose answers are told from other datagrams. Machines have three at most
/// (resolv.conf(5)), and other ones after a change of their network.
const MOST_ASKED: usize = 6;

impl Outlet {
    /// Opens the port `wanted`, or any if that is taken.
    pub(crate) fn open(
        v4: bool,
        wanted: u16,
        client: (Association, Connection),
        lease: PortLease,
    ) -> io::Result<Self> {
        let socket = bind(v4, wanted).or_else(|_| bind(v4, 0))?;
        Ok(Self::of(socket, false, client, lease))
    }

    /// Opens an ICMP socket with the identifier `wanted`, or any if that is taken.
    pub(crate) fn open_echo(
        v4: bool,
        wanted: u16,
        client: (Association, Connection),
        lease: PortLease,
    ) -> io::Result<Self> {
        let socket = echo::open(v4, wanted).or_else(|_| echo::open(v4, 0))?;
        Ok(Self::of(socket, true, client, lease))
    }

    fn of(
        socket: UdpSocket,
        echoes: bool,
        (association, client): (Association, Connection),
        lease: PortLease,
    ) -> Self {
        let client = Some(client);
        Self { socket, association, client, lease, echoes, asked: Vec::new(), queued: false }
    }

    /// A name server is asked through it in the gateway's name.
    pub(crate) fn asks(&mut self, server: SocketAddr) {
        if self.asked.last() == Some(&server) {
            return;
        }
        self.asked.retain(|known| *known != server);
        if self.asked.len() >= MOST_ASKED {
            self.asked.remove(0);
        }
        self.asked.push(server);
    }

    /// Whether it is such a name server: one may answer after another was asked.
    pub(crate) fn has_asked(&self, server: SocketAddr) -> bool {
        self.asked.contains(&server)
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when it has no room.
    pub(crate) fn send(&self, payload: &[u8], remote: SocketAddr) -> io::Result<()> {
        match self.socket.send_to(payload, remote) {
            // The error of an earlier datagram, to whomever that went.
            Err(error) if is_late(&error) => self.socket.send_to(payload, remote).map(drop),
            sent => sent.map(drop),
        }
    }

    /// Sends one echo request that may make so many hops, if it is one of ICMP.
    ///
    /// # Errors
    /// As of [`send`](Self::send).
    pub(crate) fn ask(
        &self,
        remote: IpAddr,
        sequence: u16,
        hops: u8,
        payload: &[u8],
    ) -> io::Result<()> {
        match echo::send(&self.socket, remote, sequence, hops, payload) {
            Err(error) if is_late(&error) => {
                echo::send(&self.socket, remote, sequence, hops, payload)
            }
            sent => sent,
        }
    }

    /// Receives one reply, if it is one of ICMP; `Ok(None)` for what is none.
    ///
    /// # Errors
    /// As of [`receive`](Self::receive).
    pub(crate) fn hear(&self, buffer: &mut [u8]) -> io::Result<Option<echo::Reply>> {
        echo::receive(self.socket.as_fd(), buffer)
    }

    /// What is known of a datagram that did not arrive.
    ///
    /// # Errors
    /// `WouldBlock` when every one is told.
    pub(crate) fn bounced(&self) -> io::Result<Bounce> {
        bounce::next_error(self.socket.as_fd())
    }

    /// Receives one datagram.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when there is none.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.recv_from(buffer)
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind(v4: bool, port: u16) -> io::Result<UdpSocket> {
    let (domain, any): (_, SocketAddr) = if v4 {
        (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into())
    } else {
        (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into())
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if !v4 {
        socket.set_only_v6(true)?;
    }
    bounce::keep_errors(socket.as_fd(), v4)?;
    socket.bind(&any.into())?;
    Ok(socket.into())
}

/// Whether a socket reports what an ICMP message said about an earlier datagram.
pub(crate) fn is_late(error: &io::Error) -> bool {
    let late = [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::NETUNREACH, Errno::MSGSIZE];
    late.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What a failed send means for the program; `None` if the datagram was only lost.
pub(crate) fn undelivered(error: &io::Error) -> Option<Undelivered> {
    match Errno::from_io_error(error)? {
        // EINVAL: an address the kernel does not send to.
        Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => Some(Undelivered::Network),
        Errno::HOSTUNREACH | Errno::HOSTDOWN => Some(Undelivered::Host),
        Errno::ACCESS | Errno::PERM | Errno::INVAL => Some(Undelivered::Denied),
        _ => None,
    }
}

/// Which port an association should have: the same one whenever it is opened, by this process or
/// the next, and one that nobody can guess. Drawn from the ports the kernel gives to programs.
#[derive(Debug)]
pub(crate) struct PortChoice {
    key: hmac::Key,
    ports: Vec<u16>,
}

/// What the kernel chooses from unless it is told otherwise (`ip-sysctl`, ip_local_port_range).
const PORTS: (u16, u16) = (32_768, 60_999);

impl PortChoice {
    /// The choice of the gateway with this key.
    pub(crate) fn new(key: &SecretKey) -> Self {
        let read = |name| std::fs::read_to_string(Path::new("/proc/sys/net/ipv4").join(name)).ok();
        let range = read("ip_local_port_range").as_deref().and_then(read_range);
        let reserved = read("ip_local_reserved_ports");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.seed());
        Self { key, ports: eligible(range.unwrap_or(PORTS), reserved.as_deref()) }
    }

    /// The port of an association.
    pub(crate) fn port(&self, client: &PublicKey, association: Association) -> u16 {
        let what = [b"port".as_slice(), client.as_bytes(), &association.0.to_be_bytes()].concat();
        let tag = hmac::sign(&self.key, &what);
        let number =
            tag.as_ref().iter().take(4).fold(0_u32, |all, byte| all << 8 | u32::from(*byte));
        let count = u32::try_from(self.ports.len()).unwrap_or(u32::MAX).max(1);
        let place = usize::try_from(number % count).unwrap_or_default();
        // Any, where every one is reserved.
        self.ports.get(place).copied().unwrap_or_default()
    }
}

fn read_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some((first, last))
}

/// The ports of a range that are not kept for somebody else: `8080,9148-9160` (`ip-sysctl`,
/// ip_local_reserved_ports).
fn eligible((first, last): (u16, u16), reserved: Option<&str>) -> Vec<u16> {
    let reserved = reserved.unwrap_or_default().trim().split(',');
    let reserved: Vec<_> = reserved.filter_map(read_ports).collect();
    let free = |port: &u16| !reserved.iter().any(|ports| ports.contains(port));
    (first..=last).filter(free).collect()
}

fn read_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use whimbrel_common::config::GatewayConfig;
    use whimbrel_gateway_core::limits::Usage;

    use super::*;
    use crate::usage::SharedUsage;

    #[test]
    fn a_machine_without_a_family_of_addresses_says_so_to_the_client() {
        let told = |errno: Errno| undelivered(&errno.into());
        assert_eq!(told(Errno::AFNOSUPPORT), Some(Undelivered::Network));
        assert_eq!(told(Errno::MFILE), None, "it may have one soon");
    }

    #[test]
    fn an_association_has_the_same_port_again_and_others_have_others() {
        let ports = |gateway, client| -> Vec<u16> {
            let choice = PortChoice::new(&SecretKey::from_seed([gateway; 32]));
            let client = PublicKey::from_bytes([client; 32]);
            let port = |number| choice.port(&client, Association(number));
            let ports: Vec<u16> = (0..50).map(port).collect();
            assert!(ports.iter().all(|port| choice.ports.contains(port)));
            ports
        };
        assert_eq!(ports(1, 1), ports(1, 1));
        assert_ne!(ports(1, 1), ports(1, 2), "another client");
        assert_ne!(ports(1, 1), ports(2, 1), "another gateway: nobody can guess it");
    }

    #[test]
    fn a_range_of_ports_is_read_as_the_kernel_writes_it() {
        assert_eq!(read_range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(read_range("60999 32768"), None);
        assert_eq!(read_range("many"), None);
    }

    #[test]
    fn ports_that_are_reserved_are_left_to_whom_they_are_for() {
        assert_eq!(eligible((10, 15), None), [10, 11, 12, 13, 14, 15]);
        assert_eq!(eligible((10, 15), Some("\n")), [10, 11, 12, 13, 14, 15]);
        assert_eq!(eligible((10, 15), Some("9,11,13-14,70\n")), [10, 12, 15]);
        assert!(eligible((10, 15), Some("1-65535\n")).is_empty());
    }

    fn lease() -> PortLease {
        let limits = GatewayConfig::new(&"gw.example.org:443".parse().unwrap()).limits;
        let (usage, now) = (SharedUsage::new(Usage::new(&limits)), Instant::now());
        let client = PublicKey::from_bytes([1; 32]);
        usage.lock().welcome(client, now);
        usage.open_port(client, now).unwrap()
    }

    #[test]
    fn an_answer_is_one_even_if_another_server_was_asked_since() {
        let of = |last| SocketAddr::from(([192, 0, 2, last], 53));
        let association = (Association(1), Connection::NONE);
        let mut outlet = Outlet::open(true, 0, association, lease()).unwrap();
        assert!(!outlet.has_asked(of(1)));
        [1, 2, 1].into_iter().for_each(|last| outlet.asks(of(last)));
        assert!(outlet.has_asked(of(1)) && outlet.has_asked(of(2)) && !outlet.has_asked(of(3)));
        (3..=7).for_each(|last| outlet.asks(of(last)));
        assert!(outlet.has_asked(of(1)) && !outlet.has_asked(of(2)), "the oldest was forgotten");
    }

    #[test]
    fn a_port_that_is_taken_is_replaced_by_any() {
        for v4 in [true, false] {
            let first = bind(v4, 0).unwrap();
            let taken = first.local_addr().unwrap().port();
            let association = (Association(1), Connection::NONE);
            let outlet = Outlet::open(v4, taken, association, lease()).unwrap();
            assert_ne!(outlet.socket.local_addr().unwrap().port(), taken);
        }
    }
}
