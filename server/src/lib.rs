//! The Whimbrel gateway: carries flows from Whimbrel clients to their destinations.
//!
//! [`daemon`] is the head of the process and answers whoever asks; each `slot` moves datagrams and
//! socket news on a thread of its own, where its [`gateway`] owns clients and flows; they [`talk`] by
//! messages; [`cli`] is the command line. A gateway waits for nothing and knows no time but what it
//! is told, so it also runs without a slot, on a clock of its owner.

pub mod cli;
pub mod control;
pub mod daemon;
mod dial;
mod flow;
pub mod gateway;
pub mod keep;
mod machine;
pub mod metrics;
mod outlet;
mod passed;
mod peer;
mod ports;
mod sessions;
mod slot;
pub mod state;
pub mod status;
pub mod talk;
pub mod usage;
mod watch;
