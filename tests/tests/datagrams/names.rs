//! Names are asked of the gateway, and the host's own settings come back whatever happens.

use crate::pair::{all, anywhere, bound, expect};
use crate::stage::{ORIGIN, PATIENCE, Stage, connect, no_panics, prepare, put, until};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use whimbrel_tests::daemon::edit;
use whimbrel_tests::lab::{BOTH, Layout, World};

/// The name server inside the TUN.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 213, 52, 53)), 53);

/// What the laptop's networks say.
const BEFORE: &str = "search lan\nnameserver 192.168.10.1\n";

/// Gives a host a `resolv.conf` of its own, and tells where it is.
fn settings(world: &World, host: &str, text: &str) -> Result<PathBuf> {
    let file = world.folder().join(format!("resolv.{host}"));
    fs::write(&file, text)?;
    let path = CString::new(file.as_os_str().as_bytes())?;
    let mounted = world
        .host(host)
        .run(move |_| rustix::mount::mount_bind(path.as_c_str(), c"/etc/resolv.conf"));
    mounted.with_context(|| format!("giving {host} settings of its own"))?;
    Ok(file)
}

/// A name server on the gateway's own machine: whatever it is asked, it says "yes" to.
struct Resolver {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Resolver {
    fn start(world: &World) -> Result<()> {
        Self::start_at(world, Ipv4Addr::new(127, 0, 0, 9).into())
    }

    fn start_at(world: &World, address: IpAddr) -> Result<()> {
        let place = SocketAddr::new(address, 53);
        let udp = bound(world, "gateway", place)?;
        let tcp = world.host("gateway").run(move |_| TcpListener::bind(place))?;
        udp.set_read_timeout(None)?;
        let resolver = Self { udp, tcp };
        std::thread::spawn(move || resolver.serve());
        Ok(())
    }

    fn serve(self) {
        let Self { udp, tcp } = self;
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let _ended = stream.map_err(Into::into).and_then(|mut stream| {
                    let mut length = [0; 2];
                    stream.read_exact(&mut length)?;
                    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut message)?;
                    message[2] |= 0x80;
                    stream.write_all(&length)?;
                    stream.write_all(&message)?;
                    anyhow::Ok(())
                });
            }
        });
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            let _lost = udp.send_to(&buffer[..length], from);
        }
    }
}

/// A query for `lab.`, with this number.
fn query(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(b"\x03lab\x00\x00\x01\x00\x01");
    message
}

fn answer(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer
}

fn ask_by_udp(world: &World, id: u16) -> Result<bool> {
    let socket = anywhere(world, "laptop", SERVER.ip())?;
    socket.send_to(&query(id), SERVER)?;
    Ok(expect(&socket, &answer(&query(id)))? == Some(SERVER))
}

fn ask_by_tcp(world: &World, id: u16) -> Result<()> {
    let mut stream = connect(world, SERVER)?;
    let query = query(id);
    let length = u16::try_from(query.len())?.to_be_bytes();
    stream.write_all(&[&length, query.as_slice()].concat())?;
    let mut heard = vec![0; 2 + query.len()];
    stream.read_exact(&mut heard)?;
    ensure!(heard[2..] == answer(&query), "{heard:?}");
    Ok(())
}

/// Both daemons, each on a machine with settings of its own; where the laptop's are.
fn raise(
    before: &str,
    gateway: &str,
    client: impl FnOnce(&mut toml::Table),
) -> Result<(Stage, PathBuf)> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let file = settings(&world, "laptop", before)?;
    settings(&world, "gateway", gateway)?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    edit(&world.client_config("laptop"), client)?;
    let client = world.start_client("laptop")?;
    Ok((Stage { client, gateway, origin, world }, file))
}

const OWN: &str = "nameserver 127.0.0.9\n";

pub(crate) fn the_gateways_resolver_answers_inside_the_tun() -> Result<()> {
    // Also where UDP is not carried.
    for mode in ["tcp", "all"] {
        let (stage, _file) = raise(BEFORE, OWN, |table| {
            put(table, "capture", "mode", mode);
            put(table, "capture", "dns", "direct");
        })?;
        Resolver::start(&stage.world)?;
        let mut id = 0;
        until("a query by UDP is answered", || {
            id += 1;
            ask_by_udp(&stage.world, id)
        })?;
        ask_by_tcp(&stage.world, 1000)?;
        let status = stage.client.status(&stage.world)?;
        ensure!(status["names"]["state"] == "direct", "{status}");
        no_panics(&stage.world)?;
    }
    Ok(())
}

pub(crate) fn the_next_name_server_is_asked_if_the_first_is_gone() -> Result<()> {
    for by_tcp in [false, true] {
        let gone_and_other_family = "nameserver 127.0.0.8\nnameserver ::1\n";
        let (stage, _file) = raise(BEFORE, gone_and_other_family, |table| {
            put(table, "capture", "mode", "all");
            put(table, "capture", "dns", "direct");
        })?;
        Resolver::start_at(&stage.world, Ipv6Addr::LOCALHOST.into())?;
        if by_tcp {
            until("a query by TCP is answered", || Ok(ask_by_tcp(&stage.world, 1).is_ok()))?;
            continue;
        }
        // Resolvers ask again through the socket they have.
        let socket = anywhere(&stage.world, "laptop", SERVER.ip())?;
        until("a query by UDP is answered", || {
            socket.send_to(&query(1), SERVER)?;
            Ok(expect(&socket, &answer(&query(1)))? == Some(SERVER))
        })?;
    }
    Ok(())
}

