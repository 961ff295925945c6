//! One end of a flow whose peer says whatever it likes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_common::session::{MAX_WINDOW, Receiver, Sender};
use whimbrel_fuzz::Input;

/// One half of a flow against a peer without manners.
pub(crate) fn check(input: &mut Input<'_>) {
    if input.one_in(2) { check_sender(input) } else { check_receiver(input) }
}

fn byte(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)).to_le_bytes()[0]
}

fn run(from: u64, count: usize) -> Bytes {
    (from..).take(count).map(byte).collect()
}

/// Mostly little, sometimes as much as a chunk.
fn amount(input: &mut Input<'_>) -> usize {
    usize::from(input.short()) >> (input.byte() % 12)
}

/// An offset of a peer: near something that matters, or anything.
fn offset(input: &mut Input<'_>, sender: &Sender) -> u64 {
    let near = match input.byte() % 4 {
        0 => sender.taken(),
        1 => sender.taken() + sender.in_flight(),
        2 => sender.total(),
        _ => return input.long(),
    };
    near.wrapping_add_signed(i64::from(input.byte().cast_signed()))
}

fn state(sender: &Sender) -> (u64, u64, u64, bool) {
    (sender.taken(), sender.in_flight(), sender.total(), sender.is_done())
}

fn check_sender(input: &mut Input<'_>) {
    let mut sender = Sender::new(input.long());
    // What any stream was ever given: the peer cannot have taken more.
    let (mut reached, mut ended) = (0, false);
    while !input.is_empty() {
        let before = state(&sender);
        match input.byte() % 8 {
            0 | 1 => {
                let count = sender.room().min(amount(input));
                sender.push(run(sender.total(), count));
            }
            2 | 3 => {
                let count = amount(input);
                if let Some(chunk) = sender.unsent() {
                    sender.advance(count.min(chunk.len()));
                    reached = reached.max(sender.taken() + sender.in_flight());
                }
            }
            4 => sender.finish(),
            5 if sender.end_due() => {
                sender.end_sent();
                ended = true;
            }
            5 | 6 => {
                let (taken, limit, fin) =
                    (offset(input, &sender), offset(input, &sender), input.byte() % 2 == 1);
                let honest = taken <= reached && (!fin || (ended && taken == sender.total()));
                let room = sender.room();
                let result = sender.acknowledge(taken, limit, fin);
                assert_eq!(result.is_ok(), honest, "{result:?} for {taken} of {reached}");
                if result.is_err() {
                    assert_eq!(state(&sender), before, "a lie changes nothing");
                } else {
                    assert!(sender.room() >= room, "credit never falls");
                    assert!(sender.taken() <= taken.max(before.0));
                }
            }
            _ => {
                let from = offset(input, &sender);
                let result = sender.rewind(from);
                assert_eq!(result.is_ok(), from <= reached);
                if result.is_err() {
                    assert_eq!(state(&sender), before, "a lie changes nothing");
                }
            }
        }
        check_invariants(&sender, before, reached);
    }
}

fn check_invariants(sender: &Sender, before: (u64, u64, u64, bool), reached: u64) {
    assert!(sender.taken() >= before.0 && sender.total() >= before.2, "offsets only rise");
    assert!(sender.taken() <= reached);
    assert!(sender.held() <= MAX_WINDOW, "the peer cannot make us keep more");
    assert!(sender.room() as u64 + sender.held() <= MAX_WINDOW);
    assert!(!before.3 || sender.is_done(), "done is done");
    let sent = sender.taken() + sender.in_flight();
    match sender.unsent() {
        Some(chunk) => {
            assert!(!chunk.is_empty() && sender.has_unsent());
            // Its ends tell where it belongs; its middle came in one piece.
            let last = sent + chunk.len() as u64 - 1;
            assert_eq!((chunk.first(), chunk.last()), (Some(&byte(sent)), Some(&byte(last))));
        }
        None => assert_eq!(sent, sender.total()),
    }
}

fn check_receiver(input: &mut Input<'_>) {
    let mut receiver = Receiver::default();
    let (mut now, mut limit) = (epoch(), receiver.limit());
    while !input.is_empty() {
        let taken = receiver.taken();
        match input.byte() % 8 {
            0..=2 => {
                let count = usize::from(input.short()) << (input.byte() % 8);
                let rtt = Duration::from_millis(input.short().into());
                let fits = taken + count as u64 <= receiver.limit();
                assert_eq!(receiver.take(count, now, rtt).is_ok(), fits);
                assert_eq!(receiver.taken(), if fits { taken + count as u64 } else { taken });
            }
            3 => now += Duration::from_millis(input.short().into()),
            4 => {
                let from = taken.wrapping_add_signed(i64::from(input.word().cast_signed()));
                let from = if input.one_in(4) { input.long() } else { from };
                assert_eq!(receiver.resume(from).is_ok(), from <= taken);
                let skip = receiver.skip();
                receiver.skipped(usize::from(input.short()));
                assert!(receiver.skip() <= skip);
            }
            5 => receiver.bound(input.word().into()),
            6 => receiver.take_end(),
            _ => {
                let report = receiver.report();
                assert_eq!(report, (receiver.taken(), receiver.limit(), receiver.is_done()));
                assert!(!receiver.report_due());
            }
        }
        assert!(receiver.limit() >= limit, "credit never falls");
        limit = receiver.limit();
        assert!(receiver.taken() <= limit);
        assert!(limit - receiver.taken() <= MAX_WINDOW, "more credit than we are ready to hold");
    }
}

fn epoch() -> Instant {
    Instant::now()
}
