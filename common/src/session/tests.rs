#![expect(clippy::disallowed_methods, reason = "a test starts its clock anywhere")]

use proptest::prelude::*;

use super::*;

const RTT: Duration = Duration::from_millis(20);

#[test]
fn sender_stops_at_the_limit_and_goes_on_with_new_credit() {
    let mut sender = Sender::new(10);
    sender.push(Bytes::from_static(b"0123456789"));
    assert_eq!(sender.room(), 0);
    assert_eq!(sender.unsent().as_deref(), Some(&b"0123456789"[..]));
    sender.advance(4);
    assert_eq!(sender.unsent().as_deref(), Some(&b"456789"[..]));
    sender.advance(6);
    assert_eq!(sender.unsent(), None);
    sender.acknowledge(7, 30, false).unwrap();
    assert_eq!((sender.room(), sender.held(), sender.in_flight()), (20, 3, 3));
}

#[test]
fn end_is_due_once_and_after_the_last_byte() {
    let mut sender = Sender::new(10);
    sender.push(Bytes::from_static(b"abc"));
    sender.finish();
    assert!(!sender.end_due());
    sender.advance(3);
    assert!(sender.end_due());
    sender.end_sent();
    assert!(!sender.end_due());
    sender.acknowledge(3, 10, true).unwrap();
    assert!(sender.is_done());
}

#[test]
fn sender_refuses_reports_of_what_was_never_sent() {
    let mut sender = Sender::new(10);
    sender.push(Bytes::from_static(b"abc"));
    let beyond = sender.acknowledge(1, 10, false);
    assert_eq!(beyond, Err(Violation::TakenBeyondSent { taken: 1, sent: 0 }));
    sender.advance(3);
    assert_eq!(sender.acknowledge(3, 10, true), Err(Violation::EndBeforeEnd));
    assert!(sender.rewind(4).is_err());
}

#[test]
fn rewound_sender_repeats_what_was_not_taken_and_its_end() {
    let mut sender = Sender::new(100);
    sender.push(Bytes::from_static(b"hello "));
    sender.push(Bytes::from_static(b"world"));
    sender.finish();
    sender.advance(11);
    sender.end_sent();
    sender.rewind(2).unwrap();
    assert_eq!(sender.unsent().as_deref(), Some(&b"llo "[..]));
    sender.advance(4);
    assert_eq!(sender.unsent().as_deref(), Some(&b"world"[..]));
    sender.advance(5);
    assert!(sender.end_due());
}

#[test]
fn receiver_skips_what_it_has_and_refuses_a_hole() {
    let mut receiver = Receiver::default();
    receiver.take(10, Instant::now(), RTT).unwrap();
    receiver.resume(4).unwrap();
    assert_eq!(receiver.skip(), 6);
    receiver.skipped(6);
    assert_eq!(receiver.skip(), 0);
    assert_eq!(receiver.resume(11), Err(Violation::Hole { offset: 11, received: 10 }));
}

#[test]
fn receiver_refuses_bytes_beyond_the_credit() {
    let mut receiver = Receiver::default();
    let count = usize::try_from(INITIAL_WINDOW).unwrap() + 1;
    assert!(receiver.take(count, Instant::now(), RTT).is_err());
}

#[test]
fn window_doubles_for_a_fast_reader_and_stays_for_a_slow_one() {
    let (start, half) = (Instant::now(), usize::try_from(INITIAL_WINDOW / 2).unwrap());
    let mut fast = Receiver::default();
    fast.take(half, start, RTT).unwrap();
    assert!(fast.report_urgent());
    assert_eq!(fast.report(), (INITIAL_WINDOW / 2, INITIAL_WINDOW / 2 + 2 * INITIAL_WINDOW, false));
    let mut slow = Receiver::default();
    slow.take(1, start, RTT).unwrap();
    slow.take(half - 1, start + Duration::from_secs(1), RTT).unwrap();
    assert_eq!(slow.report(), (INITIAL_WINDOW / 2, INITIAL_WINDOW / 2 + INITIAL_WINDOW, false));
}