fn leads_to_gateway(file: &Path) -> Result<bool> {
    Ok(fs::read_to_string(file)?.contains("nameserver 10.213.52.53"))
}

pub(crate) fn names_lead_to_the_gateway_and_are_given_back() -> Result<()> {
    let (mut stage, file) = raise(BEFORE, OWN, all)?;
    Resolver::start(&stage.world)?;
    stage.client.wait_until(&stage.world, "asks the gateway", |status| {
        status["names"]["state"] == "gateway"
    })?;
    ensure!(leads_to_gateway(&file)?, "{}", fs::read_to_string(&file)?);
    // Whoever manages the links writes what the new network says.
    stage.world.link("wifi0").down()?;
    let begin = Instant::now();
    fs::write(&file, "nameserver 10.64.0.1\n")?;
    until("names lead to the gateway again", || leads_to_gateway(&file))?;
    crate::stage::tell!("names were right {:?} after a change of the links", begin.elapsed());
    until("the name server answers over the other link", || ask_by_udp(&stage.world, 7))?;
    // A pause gives them back, and its end takes them again.
    stage.client.command(&stage.world, &["pause"])?;
    until("the host asks as was written last", || {
        Ok(fs::read_to_string(&file)? == "nameserver 10.64.0.1\n")
    })?;
    stage.client.command(&stage.world, &["resume"])?;
    until("names lead to the gateway", || leads_to_gateway(&file))?;
    // So does a kill, with what cleans up after it.
    stage.client.process().signal(Signal::KILL)?;
    stage.client.process().wait(PATIENCE)?;
    ensure!(leads_to_gateway(&file)?, "nobody was there to give them back");
    let config = stage.world.client_config("laptop").display().to_string();
    stage.world.ask_client("laptop", &["cleanup", "--config", &config])?;
    ensure!(fs::read_to_string(&file)? == "nameserver 10.64.0.1\n", "after `cleanup`");
    // And an orderly end.
    stage.client = stage.world.start_client("laptop")?;
    until("names lead to the gateway after a new start", || leads_to_gateway(&file))?;
    stage.client.process().signal(Signal::TERM)?;
    stage.client.process().wait(PATIENCE)?;
    ensure!(fs::read_to_string(&file)? == "nameserver 10.64.0.1\n", "after an orderly end");
    no_panics(&stage.world)
}

pub(crate) fn names_stay_where_they_are_if_the_gateway_has_no_resolver() -> Result<()> {
    let (mut stage, file) = raise(BEFORE, "# none\n", all)?;
    stage.client.wait_until(&stage.world, "says so", |status| {
        status["names"]["state"] == "failed" && status["names"]["trouble"].is_string()
    })?;
    ensure!(fs::read_to_string(&file)? == BEFORE, "the settings were touched");
    let [v4, _] = ORIGIN;
    stage.pair(v4)?.converse()
}

pub(crate) fn systemd_resolved_is_told_and_told_again() -> Result<()> {
    let (world, origin) = prepare(Layout::standard(), |_| {})?;
    let file = settings(&world, "laptop", "nameserver 127.0.0.53\n")?;
    settings(&world, "gateway", OWN)?;
    Resolver::start(&world)?;
    let gateway = world.start_gateway()?;
    world.join_client("laptop")?;
    edit(&world.client_config("laptop"), all)?;
    let mut login = world.start_login()?;
    let client = world.start_client("laptop")?;
    let mut stage = Stage { client, gateway, origin, world };
    let told = || fs::read_to_string(stage.world.folder().join("resolver")).unwrap_or_default();
    let count = |word: &str| told().lines().filter(|line| line.starts_with(word)).count();
    until("it is told", || Ok(count("flush") == 1))?;
    for line in ["[(2, [10, 213, 52, 53])]", "domains [(\".\", true)]", "default true", "tls no"] {
        ensure!(told().contains(line), "no {line} in {}", told());
    }
    // One that is started anew knows nothing.
    login.say("break")?;
    login.say("mend")?;
    until("it is told again", || Ok(count("flush") >= 2))?;
    stage.client.process().signal(Signal::TERM)?;
    stage.client.process().wait(PATIENCE)?;
    if count("revert") == 0 {
        bail!("it was not told of the end: {}", told());
    }
    ensure!(fs::read_to_string(&file)? == "nameserver 127.0.0.53\n", "the file is not ours");
    no_panics(&stage.world)
}

pub(crate) fn a_question_that_was_on_its_way_when_the_network_died_is_answered() -> Result<()> {
    let (mut stage, _file) = raise(BEFORE, OWN, |table| {
        all(table);
        put(table, "capture", "dns", "direct");
    })?;
    Resolver::start(&stage.world)?;
    until("a question is answered", || ask_by_udp(&stage.world, 1))?;
    stage.client.wait_until(&stage.world, "has a spare link", |status| {
        let paths = status["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
        ["active", "warm"].iter().all(|state| paths.iter().any(|path| path["state"] == *state))
    })?;
    let socket = anywhere(&stage.world, "laptop", SERVER.ip())?;
    // Either the question or its answer is lost.
    stage.world.link("wifi0").black_hole(&BOTH);
    socket.send_to(&query(2), SERVER)?;
    let begin = Instant::now();
    // Nobody asks twice.
    until("the question is answered", || Ok(expect(&socket, &answer(&query(2)))? == Some(SERVER)))?;
    crate::stage::tell!("answered {:?} after the network died", begin.elapsed());
    no_panics(&stage.world)
}
