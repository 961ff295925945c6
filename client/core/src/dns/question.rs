//! A question for the addresses of a name, and what is answered (RFC 1035 §4.1, RFC 3596).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{HEADER, question_end};
use crate::packet::be16;

/// Records of a message that are read: no honest answer has more.
const RECORDS: usize = 64;

const INTERNET: u16 = 1;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4: `A`.
    V4,
    /// IPv6: `AAAA`.
    V6,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn code(self) -> u16 {
        match self {
            Self::V4 => 1,
            Self::V6 => 28,
        }
    }
}

/// The message that asks; `None` for what is no name.
#[must_use]
pub fn question(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    // Recursion is desired.
    let words = [id, 0x0100, 1, 0, 0, 0];
    let mut message: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    (message.len() <= HEADER + 255).then_some(())?;
    message.extend([kind.code(), INTERNET].into_iter().flat_map(u16::to_be_bytes));
    Some(message)
}

/// The addresses in the answer to a question, those of names it is an alias of included; `None` for
/// what is not its answer. Empty where there is none.
#[must_use]
pub fn addresses(question: &[u8], answer: &[u8]) -> Option<Vec<IpAddr>> {
    let end = question_end(answer)?;
    let same = answer.get(HEADER..end)?.eq_ignore_ascii_case(question.get(HEADER..)?);
    let is_answer = answer[2] & 0x80 != 0 && answer[..2] == question[..2] && same;
    is_answer.then_some(())?;
    let mut found = Vec::new();
    let mut at = end;
    for _ in 0..usize::from(be16(answer, 6)).min(RECORDS) {
        let Some((address, next)) = record(answer, at) else { break };
        found.extend(address);
        at = next;
    }
    Some(found)
}

/// The record at an offset: its address, if it has one, and where the next one begins.
fn record(message: &[u8], at: usize) -> Option<(Option<IpAddr>, usize)> {
    let fixed = name_end(message, at)?;
    let head = message.get(fixed..fixed + 10)?;
    let data = fixed + 10;
    let next = data + usize::from(be16(head, 8));
    let data = message.get(data..next)?;
    let address = match (be16(head, 0), be16(head, 2)) {
        (1, INTERNET) => <[u8; 4]>::try_from(data).ok().map(|it| Ipv4Addr::from(it).into()),
        (28, INTERNET) => <[u8; 16]>::try_from(data).ok().map(|it| Ipv6Addr::from(it).into()),
        _ => None,
    };
    Some((address, next))
}

fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            label @ 1..=63 => at += 1 + usize::from(label),
            // A pointer ends a name.
            0xc0.. => return Some(at + 2),
            64..=0xbf => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answered(question: &[u8], records: &[&[u8]]) -> Vec<u8> {
        let mut answer = question.to_vec();
        answer[2] |= 0x80;
        answer[7] = u8::try_from(records.len()).unwrap();
        answer.extend(records.concat());
        answer
    }

    #[test]
    fn addresses_are_found_behind_an_alias() {
        let question = question(7, "gw.Example.org.", Kind::V4).unwrap();
        assert_eq!(&question[12..], b"\x02gw\x07Example\x03org\x00\x00\x01\x00\x01");
        let alias = b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x04\x01a\xc0\x0f";
        let v4 = b"\x01a\xc0\x0f\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x0a";
        let found = addresses(&question, &answered(&question, &[alias, v4]));
        assert_eq!(found, Some(vec![IpAddr::from([192, 0, 2, 10])]));
        assert_eq!(addresses(&question, &answered(&question, &[])), Some(Vec::new()));
    }

    #[test]
    fn another_answer_is_none() {
        let question = |id, name| question(id, name, Kind::V6).unwrap();
        let asked = question(7, "gw.example.org");
        for other in [question(8, "gw.example.org"), question(7, "gw.example.com")] {
            assert_eq!(addresses(&asked, &answered(&other, &[])), None);
        }
        assert_eq!(addresses(&asked, &asked), None, "a question is no answer");
    }

    #[test]
    fn what_is_no_name_is_not_asked() {
        let long = ["a"; 130].join(".");
        for name in ["", "a..b", &"x".repeat(64), &long] {
            assert_eq!(question(1, name, Kind::V4), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_does_harm(tail in proptest::collection::vec(any::<u8>(), 0..200), count: u8) {
            let question = question(7, "gw.example.org", Kind::V4).unwrap();
            let mut answer = answered(&question, &[&tail]);
            answer[7] = count;
            prop_assert!(addresses(&question, &answer).is_some());
        }
    }
}
