//! Segments as an application's kernel would build them, and as an engine sends them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const FAR_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);

/// One socket of the host; all of them connect to one far port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Socket {
    pub(crate) six: bool,
    pub(crate) port: u16,
}

/// A segment, or the header of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) socket: Socket,
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) window: u16,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// From the host to the far end. Options are padded to whole words.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let options = &self.options[..self.options.len().min(40)];
        let padding = options.len().next_multiple_of(4) - options.len();
        let header = 20 + options.len() + padding;
        let length = u16::try_from(header + self.payload.len()).expect("below 64 KiB");
        let mut packet = Vec::with_capacity(usize::from(length) + 40);
        if self.socket.six {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([6, 64]);
            packet.extend(HOST_V6.octets());
            packet.extend(FAR_V6.octets());
        } else {
            packet.extend([0x45, 0]);
            packet.extend((length + 20).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            packet.extend(HOST_V4.octets());
            packet.extend(FAR_V4.octets());
        }
        packet.extend(self.socket.port.to_be_bytes());
        packet.extend(80u16.to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledgment.to_be_bytes());
        packet.push(u8::try_from(header / 4).expect("at most 15") << 4);
        packet.push(self.flags);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(options);
        packet.resize(packet.len() + padding, 0);
        packet.extend(self.payload);
        packet
    }

    /// A segment the engine sent to the host. None for a packet that is not TCP.
    pub(crate) fn sent(packet: &'a [u8]) -> Option<Self> {
        let six = packet[0] >> 4 == 6;
        let (protocol, at) = if six { (packet[6], 40) } else { (packet[9], 20) };
        if protocol != 6 {
            return None;
        }
        let tcp = &packet[at..];
        let header = usize::from(tcp[12] >> 4) * 4;
        Some(Self {
            socket: Socket { six, port: u16::from_be_bytes([tcp[2], tcp[3]]) },
            flags: tcp[13],
            sequence: word(tcp, 4),
            acknowledgment: word(tcp, 8),
            window: u16::from_be_bytes([tcp[14], tcp[15]]),
            options: &tcp[20..header],
            payload: &tcp[header..],
        })
    }

    /// The sequence number after it.
    pub(crate) fn end(&self) -> u32 {
        let controls = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        let payload = u32::try_from(self.payload.len()).expect("below 64 KiB");
        self.sequence.wrapping_add(payload).wrapping_add(controls)
    }
}

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, flags, sequence, acknowledgment, window, options, payload } = self;
        let version = if socket.six { 6 } else { 4 };
        write!(f, "v{version} port {} flags {flags:#04x} seq {sequence}", socket.port)?;
        write!(f, " ack {acknowledgment} win {window} bytes {}", payload.len())?;
        if options.is_empty() { Ok(()) } else { write!(f, " options {options:?}") }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("four bytes"))
}

/// The byte an application sends under a sequence number: never zero, and different from its
/// neighbours.
pub(crate) fn upward(sequence: u32) -> u8 {
    mixed(sequence)
}

/// The byte that is written at an offset of a flow.
pub(crate) fn downward(flow: u64, offset: u32) -> u8 {
    let [.., low] = flow.to_be_bytes();
    mixed(offset.wrapping_add(u32::from(low) << 24))
}

fn mixed(number: u32) -> u8 {
    let [byte, ..] = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
    byte | 1
}

/// Whether `packet` is between the two hosts, in the direction of the application.
pub(crate) fn check_addresses(packet: &[u8]) {
    let (source, destination): (IpAddr, IpAddr) = if packet[0] >> 4 == 6 {
        let octets = |at: usize| IpAddr::from(*packet[at..].first_chunk::<16>().expect("header"));
        (octets(8), octets(24))
    } else {
        let octets = |at: usize| IpAddr::from(*packet[at..].first_chunk::<4>().expect("header"));
        (octets(12), octets(16))
    };
    assert!([FAR_V4.into(), IpAddr::from(FAR_V6)].contains(&source), "from {source}");
    assert!([HOST_V4.into(), IpAddr::from(HOST_V6)].contains(&destination), "to {destination}");
}
