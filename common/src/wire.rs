//! The wire format both ends speak on top of QUIC streams.
//!
//! The first client-opened bidirectional stream of a connection is the *control stream*: a
//! sequence of [`Control`] frames in either direction, the first of which is [`Control::Hello`].
//! Every other bidirectional stream carries one flow: one [`FlowHeader`] from the client, one
//! [`FlowAnswer`] from the gateway, and raw bytes after each. Only the stream that begins with
//! [`FlowHeader::Parcels`] carries no flow. What need not arrive travels beside the streams, in
//! [`Parcel`]s.
//!
//! A frame is `type (varint) · length (varint) · body`; varints are those of RFC 9000 §16.
//! An odd type is optional and skipped by an end that does not know it; an even one is required,
//! and an end that does not know it closes the session ([`WireError::UnknownFrame`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, BytesMut};

mod parcel;
mod reason;
mod varint;

pub use parcel::{
    Association, Echo, MAX_PARCEL, Parcel, Undelivered, decode_parcel, encode_datagram,
    encode_echo, encode_parcel, put_parcel, take_parcel,
};
pub use reason::{Denial, Limit, RefuseReason, StreamCode};
pub use varint::{MAX_VARINT, decode_varint, encode_varint};

/// The ALPN protocol identifier.
pub const ALPN: &[u8] = b"whimbrel/1";

/// The version of the frames below, sent in [`Control::Hello`].
pub const VERSION: u64 = 1;

/// Where clients send queries that the gateway's own resolver is to answer, by UDP and TCP alike.
pub const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 53);

/// The capability bits of [`Control::Hello`]. An end uses what both have said they can.
pub mod capability {
    /// Takes and sends [`Parcel`](super::Parcel)s.
    pub const PARCELS: u64 = 1;
    /// Gateway: whatever is sent to [`RESOLVER`](super::RESOLVER) is put to its own resolver.
    pub const RESOLVER: u64 = 2;
    /// Client: knows parcels about ICMP echo. Gateway: sends requests, where its kernel lets it.
    pub const ECHOES: u64 = 4;
    /// Everything this version can.
    pub const ALL: u64 = PARCELS | RESOLVER | ECHOES;
}

/// The largest body of a control frame an end accepts, in bytes. A [`Control::Taken`] of 1,000
/// flows needs 21 KiB at most.
pub const MAX_CONTROL_BODY: usize = 64 * 1024;

/// The largest body of a flow's header or answer, in bytes.
pub const MAX_FLOW_BODY: usize = 512;

/// Names one flow within a session. Ids only rise, so a dial is never repeated by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireFlow(pub u64);

/// Names one session: node, slot, incarnation and random bytes, chosen by the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How far one direction of a flow has come, as told by its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The flow.
    pub flow: WireFlow,
    /// Bytes handed on for good: the sender may forget them.
    pub offset: u64,
    /// The offset up to which the sender may send. Never falls.
    pub limit: u64,
    /// The end of the stream was handed on too.
    pub fin: bool,
}

/// A frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// First frame in either direction: version and capability bits.
    Hello {
        /// [`VERSION`] of the sender.
        version: u64,
        /// What the sender can, see [`capability`].
        capabilities: u64,
    },
    /// Client: admits the client's key by a one-time invite token.
    Enrol {
        /// The token of the invite.
        token: [u8; 16],
    },
    /// Client: asks for a session; `None` asks for a new one.
    Attach {
        /// The session to attach to.
        session: Option<SessionId>,
        /// Rises with every attach of a session; an older one is inert.
        epoch: u64,
    },
    /// Gateway: the session is attached.
    Attached {
        /// The session.
        session: SessionId,
        /// The epoch the gateway took.
        epoch: u64,
        /// How long the gateway holds the session's flows without a connection, in seconds.
        hold: u64,
        /// How many flows the client may have at once.
        flows: u64,
    },
    /// Gateway: the key was enrolled under this name.
    Enrolled {
        /// The client's name, as given to the invite.
        name: String,
    },
    /// Gateway: refuses what was asked, and closes.
    Denied {
        /// Why.
        reason: Denial,
    },
    /// Either: progress and credit of flows.
    Taken(Vec<Taken>),
    /// Client, after attaching to a session it had: the flows it still has, in one frame or
    /// several. A flow that only the gateway has is over; the word of it was lost with a
    /// connection.
    Holding {
        /// Flows the client has.
        flows: Vec<WireFlow>,
        /// There are no others.
        last: bool,
    },
    /// Either: flows that are over although not everything was taken. Where both ends have said
    /// their last byte the stream cannot tell it any more.
    Over(Vec<WireFlow>),
    /// Gateway: a limit of its own holds the client back. Told once in a while, for people.
    Limited(Limit),
    /// Client: it goes to sleep. The gateway parks the session at once, and says so by closing the
    /// connection with [`DETACH`].
    Park,
}

