//! The lab does what it says: every impairment is measured, with plain traffic.

use anyhow::{Context, Result, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use whimbrel_tests::internet::packet::{self, Headers};
use whimbrel_tests::internet::{Direction, Expiry, Shape, Verdict};
use whimbrel_tests::lab::{
    BOTH, GATEWAY_V4, Layout, ORIGIN_V4, ORIGIN_V6, Ping, SILENT_V4, UNREACHABLE_V4,
    UNREACHABLE_V6, World, ping, shortest,
};
use whimbrel_tests::suite;

suite! {
    both_uplinks_reach_everything_over_both_families,
    no_packet_is_faster_than_its_line,
    rate_and_loss_are_as_asked,
    one_flow_fills_the_lab_without_loss,
    a_black_hole_swallows_one_direction_only,
    a_dead_uplink_loses_its_addresses_and_gets_them_back,
    an_unplugged_device_disappears,
    removing_the_default_route_moves_new_traffic,
    rebinding_changes_the_port_and_closes_the_old_one,
    an_idle_mapping_expires,
    a_captive_network_answers_everything_but_carries_nothing,
    a_hook_can_copy_packets_from_another_address,
    an_uplink_can_lack_a_family,
    routers_report_what_is_unreachable,
    oversized_packets_vanish,
    hosts_do_not_see_each_other_or_us,
}

const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY_V4), 443);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn line(delay: u64) -> Shape {
    Shape { delay: ms(delay), ..Shape::default() }
}

fn round_trips(world: &World, to: impl Into<IpAddr>, over: &str) -> Result<Vec<Option<Duration>>> {
    let request = Ping { patience: ms(1000), ..Ping::new(to.into(), over) };
    ping(world.host("laptop"), &request)
}

fn answered(world: &World, to: impl Into<IpAddr>, over: &str) -> Result<usize> {
    Ok(round_trips(world, to, over)?.iter().flatten().count())
}

/// A UDP socket of the laptop that uses one uplink.
fn socket_over(world: &World, link: &str) -> Result<UdpSocket> {
    let link = link.to_owned();
    let socket = world.host("laptop").run(move |_| -> Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket2::SockRef::from(&socket).bind_device(Some(link.as_bytes()))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(ms(300)))?;
    Ok(socket)
}

/// A UDP socket of the gateway on port 443.
fn gateway_socket(world: &World) -> Result<UdpSocket> {
    let socket = world.host("gateway").run(|_| UdpSocket::bind("0.0.0.0:443"))?;
    socket.set_read_timeout(Some(ms(300)))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<Option<(Vec<u8>, SocketAddr)>> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Ok(Some((buffer[..length].to_vec(), from))),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn connect(world: &World, to: SocketAddr) -> std::io::Result<TcpStream> {
    let attempt = move || TcpStream::connect_timeout(&to, ms(1000));
    join(world.host("laptop").thread(attempt))
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("threads of the tests do not panic")
}

fn both_uplinks_reach_everything_over_both_families() -> Result<()> {
    let world = World::build(Layout::standard())?;
    for link in ["wifi0", "cell0"] {
        for to in [IpAddr::from(ORIGIN_V4), ORIGIN_V6.into(), GATEWAY_V4.into()] {
            let count = answered(&world, to, link)?;
            ensure!(count == 10, "{link} to {to}: {count} of 10");
        }
    }
    Ok(())
}

// A busy machine adds to delays, so these hold from below; how close they come is for benchmarks.

fn no_packet_is_faster_than_its_line() -> Result<()> {
    let world = World::build(Layout::standard())?;
    world.link("wifi0").shape_both(line(10));
    world.link("cell0").shape_both(line(80));
    for (link, expected, slower) in [("wifi0", 20, 160), ("cell0", 160, 640)] {
        let measured = round_trips(&world, ORIGIN_V4, link)?;
        let best = shortest(&measured).unwrap_or_default();
        ensure!(best >= ms(expected) && best < ms(slower), "{link}: {measured:?}");
    }
    Ok(())
}

fn rate_and_loss_are_as_asked() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let slow = Shape { queue: Some(1 << 20), ..Shape::line(ms(0), 8) };
    world.link("wifi0").shape(slow, Shape::default());
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    let began = Instant::now();
    for _ in 0..100 {
        sender.send_to(&[0; 972], GATEWAY)?;
    }
    let mut arrived = 0;
    let mut took = Duration::ZERO;
    while receive(&receiver)?.is_some() {
        arrived += 1;
        took = began.elapsed();
    }
    // 1000 bytes of IP take 1 ms at 8 Mbit/s.
    ensure!(arrived == 100, "{arrived} arrived");
    ensure!(took >= ms(99), "100 packets took {took:?}");

    world.link("wifi0").shape(Shape::default().with_loss(0.2), Shape::default());
    let lost_before = world.link("wifi0").count().up.lost;
    let request = Ping { count: 500, every: ms(1), ..Ping::new(GATEWAY_V4.into(), "wifi0") };
    let request = Ping { patience: ms(100), ..request };
    let round_trips = ping(world.host("laptop"), &request)?;
    let missing = round_trips.iter().filter(|one| one.is_none()).count();
    ensure!((60..140).contains(&missing), "{missing} of 500 lost at 20 %");
    let lost = world.link("wifi0").count().up.lost - lost_before;
    ensure!(lost == missing as u64, "the line counted {lost} of {missing}");
    Ok(())
}

