//! One direction of one access line: rate, queue, delay, jitter, loss.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a line does to the packets that travel one way over it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// One-way propagation delay.
    pub delay: Duration,
    /// Extra delay, uniformly random up to this much; packets stay in order.
    pub jitter: Duration,
    /// Bits per second; `None` is as fast as the machine.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate; what exceeds it is dropped at the tail. `None` is a
    /// queue of 100 ms at the rate.
    pub queue: Option<usize>,
    /// Fraction of packets lost, 0 to 1.
    pub loss: f64,
    /// Largest packet that passes, in bytes; larger ones vanish. `None`: any.
    pub mtu: Option<usize>,
}

impl Shape {
    /// A line with a one-way delay and a rate in Mbit/s.
    #[must_use]
    pub fn line(delay: Duration, mbit: u64) -> Self {
        Self { delay, rate: Some(mbit * 1_000_000), ..Self::default() }
    }

    /// The same line losing this fraction of its packets.
    #[must_use]
    pub fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    fn queue_bytes(&self, rate: u64) -> u64 {
        self.queue.map_or(rate / 80, |bytes| bytes as u64)
    }
}

/// What one direction of a line has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets delivered.
    pub packets: u64,
    /// Bytes of IP delivered.
    pub bytes: u64,
    /// Packets lost at random.
    pub lost: u64,
    /// Packets dropped because the queue was full.
    pub overflowed: u64,
    /// Packets swallowed by a black hole.
    pub swallowed: u64,
    /// Packets larger than the MTU.
    pub oversized: u64,
}

/// A bound on what one direction may hold whatever its shape, so that a long delay at an
/// unlimited rate cannot eat the machine's memory: 1 s at 500 Mbit/s.
const HOLD_LIMIT: usize = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Pipe {
    pub(super) shape: Shape,
    pub(super) black_hole: bool,
    pub(super) count: Count,
    busy_until: Option<Instant>,
    last_due: Option<Instant>,
    held: usize,
    waiting: VecDeque<(Instant, Vec<u8>)>,
}

impl Pipe {
    /// Takes a packet at the near end.
    pub(super) fn admit(&mut self, packet: Vec<u8>, now: Instant, chance: &mut Chance) {
        if self.black_hole {
            self.count.swallowed += 1;
        } else if self.shape.mtu.is_some_and(|mtu| packet.len() > mtu) {
            self.count.oversized += 1;
        } else if self.shape.loss > 0.0 && chance.fraction() < self.shape.loss {
            self.count.lost += 1;
        } else {
            self.schedule(packet, now, chance);
        }
    }

    fn schedule(&mut self, packet: Vec<u8>, now: Instant, chance: &mut Chance) {
        let Some(sent) = self.transmit(packet.len(), now) else {
            self.count.overflowed += 1;
            return;
        };
        let mut due = sent + self.shape.delay;
        if !self.shape.jitter.is_zero() {
            due += self.shape.jitter.mul_f64(chance.fraction());
        }
        due = self.last_due.map_or(due, |last| due.max(last));
        self.last_due = Some(due);
        self.held += packet.len();
        self.waiting.push_back((due, packet));
    }

    /// When the last bit is on the line; `None` when the queue is full.
    fn transmit(&mut self, length: usize, now: Instant) -> Option<Instant> {
        if self.held + length > HOLD_LIMIT {
            return None;
        }
        let Some(rate) = self.shape.rate.filter(|rate| *rate > 0) else { return Some(now) };
        let start = self.busy_until.map_or(now, |busy| busy.max(now));
        let waiting = start.duration_since(now).as_secs_f64() * rate as f64 / 8.0;
        if waiting + length as f64 > self.shape.queue_bytes(rate) as f64 && start > now {
            return None;
        }
        let sent = start + Duration::from_nanos(length as u64 * 8_000_000_000 / rate);
        self.busy_until = Some(sent);
        Some(sent)
    }

    /// The next packet that has reached the far end.
    pub(super) fn deliver(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        let (_, packet) = self.waiting.pop_front()?;
        self.held -= packet.len();
        self.count.packets += 1;
        self.count.bytes += packet.len() as u64;
        Some(packet)
    }

    /// When the next packet arrives.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.front().map(|(due, _)| *due)
    }

    /// Swallows everything from here on, what is under way included, or ends that.
    pub(super) fn set_black_hole(&mut self, on: bool) {
        self.black_hole = on;
        if on {
            self.count.swallowed += self.waiting.len() as u64;
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.held = 0;
        self.busy_until = None;
        self.last_due = None;
    }
}

/// Repeatable randomness (xorshift64*; Vigna 2016), so that a run can be run again.
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Uniform in [0, 1).
    fn fraction(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(pipe: &mut Pipe, now: Instant) -> usize {
        std::iter::from_fn(|| pipe.deliver(now)).count()
    }

    #[test]
    fn delay_and_rate_add_up() {
        let (now, mut chance) = (Instant::now(), Chance::new(1));
        let shape = Shape::line(Duration::from_millis(10), 12);
        let mut pipe = Pipe { shape, ..Pipe::default() };
        for _ in 0..10 {
            pipe.admit(vec![0; 1500], now, &mut chance);
        }
        // 1500 bytes at 12 Mbit/s take 1 ms.
        assert_eq!(drain(&mut pipe, now + Duration::from_millis(10)), 0);
        assert_eq!(drain(&mut pipe, now + Duration::from_millis(15)), 5);
        assert_eq!(drain(&mut pipe, now + Duration::from_millis(20)), 5);
    }

    #[test]
    fn a_full_queue_drops_at_the_tail() {
        let (now, mut chance) = (Instant::now(), Chance::new(1));
        let shape = Shape { rate: Some(1_000_000), queue: Some(4500), ..Shape::default() };
        let mut pipe = Pipe { shape, ..Pipe::default() };
        for _ in 0..10 {
            pipe.admit(vec![0; 1500], now, &mut chance);
        }
        assert_eq!(pipe.count.overflowed, 7);
        assert_eq!(drain(&mut pipe, now + Duration::from_secs(1)), 3);
    }

    #[test]
    fn loss_is_as_asked_and_repeatable() {
        let run = || {
            let (now, mut chance) = (Instant::now(), Chance::new(7));
            let shape = Shape::default().with_loss(0.1);
            let mut pipe = Pipe { shape, ..Pipe::default() };
            (0..10_000).for_each(|_| pipe.admit(vec![0; 100], now, &mut chance));
            pipe.count.lost
        };
        assert!((900..1100).contains(&run()));
        assert_eq!(run(), run());
    }

    #[test]
    fn a_black_hole_takes_what_is_under_way() {
        let (now, mut chance) = (Instant::now(), Chance::new(1));
        let mut pipe = Pipe::default();
        pipe.admit(vec![0; 100], now, &mut chance);
        pipe.set_black_hole(true);
        pipe.admit(vec![0; 100], now, &mut chance);
        pipe.set_black_hole(false);
        assert_eq!(drain(&mut pipe, now), 0);
        assert_eq!(pipe.count.swallowed, 2);
    }
}
