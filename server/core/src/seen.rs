//! Which flow ids of a session were used, in bounded memory.
//!
//! Ids only rise, but the streams that carry them may overtake each other. As for the sequence
//! numbers of ESP (RFC 4303 §3.4.3), a window below the highest id tells exactly, and everything
//! below the window counts as used: a dial is never repeated by mistake.

use whimbrel_common::wire::WireFlow;

/// Words of the window.
pub const WORDS: usize = 7;

/// Ids the window covers, the highest included.
pub const WINDOW: u64 = WORDS as u64 * 64;

/// The ids used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// One more than the highest id.
    next: u64,
    /// Bit `n` stands for the id `n` below the highest.
    window: [u64; WORDS],
}

impl Seen {
    /// What [`words`](Self::words) told.
    #[must_use]
    pub fn from_words(next: u64, window: [u64; WORDS]) -> Self {
        Self { next, window }
    }

    /// All there is to know, to be kept elsewhere.
    #[must_use]
    pub fn words(&self) -> (u64, [u64; WORDS]) {
        (self.next, self.window)
    }

    /// Whether this id was used, or is too old to tell.
    #[must_use]
    pub fn contains(&self, flow: WireFlow) -> bool {
        let Some(below) = self.next.checked_sub(1).and_then(|newest| newest.checked_sub(flow.0))
        else {
            return false;
        };
        if below >= WINDOW {
            return true;
        }
        let (word, bit) = place(below);
        self.window[word] & bit != 0
    }

    /// This id is used.
    pub fn insert(&mut self, flow: WireFlow) {
        if flow.0 >= self.next {
            self.shift(flow.0 - self.next + 1);
            // Ids are varints: none is the highest number of all.
            self.next = flow.0 + 1;
            self.window[0] |= 1;
        } else if let below @ ..WINDOW = self.next - 1 - flow.0 {
            let (word, bit) = place(below);
            self.window[word] |= bit;
        }
    }

    /// This id was not used after all.
    pub fn remove(&mut self, flow: WireFlow) {
        if self.next > flow.0
            && let below @ ..WINDOW = self.next - 1 - flow.0
        {
            let (word, bit) = place(below);
            self.window[word] &= !bit;
        }
    }

    fn shift(&mut self, ids: u64) {
        if ids >= WINDOW {
            self.window = [0; WORDS];
            return;
        }
        let (words, bits) = (usize::try_from(ids / 64).expect("fewer than the window's"), ids % 64);
        for at in (0..WORDS).rev() {
            let whole = at.checked_sub(words).map_or(0, |from| self.window[from]);
            let carried = at.checked_sub(words + 1).map_or(0, |from| self.window[from]);
            self.window[at] =
                if bits == 0 { whole } else { whole << bits | carried >> (64 - bits) };
        }
    }
}

fn place(below: u64) -> (usize, u64) {
    (usize::try_from(below / 64).expect("within the window"), 1 << (below % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_knows_what_a_set_knows_within_its_window(
            steps in prop::collection::vec((0_u64..2000, any::<bool>()), 1..300)
        ) {
            let mut seen = Seen::default();
            let mut set = BTreeSet::new();
            let mut newest = None;
            for (id, used) in steps {
                // The base rises with the steps, so that the window moves.
                let id = newest.unwrap_or(0_u64).saturating_sub(300) + id % 600;
                if used {
                    seen.insert(WireFlow(id));
                    set.insert(id);
                    newest = newest.max(Some(id));
                } else {
                    seen.remove(WireFlow(id));
                    set.remove(&id);
                }
                let (next, window) = seen.words();
                prop_assert_eq!(Seen::from_words(next, window), seen);
                let Some(newest) = newest else { continue };
                for id in newest.saturating_sub(WINDOW - 1)..newest + 10 {
                    prop_assert_eq!(seen.contains(WireFlow(id)), set.contains(&id), "{}", id);
                }
                if let Some(old) = newest.checked_sub(WINDOW) {
                    prop_assert!(seen.contains(WireFlow(old)));
                }
            }
        }
    }
}
