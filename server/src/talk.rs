//! What the head of the gateway and its slots say to each other.
//!
//! Each slot owns its clients and their flows, the head owns the files and whoever asks from
//! outside. Neither waits for the other: what is asked is answered by a word of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use whimbrel_carrier::Connection;
use whimbrel_common::config::GatewayConfig;
use whimbrel_common::identity::{ClientName, PublicKey};
use whimbrel_common::invite::Token;
use whimbrel_common::wire::{Denial, SessionId};
use whimbrel_gateway_core::clients::Options;
use whimbrel_gateway_core::directory::SlotNumber;

use crate::control::Report;
use crate::flow::Flow;
use crate::sessions::Session;

/// Who a client is, and its exceptions.
pub type Client = (ClientName, Options);

/// A connection that asked something. Connections use their numbers again, so the answer to one
/// that is gone must not reach another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The connection.
    pub connection: Connection,
    /// No other connection of the slot ever has it.
    pub serial: u64,
    /// The key it has proved.
    pub key: PublicKey,
}

/// A client wants to attach, to a session it had or to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// Who asks.
    pub caller: Caller,
    /// The session it had; `None` for a new one.
    pub session: Option<SessionId>,
    /// Rises with every attach.
    pub epoch: u64,
}

/// A session on its way from one slot to another: all of it, as it was in memory.
#[derive(Debug)]
pub struct Moved {
    pub(crate) from: SlotNumber,
    pub(crate) session: Session,
    pub(crate) flows: Vec<Flow>,
    /// How many of the flows outlive the process.
    pub(crate) kept: usize,
}

/// What a slot's gateway has to say.
#[derive(Debug)]
pub enum News {
    /// May this key be enrolled with this token?
    Enrol(Caller, Token),
    /// Is this key enrolled, and where is its session?
    Attach(Attach),
    /// There is a new session.
    Opened(SessionId, PublicKey),
    /// A session is over.
    Closed(SessionId),
    /// A session of this slot has arrived, and so many of its sockets need not be kept there.
    Housed(SlotNumber, usize),
}

/// What the head tells a slot.
#[derive(Debug)]
pub(crate) enum ToSlot {
    /// The outcome of [`News::Enrol`].
    Enrolled(Caller, Result<ClientName, Denial>),
    /// The outcome of [`News::Attach`]: who the client is, or `None` for a stranger, and the
    /// session if it came from another slot.
    Attach(Attach, Option<Client>, Option<Box<Moved>>),
    /// Another slot has a client that wants this session; [`ToHead::Yielded`] follows.
    Yield(SessionId, Attach),
    /// So many sockets of sessions that moved away need not be kept here any more.
    Left(usize),
    /// End all sessions of a key. A number asks for how many there were.
    CutOff(PublicKey, Option<u64>),
    /// Say what you do.
    Report(u64),
    /// Say that you go round.
    Pulse,
    /// Whom this machine asks for names has changed.
    Resolvers(Vec<SocketAddr>),
    /// The addresses of this machine have changed.
    Own(Vec<IpAddr>),
    /// The configuration has changed.
    Configure(Arc<GatewayConfig>),
    /// End in good order.
    Stop,
}

/// What a slot tells the head.
#[derive(Debug)]
pub(crate) enum ToHead {
    /// It is ready.
    Started,
    /// Something of its gateway.
    News(News),
    /// The outcome of [`ToSlot::Yield`]: nothing if it has no such session or may not give it to
    /// that client.
    Yielded(SessionId, Option<Box<Moved>>),
    /// The outcome of [`ToSlot::CutOff`].
    CutOff(u64, usize),
    /// The outcome of [`ToSlot::Report`].
    Report(u64, Box<Report>),
    /// The outcome of [`ToSlot::Pulse`]: how many clients are connected.
    Turned(usize),
    /// Its thread ends, in good order or not.
    Ended(anyhow::Result<()>),
}
