//! Pings go through the gateway, and say what became of them.

use crate::pair::all;
use crate::stage::{ORIGIN, Stage, no_panics, prepare, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{Layout, UNREACHABLE_V4, UNREACHABLE_V6};

/// How long one answer may take before it counts as lost.
const LOST: Duration = Duration::from_millis(250);

/// Tells our pings from those of others in the lab.
const IDENTIFIER: u16 = 0x5748;

/// A raw socket, as `ping` has one where it is root: it hears errors too.
struct Pinger {
    socket: UdpSocket,
    to: IpAddr,
    sequence: u16,
}

/// What came of a ping.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Reply { from: IpAddr, payload: Vec<u8> },
    Error { from: IpAddr, kind: u8, code: u8 },
}

impl Pinger {
    fn new(stage: &Stage, to: IpAddr) -> Result<Self> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let laptop = stage.world.host("laptop");
        let socket = laptop.run(move |_| Socket::new(domain, Type::RAW, Some(protocol)))?;
        socket.set_read_timeout(Some(LOST))?;
        Ok(Self { socket: socket.into(), to, sequence: 0 })
    }

    fn limit(&self, hops: u32) -> Result<()> {
        let options = SockRef::from(&self.socket);
        match self.to {
            IpAddr::V4(_) => options.set_ttl_v4(hops)?,
            IpAddr::V6(_) => options.set_unicast_hops_v6(hops)?,
        }
        Ok(())
    }

    /// Pings until something has come of it.
    fn ping(&mut self, payload: &[u8]) -> Result<Heard> {
        let mut heard = None;
        until(&format!("{} bytes come back from {}", payload.len(), self.to), || {
            heard = self.ask(payload)?;
            Ok(heard.is_some())
        })?;
        heard.context("it was heard")
    }

    fn ask(&mut self, payload: &[u8]) -> Result<Option<Heard>> {
        self.sequence += 1;
        let [high, low] = self.sequence.to_be_bytes();
        let [id_high, id_low] = IDENTIFIER.to_be_bytes();
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut request = vec![kind, 0, 0, 0, id_high, id_low, high, low];
        request.extend_from_slice(payload);
        if self.to.is_ipv4() {
            let sum = checksum(&request);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        // One that is too big for the path as it is known is cut up the next time.
        let _too_big = self.socket.send_to(&request, SocketAddr::new(self.to, 0));
        self.hear()
    }

    fn hear(&self) -> Result<Option<Heard>> {
        let mut buffer = vec![0; 70_000];
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            // A raw socket of IPv4 gives the header too.
            let header = if self.to.is_ipv4() { 20 } else { 0 };
            let message = buffer.get(header..length).context("a whole header")?;
            if let Some(heard) = self.understand(message, from.ip()) {
                return Ok(Some(heard));
            }
        }
    }

    /// What is about the last request, and no request itself.
    fn understand(&self, message: &[u8], from: IpAddr) -> Option<Heard> {
        let names = |echo: &[u8]| {
            let ours = [IDENTIFIER.to_be_bytes(), self.sequence.to_be_bytes()].concat();
            echo.get(4..8) == Some(&ours)
        };
        let (reply, request) = if self.to.is_ipv4() { (0, 8) } else { (129, 128) };
        match *message {
            [kind, ..] if kind == reply && names(message) => {
                Some(Heard::Reply { from, payload: message[8..].to_vec() })
            }
            [kind, code, ..] if kind != request && kind != reply => {
                let quoted = message.get(8 + if self.to.is_ipv4() { 20 } else { 40 }..)?;
                names(quoted).then_some(Heard::Error { from, kind, code })
            }
            _ => None,
        }
    }
}

/// RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let sum: u32 = message.chunks(2).map(word).sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    !u16::try_from((folded >> 16) + (folded & 0xffff)).unwrap_or_default()
}

/// The lab with everything carried, and a gateway that may ping.
fn raise(
    layout: Layout,
    gateway_may: bool,
    client: impl FnOnce(&mut toml::Table),
) -> Result<Stage> {
    let (world, origin) = prepare(layout, |_| {})?;
    let groups = if gateway_may { "0 0" } else { "1 0" };
    world
        .host("gateway")
        .run(move |_| fs::write("/proc/sys/net/ipv4/ping_group_range", groups))
        .context("saying who may ping")?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    edit(&world.client_config("laptop"), client)?;
    let client = world.start_client("laptop")?;
    Ok(Stage { client, gateway, origin, world })
}

impl Stage {
    fn raise_for_pings(layout: Layout) -> Result<Self> {
        let mut stage = raise(layout, true, all)?;
        stage.await_udp()?;
        until("the host's rules capture pings", || {
            stage.world.host("laptop").run(|wiring| {
                let rules = [wiring.rules(false)?, wiring.rules(true)?];
                let captures = |rules: &_| format!("{rules:?}").contains("DestinationPortRange");
                Ok(rules.iter().all(captures))
            })
        })?;
        Ok(stage)
    }

    /// Requests that the gateway has sent.
    fn requests(&self) -> Result<Option<u64>> {
        Ok(self.gateway.status(&self.world)?["datagrams"]["echo_requests"].as_u64())
    }
}

