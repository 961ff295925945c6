//! Chance in tests: different in every run, and the same again for who asks.

use std::time::{SystemTime, UNIX_EPOCH};

/// An order of events that can be had again.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The order that belongs to a [`seed`].
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `sides`.
    pub fn throw(&mut self, sides: u64) -> u64 {
        // Steele, Lea and Flood's SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// The seed in `WHIMBREL_SEED`, or one of the moment.
#[must_use]
pub fn seed() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    number("WHIMBREL_SEED").unwrap_or_else(|| clock.subsec_micros().into())
}

/// A number a person gave by the environment.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
