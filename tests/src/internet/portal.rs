//! The sign-in page of a captive network: answers every TCP connection without keeping state.

use super::packet::{self, Headers, TCP, u16_at, u32_at};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

const PAGE: &[u8] = b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/sign-in\r\n\
Content-Length: 0\r\nConnection: close\r\n\r\n";

/// The answer to one TCP segment, whatever address it was meant for.
pub(super) fn answer(segment: &[u8], headers: &Headers) -> Option<Vec<u8>> {
    let at = headers.transport;
    let flags = *segment.get(at + 13)?;
    let header = usize::from(segment.get(at + 12)? >> 4) * 4;
    let length = u32::try_from(segment.len().checked_sub(at + header)?).ok()?;
    let (sequence, acknowledged) = (u32_at(segment, at + 4)?, u32_at(segment, at + 8)?);
    if flags & RST != 0 {
        None
    } else if flags & SYN != 0 {
        Some(reply(segment, headers, 0, sequence.wrapping_add(1), SYN | ACK, &[]))
    } else if length > 0 {
        let next = sequence.wrapping_add(length + u32::from(flags & FIN));
        Some(reply(segment, headers, acknowledged, next, ACK | PSH | FIN, PAGE))
    } else if flags & FIN != 0 {
        Some(reply(segment, headers, acknowledged, sequence.wrapping_add(1), ACK, &[]))
    } else {
        None
    }
}

fn reply(
    to: &[u8],
    headers: &Headers,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let port = |at| u16_at(to, at).unwrap_or(0).to_be_bytes();
    let mut segment = Vec::with_capacity(20 + payload.len());
    segment.extend_from_slice(&port(headers.transport + 2));
    segment.extend_from_slice(&port(headers.transport));
    segment.extend_from_slice(&sequence.to_be_bytes());
    segment.extend_from_slice(&acknowledged.to_be_bytes());
    segment.extend_from_slice(&[5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    packet::build(headers.destination, headers.source, TCP, segment, 16)
}
