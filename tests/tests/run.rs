//! `whimbrel run`: one command behind the gateway, with and without a daemon of the host.

use whimbrel_tests::suite;

#[path = "run/alone.rs"]
mod alone;
#[path = "run/inside.rs"]
mod inside;
#[path = "run/led.rs"]
mod led;
#[path = "run/names.rs"]
mod names;
#[path = "run/served.rs"]
mod served;
#[path = "meaning/stage.rs"]
mod stage;

use alone::*;
use led::*;
use names::*;
use served::*;

suite! {
    a_wrapped_command_is_carried_by_the_daemon,
    a_wrapped_command_without_privilege_is_carried_by_the_daemon,
    process_exit_code_and_signals_are_the_commands_own,
    the_namespace_lasts_as_long_as_somebody_uses_it,
    a_wrapped_command_outlives_the_daemon_under_a_service_manager,
    what_only_the_server_keeps_open_does_not_keep_the_namespace,
    what_is_no_tun_is_refused,
    names_are_looked_up_through_the_gateway_and_nowhere_else,
    an_excluded_command_goes_around_the_capture,
    a_command_is_carried_by_its_group_although_the_host_is_paused,
    an_excluded_command_outlives_the_daemon,
    process_and_exit_code_of_a_led_command_are_its_own,
    what_is_no_control_group_is_refused,
    without_control_groups_it_says_what_to_do,
    without_a_daemon_an_engine_comes_and_goes_with_the_commands,
    an_engine_that_cannot_start_says_why,
}
