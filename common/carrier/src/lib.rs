//! The QUIC carrier: the only crate that names the QUIC engine.
//!
//! [`Endpoint`] is the engine behind our own types: connections, streams and paths are numbers,
//! datagrams and the time enter from outside, and so it runs on a virtual clock as well as on real
//! sockets. [`Pipe`] joins a flow's offsets and credit to the stream that carries it, [`Parcels`] carry
//! what need not arrive.
//! [`Witness`] tells what is known of the paths.
//! [`udp`] holds the sockets.

mod credentials;
mod endpoint;
mod observed;
mod parcels;
mod pipe;
mod transport;
pub mod udp;
mod witness;

pub use credentials::{client_tls, gateway_tls};
pub use endpoint::{
    ConnectFailed, Connection, Endpoint, Event, Frames, Lost, NotSent, OpenPathError, Path,
    PathView, Read, Stream, StreamEnd, Totals, Transmit, Urgency,
};
pub use observed::Progress;
pub use parcels::{ParcelCounts, Parcels};
pub use pipe::{AnswerOrEnd, ControlEnd, ControlStream, Pipe, Pulled, Reports};
pub use transport::{Identity, IdentityError, Role, Tuning};
pub use witness::{Sight, Witness};
