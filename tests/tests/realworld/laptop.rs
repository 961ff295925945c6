//! The laptop: its applications' kernel, its links, and the client between them, driven as its
//! daemon drives it.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel::client::Client;
use whimbrel::tunnel::Tunnel;
use whimbrel::uplinks::{Families, SendFailed};
use whimbrel_carrier::Tuning;
use whimbrel_client_core::engine::DeviceId;
use whimbrel_client_core::links::{Class, CostBy, Terms};
use whimbrel_common::config::Offline;
use whimbrel_common::identity::SecretKey;
use whimbrel_common::path::{DownReason, PathKey};

use crate::GATEWAY;
use crate::chance::Chance;
use crate::kernel::Kernel;
use crate::network::LINKS;
use crate::office::GATEWAY_KEY;

/// The client's key.
pub(crate) const CLIENT_KEY: [u8; 32] = [1; 32];

/// Rounds of one moment: far more than any needs.
const ROUNDS: u32 = 10_000;

/// Datagrams that wait for a client that stands still: a megabyte, as its sockets ask for.
const WAITING: usize = 800;

/// What the laptop's clock and its links tell the client.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told {
    Up { link: usize, metered: bool },
    Down { link: usize, reason: DownReason },
    Prefer(Option<usize>),
    Sleep,
    Awake,
    Slept(Duration),
}

/// See the [module](self).
pub(crate) struct Laptop {
    pub(crate) client: Client,
    pub(crate) kernel: Kernel,
    /// What has arrived and was not read yet, with its link.
    inbox: VecDeque<(usize, BytesMut)>,
    told: VecDeque<Told>,
    /// Links whose interface refuses to send.
    pub(crate) choked: [bool; LINKS],
    buffer: Vec<u8>,
}

pub(crate) fn key(link: usize) -> PathKey {
    PathKey(u32::try_from(link + 1).expect("a few links"))
}

impl Laptop {
    pub(crate) fn new(chance: &mut Chance, offline: Offline, hold: Duration, now: Instant) -> Self {
        let gateway = SecretKey::from_seed(GATEWAY_KEY).public();
        let tuning = Tuning { seed: Some(seed(chance)), ..Tuning::default() };
        let mut tunnel = Tunnel::new(SecretKey::from_seed(CLIENT_KEY), gateway, 0, &tuning)
            .expect("the key is a key");
        tunnel.set_gateway(vec![GATEWAY], now);
        let client = Client::new(tunnel, offline, hold, chance.next(), now);
        let mtu = if chance.per_mille(500) { 1500 } else { 9000 };
        Self {
            client,
            kernel: Kernel::new(chance.next(), mtu, now),
            inbox: VecDeque::new(),
            told: VecDeque::new(),
            choked: [false; LINKS],
            buffer: Vec::new(),
        }
    }

    /// A datagram has arrived on a link.
    pub(crate) fn receive(&mut self, link: usize, bytes: BytesMut) {
        if self.inbox.len() < WAITING {
            self.inbox.push_back((link, bytes));
        }
    }

    /// The client will hear of this as soon as it listens.
    pub(crate) fn tell(&mut self, what: Told) {
        self.told.push_back(what);
    }

    /// Whether there is something it has not heard of yet.
    pub(crate) fn is_told(&self) -> bool {
        !self.told.is_empty()
    }

    /// Everything that can be done without waiting; what was sent, with the link it left by.
    pub(crate) fn turn(&mut self, now: Instant) -> Vec<(usize, BytesMut)> {
        let mut sent = Vec::new();
        while let Some(what) = self.told.pop_front() {
            self.heed(what, now);
        }
        while let Some((link, bytes)) = self.inbox.pop_front() {
            let tunnel = &mut self.client.tunnel;
            let local = Some(tunnel.uplinks.stand_in(key(link)));
            tunnel.handle_datagram(GATEWAY, local, None, bytes, now);
        }
        for _ in 0..ROUNDS {
            self.kernel.poll(now);
            while let Some(packet) = self.kernel.take() {
                self.client.handle_packet(DeviceId(0), &packet, now);
            }
            let mut busy = self.client.advance(self.kernel.wire(), now);
            busy |= self.transmit(&mut sent, now);
            if !busy && !self.kernel.is_stirred() {
                return sent;
            }
        }
        panic!("the client never rests");
    }

    fn heed(&mut self, what: Told, now: Instant) {
        match what {
            Told::Up { link, metered } => {
                let (path, name) = (key(link), ["wlan0", "wwan0"][link]);
                let tunnel = &mut self.client.tunnel;
                tunnel.uplinks.add_bare(path, name, Families { v4: true, v6: false });
                let rank = u32::try_from(link).expect("a few links");
                let terms = Terms { rank, metered, by: CostBy::Configuration };
                tunnel.link_up(path, name, Class::Wired, terms, now);
            }
            Told::Down { link, reason } => {
                self.client.tunnel.link_down(key(link), reason, now);
            }
            Told::Prefer(link) => {
                // Without a connection there is nothing to move, which the person is told.
                let _ = self.client.tunnel.prefer(link.map(key), now);
            }
            Told::Sleep => self.client.sleep(now),
            Told::Awake => self.client.awake(now),
            Told::Slept(asleep) => self.client.slept(asleep, now),
        }
    }

    /// Whether anything was sent.
    fn transmit(&mut self, sent: &mut Vec<(usize, BytesMut)>, now: Instant) -> bool {
        let before = sent.len();
        let tunnel = &mut self.client.tunnel;
        while let Some(transmit) = tunnel.poll_transmit(now, &mut self.buffer) {
            let exit = tunnel.uplinks.exit(&transmit, tunnel.fallback(&transmit));
            let choked = |link: PathKey| (0..LINKS).any(|at| key(at) == link && self.choked[at]);
            let exit = match exit {
                Ok(Some(link)) if choked(link) => {
                    Err(SendFailed { link, error: io::ErrorKind::NetworkUnreachable.into() })
                }
                other => other,
            };
            match exit {
                Ok(Some(link)) => {
                    let at = usize::try_from(link.0 - 1).expect("a few links");
                    let size = transmit.segment.unwrap_or(self.buffer.len()).max(1);
                    sent.extend(self.buffer.chunks(size).map(|bytes| (at, bytes.into())));
                }
                Ok(None) => {}
                Err(failed) => tunnel.send_failed(&failed, now),
            }
            self.buffer.clear();
        }
        sent.len() > before
    }

    /// When something happens next.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        [self.client.poll_timeout(), self.kernel.poll_timeout()].into_iter().flatten().min()
    }
}

/// What the engine draws its choices from.
pub(crate) fn seed(chance: &mut Chance) -> [u8; 32] {
    let mut seed = [0; 32];
    for chunk in seed.chunks_exact_mut(8) {
        chunk.copy_from_slice(&chance.next().to_le_bytes());
    }
    seed
}