/// Flows named in one [`Control::Holding`] at most: half of what a frame may be long.
pub const MOST_HOLDING: usize = 4096;

/// The application error code of a connection that ends while its session goes on.
pub const DETACH: u64 = 64;

/// What a client says at the head of a flow's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowHeader {
    /// Dial a destination.
    Open {
        /// The flow.
        flow: WireFlow,
        /// Where to.
        destination: SocketAddr,
        /// Credit for the gateway: it may send up to this offset.
        limit: u64,
    },
    /// Go on with a flow on this stream instead of the one before.
    Resume {
        /// The flow.
        flow: WireFlow,
        /// Rises with every resume of the flow; an older one is inert.
        epoch: u64,
        /// What the client has taken: the gateway sends from here.
        taken: u64,
        /// Whether the client has taken the end of the gateway's direction too.
        fin_taken: bool,
        /// The offset of the first byte that follows this header.
        offset: u64,
        /// Credit for the gateway.
        limit: u64,
    },
    /// No flow: parcels that are too large for a datagram follow, in both directions, each behind
    /// its length. One such stream of a connection counts.
    Parcels,
}

/// What a gateway answers at the head of a flow's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowAnswer {
    /// The destination accepted; bytes follow.
    Opened {
        /// Credit for the client.
        limit: u64,
    },
    /// The dial failed; the stream ends here.
    Refused {
        /// Why.
        reason: RefuseReason,
    },
    /// The flow goes on here; bytes follow.
    Resumed {
        /// What the gateway has taken: the client sends from here, unless it has already.
        taken: u64,
        /// Whether the gateway has taken the end of the client's direction too.
        fin_taken: bool,
        /// The offset of the first byte that follows this answer.
        offset: u64,
        /// Credit for the client.
        limit: u64,
        /// How many bytes the gateway sends a second time.
        repeated: u64,
    },
    /// The gateway never saw this flow: nothing of it was delivered.
    NeverSeen,
    /// The flow existed and is over.
    Gone,
}

/// A peer sent something that is not a frame of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required frame type this version does not know.
    #[error("unknown required frame type {0:#x}")]
    UnknownFrame(u64),
    /// The announced body is larger than any frame of ours.
    #[error("frame type {kind:#x} announces {length} bytes, more than the {limit} allowed")]
    TooLarge {
        /// The frame type.
        kind: u64,
        /// The announced length.
        length: u64,
        /// The limit it breaks.
        limit: usize,
    },
    /// The body is shorter than its fields, or longer.
    #[error("malformed frame type {0:#x}")]
    Malformed(u64),
}

