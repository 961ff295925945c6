//! A flow as its owner sees it.

use std::fmt;
use std::net::SocketAddr;

/// One connection of one application. Numbers rise from 1 and are not reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u64);

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One TUN device. A flow belongs to the device its SYN came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What happened to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowEvent {
    /// An application asks for a connection.
    Open { flow: FlowId, device: DeviceId, source: SocketAddr, destination: SocketAddr },
    /// Bytes or the end of the application's direction can be read.
    Readable { flow: FlowId },
    /// Room for writing appeared.
    Writable { flow: FlowId },
    /// The application aborted, or the flow was lost here. The flow is gone.
    Reset { flow: FlowId },
    /// The flow ended in any other way. The flow is gone.
    Closed { flow: FlowId },
}

/// How a connection that was asked for is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// RST|ACK: `ECONNREFUSED`.
    Refused,
    /// ICMP 3/1, ICMPv6 1/3: `EHOSTUNREACH`.
    HostUnreachable,
    /// ICMP 3/0, ICMPv6 1/0: `ENETUNREACH`.
    NetworkUnreachable,
    /// ICMP 3/13, which Linux reports as `EHOSTUNREACH`; ICMPv6 1/1: `EACCES`.
    Prohibited,
    /// No answer. No ICMP message becomes `ETIMEDOUT`, so the application's
    /// kernel is left to find out by itself: it repeats the SYN (each time a
    /// new flow is offered) until its own limit.
    TimedOut,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Bytes appended.
    pub bytes: usize,
    /// The application has ended its direction, and everything was read.
    pub fin: bool,
}

/// A flow as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowView {
    pub flow: FlowId,
    pub device: DeviceId,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// `pending`, or the TCP state as `ss` writes it.
    pub state: &'static str,
    /// Bytes received and not yet read.
    pub receive_queue: usize,
    /// Bytes written and not yet acknowledged.
    pub send_queue: usize,
}
