//! What both binaries need of their host: where files live, key and state files, the control
//! socket, logging, exit codes.

pub mod addresses;
pub mod alarm;
pub mod control;
pub mod exit;
pub mod files;
pub mod keeping;
pub mod layout;
pub mod logging;
pub mod metrics;
pub mod nameservers;
pub mod output;
pub mod random;
pub mod service;

pub use alarm::Alarm;
pub use layout::{Layout, Role};
