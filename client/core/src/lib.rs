//! Decisions of the Whimbrel client. Pure: no IO, no clock.
//!
//! [`engine`] ends applications' TCP, [`udp`] knows whose datagrams are whose, [`dns`] lends queries
//! a stream, [`plan`] says which rules and routes capture them, [`rest`] what is done when the
//! machine sleeps.

pub mod dns;
pub mod engine;
pub mod offload;
pub mod packet;
pub mod plan;
pub mod rest;
pub mod udp;
