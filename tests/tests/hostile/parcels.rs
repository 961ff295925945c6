//! What a gateway makes of datagrams that nobody honest would send.

use crate::frames::{Honest, noise};
use crate::rogue::{Rogue, key};
use crate::stage::{PATIENCE, Stage, no_panics, tell};
use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use whimbrel_common::wire::{
    self, Association, Denial, FlowHeader, Parcel, encode_parcel, put_parcel,
};
use whimbrel_gateway_core::limits::MOST_PORTS;
use whimbrel_tests::lab::ORIGIN_V4;

/// Ports a session may have, as the gateway's core says.
const MOST: u64 = whimbrel_gateway_core::associations::MOST as u64;

impl Rogue {
    fn throw(&mut self, parcel: Bytes) {
        // Lost, if there is no room for it: so it is for everybody.
        let _lost = self.endpoint.send_datagram(self.connection, 0, parcel, Instant::now());
    }
}

fn datagram(association: u64, to: SocketAddr) -> Bytes {
    let payload = Bytes::from_static(b"unwanted");
    encode_parcel(&Parcel::Datagram { association: Association(association), remote: to, payload })
}

fn listen(stage: &Stage) -> Result<(UdpSocket, SocketAddr)> {
    let socket = stage.world.host("origin").run(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let at = SocketAddr::new(ORIGIN_V4.into(), socket.local_addr()?.port());
    Ok((socket, at))
}

pub(crate) fn noise_in_datagrams_is_lost_and_harms_nobody() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let (origin, at) = listen(&stage)?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 7)?;
    for seed in 0..300 {
        rogue.throw(noise(seed, 1 + usize::try_from(seed)?).into());
    }
    for whole in
        [datagram(1, at), encode_parcel(&Parcel::Renew { association: Association(1), remote: at })]
    {
        for length in 0..whole.len() {
            rogue.throw(whole.slice(..length));
        }
    }
    // Where no client may send to, and where nobody can.
    for to in ["127.0.0.1:53", "[::1]:53", "[fe80::1]:53", "255.255.255.255:9", "224.0.0.1:9"] {
        rogue.throw(datagram(2, to.parse()?));
    }
    rogue.throw(datagram(3, SocketAddr::new(ORIGIN_V4.into(), 0)));
    rogue.linger(Duration::from_millis(200))?;
    ensure!(rogue.lost.is_none(), "noise in datagrams ended the session: {:?}", rogue.lost);
    rogue.throw(datagram(4, at));
    rogue.linger(Duration::from_millis(50))?;
    let mut buffer = [0; 100];
    loop {
        // One that was cut short within its payload is a datagram like any other.
        let heard = origin.recv(&mut buffer).context("what is no noise arrives")?;
        if &buffer[..heard] == b"unwanted" {
            break;
        }
    }
    // On the stream nothing can be read behind noise.
    let stream = rogue.send_header(&FlowHeader::Parcels)?;
    let mut bytes = BytesMut::new();
    put_parcel(&datagram(5, at), &mut bytes);
    put_parcel(&noise(1, 60), &mut bytes);
    wire::encode_varint(1 << 40, &mut bytes);
    rogue.write_all(stream, &bytes)?;
    ensure!(rogue.code_of_the_end()? == Denial::Protocol.code());
    let status = stage.gateway.status(&stage.world)?;
    ensure!(status["datagrams"]["denied"].as_u64() >= Some(5), "{status}");
    honest.prove(&mut stage)?;
    no_panics(&stage.world)
}

pub(crate) fn ports_of_one_client_are_bounded() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let (_origin, at) = listen(&stage)?;
    let mut rogue = Rogue::admitted(&stage.world, "rogue", 7)?;
    for association in 0..2 * MOST {
        rogue.throw(datagram(association, at));
        if association % 64 == 0 {
            rogue.linger(Duration::from_millis(5))?;
        }
    }
    rogue.linger(Duration::from_millis(200))?;
    let status = stage.gateway.status(&stage.world)?;
    tell!("{} ports after {} associations", status["datagrams"]["ports"], 2 * MOST);
    ensure!(status["datagrams"]["ports"].as_u64().is_some_and(|ports| 0 < ports && ports <= MOST));
    drop(rogue);
    honest.prove(&mut stage)?;
    no_panics(&stage.world)
}

pub(crate) fn ports_of_one_client_are_bounded_over_its_sessions() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let (_origin, at) = listen(&stage)?;
    let mut rogues = vec![Rogue::admitted(&stage.world, "rogue", 7)?];
    rogues.push(Rogue::again(&stage.world, 7)?);
    rogues.push(Rogue::again(&stage.world, 7)?);
    let most = u64::from(MOST_PORTS);
    let began = Instant::now();
    let mut rounds_beyond = 0;
    while rounds_beyond < 2 {
        ensure!(began.elapsed() < PATIENCE, "it never has as many as it may");
        for rogue in &mut rogues {
            for association in 0..MOST {
                rogue.throw(datagram(association, at));
                if association % 64 == 0 {
                    rogue.linger(Duration::from_millis(5))?;
                }
            }
        }
        let status = stage.gateway.status(&stage.world)?;
        let ports = status["datagrams"]["ports"].as_u64().context("how many ports")?;
        ensure!(ports <= most, "{ports} ports");
        // One may have gone for another that came too fast.
        rounds_beyond += u64::from(ports + 16 > most);
    }
    drop(rogues);
    honest.prove(&mut stage)
}

pub(crate) fn a_strangers_datagrams_go_nowhere() -> Result<()> {
    let mut stage = Stage::raise()?;
    let honest = Honest::begin(&stage)?;
    let (origin, at) = listen(&stage)?;
    let mut stranger = Rogue::connect(&stage.world, key(10))?;
    for association in 0..100 {
        stranger.throw(datagram(association, at));
    }
    stranger.linger(Duration::from_millis(200))?;
    ensure!(origin.recv(&mut [0; 100]).is_err(), "a stranger's datagram was sent");
    let status = stage.gateway.status(&stage.world)?;
    ensure!(status["datagrams"]["ports"] == 0, "a stranger was given a port: {status}");
    honest.prove(&mut stage)
}
