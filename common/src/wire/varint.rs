//! Variable-length integers (RFC 9000 §16).

use bytes::{Buf, BufMut};

/// The largest value a varint can carry.
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Appends `value`, clamped to [`MAX_VARINT`].
pub fn encode_varint(value: u64, out: &mut impl BufMut) {
    let value = value.min(MAX_VARINT);
    match value {
        0..=0x3f => out.put_uint(value, 1),
        0x40..=0x3fff => out.put_uint(value | 0x4000, 2),
        0x4000..=0x3fff_ffff => out.put_uint(value | 0x8000_0000, 4),
        _ => out.put_uint(value | 0xc000_0000_0000_0000, 8),
    }
}

/// Takes a varint from the front of `input`; `None`, and nothing taken, when it is not complete.
pub fn decode_varint(input: &mut impl Buf) -> Option<u64> {
    let first = *input.chunk().first()?;
    let length = 1_usize << (first >> 6);
    if input.remaining() < length {
        return None;
    }
    let mask = u64::MAX >> (64 - (8 * length - 2));
    Some(input.get_uint(length) & mask)
}
