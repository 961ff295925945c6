//! What the flows of all clients keep for those who have not taken it, and who may keep more when
//! there is little room.
//!
//! Kept bytes are never dropped. Up to half of the limit anybody keeps what its windows allow.
//! Beyond it windows shrink, and the rest of the room is for clients that keep less than their
//! equal share of it, so that a client that reads nothing cannot stop one that does. At three
//! quarters whole parked sessions are given up, the oldest first.

use whimbrel_common::session::INITIAL_WINDOW;

/// See the [module](self). Sizes are in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    limit: u64,
    held: u64,
}

impl Memory {
    /// Nothing is kept yet, of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, held: 0 }
    }

    /// Changes the limit. What is kept stays.
    pub fn confine(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// A flow that was counted with `before` bytes keeps `now`.
    pub fn count(&mut self, before: u64, now: u64) {
        self.held = (self.held + now).saturating_sub(before);
    }

    /// What is kept.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// What may be kept.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whether more than half of the room is taken.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.held > self.limit / 2
    }

    /// Whether parked sessions that keep something have to go.
    #[must_use]
    pub fn evicts(&self) -> bool {
        self.held > self.limit / 4 * 3
    }

    /// The window of a flow whose client's share of its own limit is `share`.
    #[must_use]
    pub fn window(&self, share: u64) -> u64 {
        if self.is_short() { share.min(INITIAL_WINDOW) } else { share }
    }

    /// How much one flow may keep before its destination is left unread, when its client keeps
    /// `own` bytes in all, may keep `most`, and is one of `clients`.
    #[must_use]
    pub fn allowance(&self, own: u64, most: u64, clients: usize) -> u64 {
        if !self.is_short() {
            return if own < most { u64::MAX } else { INITIAL_WINDOW };
        }
        let share = self.limit / 2 / clients.max(1) as u64;
        if own < share { INITIAL_WINDOW } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(held: u64) -> Memory {
        let mut memory = Memory::new(100 * MIB);
        memory.count(0, held);
        memory
    }

    #[test]
    fn with_room_only_the_clients_own_limit_counts() {
        let memory = memory(50 * MIB);
        assert_eq!(memory.allowance(40 * MIB, 41 * MIB, 9), u64::MAX);
        assert_eq!(memory.allowance(41 * MIB, 41 * MIB, 9), INITIAL_WINDOW);
        assert_eq!(memory.window(8 * MIB), 8 * MIB);
    }

    #[test]
    fn when_it_is_short_the_rest_is_shared_equally() {
        let memory = memory(51 * MIB);
        assert_eq!(memory.allowance(40 * MIB, u64::MAX, 5), 0);
        assert_eq!(memory.allowance(10 * MIB, u64::MAX, 5), 0);
        assert_eq!(memory.allowance(10 * MIB - 1, u64::MAX, 5), INITIAL_WINDOW);
        assert_eq!(memory.window(8 * MIB), INITIAL_WINDOW);
    }

    #[test]
    fn clients_that_read_nothing_never_reach_the_limit() {
        let mut memory = Memory::new(100 * MIB);
        let mut own = [0; 4];
        for turn in 0..100_000 {
            let client = turn % own.len();
            // A flow is fresh each time, so that its own allowance is never used up.
            if memory.allowance(own[client], u64::MAX, own.len()) > 0 {
                own[client] += INITIAL_WINDOW;
                memory.count(0, INITIAL_WINDOW);
            }
        }
        assert_eq!(memory.held(), own.iter().sum());
        assert!(memory.held() > 50 * MIB && memory.held() <= 100 * MIB, "{}", memory.held());
    }

    #[test]
    fn one_that_hoards_leaves_room_for_another() {
        let mut memory = memory(90 * MIB);
        assert_eq!(memory.allowance(90 * MIB, u64::MAX, 2), 0);
        assert_eq!(memory.allowance(0, u64::MAX, 2), INITIAL_WINDOW);
        memory.count(90 * MIB, 10 * MIB);
        assert_eq!(memory.allowance(10 * MIB, u64::MAX, 2), u64::MAX);
    }

    #[test]
    fn parked_sessions_go_before_there_is_no_room() {
        assert!(!memory(75 * MIB).evicts());
        assert!(memory(76 * MIB).evicts());
    }
}
