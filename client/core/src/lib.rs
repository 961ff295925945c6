//! Decisions of the Whimbrel client. Pure: no IO, no clock.
//!
//! [`engine`] ends applications' TCP, [`udp`] knows whose datagrams are whose, [`dns`] lends queries
//! a stream, [`queries`] which of them have no answer, [`contest`] how often settings are written
//! against others, [`plan`] which rules and routes capture connections, [`rest`] what is done when
//! the machine sleeps, [`doctor`] what is wrong with a host. [`links`] and [`portal`] say what a
//! network is good for, [`redact`] what others need not know.

pub mod contest;
pub mod dns;
pub mod doctor;
pub mod engine;
pub mod links;
pub mod offload;
pub mod packet;
pub mod plan;
pub mod portal;
pub mod queries;
pub mod redact;
pub mod rest;
pub mod trouble;
pub mod udp;