fn one_flow_fills_the_lab_without_loss() -> Result<()> {
    const BYTES: u64 = 100_000_000;
    let world = World::build(Layout::standard())?;
    let listener = world.host("origin").run(|_| TcpListener::bind("0.0.0.0:9000"))?;
    let server = world.host("origin").thread(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut std::io::repeat(7).take(BYTES), &mut stream)?;
        Ok(())
    });
    let mut stream = connect(&world, SocketAddr::new(ORIGIN_V4.into(), 9000))?;
    let begin = Instant::now();
    let received = std::io::copy(&mut stream, &mut std::io::sink())?;
    let took = begin.elapsed();
    join(server)?;
    ensure!(received == BYTES, "{received} bytes");
    let count = world.link("wifi0").count();
    ensure!(count.down.bytes > BYTES, "it went another way: {count:?}");
    ensure!(count.down.overflowed + count.down.lost == 0, "the lab lost packets: {count:?}");
    let mbit = BYTES as f64 * 8.0 / took.as_secs_f64() / 1e6;
    writeln!(std::io::stdout(), "{mbit:.0} Mbit/s")?;
    Ok(())
}

fn a_black_hole_swallows_one_direction_only() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    sender.send_to(b"before", GATEWAY)?;
    let (_, from) = receive(&receiver)?.context("nothing arrived before the black hole")?;
    let wifi = world.link("wifi0");
    wifi.black_hole(&[Direction::Down]);
    receiver.send_to(b"swallowed", from)?;
    ensure!(receive(&sender)?.is_none(), "the black hole let something through");
    sender.send_to(b"up", GATEWAY)?;
    ensure!(receive(&receiver)?.is_some(), "the other direction died as well");
    ensure!(wifi.count().down.swallowed == 1, "{:?}", wifi.count());
    wifi.black_hole(&BOTH);
    ensure!(answered(&world, GATEWAY_V4, "wifi0")? == 0);
    ensure!(answered(&world, GATEWAY_V4, "cell0")? == 10, "the other uplink died as well");
    wifi.heal();
    ensure!(answered(&world, GATEWAY_V4, "wifi0")? == 10);
    Ok(())
}

fn a_dead_uplink_loses_its_addresses_and_gets_them_back() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let wifi = world.link("wifi0");
    for _ in 0..3 {
        wifi.down()?;
        ensure!(answered(&world, ORIGIN_V4, "wifi0")? == 0);
        let source = route_source(&world)?;
        ensure!(source == Ipv4Addr::new(10, 64, 0, 2), "the default route leads to {source}");
        wifi.up()?;
        ensure!(answered(&world, ORIGIN_V4, "wifi0")? == 10);
        ensure!(answered(&world, ORIGIN_V6, "wifi0")? == 10);
        let source = route_source(&world)?;
        ensure!(source == Ipv4Addr::new(192, 168, 10, 2), "the default route leads to {source}");
    }
    wifi.remove_address()?;
    let source = route_source(&world)?;
    ensure!(source == Ipv4Addr::new(10, 64, 0, 2), "without address it still leads to {source}");
    Ok(())
}

