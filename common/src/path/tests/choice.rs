//! Links that come, ranks, wishes.

use super::net::{CELL, Net, Traffic, WIFI, Wire};
use crate::path::{Action, DownReason, Input, MoveReason, PreferredBy, State};

#[test]
fn a_new_link_of_better_rank_earns_the_traffic() {
    let mut net = Net::new(1, &[(CELL, Wire::new(60, 1))]);
    net.establish(CELL);
    net.traffic = Traffic::Every(20);
    net.run(20_000);
    let at = net.tick;
    net.wires.insert(WIFI, Wire::new(20, 0));
    net.announce(WIFI);
    net.run(10_000);
    let moved = net.carried(at, WIFI).expect("never moved") - at;
    assert!((3_000..4_000).contains(&moved), "{moved} ms");
    assert_eq!(net.moves()[0].reason, MoveReason::Preferred);
    assert_eq!(net.count(at, |a| matches!(a, Action::Steer { .. } | Action::Replay { .. })), 0);
    assert_eq!(net.paths.state(CELL), State::Warm);
}

#[test]
fn a_new_link_of_worse_rank_is_kept_warm() {
    let mut net = Net::attached();
    net.run(60_000);
    assert_eq!(net.moves().len(), 0);
    assert_eq!(net.paths.state(CELL), State::Warm);
}

#[test]
fn a_better_link_that_loses_probes_does_not_get_the_traffic() {
    let mut net = Net::attached();
    net.traffic = Traffic::Every(20);
    net.down(WIFI, DownReason::Carrier);
    net.run(20_000);
    net.up(WIFI);
    net.run(500);
    assert_eq!(net.paths.state(WIFI), State::Warm);
    net.black_hole(WIFI, true);
    net.run(60_000);
    assert_eq!(net.paths.active(), Some(CELL));
    assert_eq!(net.moves().len(), 1);
}

#[test]
fn metered_comes_after_everything_that_is_not() {
    let mut cell = Wire::new(60, 0);
    cell.metered = true;
    let mut net = Net::new(1, &[(CELL, cell)]);
    net.establish(CELL);
    net.run(20_000);
    net.wires.insert(WIFI, Wire::new(20, 9));
    net.announce(WIFI);
    net.run(10_000);
    assert_eq!(net.paths.active(), Some(WIFI));
    assert_eq!(net.moves()[0].reason, MoveReason::Metered);
    let at = net.tick;
    net.run(600_000);
    let probes = net.count(at, |a| *a == Action::Probe { path: CELL });
    assert!((9..=15).contains(&probes), "{probes} probes in ten minutes");
}

#[test]
fn a_link_that_becomes_metered_loses_the_traffic() {
    let mut net = Net::attached();
    net.run(20_000);
    net.wire(WIFI).metered = true;
    net.announce(WIFI);
    net.run(5_000);
    assert_eq!(net.paths.active(), Some(CELL));
    assert_eq!(net.moves()[0].reason, MoveReason::Metered);
}

#[test]
fn a_person_moves_the_traffic_and_gives_it_back() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(1_000);
    let at = net.tick;
    net.prefer(CELL, PreferredBy::Hand);
    assert_eq!(net.carried(at, CELL), Some(at));
    assert_eq!(net.moves()[0].reason, MoveReason::Hand);
    assert_eq!(net.count(at, |a| matches!(a, Action::Steer { .. } | Action::Replay { .. })), 0);
    net.run(60_000);
    assert_eq!(net.paths.active(), Some(CELL));
    let at = net.tick;
    net.give(Input::Auto);
    net.run(10_000);
    let back = net.carried(at, WIFI).expect("never returned") - at;
    assert!(back <= 4_000, "{back} ms");
}

#[test]
fn a_person_may_ask_for_a_link_that_has_no_path_yet() {
    let mut cell = Wire::new(60, 1);
    cell.cold = true;
    let mut net = Net::attached_with(1, Wire::new(20, 0), cell);
    assert_eq!(net.paths.state(CELL), State::Absent);
    net.prefer(CELL, PreferredBy::Hand);
    assert_eq!(net.paths.state(CELL), State::Probing);
    net.run(100);
    assert_eq!(net.paths.active(), Some(CELL));
    assert_eq!(net.moves()[0].reason, MoveReason::Hand);
}

