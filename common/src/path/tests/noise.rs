//! Healthy links under load are never left, however noisy they are.

use super::net::{Net, Traffic, WIFI, Wire};

const MINUTES: u64 = 30;

/// A neighbour's burst fills a queue to 100 ms within one round trip, then it drains.
fn burst(net: &mut Net) {
    for step in 1..=20 {
        net.wire(WIFI).queue = step * 5;
        net.run(1);
    }
    net.run(net.tick % 200);
    for step in (0..100).rev() {
        net.wire(WIFI).queue = step;
        net.run(2);
    }
}

fn false_moves(seed: u64, traffic: Traffic, loss: u64, jitter: u64) -> usize {
    let mut wifi = Wire::new(20, 0);
    (wifi.loss, wifi.jitter) = (loss, jitter);
    let mut cell = Wire::new(60, 1);
    (cell.loss, cell.jitter) = (loss, jitter);
    let mut net = Net::attached_with(seed, wifi, cell);
    net.traffic = traffic;
    while net.tick < MINUTES * 60_000 {
        let pause = 200 + net.below(6_000);
        net.run(pause);
        burst(&mut net);
        net.log.retain(|(_, action)| matches!(action, crate::path::Action::Moved(_)));
    }
    net.moves().len()
}

#[test]
fn bulk_over_noisy_links_never_moves() {
    assert_eq!(false_moves(11, Traffic::Bulk(100), 10, 5), 0);
}

#[test]
fn bulk_over_lossy_links_never_moves() {
    assert_eq!(false_moves(12, Traffic::Bulk(30), 30, 8), 0);
}

#[test]
fn ping_pong_over_lossy_links_never_moves() {
    assert_eq!(false_moves(13, Traffic::Every(20), 30, 8), 0);
}

#[test]
fn bursts_over_noisy_links_never_move() {
    assert_eq!(false_moves(14, Traffic::Bursts(150, 350), 20, 8), 0);
}

#[test]
fn rare_packets_over_noisy_links_never_move() {
    assert_eq!(false_moves(15, Traffic::Every(130), 30, 8), 0);
}
