//! What the Internet does with packets: pure but for the final write to a device.

use super::nat::{Expiry, Nat};
use super::packet::{self, Headers};
use super::pipe::{Chance, Pipe};
use super::{Direction, Hook, Port, PortCount, PortPlan, Stray, Verdict, frame, portal};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

/// A bound on the addresses counted, in case somebody sprays packets.
const STRAY_LIMIT: usize = 4096;

struct Socket {
    device: Option<Arc<tun::Device>>,
    routers: Vec<IpAddr>,
    up: Pipe,
    down: Pipe,
    nat: Option<Nat>,
    captive: bool,
    hook: Option<Hook>,
    count: PortCount,
}

pub(super) struct Exchange {
    sockets: Vec<Socket>,
    homes: BTreeMap<IpAddr, Port>,
    unreachable: BTreeSet<IpAddr>,
    strays: BTreeMap<IpAddr, Stray>,
    chance: Chance,
    frame: Vec<u8>,
    generation: u64,
    stopped: bool,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("homes", &self.homes).finish_non_exhaustive()
    }
}

impl Exchange {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            sockets: Vec::new(),
            homes: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            strays: BTreeMap::new(),
            chance: Chance::new(seed),
            frame: Vec::new(),
            generation: 0,
            stopped: false,
        }
    }

    pub(super) fn add_port(&mut self, plan: PortPlan) -> Port {
        let port = Port(self.sockets.len());
        self.homes.extend(plan.addresses.iter().map(|address| (*address, port)));
        let nat = plan.translated.then(|| translator(&plan.addresses));
        self.sockets.push(Socket {
            device: None,
            routers: plan.routers,
            up: Pipe::default(),
            down: Pipe::default(),
            nat,
            captive: false,
            hook: None,
            count: PortCount::default(),
        });
        port
    }

    pub(super) fn plug(&mut self, port: Port, device: Option<Arc<tun::Device>>) {
        self.sockets[port.0].device = device;
        self.generation += 1;
    }

    pub(super) fn pipe(&mut self, port: Port, direction: Direction) -> &mut Pipe {
        let socket = &mut self.sockets[port.0];
        match direction {
            Direction::Up => &mut socket.up,
            Direction::Down => &mut socket.down,
        }
    }

    pub(super) fn forget_mappings(&mut self, port: Port) {
        if let Some(nat) = &mut self.sockets[port.0].nat {
            nat.forget();
        }
    }

    pub(super) fn move_translator(
        &mut self,
        port: Port,
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
    ) {
        self.homes.retain(|_, home| *home != port);
        self.homes.extend(v4.map(|address| (IpAddr::V4(address), port)));
        self.homes.extend(v6.map(|address| (IpAddr::V6(address), port)));
        if let Some(nat) = &mut self.sockets[port.0].nat {
            nat.move_to(v4, v6);
        }
    }

    pub(super) fn set_expiry(&mut self, port: Port, expiry: Expiry) {
        if let Some(nat) = &mut self.sockets[port.0].nat {
            nat.set_expiry(expiry);
        }
    }

    pub(super) fn mappings(&self, port: Port) -> usize {
        self.sockets[port.0].nat.as_ref().map_or(0, Nat::len)
    }

    pub(super) fn set_captive(&mut self, port: Port, on: bool) {
        self.sockets[port.0].captive = on;
    }

    pub(super) fn set_hook(&mut self, port: Port, hook: Option<Hook>) {
        self.sockets[port.0].hook = hook;
    }

    pub(super) fn set_unreachable(&mut self, address: IpAddr) {
        self.unreachable.insert(address);
    }

    pub(super) fn count(&self, port: Port) -> PortCount {
        let socket = &self.sockets[port.0];
        PortCount { up: socket.up.count, down: socket.down.count, ..socket.count }
    }

    pub(super) fn stray(&self, address: IpAddr) -> Stray {
        self.strays.get(&address).copied().unwrap_or_default()
    }

    pub(super) fn strays(&self) -> &BTreeMap<IpAddr, Stray> {
        &self.strays
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Changes whenever a device is plugged in or pulled out.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn plugged(&self) -> impl Iterator<Item = (Port, &Arc<tun::Device>)> {
        self.sockets
            .iter()
            .enumerate()
            .filter_map(|(index, socket)| Some((Port(index), socket.device.as_ref()?)))
    }

    /// Takes a frame that a host has sent.
    pub(super) fn accept(&mut self, port: Port, frame: &[u8], now: Instant) {
        if let Some(packet) = frame::unwrap(frame) {
            self.sockets[port.0].up.admit(packet.to_vec(), now, &mut self.chance);
        }
    }

    /// Moves everything that is due; returns when it has something to do again.
    pub(super) fn advance(&mut self, now: Instant) -> Option<Instant> {
        for index in 0..self.sockets.len() {
            while let Some(packet) = self.sockets[index].up.deliver(now) {
                self.leave(Port(index), packet, now);
            }
        }
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            while let Some(packet) = socket.down.deliver(now) {
                if let Some(device) = &socket.device {
                    frame::wrap(&mut self.frame, Port(index).mac(), &packet);
                    // An interface that is down refuses packets: then they are lost, as on air.
                    drop(device.send(&self.frame));
                }
            }
        }
        let dues = self.sockets.iter().flat_map(|socket| [socket.up.due(), socket.down.due()]);
        dues.flatten().min()
    }

    /// A packet has come over the line and meets the first router.
    fn leave(&mut self, port: Port, mut packet: Vec<u8>, now: Instant) {
        let Some(mut headers) = Headers::read(&packet) else { return };
        let socket = &mut self.sockets[port.0];
        if is_local(headers.destination) {
            return;
        }
        let for_router = socket.routers.contains(&headers.destination);
        if for_router || socket.captive {
            let answer = answer_locally(packet, &mut headers, socket.captive && !for_router);
            match answer {
                Some(answer) => socket.down.admit(answer, now, &mut self.chance),
                None => socket.count.captured += 1,
            }
            return;
        }
        if let Some(nat) = &mut socket.nat
            && !nat.leave(&mut packet, &mut headers, now)
        {
            socket.count.untranslatable += 1;
            return;
        }
        match consult(socket, Direction::Up, &packet) {
            Verdict::Pass => self.route(packet, now),
            Verdict::Drop => {}
            Verdict::PassAfter(others) => {
                others.into_iter().for_each(|other| self.route(other, now));
                self.route(packet, now);
            }
        }
    }

    /// Carries a packet to the port of its destination.
    pub(super) fn route(&mut self, packet: Vec<u8>, now: Instant) {
        let Some(headers) = Headers::read(&packet) else { return };
        if let Some(port) = self.homes.get(&headers.destination).copied() {
            self.arrive(port, packet, headers, now);
        } else if self.unreachable.contains(&headers.destination) {
            let error = packet::host_unreachable(headers.destination, &packet, &headers);
            if self.homes.contains_key(&headers.source) {
                self.route(error, now);
            }
        } else if self.strays.len() < STRAY_LIMIT || self.strays.contains_key(&headers.destination)
        {
            let stray = self.strays.entry(headers.destination).or_default();
            stray.packets += 1;
            stray.bytes += packet.len() as u64;
        }
    }

    fn arrive(&mut self, port: Port, mut packet: Vec<u8>, mut headers: Headers, now: Instant) {
        let socket = &mut self.sockets[port.0];
        let mut others = Vec::new();
        match consult(socket, Direction::Down, &packet) {
            Verdict::Pass => {}
            Verdict::Drop => return,
            Verdict::PassAfter(injected) => others = injected,
        }
        if socket.captive {
            socket.count.captured += 1;
        } else if let Some(nat) = &mut socket.nat
            && !nat.arrive(&mut packet, &mut headers, now)
        {
            socket.count.unsolicited += 1;
        } else {
            socket.down.admit(packet, now, &mut self.chance);
        }
        // What a hook injects while a packet arrives must not meet the same hook again.
        for other in others {
            let elsewhere = Headers::read(&other)
                .is_none_or(|headers| self.homes.get(&headers.destination) != Some(&port));
            if elsewhere {
                self.route(other, now);
            }
        }
    }
}

fn translator(addresses: &[IpAddr]) -> Nat {
    let v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    });
    Nat::new(v4, v6)
}

fn consult(socket: &mut Socket, direction: Direction, packet: &[u8]) -> Verdict {
    let Some(hook) = &mut socket.hook else { return Verdict::Pass };
    let verdict = hook(direction, packet);
    if matches!(verdict, Verdict::Drop) {
        socket.count.hooked += 1;
    }
    verdict
}

/// Echo requests always, TCP only where a portal stands in for the whole Internet.
fn answer_locally(mut packet: Vec<u8>, headers: &mut Headers, portal: bool) -> Option<Vec<u8>> {
    if headers.is_echo_request(&packet) {
        packet::answer_echo(&mut packet, headers);
        return Some(packet);
    }
    if portal && headers.protocol == packet::TCP {
        return portal::answer(&packet, headers);
    }
    None
}

/// Multicast, broadcast and link-local packets never leave their own line.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_multicast() || address.is_broadcast() || address.is_link_local()
        }
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    }
}
