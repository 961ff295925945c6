//! Connection IDs a balancer can route by (draft-ietf-quic-load-balancers, QUIC-LB).
//!
//! A gateway's ID is `rotation (3 bits) · length (5 bits) · node · slot · nonce`, in the draft's
//! plaintext encoding: the first octet's low bits say how many octets follow, so that a balancer
//! finds the server ID (node and slot) without knowing the connection. A client's first
//! destination ID carries rotation [`UNROUTABLE`], so it is never mistaken for one of ours.

/// Length of a gateway's connection ID, in octets: one of configuration, two of server ID and a
/// nonce of eight, the draft's minimum for an ID without encryption being four.
pub const GATEWAY_CID: usize = 11;

/// Length of a client's own connection IDs, in octets, all of them random.
pub const CLIENT_CID: usize = 8;

/// Length of the client's first destination connection ID, in octets (RFC 9000 §7.2 asks for 8).
pub const INITIAL_CID: usize = 12;

/// The rotation codepoint the draft reserves for IDs that name no server.
pub const UNROUTABLE: u8 = 0b111;

/// The bit that tells long headers from short ones (RFC 8999 §5).
pub const LONG_HEADER: u8 = 0x80;

const ROTATION: u8 = 0;

/// The first octet of every ID of a gateway.
pub const GATEWAY_FIRST: u8 = first_octet(ROTATION, GATEWAY_CID);

/// Which gateway thread an ID names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServerId {
    /// The machine.
    pub node: u8,
    /// The data thread on it.
    pub slot: u8,
}

impl ServerId {
    /// The ID made from `nonce`, which must be fresh random bytes.
    pub fn encode(self, nonce: [u8; GATEWAY_CID - 3]) -> [u8; GATEWAY_CID] {
        let mut cid = [0; GATEWAY_CID];
        cid[0] = GATEWAY_FIRST;
        cid[1] = self.node;
        cid[2] = self.slot;
        cid[3..].copy_from_slice(&nonce);
        cid
    }

    /// The server an ID names; `None` when it is not one of a gateway's.
    pub fn decode(cid: &[u8]) -> Option<Self> {
        match cid {
            [GATEWAY_FIRST, node, slot, ..] if cid.len() == GATEWAY_CID => {
                Some(Self { node: *node, slot: *slot })
            }
            _ => None,
        }
    }
}

/// The server a datagram that was sent to a gateway names by its destination connection ID;
/// `None` when that is not one of a gateway's (RFC 8999 §5).
pub fn destination(datagram: &[u8]) -> Option<ServerId> {
    let first = datagram.first()?;
    let cid = if first & LONG_HEADER == 0 {
        datagram.get(1..=GATEWAY_CID)?
    } else {
        let length = usize::from(*datagram.get(5)?);
        datagram.get(6..6 + length)?
    };
    ServerId::decode(cid)
}

/// The client's first destination connection ID, made from fresh random bytes.
pub fn unroutable(mut random: [u8; INITIAL_CID]) -> [u8; INITIAL_CID] {
    random[0] = first_octet(UNROUTABLE, INITIAL_CID);
    random
}

/// `length` in octets, 1 to 20.
#[expect(clippy::cast_possible_truncation, reason = "connection IDs have at most 20 octets")]
const fn first_octet(rotation: u8, length: usize) -> u8 {
    (rotation << 5) | ((length - 1) as u8 & 0x1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_id_comes_back_as_it_went() {
        let server = ServerId { node: 7, slot: 3 };
        assert_eq!(ServerId::decode(&server.encode([9; 8])), Some(server));
    }

    #[test]
    fn plaintext_vector_of_the_draft_has_our_layout() {
        // Server ID c4605e, nonce 4504cc4f, rotation 0 encode to 07c4605e4504cc4f.
        assert_eq!(first_octet(0, 8), 0x07);
        let cid = ServerId { node: 0xc4, slot: 0x60 }.encode([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(cid, [0x0a, 0xc4, 0x60, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_datagram_names_its_server_in_either_header() {
        let server = ServerId { node: 7, slot: 3 };
        let cid = server.encode([9; 8]);
        let short = [&[0x40], cid.as_slice(), &[1, 2, 3]].concat();
        assert_eq!(destination(&short), Some(server));
        let long = [&[0xc0, 0, 0, 0, 1, 11], cid.as_slice(), &[8]].concat();
        assert_eq!(destination(&long), Some(server));
        let initial = unroutable([5; INITIAL_CID]);
        let first = [&[0xc0, 0, 0, 0, 1, 12], initial.as_slice(), &[8]].concat();
        assert_eq!(destination(&first), None);
        for short in 0..GATEWAY_CID {
            assert_eq!(destination(&long[..short]), None);
        }
    }

    #[test]
    fn initial_id_is_unroutable() {
        let cid = unroutable([0xff; INITIAL_CID]);
        assert_eq!(cid[0] >> 5, UNROUTABLE);
        assert_eq!(ServerId::decode(&cid[..GATEWAY_CID]), None);
        assert_eq!(ServerId::decode(&[]), None);
    }
}
