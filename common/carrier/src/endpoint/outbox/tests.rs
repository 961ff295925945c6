use super::*;

fn start() -> Instant {
    Instant::now()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A datagram that tells its lane and its number.
fn datagram(lane: u8, number: u8) -> Bytes {
    let mut bytes = vec![0; 1160];
    bytes[..2].copy_from_slice(&[lane, number]);
    bytes.into()
}

fn drain(outbox: &mut Outbox, now: Instant) -> Vec<(u8, u8)> {
    std::iter::from_fn(|| outbox.pop(now)).map(|bytes| (bytes[0], bytes[1])).collect()
}

#[test]
fn lanes_are_served_in_turn() {
    let (mut outbox, now) = (Outbox::default(), start());
    for lane in [1, 2] {
        (0..4).for_each(|number| outbox.push(lane.into(), datagram(lane, number), now));
    }
    let lanes: Vec<u8> = drain(&mut outbox, now).iter().map(|(lane, _)| *lane).collect();
    let ones = lanes.iter().take(4).filter(|lane| **lane == 1).count();
    assert!((1..=3).contains(&ones), "one after the other: {lanes:?}");
    assert!(outbox.is_empty() && outbox.lanes.is_empty(), "{outbox:?}");
}

#[test]
fn whoever_says_little_goes_before_whoever_floods() {
    let (mut outbox, now) = (Outbox::default(), start());
    (0..100).for_each(|number| outbox.push(1, datagram(1, number), now));
    for _ in 0..5 {
        outbox.pop(now);
    }
    outbox.push(2, datagram(2, 0), now);
    let next: Vec<u8> = (0..3).map(|_| outbox.pop(now).unwrap()[0]).collect();
    assert!(next.contains(&2), "it waits for the flood: {next:?}");
}

#[test]
fn a_flood_loses_its_oldest_and_others_nothing() {
    let (mut outbox, now) = (Outbox::default(), start());
    outbox.push(2, datagram(2, 0), now);
    for _ in 0..10 {
        (0..200).for_each(|number| outbox.push(1, datagram(1, number), now));
        assert!(outbox.bytes <= MOST);
    }
    assert!(outbox.dropped() > 0);
    let left = drain(&mut outbox, now);
    assert!(left.contains(&(2, 0)), "another lane paid for it");
    assert_eq!(left.last(), Some(&(1, 199)), "the newest is still there");
}

#[test]
fn a_queue_that_stands_is_thinned_out_until_its_sender_gives_way() {
    let (mut outbox, begin) = (Outbox::default(), start());
    // Twice as much comes as goes, for two seconds.
    let mut lost = Vec::new();
    for step in 0..2000_u64 {
        let now = begin + ms(step);
        (0..2).for_each(|_| outbox.push(1, datagram(1, 0), now));
        outbox.pop(now);
        if step % 500 == 499 {
            lost.push(outbox.dropped());
        }
    }
    let rates: Vec<u64> = lost.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(rates.windows(2).all(|pair| pair[0] <= pair[1]), "{lost:?}");
    assert!(lost[0] > 0 && outbox.bytes <= MOST, "{lost:?}");
}

#[test]
fn a_burst_and_what_waited_for_a_network_are_not_thinned_out() {
    let (mut outbox, now) = (Outbox::default(), start());
    (0..100).for_each(|number| outbox.push(1, datagram(1, number), now));
    assert_eq!(drain(&mut outbox, now + ms(300)).len(), 100, "an outage of 300 ms");
    (0..100).for_each(|number| outbox.push(1, datagram(1, number), now + ms(400)));
    for step in 0..50 {
        let now = now + ms(400 + step);
        assert!(outbox.pop(now).is_some() && outbox.pop(now).is_some());
    }
    assert_eq!((outbox.dropped(), outbox.is_empty()), (0, true));
}

#[test]
fn what_is_too_old_is_lost() {
    let (mut outbox, now) = (Outbox::default(), start());
    outbox.push(1, datagram(1, 0), now);
    outbox.push(1, datagram(1, 1), now + ms(900));
    assert_eq!(drain(&mut outbox, now + ms(1001)), [(1, 1)]);
    assert_eq!(outbox.dropped(), 1);
}

#[test]
fn datagrams_and_streams_with_much_to_send_send_as_much() {
    let (mut outbox, mut datagrams, mut streams, mut handed) = (Outbox::default(), 0, 0, 0);
    for step in 0..1000 {
        handed = handed.max(outbox.room());
        // The path takes a few packets at a time, and of datagrams first.
        for _ in 0..=step % 3 {
            let own = handed.min(1400);
            handed -= own;
            datagrams += own;
            streams += 1400 - own;
            outbox.note_sent(own, 1400);
        }
        outbox.note_blocked();
    }
    let share = datagrams * 100 / (datagrams + streams);
    assert!((45..=55).contains(&share), "{datagrams} and {streams}");
}

#[test]
fn streams_with_nothing_to_send_leave_everything_to_datagrams() {
    let mut outbox = Outbox::default();
    for _ in 0..10 {
        if outbox.is_held() {
            outbox.note_idle_streams();
        }
        let room = outbox.room();
        assert!(room > 0);
        outbox.note_sent(room, room);
    }
    outbox.note_idle_streams();
    assert_eq!(outbox.room(), 46 * 1024, "as much as one call takes");
    outbox.note_blocked();
    assert!(outbox.room() < 8 * 1024, "a keystroke would wait for it");
}
