//! Which of several sockets of one address a datagram belongs to, as a program for the kernel.
//!
//! A gateway with several slots has a socket of each address per slot, in one reuseport group
//! (socket(7), `SO_ATTACH_REUSEPORT_CBPF`). The program sees the UDP payload and returns an index
//! into the group. An ID of ours names its slot; any other is a client's first, and spread by its
//! random octets, which stay the same through the handshake whatever happens to the client's
//! address. An index beyond the group leaves the choice to the kernel, and a datagram too short to
//! tell goes to the first socket.

use whimbrel_common::cid::{GATEWAY_CID, GATEWAY_FIRST, LONG_HEADER};

/// One instruction of classic BPF, as the kernel takes it (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// Instructions to skip when a comparison is true.
    pub jt: u8,
    /// Instructions to skip when it is not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// The words of `code` used here (linux/bpf_common.h).
mod word {
    pub(super) const LOAD_BYTE: u16 = 0x30;
    pub(super) const LOAD_WORD: u16 = 0x20;
    pub(super) const JUMP_EQUAL: u16 = 0x15;
    pub(super) const JUMP_ANY_BIT: u16 = 0x45;
    pub(super) const MODULO: u16 = 0x94;
    pub(super) const RETURN: u16 = 0x16;
}

/// Octets of a long header before its destination ID: flags, version, length (RFC 8999 §5.1).
const LONG: u32 = 6;

/// Octets of a short header before its destination ID.
const SHORT: u32 = 1;

/// Where an ID has its slot, behind its first octet and its node.
const SLOT: u32 = 2;

/// Where the random octets of a client's first ID are, of which four are used.
const RANDOM: u32 = 4;

/// The program for a group whose first `slots` sockets belong to one slot each.
#[must_use]
pub fn program(slots: u8) -> Vec<Instruction> {
    use word::{JUMP_ANY_BIT, JUMP_EQUAL, LOAD_BYTE, LOAD_WORD, MODULO, RETURN};
    let op = |code, k| Instruction { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| Instruction { code, jt, jf, k };
    let length = u32::try_from(GATEWAY_CID).expect("at most 20 octets");
    let (first, slots) = (u32::from(GATEWAY_FIRST), u32::from(slots.max(1)));
    vec![
        op(LOAD_BYTE, 0),
        jump(JUMP_ANY_BIT, u32::from(LONG_HEADER), 7, 0),
        // A short header.
        op(LOAD_BYTE, SHORT),
        jump(JUMP_EQUAL, first, 0, 2),
        op(LOAD_BYTE, SHORT + SLOT),
        op(RETURN, 0),
        op(LOAD_WORD, SHORT + RANDOM),
        op(MODULO, slots),
        op(RETURN, 0),
        // A long header.
        op(LOAD_BYTE, LONG - 1),
        jump(JUMP_EQUAL, length, 0, 4),
        op(LOAD_BYTE, LONG),
        jump(JUMP_EQUAL, first, 0, 2),
        op(LOAD_BYTE, LONG + SLOT),
        op(RETURN, 0),
        op(LOAD_WORD, LONG + RANDOM),
        op(MODULO, slots),
        op(RETURN, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use whimbrel_common::cid::{self, INITIAL_CID, ServerId};

    /// What the kernel makes of a program.
    fn run(program: &[Instruction], datagram: &[u8]) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            let load = |length: usize| {
                let from = usize::try_from(k).unwrap();
                let bytes = datagram.get(from..from + length)?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            };
            at += 1;
            match code {
                word::LOAD_BYTE | word::LOAD_WORD => {
                    let length = if code == word::LOAD_BYTE { 1 } else { 4 };
                    // Beyond the end the program is over, and its answer is zero.
                    let Some(value) = load(length) else { return 0 };
                    accumulator = value;
                }
                word::JUMP_EQUAL => at += usize::from(if accumulator == k { jt } else { jf }),
                word::JUMP_ANY_BIT => at += usize::from(if accumulator & k != 0 { jt } else { jf }),
                word::MODULO => accumulator %= k,
                word::RETURN => return accumulator,
                other => panic!("no such instruction: {other:#x}"),
            }
        }
    }

    fn short(cid: &[u8]) -> Vec<u8> {
        [&[0x40], cid, &[0xaa; 30]].concat()
    }

    fn long(cid: &[u8]) -> Vec<u8> {
        let length = u8::try_from(cid.len()).unwrap();
        [&[0xc3, 0, 0, 0, 1, length], cid, &[0xaa; 1180]].concat()
    }

    proptest! {
        #[test]
        fn an_id_of_ours_leads_to_its_slot(
            slots in 1_u8..=255, node: u8, slot: u8, nonce: [u8; 8]
        ) {
            let cid = ServerId { node, slot }.encode(nonce);
            for datagram in [short(&cid), long(&cid)] {
                prop_assert_eq!(run(&program(slots), &datagram), u32::from(slot));
                prop_assert_eq!(cid::destination(&datagram), Some(ServerId { node, slot }));
            }
        }

        #[test]
        fn the_first_id_of_a_client_leads_to_some_slot_and_always_the_same(
            slots in 1_u8..=255, random: [u8; INITIAL_CID]
        ) {
            let first = long(&cid::unroutable(random));
            let chosen = run(&program(slots), &first);
            prop_assert!(chosen < u32::from(slots));
            let mut again = first;
            again[0] = 0xe0;
            again.truncate(200);
            prop_assert_eq!(run(&program(slots), &again), chosen);
        }

        #[test]
        fn anything_at_all_has_an_answer_and_that_of_the_codec(
            slots in 1_u8..=255, datagram in prop::collection::vec(any::<u8>(), 0..64)
        ) {
            let answer = run(&program(slots), &datagram);
            match cid::destination(&datagram) {
                Some(server) => prop_assert_eq!(answer, u32::from(server.slot)),
                // An ID of ours that is cut off still has its slot.
                None => prop_assert!(answer < 256),
            }
        }
    }

    #[test]
    fn first_ids_spread_evenly() {
        let mut hits = [0; 4];
        for number in 0..4000_u32 {
            let mut random = [0; INITIAL_CID];
            random[4..8].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
            let chosen = run(&program(4), &long(&cid::unroutable(random)));
            hits[usize::try_from(chosen).unwrap()] += 1;
        }
        assert!(hits.iter().all(|hits| (800..1200).contains(hits)), "{hits:?}");
    }
}
