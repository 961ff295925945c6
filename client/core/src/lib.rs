//! Decisions of the Whimbrel client. Pure: no IO, no clock.
//!
//! [`engine`] ends applications' TCP, [`plan`] says which rules and routes capture it.

pub mod engine;
pub mod offload;
pub mod packet;
pub mod plan;
