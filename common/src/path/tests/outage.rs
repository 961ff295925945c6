//! Links that die, in every way they do.

use super::net::{CABLE, CELL, Net, Traffic, WIFI, Wire};
use crate::path::{Action, DownReason, Input, MoveReason, State};

#[test]
fn link_down_moves_at_once() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(100);
    net.run(1_000);
    let at = net.tick;
    net.down(WIFI, DownReason::Carrier);
    assert_eq!(net.carried(at, CELL), Some(at));
    assert_eq!(net.first(at, |a| *a == Action::Steer { from: WIFI, onto: CELL }), Some(at));
    assert_eq!(net.first(at, |a| matches!(a, Action::Replay { from: WIFI, .. })), Some(at));
    assert_eq!(net.moves()[0].reason, MoveReason::LinkDown);
    assert_eq!(net.paths.state(WIFI), State::Steered);
    net.run(2_000);
    assert_eq!(net.count(at, |a| *a == Action::Close { path: WIFI }), 1);
    assert_eq!(net.paths.state(WIFI), State::Absent);
    assert_eq!(net.paths.state(CELL), State::Active);
}

#[test]
fn steer_comes_before_carry_and_replay() {
    let mut net = Net::attached();
    let at = net.tick;
    net.down(WIFI, DownReason::Carrier);
    let orders: Vec<Action> = net
        .log
        .iter()
        .filter(|(tick, action)| *tick >= at && !matches!(action, Action::StateChanged { .. }))
        .map(|(_, action)| *action)
        .collect();
    assert_eq!(orders[0], Action::Steer { from: WIFI, onto: CELL });
    assert_eq!(orders[1], Action::Carry { path: CELL });
    assert!(matches!(orders[2], Action::Replay { from: WIFI, .. }));
}

#[test]
fn address_removed_moves_at_once_and_says_so() {
    let mut net = Net::attached();
    let at = net.tick;
    net.down(WIFI, DownReason::AddressRemoved);
    assert_eq!(net.carried(at, CELL), Some(at));
    assert_eq!(net.moves()[0].reason, MoveReason::AddressRemoved);
}

#[test]
fn black_hole_under_load_is_left_within_130_ms() {
    for (seed, traffic) in [(1, Traffic::Bulk(100)), (2, Traffic::Bulk(40)), (3, Traffic::Bulk(20))]
    {
        let mut net = Net::attached_with(seed, Wire::new(20, 0), Wire::new(60, 1));
        net.traffic = traffic;
        net.run(5_000 + seed * 7);
        let at = net.tick;
        net.black_hole(WIFI, true);
        net.run(400);
        let left = net.carried(at, CELL).expect("never left") - at;
        assert!(left <= 130, "{left} ms with {traffic:?}");
        assert_eq!(net.moves().len(), 1);
        assert_eq!(net.moves()[0].reason, MoveReason::BlackHole);
        assert!(net.moves()[0].silent_since.is_some());
    }
}

#[test]
fn black_hole_under_sparse_traffic_is_left_within_250_ms() {
    for interval in [5, 20, 50] {
        let mut net = Net::attached();
        net.traffic = Traffic::Every(interval);
        net.run(5_013);
        let at = net.tick;
        net.black_hole(WIFI, true);
        net.run(400);
        let left = net.carried(at, CELL).expect("never left") - at;
        assert!(left <= 200 + interval, "{left} ms with a packet every {interval} ms");
    }
}

#[test]
fn one_who_only_reads_notices_a_black_hole() {
    let mut net = Net::attached();
    net.traffic = Traffic::Read;
    net.run(5_000);
    let at = net.tick;
    net.black_hole(WIFI, true);
    net.run(600);
    let left = net.carried(at, CELL).expect("never left") - at;
    assert!(left <= 300, "{left} ms");
}

#[test]
fn the_operating_system_may_notice_the_black_hole_late() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(3_000);
    net.black_hole(WIFI, true);
    net.run(10_000);
    let moves = net.moves().len();
    net.down(WIFI, DownReason::Carrier);
    net.run(10_000);
    assert_eq!(moves, 1);
    assert_eq!(net.moves().len(), 1);
    assert_eq!(net.paths.active(), Some(CELL));
}

#[test]
fn what_we_send_dies_but_the_peer_is_heard() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(3_000);
    let at = net.tick;
    net.wire(WIFI).out_dead = true;
    net.run(500);
    assert!(net.carried(at, CELL).expect("never left") - at <= 200);
}

#[test]
fn what_the_peer_sends_dies_but_we_are_heard() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(3_000);
    let at = net.tick;
    net.wire(WIFI).in_dead = true;
    net.run(500);
    assert!(net.carried(at, CELL).expect("never left") - at <= 130);
}

#[test]
fn send_errors_move_at_once_when_they_repeat() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(1_000);
    let at = net.tick;
    net.give(Input::SendError { path: WIFI });
    assert_eq!(net.paths.state(WIFI), State::Suspect);
    assert_eq!(net.moves().len(), 0);
    net.give(Input::SendError { path: WIFI });
    assert_eq!(net.carried(at, CELL), Some(at));
    assert_eq!(net.moves()[0].reason, MoveReason::SendError);
}

