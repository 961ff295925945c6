//! UDP is carried like TCP where it is asked for (`capture.mode = "all"`), and left alone where it
//! must be: through real kernels and both daemons.

use whimbrel_tests::suite;

#[path = "datagrams/carried.rs"]
mod carried;
#[path = "datagrams/echoes.rs"]
mod echoes;
#[path = "datagrams/errors.rs"]
mod errors;
#[path = "datagrams/flood.rs"]
mod flood;
#[path = "datagrams/moved.rs"]
mod moved;
#[path = "datagrams/names.rs"]
mod names;
#[path = "datagrams/pair.rs"]
mod pair;
#[path = "meaning/stage.rs"]
mod stage;

use carried::*;
use echoes::*;
use errors::*;
use flood::*;
use moved::*;
use names::*;

suite! {
    a_socket_has_one_port_at_the_gateway_whomever_it_talks_to,
    datagrams_of_every_size_arrive_as_they_were,
    servers_and_the_local_network_are_left_alone,
    without_being_asked_udp_is_left_alone,
    a_stranger_does_not_reach_a_port_of_a_client,
    what_nobody_listens_to_is_refused,
    what_the_policy_denies_is_told_about_udp_too,
    a_gateway_without_ipv6_says_so_at_once,
    a_ping_is_answered_by_its_destination_through_the_gateway,
    what_no_ping_reaches_is_told,
    pings_go_direct_unless_they_are_wanted_and_the_gateway_can,
    a_flood_to_the_gateway_leaves_streams_their_share,
    a_flood_from_the_gateway_leaves_streams_their_share,
    nothing_goes_around_a_gateway_that_was_never_reached_if_it_must_not,
    udp_counts_in_the_bandwidth_of_a_client,
    datagrams_go_on_across_a_move,
    datagrams_go_on_across_a_restart_from_the_same_port,
    the_gateways_resolver_answers_inside_the_tun,
    the_next_name_server_is_asked_if_the_first_is_gone,
    names_lead_to_the_gateway_and_are_given_back,
    names_stay_where_they_are_if_the_gateway_has_no_resolver,
    systemd_resolved_is_told_and_told_again,
    a_question_that_was_on_its_way_when_the_network_died_is_answered,
}