mod kind {
    pub(super) const HELLO: u64 = 0x00;
    pub(super) const ENROL: u64 = 0x02;
    pub(super) const ATTACH: u64 = 0x04;
    pub(super) const ATTACHED: u64 = 0x06;
    pub(super) const ENROLLED: u64 = 0x08;
    pub(super) const DENIED: u64 = 0x0a;
    pub(super) const TAKEN: u64 = 0x0c;
    pub(super) const HOLDING: u64 = 0x0e;
    pub(super) const PARK: u64 = 0x11;
    pub(super) const OVER: u64 = 0x13;
    pub(super) const LIMITED: u64 = 0x15;
    pub(super) const OPEN: u64 = 0x20;
    pub(super) const RESUME: u64 = 0x22;
    pub(super) const OPENED: u64 = 0x24;
    pub(super) const REFUSED: u64 = 0x26;
    pub(super) const RESUMED: u64 = 0x28;
    pub(super) const NEVER_SEEN: u64 = 0x2a;
    pub(super) const GONE: u64 = 0x2c;
    pub(super) const PARCELS: u64 = 0x2e;
}

/// Appends `frame` to `out`.
pub fn encode_control(frame: &Control, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    let kind = match frame {
        Control::Hello { version, capabilities } => {
            encode_varint(*version, &mut body);
            encode_varint(*capabilities, &mut body);
            kind::HELLO
        }
        Control::Enrol { token } => {
            body.put_slice(token);
            kind::ENROL
        }
        Control::Attach { session, epoch } => {
            encode_varint(*epoch, &mut body);
            if let Some(session) = session {
                body.put_slice(&session.0);
            }
            kind::ATTACH
        }
        Control::Attached { session, epoch, hold, flows } => {
            body.put_slice(&session.0);
            [epoch, hold, flows].into_iter().for_each(|value| encode_varint(*value, &mut body));
            kind::ATTACHED
        }
        Control::Enrolled { name } => {
            body.put_slice(name.as_bytes());
            kind::ENROLLED
        }
        Control::Denied { reason } => {
            encode_varint(reason.code(), &mut body);
            kind::DENIED
        }
        Control::Taken(entries) => {
            for entry in entries {
                encode_varint(entry.flow.0, &mut body);
                encode_varint(entry.offset, &mut body);
                encode_varint(entry.limit.saturating_sub(entry.offset), &mut body);
                body.put_u8(u8::from(entry.fin));
            }
            kind::TAKEN
        }
        Control::Holding { flows, last } => {
            body.put_u8(u8::from(*last));
            flows.iter().for_each(|flow| encode_varint(flow.0, &mut body));
            kind::HOLDING
        }
        Control::Over(flows) => {
            flows.iter().for_each(|flow| encode_varint(flow.0, &mut body));
            kind::OVER
        }
        Control::Limited(limit) => {
            encode_varint(limit.code(), &mut body);
            kind::LIMITED
        }
        Control::Park => kind::PARK,
    };
    put_frame(kind, &body, out);
}

/// Takes the next control frame from the front of `input`.
///
/// `Ok(None)` means that the frame is not complete yet; nothing was taken. Optional frames of
/// unknown type are skipped.
///
/// # Errors
/// [`WireError`] when no frame of this version can begin with these bytes.
pub fn decode_control(input: &mut BytesMut) -> Result<Option<Control>, WireError> {
    loop {
        let Some((kind, body)) = take_frame(input, MAX_CONTROL_BODY)? else { return Ok(None) };
        match control_body(kind, body) {
            Err(WireError::UnknownFrame(kind)) if kind % 2 == 1 => {}
            Err(error) => return Err(error),
            Ok(frame) => return Ok(Some(frame)),
        }
    }
}

