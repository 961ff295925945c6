//! The machine sleeps, and connections are there when it wakes up: both daemons, a login manager on
//! a real bus, and the networks between them.

use whimbrel_tests::suite;

#[path = "sleep/nap.rs"]
mod nap;
#[path = "meaning/stage.rs"]
mod stage;
#[path = "restarts/traffic.rs"]
mod traffic;

use nap::*;

suite! {
    the_machine_sleeps_once_the_gateway_holds_everything,
    a_sleep_that_is_aborted_costs_nothing,
    a_gateway_out_of_reach_delays_no_sleep_for_long,
    what_is_said_before_a_sleep_may_be_lost,
    a_bus_that_is_restarted_is_found_again,
    a_machine_without_a_login_manager_says_so_once,
    wake_ups_one_after_the_other,
}
