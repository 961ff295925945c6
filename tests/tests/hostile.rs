//! What both daemons make of garbage, of hostile peers and of an Internet that lies.

use whimbrel_tests::suite;

#[path = "hostile/flood.rs"]
mod flood;
#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/garbage.rs"]
mod garbage;
#[path = "hostile/impostor.rs"]
mod impostor;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/parcels.rs"]
mod parcels;
#[path = "hostile/rogue.rs"]
mod rogue;
#[path = "hostile/sessions.rs"]
mod sessions;
#[path = "meaning/stage.rs"]
mod stage;
#[path = "hostile/ways.rs"]
mod ways;

use flood::*;
use frames::*;
use garbage::*;
use impostor::*;
use memory::*;
use parcels::*;
use sessions::*;
use ways::*;

suite! {
    noise_on_the_control_stream_ends_only_its_own_session,
    frames_of_the_future_are_skipped_or_refused,
    lies_about_offsets_end_only_the_flow_they_are_about,
    resumes_of_nothing_and_in_storms_harm_nobody,
    a_session_goes_on_over_another_connection_of_its_key_and_of_no_other,
    flows_wait_for_a_client_that_lost_its_connection,
    sessions_of_one_client_are_bounded,
    a_revoked_client_cannot_go_on,
    streams_without_a_header_are_reset_or_wait,
    noise_in_datagrams_is_lost_and_harms_nobody,
    ports_of_one_client_are_bounded,
    ports_of_one_client_are_bounded_over_its_sessions,
    a_strangers_datagrams_go_nowhere,
    a_client_that_never_reads_holds_no_more_than_its_share,
    what_all_clients_keep_has_a_limit,
    ten_thousand_streams_at_once_harm_nobody,
    a_flood_of_first_packets_takes_no_memory_and_keeps_nobody_out,
    a_stranger_gets_four_kilobytes_and_five_seconds,
    a_gateway_that_breaks_every_rule_harms_only_its_own_flows,
    a_gateway_of_an_older_version_carries_tcp_and_leaves_the_rest_alone,
    replays_from_another_address_neither_steal_nor_kill,
    no_more_than_three_times_goes_to_an_address_that_was_not_validated,
    an_observer_of_both_uplinks_sees_no_common_id,
    a_steered_path_is_measured,
    what_was_measured_on_one_path_says_nothing_about_the_next,
    garbage_on_both_udp_ports_harms_nobody,
    garbage_as_an_invite_is_a_sentence,
    garbage_in_configurations_is_named_by_line_and_key,
    garbage_as_a_key_is_a_sentence,
    garbage_on_the_control_sockets_is_answered_or_dropped,
}
