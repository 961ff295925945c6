use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::time::Duration;

use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use socket2::{Domain, Protocol, Socket, Type};
use whimbrel_client_core::plan::{CaptureInputs, MAIN_TABLE, TABLE, Way};

use super::lab::{Lab, Neighbour, isolated};
use super::*;
use crate::tun::{DEFAULT_V4, DEFAULT_V6, Tun, VNET_HEADER};

const MARK: u32 = 0x5748;
const PATIENCE: Duration = Duration::from_secs(10);

/// The laptop's side of its only uplink, one address per family.
const HOME: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)),
];
const ROUTER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
];
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1)),
];
const EXCLUDED: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 1)),
];

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// The prefix length of a single address.
fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A laptop (the namespace of the test) with one uplink to an internet with echo services.
struct World {
    lab: Lab,
    internet: Neighbour,
    echo: u16,
}

impl World {
    async fn new() -> Self {
        let lab = Lab::open();
        let internet = Neighbour::new();
        lab.veth("wan0", "isp0").await;
        lab.hand_over("isp0", &internet).await;
        let echo = internet.run(async || {
            let lab = Lab::open();
            lab.up("isp0").await;
            for family in 0..2 {
                lab.address("isp0", ROUTER[family], prefix(ROUTER[family])).await;
                lab.address("lo", FAR[family], whole(FAR[family])).await;
                lab.address("lo", EXCLUDED[family], whole(FAR[family])).await;
                lab.default_route("isp0", HOME[family], 1).await;
            }
            echo_services()
        });
        for family in 0..2 {
            lab.address("wan0", HOME[family], prefix(HOME[family])).await;
            lab.default_route("wan0", ROUTER[family], 100).await;
        }
        Self { lab, internet, echo }
    }

    fn at(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.echo)
    }
}

/// TCP and UDP echo on one port of every address; the threads end with the test process.
fn echo_services() -> u16 {
    let tcp = TcpListener::bind("[::]:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            std::thread::spawn(move || echo(stream.unwrap()));
        }
    });
    std::thread::spawn(move || {
        let mut buf = [0; 1500];
        while let Ok((length, from)) = udp.recv_from(&mut buf) {
            udp.send_to(&buf[..length], from).unwrap();
        }
    });
    address.port()
}

fn echo(mut stream: TcpStream) {
    let mut buf = [0; 1500];
    while let Ok(length @ 1..) = stream.read(&mut buf) {
        if stream.write_all(&buf[..length]).is_err() {
            return;
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn converse(mut stream: &TcpStream) {
    stream.write_all(b"are you there").unwrap();
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"are you there");
}

fn socket(to: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap()
}

async fn create_tun() -> Tun {
    let tun = Tun::create("whimbrel0", 1500, Some((DEFAULT_V4, 32)), Some((DEFAULT_V6, 128)));
    tun.await.unwrap_or_else(|error| panic!("no TUN to test with: {error}"))
}

fn plan(tun: &Tun) -> Plan {
    plan_when(tun, false)
}

fn plan_when(tun: &Tun, paused: bool) -> Plan {
    plan_with(tun, paused, None)
}

fn plan_with(tun: &Tun, paused: bool, datagrams: Option<PortRange>) -> Plan {
    plan_for(tun, paused, datagrams, false)
}

fn plan_for(tun: &Tun, paused: bool, datagrams: Option<PortRange>, commands: bool) -> Plan {
    let interface = tun.interface().unwrap();
    let own = HOME.iter().filter_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    });
    let ranges = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap());
    Plan::new(&CaptureInputs {
        tun_index: interface.index,
        tun_v4: interface.v4,
        tun_v6: interface.v6,
        include: &ranges(["0.0.0.0/0", "::/0"]),
        exclude: &ranges(["198.51.100.0/24", "2001:db8:10::/48"]),
        own_v6_addresses: &own.collect::<Vec<_>>(),
        mark: MARK,
        commands,
        table: TABLE,
        paused,
        echoes: datagrams.is_some(),
        datagrams,
    })
}

