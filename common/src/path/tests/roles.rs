//! The gateway: it prefers and tells, opens and steers nothing, and closes what keeps bytes.

use std::time::{Duration, Instant};

use crate::path::{
    Action, Config, Evidence, Input, Move, MoveReason, PathKey, Paths, PreferredBy, Role, State,
};

const FIRST: PathKey = PathKey(0);
const SECOND: PathKey = PathKey(1);

struct Gateway {
    paths: Paths,
    now: Instant,
}

impl Gateway {
    /// Two validated paths, traffic on the first.
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for the virtual clock")]
        let now = Instant::now();
        let paths = Paths::new(Role::Gateway, Config::new(Role::Gateway));
        let mut gateway = Self { paths, now };
        gateway.give(Input::Opened { path: FIRST });
        gateway.give(Input::Opened { path: SECOND });
        gateway.drain();
        gateway
    }

    fn give(&mut self, input: Input) {
        self.paths.handle(input, self.now);
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.paths.handle_timeout(self.now);
    }

    fn ago(&self, millis: u64) -> Instant {
        self.now - Duration::from_millis(millis)
    }

    fn evidence(&mut self, path: PathKey, expecting: Option<u64>, ack: Option<u64>) {
        let evidence = Evidence {
            expecting_since: expecting.map(|millis| self.ago(millis)),
            last_ack: ack.map(|millis| self.ago(millis)),
            last_receive: ack.map(|millis| self.ago(millis)),
            undelivered: None,
            srtt: Duration::from_millis(20),
            rttvar: Duration::from_millis(2),
        };
        self.give(Input::Evidence { path, evidence });
    }

    /// The path answers, and owes the next answer if it is busy.
    fn alive(&mut self, path: PathKey, busy: bool) {
        let evidence = Evidence {
            expecting_since: busy.then_some(self.now),
            last_ack: Some(self.now),
            last_receive: Some(self.now),
            undelivered: busy.then_some(self.now),
            srtt: Duration::from_millis(20),
            rttvar: Duration::from_millis(2),
        };
        self.give(Input::Evidence { path, evidence });
    }

    /// Something was sent on a spare path, and nothing later arrived there.
    fn strand(&mut self, path: PathKey) {
        let evidence = Evidence {
            expecting_since: Some(self.now),
            undelivered: Some(self.now),
            srtt: Duration::from_millis(60),
            rttvar: Duration::from_millis(5),
            ..Evidence::NONE
        };
        self.give(Input::Evidence { path, evidence });
    }

    fn drain(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.paths.poll_action())
            .filter(|action| !matches!(action, Action::StateChanged { .. }))
            .collect()
    }
}

fn reason(actions: &[Action]) -> Option<MoveReason> {
    actions.iter().find_map(|action| {
        let Action::Moved(Move { reason, .. }) = action else { return None };
        Some(*reason)
    })
}

#[test]
fn a_new_path_of_the_client_stays_in_reserve() {
    let mut gateway = Gateway::new();
    gateway.give(Input::Opened { path: PathKey(2) });
    assert_eq!(gateway.drain(), [Action::Carry { path: FIRST }]);
    assert_eq!(gateway.paths.state(PathKey(2)), State::Warm);
}

#[test]
fn the_gateway_leaves_a_silent_path_for_one_that_answers() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(0), Some(0));
    gateway.pass(45);
    assert_eq!(gateway.drain(), [Action::Probe { path: FIRST }, Action::Probe { path: SECOND }]);
    for _ in 0..6 {
        gateway.pass(10);
    }
    gateway.evidence(SECOND, None, Some(0));
    for _ in 0..15 {
        gateway.pass(10);
    }
    let actions = gateway.drain();
    assert!(actions.contains(&Action::Carry { path: SECOND }), "{actions:?}");
    assert!(actions.iter().any(|it| matches!(it, Action::Replay { from: FIRST, .. })));
    assert_eq!(reason(&actions), Some(MoveReason::BlackHole));
    assert!(!actions.iter().any(|action| matches!(
        action,
        Action::Steer { .. } | Action::Close { .. } | Action::Open { .. }
    )));
}

#[test]
fn silence_while_we_did_not_run_proves_nothing() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(0), Some(0));
    gateway.pass(10);
    gateway.pass(400);
    gateway.evidence(SECOND, None, Some(0));
    gateway.pass(30);
    assert_eq!(gateway.paths.active(), Some(FIRST));
    assert_eq!(gateway.paths.state(FIRST), State::Active);
}

