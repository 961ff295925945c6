//! What both ends of Whimbrel must agree on. Pure: no IO, no clock, no randomness of its own.

pub mod cid;
pub mod session;
pub mod wire;
