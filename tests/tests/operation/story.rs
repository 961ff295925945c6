//! A bad day in the life of both daemons, after which every figure has counted something.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use whimbrel_tests::daemon::{Daemon, edit};
use whimbrel_tests::internet::{Direction, Shape};
use whimbrel_tests::lab::{Layout, ORIGIN_V4, World};
use whimbrel_tests::traffic::{Event, Program, port, service};

use crate::PATIENCE;
use crate::prometheus::{check, lint};

/// Families that this story does not bring about, and where they are seen to count.
const ELSEWHERE: [(&str, &str); 7] = [
    ("whimbrel_echoes_total", "datagrams: a_ping_is_answered_by_its_destination"),
    ("whimbrel_gateway_echoes_total", "the same"),
    ("whimbrel_packets_dropped_total", "engine::tests::garbage: every reason"),
    ("whimbrel_gateway_sessions_given_up_total", "hostile: what_all_clients_keep_has_a_limit"),
    ("whimbrel_gateway_flows_unkept_total", "server/src/keep: where the journal has no room"),
    ("whimbrel_gateway_datagrams_strayed_total", "restarts: slots, where a batch is torn"),
    ("whimbrel_gateway_datagrams_dropped_total", "a full queue between slots: none in a lab"),
];

/// Where the gateway forbids to go, and the client does not know.
const FORBIDDEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), 80);

struct Story {
    world: World,
    client: Daemon,
    gateway: Daemon,
    _origin: Program,
}

impl Story {
    fn begin() -> Result<Self> {
        let slow = Shape { delay: Duration::from_millis(10), ..Shape::default() };
        let layout = Layout::standard().with_link("gateway/eth0", |link| link.up = slow);
        let world = World::build(layout)?;
        let origin = world.start_origin()?;
        world.init_gateway("192.0.2.10:443".parse().context("an address")?)?;
        edit(&world.gateway_config(), |table| {
            let limits = table.entry("limits").or_insert_with(|| toml::Table::new().into());
            if let Some(limits) = limits.as_table_mut() {
                limits.insert("flows_per_client".into(), 3.into());
            }
        })?;
        let gateway = world.start_kept_gateway()?;
        world.join_client("laptop")?;
        edit(&world.client_config("laptop"), |table| {
            let capture = table.entry("capture").or_insert_with(|| toml::Table::new().into());
            if let Some(capture) = capture.as_table_mut() {
                capture.insert("mode".into(), "all".into());
                capture.insert("dns".into(), "direct".into());
            }
        })?;
        let mut client = world.start_client("laptop")?;
        client.wait_until(&world, "has a spare", |status| {
            let paths = status["paths"].as_array();
            paths.is_some_and(|paths| paths.iter().any(|it| it["state"] == "warm"))
        })?;
        Ok(Self { world, client, gateway, _origin: origin })
    }

    /// What both say now: the client, and the gateway.
    fn figures(&self) -> Result<[String; 2]> {
        let texts = [
            self.client.command(&self.world, &["metrics"])?,
            self.gateway.command(&self.world, &["metrics"])?,
        ];
        texts.iter().try_for_each(|text| check(text))?;
        Ok(texts)
    }

