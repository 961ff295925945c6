//! What a gateway decides: who may connect, what they may reach and how much they may use. Pure:
//! no IO, no clock, no randomness of its own.

pub mod associations;
pub mod clients;
pub mod directory;
pub mod egress;
pub mod invites;
pub mod limits;
pub mod memory;
pub mod resolvers;
pub mod seen;
pub mod steering;
pub mod throttled;
pub mod turns;