/// A sender that always has something, at the far end of a line of this rate and round trip. What
/// the receiver takes in the tenth second, and its window then.
fn tenth_second(rate: u64, rtt: Duration) -> (u64, u64) {
    let (begin, mut receiver) = (Instant::now(), Receiver::default());
    let (mut sent, mut limit, mut before, mut due) = (0, INITIAL_WINDOW, 0, None);
    let (mut data, mut credit) = (VecDeque::new(), VecDeque::new());
    for millisecond in 0..10_000 {
        let now = begin + Duration::from_millis(millisecond);
        while let Some((_, news)) = credit.pop_front_if(|(at, _)| *at <= now) {
            limit = news;
        }
        let piece = (limit - sent).min(rate / 1000);
        sent += piece;
        data.push_back((now + rtt / 2, piece));
        while let Some((_, piece)) = data.pop_front_if(|(at, _)| *at <= now) {
            receiver.take(usize::try_from(piece).unwrap(), now, rtt).unwrap();
        }
        if receiver.report_due() {
            let since = *due.get_or_insert(now);
            if receiver.report_urgent() || since + REPORT_DELAY <= now {
                credit.push_back((now + rtt / 2, receiver.report().1));
                due = None;
            }
        }
        if millisecond == 9000 {
            before = receiver.taken();
        }
    }
    (receiver.taken() - before, receiver.window)
}

#[test]
fn window_grows_to_what_a_path_holds_and_not_far_beyond() {
    for rtt in [1, 20, 60, 100, 250].map(Duration::from_millis) {
        for rate in [100_000, 1_000_000, 12_500_000] {
            let (taken, window) = tenth_second(rate, rtt);
            assert!(taken >= rate * 95 / 100, "{rate} B/s at {rtt:?}: {taken}, window {window}");
            let holds = rate * u64::try_from((rtt + 2 * REPORT_DELAY).as_millis()).unwrap() / 1000;
            let most = (10 * holds).max(INITIAL_WINDOW);
            assert!(window <= most, "{rate} B/s at {rtt:?}: {window}, path holds {holds}");
        }
    }
}

#[test]
fn many_flows_share_the_memory_of_few() {
    assert_eq!(share(1), MAX_WINDOW);
    assert_eq!(share(1000) * 1000, BUDGET / 1000 * 1000);
    assert_eq!(share(1_000_000), INITIAL_WINDOW);
    let (now, mut receiver) = (Instant::now(), Receiver::default());
    for _ in 0..20 {
        let half = usize::try_from(receiver.limit() - receiver.taken()).unwrap();
        receiver.take(half, now, RTT).unwrap();
        receiver.bound(256 * 1024);
        receiver.report();
    }
    assert!(receiver.limit() - receiver.taken() <= 256 * 1024);
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Carry(usize),
    Take(usize),
    Report,
    Break,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..40_000_usize).prop_map(Step::Push),
        (1..40_000_usize).prop_map(Step::Carry),
        (1..40_000_usize).prop_map(Step::Take),
        Just(Step::Report),
        Just(Step::Break),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    /// A sender and a receiver joined by a stream that may be replaced at any moment, with reports
    /// that may be lost with it.
    #[test]
    fn delivered_bytes_are_an_exact_prefix(steps in steps()) {
        let byte = |at: u64| (at % 251) as u8;
        let (mut sender, mut receiver) = (Sender::new(INITIAL_WINDOW), Receiver::default());
        let (mut stream, mut now) = (VecDeque::new(), Instant::now());
        for step in steps {
            now += Duration::from_millis(1);
            match step {
                Step::Push(count) => {
                    let count = count.min(sender.room());
                    let from = sender.total();
                    sender.push((from..from + count as u64).map(byte).collect());
                }
                Step::Carry(count) => {
                    if let Some(chunk) = sender.unsent() {
                        let count = count.min(chunk.len());
                        stream.extend(chunk[..count].iter().copied());
                        sender.advance(count);
                    }
                }
                Step::Take(count) => {
                    let skip = receiver.skip().min(stream.len());
                    stream.drain(..skip);
                    receiver.skipped(skip);
                    let count = count.min(stream.len());
                    for got in stream.drain(..count) {
                        prop_assert_eq!(got, byte(receiver.taken()));
                        receiver.take(1, now, RTT).unwrap();
                    }
                }
                Step::Report => {
                    let (taken, limit, fin) = receiver.report();
                    sender.acknowledge(taken, limit, fin).unwrap();
                }
                Step::Break => {
                    stream.clear();
                    let offset = sender.taken();
                    sender.rewind(offset).unwrap();
                    receiver.resume(offset).unwrap();
                }
            }
            prop_assert!(sender.held() <= MAX_WINDOW);
            prop_assert!(receiver.taken() <= sender.total());
        }
    }
}
