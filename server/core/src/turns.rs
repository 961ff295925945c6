//! Whose flows are moved next, when there is more to do than at once.
//!
//! Every client is served in its turn, and in it its flows in theirs, so that the many flows of one
//! client cost others no more than one of its turns does. What a turn moves beyond its share is taken
//! off the next one (deficit round robin; Shreedhar and Varghese 1995).

use std::collections::{BTreeMap, VecDeque};

/// Bytes a client moves in one round before others get their turn: a few milliseconds of one core.
pub const SHARE: u64 = 1024 * 1024;

/// The least a flow gets in its turn, in bytes: one read from a destination.
const LEAST: u64 = 64 * 1024;

/// Flows that wait for their turn, by client. A flow is named by its owner's number, and waits once:
/// the owner sees to that.
#[derive(Debug)]
pub struct Turns<C> {
    clients: BTreeMap<C, Client>,
    /// Clients with waiting flows that have yet to be served in this round.
    round: VecDeque<C>,
    /// Those to be served in the next one.
    next: VecDeque<C>,
}

#[derive(Debug, Default)]
struct Client {
    flows: VecDeque<u64>,
    /// Flows that waited when the round began.
    due: usize,
    /// Bytes moved in this round, and in those before beyond their share.
    moved: u64,
}

/// A flow's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<C> {
    /// Whose flow it is.
    pub client: C,
    /// The flow.
    pub flow: u64,
    /// Bytes it may move in each direction.
    pub budget: usize,
}

impl<C> Default for Turns<C> {
    fn default() -> Self {
        Self { clients: BTreeMap::new(), round: VecDeque::new(), next: VecDeque::new() }
    }
}

impl<C: Ord + Copy> Turns<C> {
    /// A flow waits for its turn.
    pub fn push(&mut self, client: C, flow: u64) {
        let entry = self.clients.entry(client).or_insert_with(|| {
            self.next.push_back(client);
            Client::default()
        });
        entry.flows.push_back(flow);
    }

    /// Whether no flow waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.values().all(|client| client.flows.is_empty())
    }

    /// Begins a round: every client with waiting flows is to be served once.
    pub fn begin(&mut self) {
        self.round = std::mem::take(&mut self.next);
        for client in &self.round {
            if let Some(client) = self.clients.get_mut(client) {
                client.due = client.flows.len();
                client.moved = client.moved.saturating_sub(SHARE);
            }
        }
    }

    /// The next turn of the round. What it moved must be [counted](Self::count) before the next one.
    pub fn next_turn(&mut self) -> Option<Turn<C>> {
        while let Some(client) = self.round.front().copied() {
            if let Some(turn) = self.clients.get_mut(&client).and_then(Client::take) {
                let (flow, budget) = turn;
                return Some(Turn { client, flow, budget });
            }
            self.round.pop_front();
            let idle = |own: &Client| own.flows.is_empty() && own.moved <= SHARE;
            if self.clients.get(&client).is_some_and(idle) {
                self.clients.remove(&client);
            } else {
                self.next.push_back(client);
            }
        }
        None
    }

    /// A turn of the client moved so many bytes.
    pub fn count(&mut self, client: C, bytes: u64) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.moved += bytes;
        }
    }
}

impl Client {
    /// The next flow that was due when the round began, and its budget.
    fn take(&mut self) -> Option<(u64, usize)> {
        if self.due == 0 || self.moved >= SHARE {
            return None;
        }
        let fair = (SHARE / 2 / self.due as u64).max(LEAST);
        self.due -= 1;
        let budget = usize::try_from(fair).unwrap_or(usize::MAX);
        self.flows.pop_front().map(|flow| (flow, budget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round in which every flow moves `each` bytes and waits again; what each client moved.
    fn round(turns: &mut Turns<char>, each: u64) -> Vec<(char, u64)> {
        let (mut order, mut again) = (Vec::new(), Vec::new());
        turns.begin();
        while let Some(turn) = turns.next_turn() {
            let moved = each.min(turn.budget as u64);
            turns.count(turn.client, moved);
            again.push((turn.client, turn.flow));
            match order.last_mut() {
                Some((client, bytes)) if *client == turn.client => *bytes += moved,
                Some(_) | None => order.push((turn.client, moved)),
            }
        }
        again.into_iter().for_each(|(client, flow)| turns.push(client, flow));
        order
    }

    #[test]
    fn many_flows_of_one_client_cost_another_one_turn() {
        let mut turns = Turns::default();
        (0..1000).for_each(|flow| turns.push('a', flow));
        turns.push('b', 1000);
        for _ in 0..50 {
            let order = round(&mut turns, u64::MAX);
            let [('a', many), ('b', one)] = order[..] else { panic!("{order:?}") };
            assert!(many <= SHARE + LEAST && one == SHARE / 2, "{order:?}");
        }
    }

    #[test]
    fn flows_of_a_client_are_served_in_turn() {
        let mut turns = Turns::default();
        (0..100).for_each(|flow| turns.push('a', flow));
        let mut served = Vec::new();
        for _ in 0..100 {
            turns.begin();
            let mut again = Vec::new();
            while let Some(turn) = turns.next_turn() {
                turns.count('a', LEAST);
                again.push(turn.flow);
            }
            again.iter().for_each(|flow| turns.push('a', *flow));
            served.extend(again);
        }
        let expected: Vec<u64> = (0..100).cycle().take(served.len()).collect();
        assert_eq!(served, expected);
    }

    #[test]
    fn what_was_moved_too_much_is_taken_off_the_next_round() {
        let mut turns = Turns::default();
        turns.push('a', 1);
        turns.push('b', 2);
        turns.begin();
        let turn = turns.next_turn().unwrap();
        turns.count(turn.client, 3 * SHARE);
        turns.push('a', 1);
        assert_eq!(turns.next_turn().unwrap().client, 'b');
        turns.push('b', 2);
        for _ in 0..2 {
            let order = round(&mut turns, SHARE);
            assert!(order.iter().all(|(client, _)| *client == 'b'), "{order:?}");
        }
        assert!(round(&mut turns, SHARE).iter().any(|(client, _)| *client == 'a'));
    }

    #[test]
    fn a_flow_that_waits_again_in_its_turn_waits_for_the_next_round() {
        let mut turns = Turns::default();
        turns.push('a', 1);
        turns.begin();
        assert_eq!(turns.next_turn().unwrap().flow, 1);
        turns.push('a', 1);
        assert_eq!(turns.next_turn(), None);
        assert!(!turns.is_empty());
        turns.begin();
        assert_eq!(turns.next_turn().unwrap().flow, 1);
        assert_eq!(turns.next_turn(), None);
        assert!(turns.is_empty());
    }

    #[test]
    fn one_flow_alone_gets_much_and_one_of_many_little() {
        let mut turns = Turns::default();
        turns.push('a', 1);
        turns.begin();
        assert_eq!(turns.next_turn().unwrap().budget as u64, SHARE / 2);
        (0..100).for_each(|flow| turns.push('b', flow));
        turns.begin();
        assert_eq!(turns.next_turn().unwrap().budget as u64, LEAST);
    }
}