/// Around what fits a datagram of the carrier, what only fits its stream, and what the kernel cuts
/// into fragments.
const SIZES: [usize; 6] = [0, 56, 1400, 1472, 1473, 20_000];

pub(crate) fn a_ping_is_answered_by_its_destination_through_the_gateway() -> Result<()> {
    let stage = Stage::raise_for_pings(Layout::standard())?;
    for origin in ORIGIN {
        let mut pinger = Pinger::new(&stage, origin)?;
        let before = stage.requests()?;
        let mut told = 0;
        for size in SIZES {
            let payload: Vec<u8> = (0..=250).cycle().take(size).collect();
            until(&format!("{size} bytes come back from {origin}"), || {
                let heard = pinger.ping(&payload)?;
                let reply = Heard::Reply { from: origin, payload: payload.clone() };
                // Larger ones may first be told what fits.
                let too_big = |kind, code| matches!((kind, code), (3, 4) | (2, 0));
                match heard {
                    Heard::Error { kind, code, .. } if too_big(kind, code) => {
                        told += 1;
                        Ok(false)
                    }
                    heard @ (Heard::Reply { .. } | Heard::Error { .. }) => {
                        ensure!(heard == reply, "{heard:?}");
                        Ok(true)
                    }
                }
            })?;
        }
        // The kernel cuts up by itself what does not fit its own device, and else only what it must.
        ensure!(told > 0 || origin.is_ipv6(), "1472 bytes must not be cut up unless that is told");
        let asked = stage.requests()?.unwrap_or(0) - before.unwrap_or(0);
        ensure!(asked >= SIZES.len() as u64, "the gateway has asked {asked} times only");
    }
    let status = stage.client.status(&stage.world)?;
    let datagrams = &status["datagrams"];
    ensure!(datagrams["echoes"] == "carried" && datagrams["echo_replies"] != 0, "{status}");
    let flows = stage.client.show(&stage.world, "flows")?;
    let pings = |row: &Value| row["protocol"] == "icmp" && row["rx_bytes"] != 0;
    ensure!(flows.as_array().is_some_and(|rows| rows.iter().any(pings)), "not shown: {flows}");
    no_panics(&stage.world)
}

pub(crate) fn what_no_ping_reaches_is_told() -> Result<()> {
    let stage = Stage::raise_for_pings(Layout::standard())?;
    let reserved = [
        IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)),
        Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1).into(),
    ];
    let gateway = [Ipv4Addr::new(10, 213, 52, 53).into(), "fd52:1109:77b6::53".parse::<IpAddr>()?];
    // The policy's answer, a router's, and that of the gateway as the first hop.
    let prohibited = [(3, 13), (1, 1)];
    for ((to, from), (kind, code)) in reserved.into_iter().zip(gateway).zip(prohibited) {
        let heard = Pinger::new(&stage, to)?.ping(b"ping")?;
        ensure!(heard == Heard::Error { from, kind, code }, "{to}: {heard:?}");
    }
    let unreachable = [(IpAddr::V4(UNREACHABLE_V4), 3), (UNREACHABLE_V6.into(), 1)];
    for (to, wanted) in unreachable {
        let heard = Pinger::new(&stage, to)?.ping(b"ping")?;
        let Heard::Error { kind, .. } = heard else { anyhow::bail!("{to}: {heard:?}") };
        ensure!(kind == wanted, "{to}: {heard:?}");
    }
    for ((to, from), kind) in ORIGIN.into_iter().zip(gateway).zip([11, 3]) {
        let mut pinger = Pinger::new(&stage, to)?;
        pinger.limit(1)?;
        let heard = pinger.ping(b"how far?")?;
        ensure!(heard == Heard::Error { from, kind, code: 0 }, "{to}: {heard:?}");
        pinger.limit(64)?;
        let heard = pinger.ping(b"ping")?;
        ensure!(matches!(heard, Heard::Reply { .. }), "{to}: {heard:?}");
    }
    no_panics(&stage.world)
}

pub(crate) fn pings_go_direct_unless_they_are_wanted_and_the_gateway_can() -> Result<()> {
    for (gateway_may, wanted, state) in [(true, false, "off"), (false, true, "unsupported")] {
        let client = |table: &mut toml::Table| {
            if wanted {
                all(table)
            }
        };
        let mut stage = raise(Layout::standard(), gateway_may, client)?;
        stage.client.wait_until(&stage.world, "knows what is carried", |status| {
            status["datagrams"]["echoes"] == state
        })?;
        if wanted {
            stage.await_udp()?;
            let said = stage.gateway.command(&stage.world, &["status"])?;
            ensure!(said.contains("net.ipv4.ping_group_range"), "{said}");
            let said = stage.client.command(&stage.world, &["status"])?;
            ensure!(said.contains("ping is not"), "{said}");
        }
        for origin in ORIGIN {
            let heard = Pinger::new(&stage, origin)?.ping(b"ping")?;
            ensure!(heard == Heard::Reply { from: origin, payload: b"ping".to_vec() }, "{heard:?}");
        }
        ensure!(stage.requests()? == Some(0), "one went through the gateway");
    }
    Ok(())
}
