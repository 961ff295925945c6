//! The Whimbrel gateway: carries flows from Whimbrel clients to their destinations.
//!
//! [`daemon`] moves datagrams and socket news; `gateway` owns clients and flows; [`cli`] is the
//! command line.

pub mod cli;
pub mod control;
pub mod daemon;
mod dial;
mod flow;
mod gateway;
mod keep;
mod passed;
mod peer;
mod ports;
mod sessions;
pub mod state;