fn control_body(kind: u64, body: BytesMut) -> Result<Control, WireError> {
    let mut fields = Fields { kind, body };
    let frame = match kind {
        kind::HELLO => {
            // A later version may append fields to its hello.
            let frame =
                Control::Hello { version: fields.varint()?, capabilities: fields.varint()? };
            return Ok(frame);
        }
        kind::ENROL => Control::Enrol { token: fields.array()? },
        kind::ATTACH => {
            let epoch = fields.varint()?;
            let session = if fields.is_empty() { None } else { Some(SessionId(fields.array()?)) };
            Control::Attach { session, epoch }
        }
        kind::ATTACHED => Control::Attached {
            session: SessionId(fields.array()?),
            epoch: fields.varint()?,
            hold: fields.varint()?,
            flows: fields.varint()?,
        },
        kind::ENROLLED => Control::Enrolled { name: fields.text()? },
        kind::DENIED => {
            let code = fields.varint()?;
            Control::Denied { reason: Denial::from_code(code).unwrap_or(Denial::Protocol) }
        }
        kind::TAKEN => Control::Taken(fields.taken()?),
        kind::HOLDING => Control::Holding { last: fields.flag()?, flows: fields.flows()? },
        kind::OVER => Control::Over(fields.flows()?),
        kind::LIMITED => {
            // A later gateway may have limits that we do not know.
            let limit = Limit::from_code(fields.varint()?);
            Control::Limited(limit.ok_or(WireError::UnknownFrame(kind))?)
        }
        kind::PARK => Control::Park,
        unknown => return Err(WireError::UnknownFrame(unknown)),
    };
    fields.finish().map(|()| frame)
}

/// Appends a flow's header to `out`.
pub fn encode_header(header: &FlowHeader, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    let kind = match header {
        FlowHeader::Open { flow, destination, limit } => {
            encode_varint(flow.0, &mut body);
            encode_varint(*limit, &mut body);
            put_address(*destination, &mut body);
            kind::OPEN
        }
        FlowHeader::Resume { flow, epoch, taken, fin_taken, offset, limit } => {
            [flow.0, *epoch, *taken, *offset, *limit]
                .into_iter()
                .for_each(|value| encode_varint(value, &mut body));
            body.put_u8(u8::from(*fin_taken));
            kind::RESUME
        }
        FlowHeader::Parcels => kind::PARCELS,
    };
    put_frame(kind, &body, out);
}

/// Takes a flow's header from the front of `input`; `Ok(None)` when it is not complete yet.
///
/// # Errors
/// [`WireError`] when these bytes cannot begin a flow.
pub fn decode_header(input: &mut BytesMut) -> Result<Option<FlowHeader>, WireError> {
    let Some((kind, body)) = take_frame(input, MAX_FLOW_BODY)? else { return Ok(None) };
    let mut fields = Fields { kind, body };
    let header = match kind {
        kind::OPEN => {
            let (flow, limit) = (WireFlow(fields.varint()?), fields.varint()?);
            FlowHeader::Open { flow, destination: fields.address()?, limit }
        }
        kind::RESUME => {
            let (flow, epoch) = (WireFlow(fields.varint()?), fields.varint()?);
            let (taken, offset, limit) = (fields.varint()?, fields.varint()?, fields.varint()?);
            FlowHeader::Resume { flow, epoch, taken, offset, limit, fin_taken: fields.flag()? }
        }
        kind::PARCELS => FlowHeader::Parcels,
        unknown => return Err(WireError::UnknownFrame(unknown)),
    };
    fields.finish().map(|()| Some(header))
}

/// Appends a flow's answer to `out`.
pub fn encode_answer(answer: &FlowAnswer, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    let kind = match answer {
        FlowAnswer::Opened { limit } => {
            encode_varint(*limit, &mut body);
            kind::OPENED
        }
        FlowAnswer::Refused { reason } => {
            encode_varint(reason.code(), &mut body);
            kind::REFUSED
        }
        FlowAnswer::Resumed { taken, fin_taken, offset, limit, repeated } => {
            [*taken, *offset, *limit, *repeated]
                .into_iter()
                .for_each(|value| encode_varint(value, &mut body));
            body.put_u8(u8::from(*fin_taken));
            kind::RESUMED
        }
        FlowAnswer::NeverSeen => kind::NEVER_SEEN,
        FlowAnswer::Gone => kind::GONE,
    };
    put_frame(kind, &body, out);
}

