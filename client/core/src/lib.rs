//! See the module documentation.

pub mod engine;
pub mod offload;
pub mod packet;
pub mod plan;
