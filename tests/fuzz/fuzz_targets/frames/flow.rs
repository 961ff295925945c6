//! One direction of a flow between two honest ends, over streams that die at any moment and
//! reports that are late, repeated or lost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_common::session::{INITIAL_WINDOW, MAX_WINDOW, Receiver, Sender};
use whimbrel_fuzz::Input;

const RTT: Duration = Duration::from_millis(20);

/// Runs what the input says, then lets both ends finish: every byte arrives once, in order, and
/// both ends know it.
pub(crate) fn check(input: &mut Input<'_>) {
    let mut pair = Pair::new();
    while !input.is_empty() {
        let amount = |input: &mut Input<'_>| usize::from(input.short()) >> (input.byte() % 12);
        match input.byte() % 10 {
            0 | 1 => pair.push(amount(input)),
            2 | 3 => pair.carry(amount(input)),
            4 => pair.take(amount(input)),
            5 => pair.report(),
            6 => pair.deliver(usize::from(input.byte())),
            7 => pair.replace_stream(input.one_in(2)),
            8 => pair.pass(Duration::from_millis(input.short().into())),
            _ => match input.byte() % 8 {
                0 => pair.sender.finish(),
                _ => pair.receiver.bound(input.word().into()),
            },
        }
        pair.check();
    }
    pair.complete();
}

fn byte(offset: u64) -> u8 {
    (offset ^ (offset >> 8) ^ (offset >> 16)).to_le_bytes()[0]
}

struct Pair {
    sender: Sender,
    receiver: Receiver,
    /// Bytes on the current stream that were not taken from it.
    stream: VecDeque<u8>,
    /// The current stream was finished.
    ended: bool,
    reports: Vec<(u64, u64, bool)>,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        Self {
            sender: Sender::new(INITIAL_WINDOW),
            receiver: Receiver::default(),
            stream: VecDeque::new(),
            ended: false,
            reports: Vec::new(),
            now: Instant::now(),
        }
    }

    fn push(&mut self, count: usize) {
        let (from, count) = (self.sender.total(), count.min(self.sender.room()));
        let chunk: Bytes = (from..).take(count).map(byte).collect();
        self.sender.push(chunk);
    }

    fn carry(&mut self, mut count: usize) {
        while let Some(chunk) = self.sender.unsent() {
            let part = count.min(chunk.len());
            self.stream.extend(&chunk[..part]);
            self.sender.advance(part);
            count -= part;
            if count == 0 {
                return;
            }
        }
        if self.sender.end_due() {
            self.sender.end_sent();
            self.ended = true;
        }
    }

    fn take(&mut self, count: usize) {
        let skip = self.receiver.skip().min(self.stream.len());
        self.stream.drain(..skip);
        self.receiver.skipped(skip);
        let count = count.min(self.stream.len());
        for (at, got) in (self.receiver.taken()..).zip(self.stream.drain(..count)) {
            assert_eq!(got, byte(at), "the byte at {at}");
        }
        self.receiver.take(count, self.now, RTT).expect("the sender keeps to its credit");
        if self.ended && self.stream.is_empty() && self.receiver.skip() == 0 {
            self.receiver.take_end();
        }
    }

    fn report(&mut self) {
        self.reports.push(self.receiver.report());
    }

    /// Any report arrives, and stays in the air: old ones must be inert.
    fn deliver(&mut self, which: usize) {
        if let Some((taken, limit, fin)) = self.reports.iter().cycle().nth(which).copied() {
            self.sender.acknowledge(taken, limit, fin).expect("the receiver is honest");
        }
    }

    /// The stream dies. The sender starts again from the oldest byte it keeps, or from what the
    /// receiver says it has taken.
    fn replace_stream(&mut self, asked: bool) {
        self.stream.clear();
        self.ended = false;
        let from = if asked { self.receiver.taken() } else { self.sender.taken() };
        self.sender.rewind(from).expect("the receiver is honest");
        self.receiver.resume(self.sender.taken()).expect("the sender is honest");
        if asked {
            let (taken, limit, fin) = self.receiver.report();
            self.sender.acknowledge(taken, limit, fin).expect("the receiver is honest");
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn check(&self) {
        assert!(self.sender.held() <= MAX_WINDOW);
        assert!(self.sender.taken() <= self.receiver.taken(), "forgotten before it was taken");
        assert!(self.receiver.taken() <= self.sender.total());
        assert!(!self.receiver.is_done() || self.receiver.taken() == self.sender.total());
        assert!(!self.sender.is_done() || self.receiver.is_done());
    }

    fn complete(&mut self) {
        self.sender.finish();
        for _ in 0..3 {
            self.carry(usize::MAX);
            self.take(usize::MAX);
            let (taken, limit, fin) = self.receiver.report();
            self.sender.acknowledge(taken, limit, fin).expect("the receiver is honest");
            self.check();
        }
        assert!(self.receiver.is_done() && self.sender.is_done(), "the end never arrived");
        assert_eq!(self.receiver.taken(), self.sender.total());
        assert_eq!(self.sender.held(), 0);
    }
}
