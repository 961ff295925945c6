//! What a person is told: a machine examined with both daemons, real kernels and real obstacles.

use whimbrel_tests::suite;

#[path = "doctor/examination.rs"]
mod examination;
#[path = "meaning/stage.rs"]
mod stage;
#[path = "doctor/start.rs"]
mod start;

use examination::*;
use start::*;

suite! {
    a_machine_that_works_is_well,
    strict_filtering_is_named_and_the_command_mends_it,
    four_ways_not_to_be_carried_are_told_apart,
    a_captive_network_is_told_from_one_that_is_out_of_order,
    rules_left_by_a_killed_daemon_are_named_and_cleaned_up,
    what_stands_in_the_way_of_a_start_has_a_sentence_and_a_code_of_its_own,
    a_full_disk_costs_neither_the_invite_nor_half_a_file,
}
