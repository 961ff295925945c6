//! What both ends of Whimbrel must agree on. Pure: no IO, no clock, no randomness of its own.

pub mod cid;
pub mod cidr;
pub mod config;
pub mod identity;
pub mod invite;
pub mod metrics;
pub mod path;
pub mod session;
pub mod units;
pub mod wire;
