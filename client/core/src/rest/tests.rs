#![expect(clippy::disallowed_methods, reason = "a test starts its clock anywhere")]

use proptest::prelude::*;

use super::*;

const FORGOTTEN: Duration = Duration::from_secs(600);
const MOMENT: Duration = Duration::from_millis(20);
const NIGHT: Duration = Duration::from_secs(8 * 3600);

struct Machine {
    rest: Rest,
    now: Instant,
}

impl Machine {
    fn awake() -> Self {
        Self { rest: Rest::new(FORGOTTEN), now: Instant::now() }
    }

    /// An attached client whose machine sleeps.
    fn asleep() -> Self {
        let mut machine = Self::awake();
        machine.give(Input::Sleep { attached: true });
        machine.give(Input::Parked);
        machine
    }

    fn give(&mut self, input: Input) -> Vec<Action> {
        self.rest.handle(input, self.now);
        self.actions()
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.rest.handle_timeout(self.now);
        self.actions()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.rest.poll_action()).collect()
    }
}

#[test]
fn the_machine_sleeps_as_soon_as_the_gateway_holds_the_flows() {
    let mut machine = Machine::awake();
    assert_eq!(machine.give(Input::Sleep { attached: true }), [Action::Park]);
    assert_eq!(machine.pass(MOMENT), []);
    assert!(machine.rest.is_resting());
    let release = Action::Release { took: MOMENT, parked: true };
    assert_eq!(machine.give(Input::Parked), [release]);
    assert_eq!(machine.give(Input::Awake), [Action::Wake { anew: false }]);
    assert!(!machine.rest.is_resting());
    assert_eq!(machine.rest.poll_timeout(), None);
}

#[test]
fn a_gateway_that_says_nothing_delays_the_sleep_by_a_second() {
    let mut machine = Machine::awake();
    machine.give(Input::Sleep { attached: true });
    assert_eq!(machine.rest.poll_timeout(), Some(machine.now + PARKING));
    let release = Action::Release { took: PARKING, parked: false };
    assert_eq!(machine.pass(PARKING), [Action::Leave, release]);
    assert_eq!(machine.give(Input::Parked), [], "it may sleep already");
}

#[test]
fn without_a_connection_there_is_nothing_to_wait_for() {
    let mut machine = Machine::awake();
    let release = Action::Release { took: Duration::ZERO, parked: true };
    assert_eq!(machine.give(Input::Sleep { attached: false }), [Action::Leave, release]);
    assert!(machine.rest.is_resting(), "nothing is tried while it goes to sleep");
}

#[test]
fn an_aborted_sleep_goes_on_where_it_was() {
    let mut machine = Machine::awake();
    machine.give(Input::Sleep { attached: true });
    assert_eq!(machine.give(Input::Awake), [Action::Wake { anew: false }]);
    assert_eq!(machine.give(Input::Parked), [], "the gateway's answer came too late");
    assert_eq!(machine.give(Input::Sleep { attached: true }), [Action::Park], "the next one");
}

#[test]
fn the_clocks_wake_a_client_that_nobody_told() {
    let mut machine = Machine::asleep();
    machine.pass(MOMENT);
    let actions = machine.give(Input::Jumped { asleep: NIGHT });
    assert_eq!(actions, [Action::Slept(NIGHT), Action::Wake { anew: true }]);
    assert_eq!(machine.give(Input::Awake), [], "once is enough");
}

#[test]
fn clocks_that_follow_the_wake_up_only_say_how_long_it_was() {
    let mut machine = Machine::asleep();
    machine.give(Input::Awake);
    machine.pass(MOMENT);
    assert_eq!(machine.give(Input::Jumped { asleep: NIGHT }), [Action::Slept(NIGHT)]);
    machine.pass(MOMENT);
    let again = machine.give(Input::Jumped { asleep: NIGHT });
    assert_eq!(again.len(), 2, "another sleep, which nobody announced: {again:?}");
}

#[test]
fn an_unannounced_nap_probes_and_an_unannounced_night_connects_anew() {
    let mut machine = Machine::awake();
    for (asleep, anew) in [(FORGOTTEN - MOMENT, false), (FORGOTTEN, true)] {
        let actions = machine.give(Input::Jumped { asleep });
        assert_eq!(actions, [Action::Slept(asleep), Action::Wake { anew }]);
    }
}

#[test]
fn a_sleep_that_never_comes_is_given_up() {
    let mut machine = Machine::asleep();
    assert_eq!(machine.pass(NEVER - MOMENT), []);
    assert_eq!(machine.pass(MOMENT), [Action::Wake { anew: false }]);
    assert!(!machine.rest.is_resting());
}

#[test]
fn whoever_asks_twice_is_let_go_twice() {
    let mut machine = Machine::asleep();
    let release = Action::Release { took: Duration::ZERO, parked: true };
    assert_eq!(machine.give(Input::Sleep { attached: false }), [release]);
}

fn inputs() -> impl Strategy<Value = (Input, u64)> {
    let input = prop_oneof![
        any::<bool>().prop_map(|attached| Input::Sleep { attached }),
        Just(Input::Parked),
        Just(Input::Awake),
        (1..100_000_u64).prop_map(|asleep| Input::Jumped { asleep: Duration::from_secs(asleep) }),
    ];
    (input, 0..40_000_u64)
}

proptest! {
    /// Whatever is told in whatever order: nobody waits for long, and nobody rests for ever.
    #[test]
    fn every_wait_is_released_and_every_rest_ends(
        story in proptest::collection::vec(inputs(), 1..40),
    ) {
        let mut machine = Machine::awake();
        let mut asked: Option<Instant> = None;
        for (input, pause) in story {
            let mut actions = machine.give(input);
            if let Input::Sleep { .. } = input {
                asked = asked.or(Some(machine.now));
            }
            let until = machine.now + Duration::from_millis(pause);
            loop {
                for action in actions {
                    match action {
                        Action::Release { .. } | Action::Wake { .. } => asked = None,
                        Action::Park | Action::Leave | Action::Slept(_) => {}
                    }
                }
                prop_assert!(asked.is_none_or(|asked| machine.now < asked + PARKING));
                let Some(next) = machine.rest.poll_timeout().filter(|next| *next <= until) else {
                    break;
                };
                let time = next - machine.now;
                actions = machine.pass(time);
            }
            machine.now = until;
        }
        machine.pass(PARKING);
        machine.pass(NEVER);
        prop_assert!(!machine.rest.is_resting());
    }
}
