//! What a person is told: a machine examined with both daemons, real kernels and real obstacles.

use whimbrel_tests::suite;

#[path = "doctor/examination.rs"]
mod examination;
#[path = "doctor/networks.rs"]
mod networks;
#[path = "meaning/stage.rs"]
mod stage;
#[path = "doctor/start.rs"]
mod start;

#[path = "programs/terminal.rs"]
mod terminal;
#[path = "doctor/watching.rs"]
mod watching;

use examination::*;
use networks::*;
use start::*;
use watching::*;

suite! {
    a_machine_that_works_is_well,
    strict_filtering_is_named_and_the_command_mends_it,
    ipv6_that_is_switched_off_is_named_and_the_command_mends_it,
    a_vpn_that_comes_first_is_named,
    four_ways_not_to_be_carried_are_told_apart,
    a_captive_network_is_told_from_one_that_is_out_of_order,
    rules_that_another_program_removes_come_back,
    rules_left_by_a_killed_daemon_are_named_and_cleaned_up,
    what_the_network_manager_knows_counts_while_it_is_there,
    an_address_that_is_renewed_or_replaced_costs_no_connection,
    an_ipv6_address_that_rotates_costs_no_connection,
    roaming_to_another_access_point_keeps_the_session,
    a_laptop_with_ipv6_alone_reaches_both_families,
    a_gateway_of_ipv4_alone_is_reached_through_a_translator,
    a_vpn_of_others_carries_nothing_unless_asked,
    what_stands_in_the_way_of_a_start_has_a_sentence_and_a_code_of_its_own,
    a_watch_shows_what_happens_and_leaves_the_terminal_as_it_was,
    a_watch_that_is_suspended_gives_the_terminal_back_meanwhile,
    a_hostile_name_never_steers_the_terminal,
    a_terminal_that_can_do_nothing_gets_letters_only,
    a_reader_that_has_enough_is_no_failure,
    a_report_about_a_bug_has_no_secret_in_it,
    an_invite_that_cannot_be_used_says_why,
    a_full_disk_costs_neither_the_invite_nor_half_a_file,
}
