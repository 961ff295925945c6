//! Which connections wait in vain once the gateway is out of reach.

use std::collections::BTreeSet;

use whimbrel_client_core::engine::FlowId;

/// Takes out of `waiting` those that were never opened, as `is_new` says: `None` of a connection
/// that is over. The others have lost a stream, and go on as soon as there is another.
pub(super) fn hopeless(
    waiting: &mut BTreeSet<FlowId>,
    is_new: impl Fn(&FlowId) -> Option<bool>,
) -> Vec<FlowId> {
    let hopeless = waiting.iter().copied().filter(|flow| is_new(flow) == Some(true)).collect();
    waiting.retain(|flow| is_new(flow) == Some(false));
    hopeless
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_open_goes_on_waiting() {
        let [new, open, over] = [FlowId(1), FlowId(2), FlowId(3)];
        let mut waiting = BTreeSet::from([new, open, over]);
        let is_new = |flow: &FlowId| (*flow != over).then_some(*flow == new);
        assert_eq!(hopeless(&mut waiting, is_new), [new]);
        assert_eq!(waiting, BTreeSet::from([open]));
    }
}
