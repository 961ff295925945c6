//! The Whimbrel gateway: carries flows from Whimbrel clients to their destinations.
//!
//! [`daemon`] is the head of the process and answers whoever asks; each `slot` moves datagrams and
//! socket news on a thread of its own, where its `gateway` owns clients and flows; they `talk` by
//! messages; [`cli`] is the command line.

pub mod cli;
pub mod control;
pub mod daemon;
mod dial;
mod flow;
mod gateway;
mod keep;
mod machine;
mod passed;
mod peer;
mod ports;
mod sessions;
mod slot;
pub mod state;
mod talk;
