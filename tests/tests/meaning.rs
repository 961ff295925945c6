//! TCP keeps its meaning, and the host keeps its habits: through real kernels and both daemons.

use whimbrel_tests::suite;

#[path = "meaning/capture.rs"]
mod capture;
#[path = "meaning/ends.rs"]
mod ends;
#[path = "meaning/outage.rs"]
mod outage;
#[path = "meaning/pressure.rs"]
mod pressure;
#[path = "meaning/stage.rs"]
mod stage;

use capture::*;
use ends::*;
use outage::*;
use pressure::*;

suite! {
    a_refusal_is_a_refusal,
    what_is_unreachable_from_the_gateway_is_unreachable,
    what_the_policy_denies_is_told_at_once,
    silence_is_a_timeout_and_leaves_nothing,
    half_closes_carry_data_after_the_end_both_ways,
    a_reset_of_an_idle_connection_reaches_the_other_end,
    a_reset_in_the_middle_of_bulk_reaches_the_other_end,
    both_ends_can_close_at_once,
    a_reset_after_both_ends_were_said_leaves_nothing,
    streams_come_back_however_they_end,
    single_bytes_go_there_and_back,
    short_connections_in_a_row_leak_nothing,
    paused_downloads_stop_their_writers_and_nothing_else,
    paused_uploads_stop_their_writers_and_nothing_else,
    a_slow_reader_of_small_writes_stalls_alone,
    a_slow_reader_of_bulk_stalls_alone,
    what_ran_before_is_undisturbed_by_start_stop_kill_and_restart,
    nothing_stale_is_left_after_a_kill,
    the_local_network_stays_direct,
    containers_on_a_bridge_go_direct,
    the_longest_prefix_decides_what_is_captured,
    a_pause_lets_new_connections_go_direct,
    without_a_gateway_new_connections_go_direct_until_it_is_back,
    without_a_gateway_new_connections_fail_if_they_must_not_leak,
    a_connection_waits_for_a_gateway_that_comes_soon,
    an_orderly_stop_resets_what_was_carried_at_once,
    a_gateway_that_stops_resets_what_it_carried_at_once,
    a_revoked_client_is_cut_off_at_once,
}
