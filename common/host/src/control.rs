//! The control socket: how the command line talks to the running daemon.
//!
//! A unix stream socket. The command line sends one line, `{"verb": …, "args": …}`, and gets one
//! line, `{"ok": …}` or `{"error": "sentence"}`; a verb that follows events gets one `ok` line
//! for each until either side hangs up. Descriptors may travel with the request.
//!
//! Who may ask: root, the user that runs the daemon, and the group `whimbrel`. The kernel keeps
//! others from connecting (mode 0660), and `peer` asks it who connected.

mod ask;
mod foreign;
mod line;
mod peer;
mod server;

#[cfg(test)]
mod tests;

pub use ask::{AskError, Line, ask, follow};
pub use foreign::Foreign;
pub use peer::{Peer, group_id};
pub use server::{Asker, Changes, ControlServer, Request, Responder, Subscription, Takes};

/// The longest request or response line, in bytes. A listing of a full flow table has its own
/// limit on rows, so that it fits.
pub const LONGEST_REQUEST: usize = 64 << 10;

/// The group whose members may use the control socket.
pub const GROUP: &str = "whimbrel";
