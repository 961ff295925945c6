//! What a person is told: a machine examined with both daemons, real kernels and real obstacles.

use whimbrel_tests::suite;

#[path = "doctor/examination.rs"]
mod examination;
#[path = "meaning/stage.rs"]
mod stage;

use examination::*;

suite! {
    a_machine_that_works_is_well,
    strict_filtering_is_named_and_the_command_mends_it,
    four_ways_not_to_be_carried_are_told_apart,
    rules_left_by_a_killed_daemon_are_named_and_cleaned_up,
}