#[test]
fn the_gateway_follows_the_client() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(5), Some(5));
    gateway.give(Input::Prefer { path: SECOND, by: PreferredBy::Peer });
    let actions = gateway.drain();
    assert_eq!(actions[0], Action::Carry { path: SECOND });
    assert_eq!(reason(&actions), Some(MoveReason::PeerAsked));
    assert!(!actions.iter().any(|it| matches!(it, Action::Replay { from: FIRST, .. })));
}

#[test]
fn the_gateway_sends_again_what_the_client_cannot_have_got() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(90), Some(90));
    gateway.give(Input::Prefer { path: SECOND, by: PreferredBy::Peer });
    assert!(gateway.drain().iter().any(|it| matches!(it, Action::Replay { from: FIRST, .. })));
}

#[test]
fn a_wish_that_overtakes_its_path_is_honoured_when_the_path_is_there() {
    let mut gateway = Gateway::new();
    let third = PathKey(2);
    gateway.give(Input::Prefer { path: third, by: PreferredBy::Peer });
    assert_eq!(gateway.paths.active(), Some(FIRST));
    gateway.give(Input::Opened { path: third });
    assert_eq!(gateway.paths.active(), Some(third));
}

#[test]
fn when_the_client_closes_the_active_path_another_carries() {
    let mut gateway = Gateway::new();
    gateway.give(Input::Closed { path: FIRST });
    let actions = gateway.drain();
    assert_eq!(actions[0], Action::Carry { path: SECOND });
    assert!(matches!(actions[1], Action::Replay { from: FIRST, .. }));
    gateway.give(Input::Closed { path: SECOND });
    assert_eq!(gateway.paths.active(), None);
    gateway.give(Input::Opened { path: PathKey(3) });
    assert_eq!(gateway.paths.active(), Some(PathKey(3)));
}

#[test]
fn a_sleeping_client_costs_the_gateway_little() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(0), Some(0));
    for _ in 0..60_000 {
        gateway.pass(10);
    }
    gateway.drain();
    for _ in 0..60_000 {
        gateway.pass(10);
    }
    let probes = gateway.drain().len();
    assert!(probes <= 2 * 21, "{probes} probes in ten minutes");
}

#[test]
fn the_first_packet_of_a_client_that_is_back_is_answered_with_a_probe() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(0), Some(0));
    for _ in 0..60_000 {
        gateway.pass(10);
    }
    gateway.drain();
    gateway.pass(7_000);
    gateway.drain();
    let evidence = Evidence {
        expecting_since: Some(gateway.ago(60_000)),
        last_ack: Some(gateway.ago(600_000)),
        last_receive: Some(gateway.now),
        ..Evidence::NONE
    };
    gateway.give(Input::Evidence { path: FIRST, evidence });
    assert_eq!(gateway.drain(), [Action::Probe { path: FIRST }]);
}

#[test]
fn the_gateway_keeps_nothing_alive_by_itself() {
    let mut gateway = Gateway::new();
    for _ in 0..600 {
        gateway.pass(1_000);
    }
    assert_eq!(gateway.drain(), []);
}

#[test]
fn what_is_stuck_on_a_dead_spare_is_freed_when_the_active_path_has_proved_itself() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.strand(SECOND);
    let close = Action::Close { path: SECOND };
    for _ in 0..49 {
        gateway.pass(10);
        gateway.alive(FIRST, true);
        assert!(!gateway.drain().contains(&close));
    }
    for _ in 0..2 {
        gateway.pass(10);
        gateway.alive(FIRST, true);
    }
    gateway.pass(0);
    assert!(gateway.drain().contains(&close));
    assert_eq!(gateway.paths.state(SECOND), State::Absent);
}

#[test]
fn a_quiet_active_path_is_asked_before_a_spare_is_given_up() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.alive(FIRST, false);
    gateway.strand(SECOND);
    gateway.pass(500);
    assert_eq!(gateway.drain(), [Action::Probe { path: FIRST }]);
    gateway.pass(20);
    assert_eq!(gateway.drain(), []);
    gateway.alive(FIRST, false);
    gateway.pass(0);
    assert_eq!(gateway.drain(), [Action::Close { path: SECOND }]);
}

#[test]
fn in_a_common_outage_no_spare_is_given_up() {
    let mut gateway = Gateway::new();
    gateway.pass(1_000);
    gateway.evidence(FIRST, Some(0), Some(0));
    gateway.strand(SECOND);
    for _ in 0..6_000 {
        gateway.pass(10);
    }
    assert!(!gateway.drain().iter().any(|action| matches!(action, Action::Close { .. })));
}
