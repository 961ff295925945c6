//! Flows outlive the gateway's process: restarted, killed, or killed while it starts.

use whimbrel_tests::suite;

#[path = "restarts/bulk.rs"]
mod bulk;
#[path = "restarts/dead.rs"]
mod dead;
#[path = "restarts/hang.rs"]
mod hang;
#[path = "restarts/kept.rs"]
mod kept;
#[path = "hostile/rogue.rs"]
mod rogue;
#[path = "restarts/slots.rs"]
mod slots;
#[path = "meaning/stage.rs"]
mod stage;
#[path = "restarts/traffic.rs"]
mod traffic;
#[path = "restarts/traveller.rs"]
mod traveller;

use bulk::*;
use dead::*;
use hang::*;
use kept::*;
use slots::*;

suite! {
    an_orderly_restart_loses_nothing,
    a_killed_gateway_loses_nothing,
    half_closed_connections_outlive_the_gateway,
    what_nobody_read_yet_outlives_the_gateway,
    a_connection_that_was_being_made_is_made,
    many_connections_outlive_the_gateway,
    kills_at_random_moments_lose_no_byte,
    an_end_said_while_the_gateway_was_dead_arrives,
    a_reset_while_the_gateway_was_dead_arrives,
    a_reset_is_a_reset_although_duplicates_are_kept,
    a_client_revoked_meanwhile_finds_nothing,
    what_was_stored_by_others_is_refused_and_harms_nothing,
    clients_that_change_their_address_stay_on_their_slot,
    datagrams_that_the_kernel_does_not_sort_are_passed_on,
    sessions_move_between_slots_and_lose_no_byte,
    what_moved_away_is_kept_although_the_slot_it_left_tidies_up,
    much_under_way_moves_with_its_session_and_outlives_kills,
    the_last_of_several_attaches_at_once_has_the_session,
    a_client_revoked_while_it_moves_has_nothing_left,
    kills_while_sessions_move_lose_nothing_with_any_number_of_slots,
    twelve_clients_that_move_outlive_an_upgrade,
    a_connection_of_a_slot_that_is_gone_is_reset_by_another,
    a_single_slot_that_hangs_is_noticed_and_nothing_is_lost,
    more_slots_than_sockets_are_refused_with_a_reason,
}
