//! The lab in which Whimbrel is tested and shown: a laptop with two uplinks, a gateway and an
//! origin, each in network namespaces of its own, joined by a network that can be slow, lossy,
//! dead, translated or hostile on demand.

pub mod daemon;
pub mod dice;
pub mod internet;
pub mod lab;
pub mod login;
pub mod manager;
pub mod role;
pub mod suite;
pub mod traffic;
