//! See the module documentation.

pub mod cli;
pub mod control;
pub mod daemon;
pub mod enrol;
pub mod host;
pub mod link;
pub mod report;
pub mod show;
pub mod slab;
pub mod tun;