/// The source address the laptop's kernel chooses for the origin.
fn route_source(world: &World) -> Result<IpAddr> {
    let socket = world.host("laptop").run(|_| UdpSocket::bind("0.0.0.0:0"))?;
    socket.connect((ORIGIN_V4, 9))?;
    Ok(socket.local_addr()?.ip())
}

fn an_unplugged_device_disappears() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let wifi = world.link("wifi0");
    wifi.unplug()?;
    ensure!(world.host("laptop").run(|wiring| wiring.index("wifi0"))?.is_none());
    ensure!(answered(&world, ORIGIN_V4, "cell0")? == 10);
    wifi.plug()?;
    ensure!(answered(&world, ORIGIN_V4, "wifi0")? == 10);
    Ok(())
}

fn removing_the_default_route_moves_new_traffic() -> Result<()> {
    let world = World::build(Layout::standard())?;
    world.link("wifi0").remove_default_route()?;
    let source = route_source(&world)?;
    ensure!(source == Ipv4Addr::new(10, 64, 0, 2), "new traffic leaves from {source}");
    Ok(())
}

fn rebinding_changes_the_port_and_closes_the_old_one() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    sender.send_to(b"one", GATEWAY)?;
    let (_, old) = receive(&receiver)?.context("nothing arrived")?;
    ensure!(old.ip() == Ipv4Addr::new(203, 0, 113, 10), "not translated: {old}");
    world.link("wifi0").rebind();
    receiver.send_to(b"late", old)?;
    ensure!(receive(&sender)?.is_none(), "the old port still works");
    ensure!(world.link("wifi0").count().unsolicited == 1);
    sender.send_to(b"two", GATEWAY)?;
    let (_, new) = receive(&receiver)?.context("nothing arrived after rebinding")?;
    ensure!(new.ip() == old.ip() && new.port() != old.port(), "{old} became {new}");
    receiver.send_to(b"back", new)?;
    ensure!(receive(&sender)?.is_some(), "the new port does not work");
    world.link("wifi0").rebind_to(Some(Ipv4Addr::new(203, 0, 113, 99)), None);
    sender.send_to(b"three", GATEWAY)?;
    let (_, moved) = receive(&receiver)?.context("nothing arrived after moving")?;
    ensure!(moved.ip() == Ipv4Addr::new(203, 0, 113, 99), "still at {moved}");
    Ok(())
}

fn an_idle_mapping_expires() -> Result<()> {
    let world = World::build(Layout::standard())?;
    world.link("wifi0").set_expiry(Expiry { udp: ms(0), ..Expiry::default() });
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    sender.send_to(b"one", GATEWAY)?;
    let (_, from) = receive(&receiver)?.context("nothing arrived")?;
    receiver.send_to(b"late", from)?;
    ensure!(receive(&sender)?.is_none(), "the mapping outlived its time");
    Ok(())
}

fn a_captive_network_answers_everything_but_carries_nothing() -> Result<()> {
    let world = World::build(Layout::standard())?;
    world.link("wifi0").captive(true);
    ensure!(answered(&world, ORIGIN_V4, "wifi0")? == 10, "echo is not answered");
    let mut page = String::new();
    let mut stream = connect(&world, SocketAddr::new(SILENT_V4.into(), 80))?;
    stream.set_read_timeout(Some(ms(1000)))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    stream.read_to_string(&mut page)?;
    ensure!(page.starts_with("HTTP/1.1 302"), "{page}");
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    sender.send_to(b"lost", GATEWAY)?;
    ensure!(receive(&receiver)?.is_none(), "UDP got through");
    world.link("wifi0").captive(false);
    sender.send_to(b"through", GATEWAY)?;
    ensure!(receive(&receiver)?.is_some(), "signing in did not help");
    Ok(())
}