    /// Waits until a sample of the client or of the gateway is not zero, whatever its labels.
    fn until(&self, sample: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let figures = self.figures()?;
            let mut samples = figures.iter().flat_map(|text| text.lines());
            if samples.any(|line| line.starts_with(sample) && !line.ends_with(" 0")) {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "never: {sample}\n{}", figures.concat());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn knock(&self, to: SocketAddr) -> Result<()> {
        let mut knock = self.world.start_program("laptop", "knock", to, &[])?;
        let (_, events) = knock.finish(PATIENCE)?;
        ensure!(matches!(events[..], [Event::Failed { .. }]), "{to}: {events:?}");
        Ok(())
    }
}

/// A question and its answer, a datagram that fits no packet whole, and one to where nobody may send.
fn send_datagrams(story: &Story) -> Result<()> {
    let bind = |host, address| story.world.host(host).run(move |_| UdpSocket::bind(address));
    let program = bind("laptop", SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    let server = bind("origin", SocketAddr::from((ORIGIN_V4, 0)))?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let to = server.local_addr()?;
    let began = Instant::now();
    loop {
        ensure!(began.elapsed() < PATIENCE, "no answer");
        program.send_to(b"question", to)?;
        let Ok((_, from)) = server.recv_from(&mut [0; 100]) else { continue };
        server.send_to(b"answer", from)?;
        program.set_read_timeout(Some(Duration::from_millis(50)))?;
        if program.recv_from(&mut [0; 100]).is_ok() {
            break;
        }
    }
    program.send_to(&[7; 1440], to)?;
    program.send_to(b"forbidden", FORBIDDEN)?;
    story.until("whimbrel_udp_datagrams_dropped_total")?;
    story.until("whimbrel_gateway_udp_datagrams_dropped_total{reason=\"denied\"}")
}

/// Families that have a sample which is not zero.
fn counting(text: &str, seen: &mut BTreeMap<String, bool>) {
    let mut family = String::new();
    for line in text.lines() {
        if let Some(named) = line.strip_prefix("# TYPE ") {
            named.split(' ').next().unwrap_or_default().clone_into(&mut family);
            seen.entry(family.clone()).or_default();
        } else if !line.starts_with('#') && !line.ends_with(" 0") {
            seen.insert(family.clone(), true);
        }
    }
}

pub(crate) fn every_figure_counts_something() -> Result<()> {
    let mut story = Story::begin()?;
    let mut seen = BTreeMap::new();
    let to = service(ORIGIN_V4, port::SOURCE);
    let mut load = story.world.start_program("laptop", "download", to, &["--rate", "40000000"])?;
    load.wait_for(PATIENCE, |event| matches!(event, Event::Progress { .. }))?;
    story.until("whimbrel_gateway_held_bytes")?;
    let mut upload =
        story.world.start_program("laptop", "upload", service(ORIGIN_V4, port::SINK), &[])?;
    story.until("whimbrel_held_bytes")?;
    story.figures()?.iter().for_each(|text| counting(text, &mut seen));

    send_datagrams(&story)?;
    story.figures()?.iter().for_each(|text| counting(text, &mut seen));

    // Wi-Fi swallows everything.
    let wifi = story.world.link("wifi0");
    wifi.black_hole(&[Direction::Up, Direction::Down]);
    // Whichever end notices first.
    story.until("whimbrel_moves_total")?;
    story.until("whimbrel_gateway_moves_total")?;
    story.until("whimbrel_move_gap_seconds_count")?;
    story.until("whimbrel_replayed_bytes_total")?;
    story.until("whimbrel_gateway_replayed_bytes_total")?;
    story.until("whimbrel_gateway_move_gap_seconds_count")?;
    // The other network loses.
    let lossy = Shape::default().with_loss(0.02);
    story.world.link("cell0").shape(lossy, lossy);
    story.until("whimbrel_retransmitted_bytes_total")?;
    story.until("whimbrel_gateway_retransmitted_bytes_total")?;
    story.world.link("cell0").shape_both(Shape::default());
    story.world.link("wifi0").heal();
    story.figures()?.iter().for_each(|text| counting(text, &mut seen));

    // What is refused, denied, and beyond a limit.
    story.knock(service(ORIGIN_V4, port::REFUSED))?;
    story.knock(FORBIDDEN)?;
    let idle = story.world.start_program(
        "laptop",
        "idle",
        service(ORIGIN_V4, port::ECHO),
        &["--count", "1"],
    )?;
    idle.wait_for(PATIENCE, |event| matches!(event, Event::Open { .. }))?;
    story.knock(service(ORIGIN_V4, port::ECHO))?;
    story.figures()?.iter().for_each(|text| counting(text, &mut seen));

    // The gateway is killed; the next one goes on.
    story.gateway.kill()?;
    story.until("whimbrel_gateway_resume_gap_seconds_count")?;
    story.until("whimbrel_resume_gap_seconds_count")?;
    story.until("whimbrel_gateway_flows_restored_total")?;
    for load in [&mut load, &mut upload] {
        load.stop();
        load.succeed(PATIENCE).context("every byte")?;
    }
    story.figures()?.iter().for_each(|text| counting(text, &mut seen));

    story.figures()?.iter().try_for_each(|text| lint(text))?;

    ensure!(seen.len() > 40, "{seen:?}");
    let known = |name: &str| ELSEWHERE.iter().any(|(other, _)| *other == name);
    let idle = seen.iter().filter(|(name, counted)| !**counted && !known(name));
    let idle: Vec<_> = idle.map(|(name, _)| name).collect();
    ensure!(idle.is_empty(), "they count nothing: {idle:?}");
    Ok(())
}
