//! Connections outlive their networks: every way a network can go or come, through real kernels
//! and both daemons, with a download and a ping-pong running across it.
//!
//! Each test first proves that its impairment is really there. How long the gaps were is told,
//! and judged nowhere: speed is measured on a quiet machine. `WHIMBREL_FULL=1` makes the outages
//! as long as people know them.

use whimbrel_tests::suite;

#[path = "moves/chaos.rs"]
mod chaos;
#[path = "moves/choice.rs"]
mod choice;
#[path = "moves/dead.rs"]
mod dead;
#[path = "moves/families.rs"]
mod families;
#[path = "moves/lost.rs"]
mod lost;
#[path = "moves/ride.rs"]
mod ride;
#[path = "moves/silent.rs"]
mod silent;
#[path = "moves/stage.rs"]
mod stage;

use chaos::*;
use choice::*;
use dead::*;
use families::*;
use lost::*;
use silent::*;

suite! {
    a_link_that_goes_down_is_left,
    a_link_without_an_address_is_left,
    a_link_that_disappears_is_left,
    a_link_that_appears_later_takes_over_when_the_first_dies,
    docking_moves_onto_the_cable_and_undocking_back,
    a_new_path_starts_with_measures_of_its_own,
    a_black_hole_the_host_never_notices_is_left,
    a_black_hole_whose_route_goes_late_is_left_once,
    a_link_that_only_receives_is_left,
    a_link_that_only_sends_is_left,
    a_rebinding_goes_unnoticed,
    a_rebinding_while_the_spare_link_swallows_everything_strands_nothing,
    a_captive_network_never_carries_anything,
    an_outage_of_every_link_is_survived,
    an_outage_no_interface_shows_is_survived,
    connections_that_have_just_opened_survive_an_outage,
    a_link_that_is_back_at_once_stands_alone,
    both_links_may_flap,
    networks_may_come_and_go_at_random,
    a_person_decides_and_gives_the_choice_back,
    the_preferred_link_carries_while_it_works,
    a_metered_link_is_the_last_resort,
    a_gateway_may_have_an_ipv6_address,
    a_move_may_change_the_address_family,
}
