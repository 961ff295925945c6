//! What whoever runs the daemons relies on: limits that bind and say so, figures, and that one
//! program's traffic leaves room for another's.

use std::time::Duration;

use whimbrel_tests::suite;

#[path = "operation/figures.rs"]
mod figures;
#[path = "operation/idle.rs"]
mod idle;
#[path = "operation/keystrokes.rs"]
mod keystrokes;
#[path = "operation/limits.rs"]
mod limits;
#[path = "operation/own.rs"]
mod own;
#[path = "operation/prometheus.rs"]
mod prometheus;
#[path = "operation/shares.rs"]
mod shares;
#[path = "operation/story.rs"]
mod story;
#[path = "operation/traces.rs"]
mod traces;

use figures::*;
use idle::*;
use keystrokes::*;
use limits::*;
use own::*;
use shares::*;
use story::*;
use traces::*;

suite! {
    keystrokes_pass_bulk_that_fills_the_line,
    connections_beyond_a_limit_are_refused_and_counted,
    dials_beyond_their_rate_are_refused_and_the_reason_is_told,
    a_limit_of_bandwidth_is_kept,
    every_flow_has_a_share_of_a_limited_bandwidth,
    limits_that_change_close_nothing,
    clients_share_a_full_line_however_many_flows_they_have,
    a_flow_that_fills_the_line_leaves_the_others_their_turn,
    an_address_that_comes_later_is_the_gateways_own,
    both_daemons_tell_their_figures,
    every_figure_counts_something,
    a_trace_tells_what_happens_while_it_is_asked_for,
    a_trace_that_cannot_be_written_ends_with_a_sentence,
    daemons_with_nothing_to_do_lie_still,
}

/// Whatever takes longer than this on a busy machine with two cores does not happen any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);