#[test]
fn one_send_error_on_a_healthy_path_moves_nothing() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(1_000);
    net.give(Input::SendError { path: WIFI });
    net.run(5_000);
    assert_eq!(net.moves().len(), 0);
    assert_eq!(net.paths.state(WIFI), State::Active);
}

#[test]
fn both_silent_moves_nothing_and_keeps_probing_both() {
    let mut net = Net::attached();
    net.traffic = Traffic::Every(20);
    net.run(3_000);
    net.black_hole(WIFI, true);
    net.black_hole(CELL, true);
    net.run(30_000);
    assert_eq!(net.moves().len(), 0);
    let late = net.tick - 1_000;
    for path in [WIFI, CELL] {
        let probes = net.count(late, |a| *a == Action::Probe { path });
        assert!((4..=6).contains(&probes), "{probes} probes in the last second on {path}");
    }
}

#[test]
fn after_a_silent_outage_either_link_is_in_use_within_300_ms_of_its_return() {
    for (path, seconds) in [(WIFI, 30), (CELL, 30), (WIFI, 300), (CELL, 300)] {
        for phase in 0..10 {
            let mut net = Net::attached();
            net.traffic = Traffic::Every(20);
            net.run(3_000);
            net.black_hole(WIFI, true);
            net.black_hole(CELL, true);
            net.run(seconds * 1_000 + phase * 37);
            net.black_hole(path, false);
            let took = net.recovery(2_000);
            assert!(took <= 300, "{took} ms on {path} after {seconds} s");
        }
    }
}

#[test]
fn after_both_links_were_down_the_first_to_return_is_used_at_once() {
    for path in [WIFI, CELL] {
        let mut net = Net::attached();
        net.traffic = Traffic::Every(20);
        net.run(3_000);
        net.down(WIFI, DownReason::Carrier);
        net.run(50);
        net.down(CELL, DownReason::Carrier);
        net.run(30_000);
        net.up(path);
        let took = net.recovery(2_000);
        assert!(took <= 150, "{took} ms on {path}");
        net.run(10_000);
        assert_eq!(net.paths.state(path), State::Active);
    }
}

#[test]
fn both_links_flapping_never_loses_the_connection() {
    for period in [120, 300, 700, 2_000, 6_000] {
        let mut net = Net::attached();
        net.traffic = Traffic::Every(20);
        for _ in 0..30 {
            net.down(WIFI, DownReason::Carrier);
            net.run(period / 2);
            net.up(WIFI);
            net.run(period / 2);
            net.down(CELL, DownReason::Carrier);
            net.run(period / 2);
            net.up(CELL);
            net.run(period / 2);
        }
        net.run(1_000);
        let active = net.paths.active().expect("no path left");
        assert!(net.acked_after(active, net.tick - 100), "stuck with period {period}");
    }
}

#[test]
fn a_cable_pulled_and_plugged_in_is_used_at_once_when_nothing_else_works() {
    let mut net = Net::new(1, &[(WIFI, Wire::new(20, 0))]);
    net.establish(WIFI);
    net.traffic = Traffic::Every(20);
    net.run(2_000);
    net.down(WIFI, DownReason::Carrier);
    net.run(1_000);
    net.up(WIFI);
    assert!(net.recovery(1_000) <= 50);
    assert_eq!(net.count(0, |a| matches!(a, Action::Close { .. })), 0);
}

#[test]
fn the_only_path_is_steered_onto_a_link_that_has_none() {
    let mut net = Net::new(1, &[(WIFI, Wire::new(20, 0))]);
    net.establish(WIFI);
    net.traffic = Traffic::Every(20);
    net.run(2_000);
    net.down(WIFI, DownReason::Carrier);
    net.run(5_000);
    let at = net.tick;
    net.wires.insert(CELL, Wire::new(60, 1));
    net.announce(CELL);
    assert_eq!(net.first(at, |a| *a == Action::Steer { from: WIFI, onto: CELL }), Some(at));
    assert!(net.recovery(1_000) <= 150);
    net.run(1_000);
    assert_eq!(net.moves().len(), 1);
    assert_eq!((net.moves()[0].from, net.moves()[0].to), (Some(WIFI), CELL));
    assert_eq!(net.paths.state(CELL), State::Active);
    assert_eq!(net.paths.state(WIFI), State::Absent);
}

#[test]
fn a_cold_link_is_opened_when_the_active_path_is_silent() {
    let mut cell = Wire::new(60, 1);
    (cell.cold, cell.metered) = (true, true);
    let mut net = Net::attached_with(1, Wire::new(20, 0), cell);
    net.traffic = Traffic::Every(20);
    net.run(5_000);
    assert_eq!(net.paths.state(CELL), State::Absent);
    let at = net.tick;
    net.black_hole(WIFI, true);
    net.run(500);
    assert!(net.carried(at, CELL).expect("never left") - at <= 300);
    net.black_hole(WIFI, false);
    net.run(40_000);
    assert_eq!(net.paths.state(WIFI), State::Active);
    assert_eq!(net.paths.state(CELL), State::Absent);
}

