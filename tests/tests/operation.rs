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

use figures::*;
use idle::*;
use keystrokes::*;
use limits::*;
use own::*;

suite! {
    keystrokes_pass_bulk_that_fills_the_line,
    connections_beyond_a_limit_are_refused_and_counted,
    a_limit_of_bandwidth_is_kept,
    an_address_that_comes_later_is_the_gateways_own,
    both_daemons_tell_their_figures,
    a_trace_tells_what_happens_while_it_is_asked_for,
    daemons_with_nothing_to_do_lie_still,
}

/// Whatever takes longer than this on a busy machine with two cores does not happen any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);
