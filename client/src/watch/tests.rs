use std::time::{Duration, Instant};

use whimbrel_host::output::{Palette, width};

use super::frame::{Picture, lines};
use super::history::{History, sparkline};
use super::screen::Size;
use crate::report::{
    CaptureState, DatagramReport, Event, EventKind, FlowCounts, FlowReport, PathReport,
    SessionState, Status, Transport,
};

fn path(link: &str, state: &str, rx_bytes: u64) -> PathReport {
    PathReport {
        link: link.to_owned(),
        state: state.to_owned(),
        rtt_ms: Some(24.0),
        cwnd: 120_000,
        mtu: 1452,
        tx_bytes: 0,
        rx_bytes,
        remote: None,
        metered: false,
        captive: false,
        class: None,
    }
}

fn status(rx_bytes: u64) -> Status {
    Status {
        state: SessionState::Attached,
        gateway: "gw.example.org:443".to_owned(),
        session: None,
        paths: vec![path("wlan0", "active", rx_bytes), path("wwan0", "warm", 7)],
        flows: FlowCounts { open: 2, held: 0 },
        datagrams: DatagramReport::default(),
        names: crate::report::NamesReport::default(),
        moves: 1,
        last_move: None,
        capture: CaptureState::On,
        pause_left_s: None,
        version: "0.1.0".to_owned(),
        uptime_s: 60,
        trouble: None,
        trouble_kind: None,
        sleep: None,
        runs: Vec::new(),
        cgroup_trouble: None,
    }
}

fn flow(id: u64, rx_bytes: u64) -> FlowReport {
    FlowReport {
        id,
        protocol: Transport::Tcp,
        source: "10.213.52.11:40000".parse().unwrap(),
        destination: format!("203.0.113.{id}:22").parse().unwrap(),
        state: "open".to_owned(),
        tx_bytes: 0,
        rx_bytes,
        age_s: 61,
        stalled_ms_longest: 171,
        moves_survived: 2,
        reconnects_survived: 0,
        replayed_bytes: 0,
        held_bytes: 0,
    }
}

fn event(event: EventKind, text: &str) -> Event {
    Event { at: 951_782_400_000, event, text: text.to_owned(), link: None, moved: None }
}

fn picture(flows: Vec<FlowReport>) -> Picture {
    let events = vec![
        event(EventKind::Started, "the daemon runs"),
        event(EventKind::Path, "wlan0: probing to active"),
        event(EventKind::LinkUp, "wwan0 is up"),
    ];
    Picture::Running { status: Box::new(status(3_000_000)), flows, events }
}

/// Two answers, two seconds apart.
fn history() -> History {
    let (mut history, start) = (History::default(), Instant::now());
    history.note(&status(1_000_000), &[flow(1, 0), flow(2, 10_000)], start);
    let later = start + Duration::from_secs(2);
    history.note(&status(3_000_000), &[flow(1, 4000), flow(2, 10_000)], later);
    history
}

const SCREEN: Size = Size { columns: 100, rows: 24 };

#[test]
fn a_screen_tells_links_flows_and_what_happened() {
    let picture = picture(vec![flow(2, 10_000), flow(1, 4000)]);
    let shown = lines(&picture, &history(), SCREEN, Palette::PLAIN).join("\n");
    assert_eq!(
        shown,
        "\
Attached   gw.example.org:443 over wlan0, 24.0 ms; wwan0 is ready to take over
Capture    on: new TCP connections are carried
Flows      2 open, 0 held
Moves      1 in 1m 00s

LINK   STATE   RTT      TRAFFIC
wlan0  active  24.0 ms     1.0 MB/s                               █
wwan0  warm    24.0 ms        0 B/s

FLOW TO         TRAFFIC      AGE     STORY
203.0.113.1:22     2.0 kB/s  1m 01s  lived through 2 moves, waited 171 ms at most
203.0.113.2:22        0 B/s  1m 01s  lived through 2 moves, waited 171 ms at most

00:00:00  the daemon runs
00:00:00  wwan0 is up
Times are UTC. Ctrl-C ends this; connections do not notice."
    );
}

#[test]
fn no_screen_is_too_small_and_every_row_fits() {
    let picture = picture((1..200).map(|id| flow(id, 0)).collect());
    let history = history();
    for rows in 1..60 {
        for columns in [1, 20, 80, 300] {
            let shown = lines(&picture, &history, Size { columns, rows }, Palette::COLOURED);
            // What is above the flows is always told; a small screen shows the top of it.
            assert!(shown.len() <= rows.max(12), "{} lines on {rows} rows", shown.len());
        }
    }
    let shown = lines(&picture, &history, SCREEN, Palette::PLAIN);
    assert_eq!(shown.len(), SCREEN.rows);
    let more = shown.iter().find(|line| line.starts_with("and ")).unwrap();
    let listed = shown.iter().filter(|line| line.starts_with("203.0.113.")).count();
    assert_eq!(more, &format!("and {} more", 199 - listed));
}

#[test]
fn a_daemon_that_is_gone_is_told_and_counts_from_zero_again() {
    let gone = Picture::Gone("Whimbrel is not running".to_owned());
    let shown = lines(&gone, &History::default(), SCREEN, Palette::PLAIN);
    assert_eq!(shown[0], "Whimbrel is not running");
    let mut history = history();
    history.forget();
    history.note(&status(0), &[], Instant::now());
    assert!(history.link("wlan0").is_empty());
}

#[test]
fn an_answer_right_after_another_makes_no_rate() {
    let (mut history, start) = (History::default(), Instant::now());
    history.note(&status(0), &[], start);
    history.note(&status(1_000_000), &[], start + Duration::from_millis(1));
    assert!(history.link("wlan0").is_empty());
    history.note(&status(1_000_000), &[], start + Duration::from_secs(1));
    assert_eq!(history.link("wlan0"), [1_000_000]);
}

#[test]
fn bars_are_as_high_as_their_share_and_little_is_not_nothing() {
    assert_eq!(sparkline(&[0, 1, 500, 1000], 6), "   ▁▄█");
    assert_eq!(sparkline(&[5, 0, 0], 2), "  ");
    assert_eq!(sparkline(&[], 3), "   ");
    assert_eq!(width(&sparkline(&[u64::MAX, 1], 2)), 2);
}
