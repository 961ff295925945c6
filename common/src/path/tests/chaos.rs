//! Whatever happens, the promises hold.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::path::{
    Action, Config, DownReason, Evidence, Input, PathKey, Paths, PreferredBy, Role, State,
};

#[derive(Debug, Clone)]
enum Step {
    Give(Input),
    Evidence {
        path: PathKey,
        expecting: Option<u64>,
        ack: Option<u64>,
        receive: Option<u64>,
        stuck: Option<u64>,
    },
    Pass(u64),
    /// Run until the next deadline.
    Wait,
}

fn path() -> impl Strategy<Value = PathKey> {
    (0_u32..4).prop_map(PathKey)
}

fn ago() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(prop_oneof![0_u64..300, 0_u64..100_000])
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop_oneof![
        Just(DownReason::Carrier),
        Just(DownReason::AddressRemoved),
        Just(DownReason::SendError),
        Just(DownReason::Gone),
    ];
    let input = prop_oneof![
        4 => (path(), 0_u32..4, any::<bool>(), any::<bool>()).prop_map(
            |(path, rank, metered, cold)| Input::LinkUp {
                path,
                name: format!("if{path}"),
                rank,
                metered,
                cold
            }
        ),
        3 => (path(), reason).prop_map(|(path, reason)| Input::LinkDown { path, reason }),
        4 => path().prop_map(|path| Input::Opened { path }),
        1 => path().prop_map(|path| Input::OpenFailed { path }),
        2 => path().prop_map(|path| Input::Closed { path }),
        2 => path().prop_map(|path| Input::SendError { path }),
        1 => Just(Input::Activity),
        1 => path().prop_map(|path| Input::Prefer { path, by: PreferredBy::Hand }),
        1 => path().prop_map(|path| Input::Prefer { path, by: PreferredBy::Peer }),
        1 => Just(Input::Auto),
        1 => Just(Input::Woke),
    ];
    prop_oneof![
        4 => input.prop_map(Step::Give),
        4 => (path(), ago(), ago(), ago(), ago()).prop_map(
            |(path, expecting, ack, receive, stuck)| {
                Step::Evidence { path, expecting, ack, receive, stuck }
            }
        ),
        2 => prop_oneof![0_u64..50, 0_u64..5_000, 0_u64..1_000_000].prop_map(Step::Pass),
        4 => Just(Step::Wait),
    ]
}

/// What an observer of inputs and actions knows to be open.
struct Observer {
    paths: Paths,
    role: Role,
    open: BTreeSet<PathKey>,
    steered: BTreeSet<PathKey>,
    now: Instant,
}

impl Observer {
    fn follow(&mut self) {
        while let Some(action) = self.paths.poll_action() {
            match action {
                Action::Carry { path } => {
                    assert!(self.open.contains(&path), "carries {path}, which is not open");
                }
                Action::Close { path } => {
                    let known = self.open.remove(&path);
                    assert!(known || self.role == Role::Client, "closes what was never open");
                    if known {
                        assert!(!self.open.is_empty(), "closed the last open path");
                    }
                }
                Action::Probe { path } => assert!(self.open.contains(&path)),
                Action::Steer { from, onto } => {
                    assert_eq!(self.role, Role::Client);
                    assert!(self.open.contains(&from), "steers a path that is not open");
                    assert_ne!(from, onto);
                    self.steered.insert(from);
                }
                Action::Open { path } => {
                    assert_eq!(self.role, Role::Client);
                    assert!(!self.open.contains(&path), "opens a path that is open");
                    assert!(!self.steered.contains(&path), "opens a path by another's link");
                }
                Action::Unsteer { path } => {
                    self.steered.remove(&path);
                }
                Action::Replay { .. } | Action::Moved(_) | Action::StateChanged { .. } => {}
            }
        }
        let active = self.paths.paths().filter(|view| view.state == State::Active).count();
        assert!(active <= 1);
        assert_eq!(self.paths.active().is_some(), !self.open.is_empty());
        if let Some(active) = self.paths.active() {
            assert!(self.open.contains(&active));
            let state = self.paths.state(active);
            assert!(
                matches!(state, State::Active | State::Suspect | State::Steered),
                "the active path is {state}"
            );
        }
    }

    fn time_out(&mut self) {
        for _ in 0..20 {
            self.paths.handle_timeout(self.now);
            self.follow();
            if self.paths.poll_timeout().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("never content: {:#?}", self.paths);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Give(input) => {
                if let Input::Opened { path } = input {
                    self.open.insert(path);
                }
                if let Input::Closed { path } = input {
                    self.open.remove(&path);
                }
                self.paths.handle(input, self.now);
            }
            Step::Evidence { path, expecting, ack, receive, stuck } => {
                let at = |millis: Option<u64>| {
                    millis.and_then(|millis| self.now.checked_sub(Duration::from_millis(millis)))
                };
                let evidence = Evidence {
                    expecting_since: at(expecting),
                    last_ack: at(ack),
                    last_receive: at(receive),
                    undelivered: at(stuck),
                    srtt: Duration::from_millis(20),
                    rttvar: Duration::from_millis(3),
                };
                self.paths.handle(Input::Evidence { path, evidence }, self.now);
            }
            Step::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.time_out();
            }
            Step::Wait => {
                if let Some(at) = self.paths.poll_timeout() {
                    self.now = self.now.max(at);
                    self.time_out();
                }
            }
        }
        self.follow();
    }
}

fn survive(role: Role, steps: Vec<Step>) {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for the virtual clock")]
    let now = Instant::now() + Duration::from_secs(1_000_000);
    let paths = Paths::new(role, Config::new(role));
    let mut observer =
        Observer { paths, role, open: BTreeSet::new(), steered: BTreeSet::new(), now };
    for step in steps {
        observer.take(step);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_client_keeps_its_promises(steps in proptest::collection::vec(step(), 0..120)) {
        survive(Role::Client, steps);
    }

    #[test]
    fn the_gateway_keeps_its_promises(steps in proptest::collection::vec(step(), 0..120)) {
        survive(Role::Gateway, steps);
    }
}
