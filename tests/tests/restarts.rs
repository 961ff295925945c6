//! Flows outlive the gateway's process: restarted, killed, or killed while it starts.

use whimbrel_tests::suite;

#[path = "restarts/dead.rs"]
mod dead;
#[path = "restarts/kept.rs"]
mod kept;
#[path = "meaning/stage.rs"]
mod stage;
#[path = "restarts/traffic.rs"]
mod traffic;

use dead::*;
use kept::*;

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
}