fn a_hook_can_copy_packets_from_another_address() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    let thief: SocketAddr = "203.0.113.66:6666".parse()?;
    let (seen, payloads) = mpsc::channel();
    world.link("wifi0").set_hook(Some(Box::new(move |direction, bytes| {
        let headers = Headers::read(bytes);
        let payload = headers.and_then(|headers| headers.udp_payload(bytes));
        match (direction, payload) {
            (Direction::Up, Some(payload)) => {
                seen.send(payload.to_vec()).ok();
                Verdict::PassAfter(vec![packet::build_udp(thief, GATEWAY, payload)])
            }
            _ => Verdict::Pass,
        }
    })));
    sender.send_to(b"secret", GATEWAY)?;
    let (first, from) = receive(&receiver)?.context("no copy")?;
    ensure!(first == b"secret" && from == thief, "{first:?} from {from}");
    let (second, from) = receive(&receiver)?.context("no original")?;
    ensure!(second == b"secret" && from != thief, "{second:?} from {from}");
    ensure!(payloads.try_recv()? == b"secret");
    receiver.send_to(b"reply to the thief", thief)?;
    let deadline = Instant::now() + ms(500);
    while world.stray(thief.ip()).packets == 0 {
        ensure!(Instant::now() < deadline, "what went to the thief was not counted");
    }
    Ok(())
}

fn an_uplink_can_lack_a_family() -> Result<()> {
    let layout = Layout::standard()
        .with_link("wifi0", |link| link.v6 = None)
        .with_link("cell0", |link| link.v4 = None);
    let world = World::build(layout)?;
    ensure!(answered(&world, ORIGIN_V4, "wifi0")? == 10);
    ensure!(answered(&world, ORIGIN_V6, "wifi0")? == 0);
    ensure!(answered(&world, ORIGIN_V4, "cell0")? == 0);
    ensure!(answered(&world, ORIGIN_V6, "cell0")? == 10);
    Ok(())
}

fn routers_report_what_is_unreachable() -> Result<()> {
    let world = World::build(Layout::standard())?;
    for address in [IpAddr::from(UNREACHABLE_V4), UNREACHABLE_V6.into()] {
        let attempt = move || TcpStream::connect_timeout(&SocketAddr::new(address, 80), ms(10_000));
        let outcome = join(world.host("gateway").thread(attempt));
        let error = outcome.err().context("it is reachable")?;
        ensure!(error.kind() == ErrorKind::HostUnreachable, "{address}: {error:?}");
    }
    let attempt = move || TcpStream::connect_timeout(&(SILENT_V4, 80).into(), ms(300));
    let outcome = join(world.host("gateway").thread(attempt));
    ensure!(outcome.is_err_and(|error| error.kind() == ErrorKind::TimedOut));
    Ok(())
}

fn oversized_packets_vanish() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let narrow = Shape { mtu: Some(1280), ..Shape::default() };
    world.link("wifi0").shape(narrow, Shape::default());
    let (sender, receiver) = (socket_over(&world, "wifi0")?, gateway_socket(&world)?);
    sender.send_to(&[0; 1280 - 28 + 1], GATEWAY)?;
    ensure!(receive(&receiver)?.is_none());
    sender.send_to(&[0; 1280 - 28], GATEWAY)?;
    ensure!(receive(&receiver)?.is_some());
    ensure!(world.link("wifi0").count().up.oversized == 1);
    Ok(())
}

fn hosts_do_not_see_each_other_or_us() -> Result<()> {
    let world = World::build(Layout::standard())?;
    let has = |host: &str, interface: &'static str| {
        world.host(host).run(move |wiring| wiring.index(interface).map(|index| index.is_some()))
    };
    ensure!(has("laptop", "wifi0")? && !has("laptop", "eth0")?);
    ensure!(has("gateway", "eth0")? && !has("gateway", "wifi0")?);
    world.host("laptop").run(|_| std::fs::write("/run/whimbrel-lab-marker", "x"))?;
    ensure!(
        !world.host("gateway").run(|_| std::path::Path::new("/run/whimbrel-lab-marker").exists())
    );
    ensure!(!std::path::Path::new("/run/whimbrel-lab-marker").exists());
    Ok(())
}