#[test]
fn what_was_moved_by_hand_still_leaves_a_dead_link_and_comes_back() {
    let mut net = Net::attached();
    net.traffic = Traffic::Every(20);
    net.prefer(CELL, PreferredBy::Hand);
    net.run(15_000);
    net.black_hole(CELL, true);
    net.run(1_000);
    assert_eq!(net.paths.active(), Some(WIFI));
    net.black_hole(CELL, false);
    net.run(30_000);
    assert_eq!(net.paths.active(), Some(CELL));
    assert_eq!(net.moves().last().map(|change| change.reason), Some(MoveReason::Hand));
}

#[test]
fn a_gateway_that_leaves_a_path_is_asked_again_for_what_was_in_flight() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(1_000);
    let at = net.tick;
    net.prefer(CELL, PreferredBy::Peer);
    assert_eq!(net.carried(at, CELL), Some(at));
    assert_eq!(net.moves()[0].reason, MoveReason::PeerAsked);
    assert_eq!(net.first(at, |a| matches!(a, Action::Replay { from: WIFI, .. })), Some(at));
}

#[test]
fn the_peer_is_followed_by_force_while_our_own_side_is_silent() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(1_000);
    net.black_hole(WIFI, true);
    net.run(50);
    let at = net.tick;
    net.prefer(CELL, PreferredBy::Peer);
    assert_eq!(net.first(at, |a| *a == Action::Steer { from: WIFI, onto: CELL }), Some(at));
    assert_eq!(net.first(at, |a| matches!(a, Action::Replay { from: WIFI, .. })), Some(at));
}

#[test]
fn a_wish_of_the_peer_that_crossed_our_own_move_is_not_followed_back() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(1_000);
    net.prefer(CELL, PreferredBy::Hand);
    net.run(30);
    net.prefer(WIFI, PreferredBy::Peer);
    assert_eq!(net.paths.active(), Some(CELL));
    net.run(2_000);
    net.prefer(WIFI, PreferredBy::Peer);
    assert_eq!(net.paths.active(), Some(WIFI));
}

#[test]
fn an_idle_connection_is_probed_every_20_seconds_and_not_more() {
    let mut net = Net::attached();
    net.run(5_000);
    let at = net.tick;
    net.run(200_000);
    for path in [WIFI, CELL] {
        let probes = net.count(at, |a| *a == Action::Probe { path });
        assert!((9..=11).contains(&probes), "{probes} probes on {path} in 200 s");
    }
    assert_eq!(net.moves().len(), 0);
}

#[test]
fn idle_paths_are_probed_together() {
    let mut net = Net::attached();
    net.run(60_000);
    let at = net.tick;
    net.run(200_000);
    let probes = |path| -> Vec<u64> {
        let probe = Action::Probe { path };
        let later = net.log.iter().filter(|(tick, action)| *tick > at && *action == probe);
        later.map(|(tick, _)| *tick).collect()
    };
    let wifi = probes(WIFI);
    assert!(wifi.len() >= 9, "{wifi:?}");
    assert_eq!(wifi, probes(CELL));
}

#[test]
fn the_first_path_is_no_move_from_anywhere() {
    let net = Net::attached();
    let first = net.log.iter().find_map(|(_, action)| {
        let Action::Moved(change) = action else { return None };
        Some((change.from, change.to))
    });
    assert_eq!(first, Some((None, WIFI)));
    assert_eq!(net.moves().len(), 0);
}

/// Nothing newer is ever acknowledged there, so the engine would wait for ever.
#[test]
fn what_was_on_its_way_when_a_link_died_just_after_it_was_left_is_freed() {
    let mut net = Net::attached();
    net.traffic = Traffic::Bulk(50);
    net.run(3_000);
    net.prefer(CELL, PreferredBy::Hand);
    assert_eq!(net.paths.active(), Some(CELL));
    net.black_hole(WIFI, true);
    let at = net.tick;
    net.run(1_500);
    let closed = net.first(at, |action| *action == Action::Close { path: WIFI });
    assert!(closed.is_some_and(|tick| tick < at + 800), "{closed:?}");
    assert_eq!(net.paths.active(), Some(CELL));
}