/// Source and destination of the next TCP packet out of the TUN.
async fn next_tcp(tun: &Tun) -> (IpAddr, IpAddr, bool) {
    let mut buf = vec![0; 70_000];
    let skip = if tun.vnet() { VNET_HEADER } else { 0 };
    let next = async {
        loop {
            match tun.read(&mut buf) {
                Ok(length) => {
                    if let Some(found) = tcp(&buf[skip..length]) {
                        return found;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tun.readable().await.unwrap();
                }
                Err(error) => panic!("reading the TUN: {error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("no TCP packet came out of the TUN")
}

fn tcp(packet: &[u8]) -> Option<(IpAddr, IpAddr, bool)> {
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    match packet[0] >> 4 {
        4 if packet[9] == 6 => Some((v4(12), v4(16), packet[20 + 13] & 2 != 0)),
        6 if packet[6] == 6 => Some((v6(8), v6(24), packet[40 + 13] & 2 != 0)),
        _ => None,
    }
}

/// Asserts that nothing TCP is waiting in the TUN.
async fn assert_nothing_captured(tun: &Tun, after: &str) {
    // A write through the TUN's own queue would be needed to know that it is empty; everything
    // sent by this thread was queued before its system call returned, so reading is enough.
    tokio::task::yield_now().await;
    let mut buf = vec![0; 70_000];
    let skip = if tun.vnet() { VNET_HEADER } else { 0 };
    while let Ok(length) = rustix::io::read(tun, &mut buf) {
        let found = tcp(&buf[skip..length]);
        assert_eq!(found, None, "captured after {after}");
    }
}

#[test]
fn only_new_tcp_enters_the_tun() {
    isolated(async || {
        let world = World::new().await;
        for family in 0..2 {
            let far = world.at(FAR[family]);
            let existing = connect(far).unwrap();
            let server = TcpListener::bind((HOME[family], 0)).unwrap();
            let bound = UdpSocket::bind((HOME[family], 0)).unwrap();

            let tun = create_tun().await;
            let mut host = Host::open().unwrap();
            host.apply(&plan(&tun)).await.unwrap();

            converse(&existing);
            assert_nothing_captured(&tun, "an existing connection went on").await;

            let anywhere = if family == 0 { "0.0.0.0:0" } else { "[::]:0" };
            for udp in [bound, UdpSocket::bind(anywhere).unwrap()] {
                udp.set_read_timeout(Some(PATIENCE)).unwrap();
                udp.send_to(b"datagram", far).unwrap();
                assert_eq!(udp.recv(&mut [0; 100]).unwrap(), 8);
            }
            assert_nothing_captured(&tun, "UDP").await;

            let to = server.local_addr().unwrap();
            let visitor = world.internet.run(async move || connect(to).unwrap());
            let (visited, _) = server.accept().unwrap();
            std::thread::spawn(move || echo(visited));
            converse(&visitor);
            assert_nothing_captured(&tun, "a listening server answered").await;

            let bound = socket(far);
            bound.bind(&SocketAddr::new(HOME[family], 0).into()).unwrap();
            bound.connect_timeout(&far.into(), PATIENCE).unwrap();
            converse(&bound.into());
            let marked = socket(far);
            marked.set_mark(MARK).unwrap();
            marked.connect_timeout(&far.into(), PATIENCE).unwrap();
            converse(&marked.into());
            converse(&connect(world.at(ROUTER[family])).unwrap());
            converse(&connect(world.at(EXCLUDED[family])).unwrap());
            assert_nothing_captured(&tun, "bound, marked, local and excluded connections").await;

            let new = socket(far);
            new.set_nonblocking(true).unwrap();
            new.connect(&far.into()).unwrap_err();
            let source = if family == 0 { IpAddr::V4(DEFAULT_V4) } else { IpAddr::V6(DEFAULT_V6) };
            assert_eq!(next_tcp(&tun).await, (source, FAR[family], true));

            host.remove().await.unwrap();
            converse(&connect(far).unwrap());
            converse(&existing);
            existing.shutdown(Shutdown::Both).unwrap();
        }
    });
}

#[test]
fn a_pause_lets_new_connections_go_direct_and_keeps_captured_ones() {
    isolated(async || {
        let world = World::new().await;
        let tun = create_tun().await;
        let mut host = Host::open().unwrap();
        host.apply(&plan(&tun)).await.unwrap();
        host.apply(&plan_when(&tun, true)).await.unwrap();
        for (family, captured) in [DEFAULT_V4.into(), DEFAULT_V6.into()].into_iter().enumerate() {
            let far = world.at(FAR[family]);
            converse(&connect(far).unwrap());
            let source: IpAddr = captured;
            let flow = socket(far);
            flow.bind(&SocketAddr::new(source, 0).into()).unwrap();
            flow.set_nonblocking(true).unwrap();
            flow.connect(&far.into()).unwrap_err();
            assert_eq!(next_tcp(&tun).await, (source, FAR[family], true));
        }
        host.apply(&plan(&tun)).await.unwrap();
        let new = socket(world.at(FAR[0]));
        new.set_nonblocking(true).unwrap();
        new.connect(&world.at(FAR[0]).into()).unwrap_err();
        assert_eq!(next_tcp(&tun).await.1, FAR[0]);
    });
}

#[test]
fn marked_sockets_go_their_way_whatever_the_others_do() {
    isolated(async || {
        let world = World::new().await;
        let tun = create_tun().await;
        let mut host = Host::open().unwrap();
        for paused in [true, false] {
            let plan = plan_for(&tun, paused, None, true);
            host.apply(&plan).await.unwrap();
            assert_eq!(Host::open().unwrap().apply(&plan).await.unwrap(), 0, "read as made");
            for (family, own) in [DEFAULT_V4.into(), DEFAULT_V6.into()].into_iter().enumerate() {
                let far = world.at(FAR[family]);
                let marked = |way: Way, to: SocketAddr| {
                    let socket = socket(to);
                    socket.set_mark(way.mark(MARK)).unwrap();
                    socket
                };
                let direct = marked(Way::Direct, far);
                direct.connect_timeout(&far.into(), PATIENCE).unwrap();
                converse(&direct.into());
                for place in [world.at(ROUTER[family]), world.at(EXCLUDED[family])] {
                    let local = marked(Way::Carried, place);
                    local.connect_timeout(&place.into(), PATIENCE).unwrap();
                    converse(&local.into());
                }
                assert_nothing_captured(&tun, "direct, local and excluded connections").await;
                let carried = marked(Way::Carried, far);
                carried.set_nonblocking(true).unwrap();
                carried.connect(&far.into()).unwrap_err();
                let own: IpAddr = own;
                assert_eq!(next_tcp(&tun).await, (own, FAR[family], true));
            }
        }
        let all = plan_for(&tun, false, None, true);
        assert_eq!(host.remove().await.unwrap(), all.rules().len() + all.routes().len());
    });
}

#[test]
fn after_a_kill_new_connections_go_direct_and_captured_ones_never_leak() {
    isolated(async || {
        let world = World::new().await;
        let tun = create_tun().await;
        Host::open().unwrap().apply(&plan(&tun)).await.unwrap();
        drop(tun);
        // A captured flow's socket keeps its source address when the TUN is gone.
        world.lab.address("lo", DEFAULT_V4.into(), 32).await;
        world.lab.address("lo", DEFAULT_V6.into(), 128).await;
        for (family, source) in [DEFAULT_V4.into(), DEFAULT_V6.into()].into_iter().enumerate() {
            let far = world.at(FAR[family]);
            converse(&connect(far).unwrap());
            let flow = socket(far);
            flow.bind(&SocketAddr::new(source, 0).into()).unwrap();
            let error = flow.connect_timeout(&far.into(), PATIENCE).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
        }
    });
}

#[test]
fn applying_twice_changes_nothing() {
    isolated(async || {
        let _world = World::new().await;
        let tun = create_tun().await;
        let plan = plan(&tun);
        let mut host = Host::open().unwrap();
        assert_eq!(host.apply(&plan).await.unwrap(), plan.rules().len() + plan.routes().len());
        assert_eq!(host.apply(&plan).await.unwrap(), 0);
        assert_eq!(Host::open().unwrap().apply(&plan).await.unwrap(), 0);
        assert_eq!(host.remove().await.unwrap(), plan.rules().len() + plan.routes().len());
        assert_eq!(host.remove().await.unwrap(), 0);
    });
}

#[test]
fn what_a_killed_daemon_left_is_removed_and_nothing_else() {
    isolated(async || {
        let world = World::new().await;
        let rules = world.lab.handle().rule();
        let foreign = rules.add().v4().priority(5410).action(RuleAction::ToTable);
        foreign.table_id(MAIN_TABLE).execute().await.unwrap();
        let mut older = rules.add().v6().priority(5417).action(RuleAction::Unreachable);
        let number = RuleAttribute::Protocol(whimbrel_client_core::plan::PROTOCOL.into());
        older.message_mut().attributes.push(number);
        older.execute().await.unwrap();

        let killed = create_tun().await;
        Host::open().unwrap().apply(&plan(&killed)).await.unwrap();
        drop(killed);

        let tun = create_tun().await;
        let plan = plan(&tun);
        let mut host = Host::open().unwrap();
        assert!(host.apply(&plan).await.unwrap() > 0);
        let found = host.read().await.unwrap();
        assert_eq!(found.plan, plan);
        assert!(found.strange_rules.is_empty());

        host.remove().await.unwrap();
        let left = host.read_rules(Family::V4).await.unwrap();
        let priority =
            |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Priority(5410));
        assert_eq!(left.iter().filter(|rule| priority(rule)).count(), 1);
        assert_eq!((left.len(), host.read_rules(Family::V6).await.unwrap().len()), (4, 2));
    });
}

#[test]
fn a_failure_names_the_step_and_leaves_nothing_behind() {
    isolated(async || {
        let _world = World::new().await;
        let tun = create_tun().await;
        let good = plan(&tun);
        let routes = good.routes().iter().map(|route| {
            let target = match route.target {
                whimbrel_client_core::plan::Target::Device(_) => {
                    whimbrel_client_core::plan::Target::Device(999)
                }
                whimbrel_client_core::plan::Target::Throw => route.target,
            };
            whimbrel_client_core::plan::Route { target, ..*route }
        });
        let bad = Plan::of(routes.collect(), good.rules().to_vec());

        let mut host = Host::open().unwrap();
        let error = host.apply(&bad).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "adding route 0.0.0.0/0 dev #999 table 5211: No such device (os error 19)"
        );
        assert!(host.read().await.unwrap().plan.is_empty());

        host.apply(&good).await.unwrap();
        host.apply(&bad).await.unwrap_err();
        assert_eq!(host.read().await.unwrap().plan, good, "the plan before is restored");
    });
}

#[test]
fn without_the_capability_the_error_says_so() {
    isolated(async || {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let _world = World::new().await;
        let tun = create_tun().await;
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        let mut host = Host::open().unwrap();
        let error = host.apply(&plan(&tun)).await.unwrap_err();
        assert!(error.is_permission());
        assert_eq!(
            error.to_string(),
            "adding route throw 198.51.100.0/24 table 5211: Operation not permitted (os error 1)"
        );
    });
}

#[test]
fn forwarded_traffic_is_not_captured() {
    isolated(async || {
        let world = World::new().await;
        let container = Neighbour::new();
        let inside: [IpAddr; 2] = ["172.18.0.2".parse().unwrap(), "fd18::2".parse().unwrap()];
        let outside: [IpAddr; 2] = ["172.18.0.1".parse().unwrap(), "fd18::1".parse().unwrap()];
        world.lab.veth("docker0", "eth0").await;
        world.lab.hand_over("eth0", &container).await;
        for address in outside {
            world.lab.address("docker0", address, prefix(address)).await;
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        container.run(async move || {
            let lab = Lab::open();
            lab.up("eth0").await;
            for family in 0..2 {
                lab.address("eth0", inside[family], prefix(inside[family])).await;
                lab.default_route("eth0", outside[family], 1).await;
            }
        });

        let tun = create_tun().await;
        let mut host = Host::open().unwrap();
        host.apply(&plan(&tun)).await.unwrap();
        for address in FAR {
            let to = world.at(address);
            container.run(async move || converse(&connect(to).unwrap()));
        }
        assert_nothing_captured(&tun, "a container's connection").await;
    });
}

#[test]
fn a_host_with_ipv6_switched_off_is_an_ipv4_host() {
    isolated(async || {
        let world = World::new().await;
        for which in ["all", "default"] {
            let switch = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            std::fs::write(switch, "1").unwrap();
        }
        let tun = create_tun().await;
        assert_eq!(tun.interface().unwrap().v6, None);
        let mut host = Host::open().unwrap();
        let plan = plan(&tun);
        assert!(plan.rules().iter().all(|rule| rule.family == Family::V4));
        host.apply(&plan).await.unwrap();
        let new = socket(world.at(FAR[0]));
        new.set_nonblocking(true).unwrap();
        new.connect(&world.at(FAR[0]).into()).unwrap_err();
        assert_eq!(next_tcp(&tun).await, (DEFAULT_V4.into(), FAR[0], true));
        host.remove().await.unwrap();
    });
}
