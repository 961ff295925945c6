//! The Whimbrel client: keeps TCP connections alive while the network under them changes.
//!
//! [`daemon`] moves packets and datagrams; [`client`] joins applications' flows to the [`tunnel`];
//! [`cli`] is the command line. The client and its tunnel wait for nothing and know no time but what
//! they are told, so they also run without a daemon, on a clock of their owner.

mod bugreport;
mod capture;
pub mod cli;
pub mod client;
pub mod control;
mod counts;
pub mod daemon;
mod devices;
mod dns;
mod doctor;
pub mod enrol;
mod exchange;
mod ferry;
mod groups;
pub mod host;
mod journal;
pub mod link;
mod login;
mod manager;
mod portal;
pub mod report;
mod resolver;
pub mod run;
pub mod show;
pub mod slab;
mod stamps;
mod trace;
pub mod tun;
pub mod tunnel;
pub mod uplinks;
mod watch;
