use super::*;
use crate::report::{DatagramReport, EventKind, FlowCounts, SessionState};

fn moved() -> MoveRecord {
    MoveRecord {
        at: 951_782_400_123,
        from: Some("wlan0".to_owned()),
        to: "wwan0".to_owned(),
        reason: "silent".to_owned(),
        gap_ms: Some(171.4),
        retransmitted_bytes: Some(48_200),
    }
}

fn path() -> PathReport {
    PathReport {
        link: "wwan0".to_owned(),
        state: "active".to_owned(),
        rtt_ms: Some(60.25),
        cwnd: 120_000,
        mtu: 1452,
        tx_bytes: 5,
        rx_bytes: 1_500_000,
        remote: Some("203.0.113.5:443".parse().unwrap()),
        metered: true,
        captive: false,
        class: None,
    }
}

fn spare() -> PathReport {
    PathReport {
        link: "wlan0".to_owned(),
        state: "warm".to_owned(),
        rtt_ms: None,
        remote: None,
        metered: false,
        ..path()
    }
}

#[test]
fn spare_links_are_told_by_what_they_are_good_for() {
    let with = |link: &str, state: &str, captive| PathReport {
        link: link.to_owned(),
        state: state.to_owned(),
        captive,
        ..spare()
    };
    let links = [with("a", "warm", false), with("b", "warm", false), with("c", "cooldown", true)];
    assert_eq!(spares(&links), "; a, b are ready to take over; c wants a sign-in");
    assert_eq!(spares(&[with("d", "suspect", false)]), "; d does not reach it");
    assert_eq!(spares(&[with("e", "probing", false)]), "");
}

#[test]
fn a_link_is_told_with_its_kind_and_its_cost() {
    let named = |class: &str, metered| {
        let class = Some(class.to_owned());
        link_name(&PathReport { class, metered, ..spare() })
    };
    assert_eq!(named("wired", false), "wlan0");
    assert_eq!(named("wifi", false), "wlan0 (wifi)");
    assert_eq!(named("cellular", true), "wlan0 (cellular, metered)");
}

#[test]
fn colours_change_no_column() {
    let links = [path(), spare()];
    let (plain, coloured) = (paths(&links, Palette::PLAIN), paths(&links, Palette::COLOURED));
    assert_ne!(plain, coloured);
    for (plain, coloured) in plain.lines().zip(coloured.lines()) {
        assert_eq!(whimbrel_host::output::width(plain), whimbrel_host::output::width(coloured));
    }
}

#[test]
fn status_reads_well() {
    let report = Status {
        state: SessionState::Attached,
        gateway: "gw.example.org:443".to_owned(),
        session: Some("s".to_owned()),
        paths: vec![path(), spare()],
        flows: FlowCounts { open: 12, held: 0 },
        datagrams: DatagramReport::default(),
        names: NamesReport {
            state: NamesState::Gateway,
            by: Some("systemd-resolved".to_owned()),
            trouble: None,
        },
        moves: 1,
        last_move: Some(moved()),
        capture: CaptureState::On,
        pause_left_s: None,
        version: "0.1.0".to_owned(),
        uptime_s: 7384,
        trouble: None,
        runs: Vec::new(),
        cgroup_trouble: None,
        trouble_kind: None,
        sleep: None,
    };
    assert_eq!(
        status(&report, Palette::PLAIN),
        "\
Attached   gw.example.org:443 over wwan0, 60.2 ms; wlan0 is ready to take over
Capture    on: new TCP connections are carried
Names      asked of the gateway, by systemd-resolved
Flows      12 open, 0 held
Moves      1 in 2h 03m
Last move  2000-02-29 00:00:00 UTC, wlan0 to wwan0: silent, gap 171 ms, 48.2 kB sent again

LINK             STATE   RTT      WINDOW    MTU   SENT  RECEIVED  GATEWAY
wwan0 (metered)  active  60.2 ms  120.0 kB  1452  5 B   1.5 MB    203.0.113.5:443
wlan0            warm    -        120.0 kB  1452  5 B   1.5 MB    -"
    );
}

#[test]
fn trouble_is_told() {
    let report = Status {
        state: SessionState::Offline,
        gateway: "gw.example.org:443".to_owned(),
        session: None,
        paths: Vec::new(),
        flows: FlowCounts::default(),
        datagrams: DatagramReport::default(),
        names: NamesReport {
            state: NamesState::Failed,
            by: None,
            trouble: Some("the gateway's resolver does not answer (timed out)".to_owned()),
        },
        moves: 0,
        last_move: None,
        capture: CaptureState::Direct,
        pause_left_s: None,
        version: "0.1.0".to_owned(),
        uptime_s: 5,
        trouble: Some("no network".to_owned()),
        runs: Vec::new(),
        cgroup_trouble: None,
        trouble_kind: None,
        sleep: None,
    };
    assert_eq!(
        status(&report, Palette::PLAIN),
        "\
Offline    no network to reach gw.example.org:443
Trouble    no network
What to do whimbrel doctor
Capture    new connections go direct until the gateway is in reach
Names      asked as without it: the gateway's resolver does not answer (timed out)
Flows      0 open, 0 held
Moves      0 in 5s"
    );
}

#[test]
fn flows_are_a_table() {
    let flow = FlowReport {
        id: 7,
        protocol: crate::report::Transport::Tcp,
        source: "10.213.52.11:40000".parse().unwrap(),
        destination: "[2001:db8::1]:22".parse().unwrap(),
        state: "open".to_owned(),
        tx_bytes: 10,
        rx_bytes: 20,
        age_s: 61,
        stalled_ms_longest: 170,
        moves_survived: 2,
        reconnects_survived: 1,
        replayed_bytes: 14_000,
        held_bytes: 64,
    };
    assert_eq!(
        flows(&[flow]),
        "\
ID  PROTOCOL  SOURCE              DESTINATION       STATE  SENT  RECEIVED  AGE     LONGEST STALL  HELD  REPLAYED  SURVIVED
7   tcp       10.213.52.11:40000  [2001:db8::1]:22  open   10 B  20 B      1m 01s  170 ms         64 B  14.0 kB   2 moves, 1 reconnect"
    );
    assert_eq!(flows(&[]), "No flows.");
    assert_eq!(paths(&[], Palette::PLAIN), "No network yet.");
}

#[test]
fn events_are_one_line_each() {
    let happened = Event {
        at: 951_782_400_000,
        event: EventKind::Moved,
        text: "the same for programs".to_owned(),
        link: Some("wwan0".to_owned()),
        moved: Some(moved()),
    };
    assert_eq!(
        event(&happened),
        "2000-02-29 00:00:00 UTC  moved      wlan0 to wwan0: silent, gap 171 ms, 48.2 kB sent again"
    );
}

#[test]
fn wrapped_commands_are_listed() {
    let run = |command: &str, pid, flows, ended, way| RunReport {
        device: 1,
        command: command.to_owned(),
        pid,
        uid: 1000,
        flows,
        age_s: 90,
        ended,
        way,
    };
    assert_eq!(
        runs(&[
            run("ssh", Some(4711), 1, false, RunWay::Namespace),
            run("curl", None, 2, true, RunWay::Namespace),
            run("git", Some(4712), 0, false, RunWay::Direct),
        ]),
        "\
COMMAND  PROCESS  USER  BY         STATE  FLOWS  AGE
ssh      4711     1000  namespace  runs   1      1m 30s
curl     -        1000  namespace  ended  2      1m 30s
git      4712     1000  direct     runs   -      1m 30s"
    );
}
