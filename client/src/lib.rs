//! See the module documentation.
pub mod host;
pub mod link;
pub mod slab;
pub mod tun;