#[test]
fn a_cold_link_opened_for_nothing_is_closed_again() {
    let mut cell = Wire::new(60, 1);
    cell.cold = true;
    let mut net = Net::attached_with(1, Wire::new(20, 0), cell);
    net.traffic = Traffic::Every(20);
    net.run(2_000);
    net.black_hole(WIFI, true);
    net.run(190);
    assert_eq!(net.paths.state(CELL), State::Probing);
    net.black_hole(WIFI, false);
    net.run(20_000);
    assert_eq!(net.moves().len(), 0);
    assert_eq!(net.paths.state(CELL), State::Absent);
}

#[test]
fn a_captive_network_is_never_moved_onto() {
    let mut wifi = Wire::new(5, 0);
    wifi.captive = true;
    let mut net = Net::new(1, &[(WIFI, wifi), (CELL, Wire::new(60, 1))]);
    net.establish(CELL);
    net.traffic = Traffic::Every(20);
    net.run(600_000);
    assert_eq!(net.moves().len(), 0);
    let attempts = net.count(0, |a| *a == Action::Open { path: WIFI });
    assert!((5..=12).contains(&attempts), "{attempts} attempts in ten minutes");
    let at = net.tick;
    net.wire(WIFI).captive = false;
    net.run(330_000);
    assert!(net.carried(at, WIFI).is_some(), "never tried again");
}

#[test]
fn a_captive_network_does_not_delay_the_return_of_the_only_path() {
    let mut wifi = Wire::new(5, 0);
    (wifi.captive, wifi.out_dead, wifi.in_dead) = (true, true, true);
    let mut net = Net::new(1, &[(WIFI, wifi), (CELL, Wire::new(60, 1))]);
    net.establish(CELL);
    net.traffic = Traffic::Every(20);
    net.run(3_000);
    for pause in [2_000, 10_000, 31_234] {
        net.black_hole(CELL, true);
        net.run(pause);
        net.black_hole(CELL, false);
        let took = net.recovery(3_000);
        assert!(took <= 600, "{took} ms");
        assert_eq!(net.paths.active(), Some(CELL));
        net.run(5_000);
        assert_eq!(net.paths.state(CELL), State::Active);
    }
    assert_eq!(net.moves().len(), 0);
}

#[test]
fn a_path_that_was_left_rests_and_returns() {
    let mut net = Net::attached();
    net.traffic = Traffic::Every(20);
    net.run(3_000);
    let at = net.tick;
    net.black_hole(WIFI, true);
    net.run(2_000);
    assert_eq!(net.paths.state(WIFI), State::Cooldown);
    net.black_hole(WIFI, false);
    net.run(30_000);
    let back = net.carried(at, WIFI).expect("never returned") - at;
    assert!((10_000..=15_000).contains(&back), "{back} ms");
    assert_eq!(net.moves()[1].reason, MoveReason::Return);
    assert_eq!(net.paths.state(CELL), State::Warm);
}

#[test]
fn a_third_link_is_used_when_two_are_dead() {
    let wires = [(WIFI, Wire::new(20, 0)), (CELL, Wire::new(60, 1)), (CABLE, Wire::new(10, 2))];
    let mut net = Net::new(1, &wires);
    net.establish(WIFI);
    net.traffic = Traffic::Every(20);
    net.run(3_000);
    let at = net.tick;
    net.black_hole(WIFI, true);
    net.black_hole(CELL, true);
    net.run(500);
    assert!(net.carried(at, CABLE).expect("never left") - at <= 250);
}

#[test]
fn waking_up_probes_every_link_and_moves_off_a_dead_one() {
    let mut net = Net::attached();
    net.run(1_000);
    net.black_hole(WIFI, true);
    let at = net.tick;
    net.give(Input::Woke);
    for path in [WIFI, CELL] {
        assert_eq!(net.first(at, |a| *a == Action::Probe { path }), Some(at));
    }
    net.run(500);
    assert!(net.carried(at, CELL).expect("never left") - at <= 200);
}

#[test]
fn waking_up_on_healthy_links_moves_nothing() {
    let mut net = Net::attached();
    net.run(1_000);
    net.give(Input::Woke);
    net.run(5_000);
    assert_eq!(net.moves().len(), 0);
    assert_eq!(net.paths.state(WIFI), State::Active);
}

#[test]
fn a_faster_path_that_answers_again_and_again_does_not_put_the_verdict_off() {
    let mut net = Net::attached_with(1, Wire::new(200, 0), Wire::new(10, 1));
    net.traffic = Traffic::Every(20);
    net.run(5_000);
    let at = net.tick;
    net.black_hole(WIFI, true);
    net.run(3_000);
    // Twice the round trip and what is allowed for its jitter, and the handicap of the slower one.
    let left = net.carried(at, CELL).expect("never left") - at;
    assert!(left <= 700, "{left} ms");
}
