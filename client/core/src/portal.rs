//! Networks that want a sign-in: they answer HTTP for everybody, and let nothing else through.
//!
//! Whimbrel never moves onto such a network, for the gateway does not answer there. That it *is*
//! such a network, and not one that is out of order, is worth telling. So when the gateway has not
//! answered over a link, one HTTP request goes out there to an address that nobody has: only a
//! network that answers for others can answer.
//!
//! A link is asked about at most once a minute, and only while the gateway does not answer over it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use whimbrel_common::path::PathKey;

/// A network that was asked about is left alone for this long. A person takes longer to sign in.
const AGAIN: Duration = Duration::from_secs(60);

/// What is known of the links over which the gateway does not answer.
#[derive(Debug, Default)]
pub struct Portals {
    links: BTreeMap<PathKey, Suspicion>,
    enabled: bool,
    questions: VecDeque<PathKey>,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    asked: Option<Instant>,
    captive: bool,
}

impl Portals {
    /// Whether questions may be asked at all. What others tell counts anyway.
    pub fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
        if !enabled {
            self.questions.clear();
        }
    }

    /// The gateway did not answer over this link.
    pub fn doubt(&mut self, link: PathKey, now: Instant) {
        let entry = self.links.entry(link);
        let suspicion = entry.or_insert(Suspicion { asked: None, captive: false });
        let due = suspicion.asked.is_none_or(|asked| now >= asked + AGAIN);
        if self.enabled && due {
            suspicion.asked = Some(now);
            self.questions.push_back(link);
        }
    }

    /// The gateway answered over this link, or the link is gone: another network may be behind it
    /// when it is back. Whether it was thought captive.
    pub fn clear(&mut self, link: PathKey) -> bool {
        self.questions.retain(|asked| *asked != link);
        self.links.remove(&link).is_some_and(|suspicion| suspicion.captive)
    }

    /// An answer about a link that is still in doubt. Whether that is news.
    pub fn learn(&mut self, link: PathKey, captive: bool) -> bool {
        let Some(suspicion) = self.links.get_mut(&link) else { return false };
        std::mem::replace(&mut suspicion.captive, captive) != captive
    }

    /// The next link to ask about.
    pub fn poll_question(&mut self) -> Option<PathKey> {
        self.questions.pop_front()
    }

    /// Whether this link's network wants a sign-in.
    #[must_use]
    pub fn is_captive(&self, link: PathKey) -> bool {
        self.links.get(&link).is_some_and(|suspicion| suspicion.captive)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a test starts its clock anywhere")]

    use super::*;

    const LINK: PathKey = PathKey(3);

    fn enabled() -> Portals {
        let mut portals = Portals::default();
        portals.enable(true);
        portals
    }

    #[test]
    fn a_link_that_never_failed_is_never_asked_about() {
        let mut portals = enabled();
        assert_eq!(portals.poll_question(), None);
        assert!(!portals.learn(LINK, true), "nobody doubts it");
        assert!(!portals.is_captive(LINK));
    }

    #[test]
    fn many_failures_are_one_question_a_minute() {
        let (mut portals, start) = (enabled(), Instant::now());
        for second in 0..120 {
            portals.doubt(LINK, start + Duration::from_secs(second));
        }
        let asked = std::iter::from_fn(|| portals.poll_question()).count();
        assert_eq!(asked, 2);
    }

    #[test]
    fn an_answer_stands_until_the_gateway_answers_or_another_answer_comes() {
        let (mut portals, now) = (enabled(), Instant::now());
        portals.doubt(LINK, now);
        assert!(portals.learn(LINK, true));
        assert!(!portals.learn(LINK, true), "that is known");
        assert!(portals.is_captive(LINK));
        assert!(portals.learn(LINK, false));
        portals.learn(LINK, true);
        assert!(portals.clear(LINK));
        assert!(!portals.is_captive(LINK));
        assert!(!portals.learn(LINK, true), "an answer that comes late is about the past");
    }

    #[test]
    fn a_link_that_comes_back_is_asked_about_again() {
        let (mut portals, now) = (enabled(), Instant::now());
        portals.doubt(LINK, now);
        assert_eq!(portals.poll_question(), Some(LINK));
        portals.clear(LINK);
        portals.doubt(LINK, now);
        assert_eq!(portals.poll_question(), Some(LINK));
    }

    #[test]
    fn nobody_is_asked_where_that_is_not_wanted() {
        let (mut portals, now) = (Portals::default(), Instant::now());
        portals.doubt(LINK, now);
        assert_eq!(portals.poll_question(), None);
        assert!(portals.learn(LINK, true), "what the network manager says still counts");
    }
}
