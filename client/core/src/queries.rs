//! Questions to the gateway's resolver that have no answer yet.
//!
//! They travel as datagrams, which nobody repeats: one that was on its way when a link died would
//! cost its program the patience of its own resolver, a second or more. So the client repeats what
//! is open as soon as the traffic has moved, and a few times besides.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use whimbrel_common::wire::Association;

/// A question without an answer is repeated after so long, and then after twice as long each time:
/// sooner than any program does it, and later than most answers take.
const FIRST: Duration = Duration::from_millis(400);

/// So often at most by the clock; a move repeats it whenever there is one.
const REPEATS: u32 = 3;

/// Programs repeat a question themselves after so long (resolv.conf(5)): theirs counts then.
const LIFETIME: Duration = Duration::from_secs(5);

/// Questions remembered at a time; others are not repeated.
const MOST: usize = 256;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Queries {
    open: BTreeMap<Key, Open>,
}

/// Who asks, and the number of the question.
type Key = (Association, [u8; 2]);

#[derive(Debug)]
struct Open {
    parcel: Bytes,
    since: Instant,
    repeats: u32,
    due: Instant,
}

impl Queries {
    /// A question leaves, as this parcel. `message` is the question itself.
    pub fn ask(&mut self, association: Association, message: &[u8], parcel: Bytes, now: Instant) {
        let Some(id) = message.first_chunk() else { return };
        let key = (association, *id);
        if self.open.len() < MOST || self.open.contains_key(&key) {
            let open = Open { parcel, since: now, repeats: 0, due: now + FIRST };
            self.open.insert(key, open);
        }
    }

    /// An answer came for `association`.
    pub fn answered(&mut self, association: Association, message: &[u8]) {
        if let Some(id) = message.first_chunk() {
            self.open.remove(&(association, *id));
        }
    }

    /// The traffic moved: what was on its way may be lost.
    pub fn moved(&mut self, now: Instant) {
        self.open.values_mut().for_each(|open| open.due = open.due.min(now));
    }

    /// The next parcel to send again, and whose it is.
    pub fn poll(&mut self, now: Instant) -> Option<(Association, Bytes)> {
        self.open.retain(|_, open| now < open.since + LIFETIME);
        let ((association, _), open) = self.open.iter_mut().find(|(_, open)| open.due <= now)?;
        open.repeats += 1;
        let pause = FIRST * 2_u32.pow(open.repeats.min(REPEATS));
        open.due = if open.repeats < REPEATS { now + pause } else { open.since + LIFETIME };
        Some((*association, open.parcel.clone()))
    }

    /// When [`poll`](Self::poll) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|open| open.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may choose any start")]
    fn start() -> Instant {
        Instant::now()
    }

    const WHO: Association = Association(7);

    fn parcel(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn repeated(queries: &mut Queries, now: Instant) -> Vec<Bytes> {
        std::iter::from_fn(|| queries.poll(now)).map(|(_, parcel)| parcel).collect()
    }

    #[test]
    fn what_is_open_is_repeated_as_soon_as_the_traffic_has_moved() {
        let (mut queries, now) = (Queries::default(), start());
        queries.ask(WHO, b"\x00\x01first", parcel("one"), now);
        queries.ask(WHO, b"\x00\x02second", parcel("two"), now);
        queries.answered(WHO, b"\x00\x01answer");
        assert!(repeated(&mut queries, now).is_empty(), "nothing is due");
        queries.moved(now);
        assert_eq!(queries.deadline(), Some(now));
        assert_eq!(repeated(&mut queries, now), [parcel("two")]);
        queries.moved(now);
        assert_eq!(repeated(&mut queries, now), [parcel("two")], "at every move");
    }

    #[test]
    fn a_question_without_an_answer_is_repeated_ever_more_rarely_and_then_forgotten() {
        let (mut queries, begin) = (Queries::default(), start());
        queries.ask(WHO, b"\x00\x01", parcel("one"), begin);
        let mut times = Vec::new();
        while let Some(due) = queries.deadline() {
            for _ in repeated(&mut queries, due) {
                times.push((due - begin).as_millis());
            }
        }
        assert_eq!(times, [400, 1200, 2800]);
        assert!(queries.open.is_empty());
    }

    #[test]
    fn the_same_number_from_another_program_is_another_question() {
        let (mut queries, now) = (Queries::default(), start());
        queries.ask(WHO, b"\x00\x01", parcel("one"), now);
        queries.ask(Association(8), b"\x00\x01", parcel("two"), now);
        queries.answered(Association(8), b"\x00\x01");
        queries.moved(now);
        assert_eq!(repeated(&mut queries, now), [parcel("one")]);
    }

    #[test]
    fn the_table_is_bounded_and_short_messages_are_none() {
        let (mut queries, now) = (Queries::default(), start());
        queries.ask(WHO, b"\x00", parcel("short"), now);
        queries.answered(WHO, b"");
        for id in 0..1000_u16 {
            queries.ask(WHO, &id.to_be_bytes(), parcel("one"), now);
        }
        queries.moved(now);
        assert_eq!(repeated(&mut queries, now).len(), MOST);
    }
}