/// Takes a flow's answer from the front of `input`; `Ok(None)` when it is not complete yet.
///
/// # Errors
/// [`WireError`] when these bytes cannot begin an answer.
pub fn decode_answer(input: &mut BytesMut) -> Result<Option<FlowAnswer>, WireError> {
    let Some((kind, body)) = take_frame(input, MAX_FLOW_BODY)? else { return Ok(None) };
    let mut fields = Fields { kind, body };
    let answer = match kind {
        kind::OPENED => FlowAnswer::Opened { limit: fields.varint()? },
        kind::REFUSED => FlowAnswer::Refused { reason: RefuseReason::from_code(fields.varint()?) },
        kind::RESUMED => {
            let (taken, offset, limit) = (fields.varint()?, fields.varint()?, fields.varint()?);
            let repeated = fields.varint()?;
            FlowAnswer::Resumed { taken, offset, limit, repeated, fin_taken: fields.flag()? }
        }
        kind::NEVER_SEEN => FlowAnswer::NeverSeen,
        kind::GONE => FlowAnswer::Gone,
        unknown => return Err(WireError::UnknownFrame(unknown)),
    };
    fields.finish().map(|()| Some(answer))
}

fn put_frame(kind: u64, body: &[u8], out: &mut BytesMut) {
    encode_varint(kind, out);
    encode_varint(body.len() as u64, out);
    out.put_slice(body);
}

fn take_frame(input: &mut BytesMut, limit: usize) -> Result<Option<(u64, BytesMut)>, WireError> {
    let mut peek = &input[..];
    let (Some(kind), Some(length)) = (decode_varint(&mut peek), decode_varint(&mut peek)) else {
        return Ok(None);
    };
    let head = input.len() - peek.len();
    match usize::try_from(length) {
        Ok(length) if length <= limit => {
            if peek.len() < length {
                return Ok(None);
            }
            input.advance(head);
            Ok(Some((kind, input.split_to(length))))
        }
        Ok(_) | Err(_) => Err(WireError::TooLarge { kind, length, limit }),
    }
}

fn put_address(address: SocketAddr, body: &mut BytesMut) {
    put_ip(address.ip(), body);
    body.put_u16(address.port());
}

fn put_ip(address: IpAddr, body: &mut BytesMut) {
    match address {
        IpAddr::V4(ip) => {
            body.put_u8(4);
            body.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            body.put_u8(6);
            body.put_slice(&ip.octets());
        }
    }
}

/// The fields of one frame's body, taken from its front.
struct Fields {
    kind: u64,
    body: BytesMut,
}

impl Fields {
    fn malformed(&self) -> WireError {
        WireError::Malformed(self.kind)
    }

    fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        decode_varint(&mut self.body).ok_or_else(|| self.malformed())
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, _)) = self.body.split_first_chunk::<N>() else {
            return Err(self.malformed());
        };
        let head = *head;
        self.body.advance(N);
        Ok(head)
    }

    fn text(&mut self) -> Result<String, WireError> {
        let bytes = self.body.split().to_vec();
        String::from_utf8(bytes).map_err(|_| self.malformed())
    }

    fn address(&mut self) -> Result<SocketAddr, WireError> {
        Ok(SocketAddr::new(self.ip()?, self.number()?))
    }

    fn ip(&mut self) -> Result<IpAddr, WireError> {
        match self.byte()? {
            4 => Ok(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))),
            6 => Ok(IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))),
            _ => Err(self.malformed()),
        }
    }

    fn number(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn flows(&mut self) -> Result<Vec<WireFlow>, WireError> {
        let mut flows = Vec::new();
        while !self.is_empty() {
            flows.push(WireFlow(self.varint()?));
        }
        Ok(flows)
    }

    fn taken(&mut self) -> Result<Vec<Taken>, WireError> {
        let mut entries = Vec::new();
        while !self.is_empty() {
            let (flow, offset, window) = (WireFlow(self.varint()?), self.varint()?, self.varint()?);
            let limit = offset.checked_add(window).ok_or_else(|| self.malformed())?;
            entries.push(Taken { flow, offset, limit, fin: self.flag()? });
        }
        Ok(entries)
    }

    fn finish(self) -> Result<(), WireError> {
        if self.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

#[cfg(test)]
mod tests;
