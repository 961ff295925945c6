//! Networks that want a sign-in: they answer HTTP for everybody, and let nothing else through.
//!
//! Whimbrel never moves onto such a network, for the gateway does not answer there. That it *is*
//! such a network, and not one that is out of order, is worth telling. So when the gateway has not
//! answered over a link, one HTTP request goes out there to an address that nobody has: only a
//! network that answers for others can answer.
//!
//! A link is asked about at most once a minute, and only while the gateway does not answer over it.
//! A network manager may say the same of a link at any time, as a rule before the gateway was missed
//! there. Its word is kept apart: it counts as soon as the link is in doubt, and whatever the answer
//! to our own question was.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use whimbrel_common::path::PathKey;

/// A network that was asked about is left alone for this long. A person takes longer to sign in.
const AGAIN: Duration = Duration::from_secs(60);

/// What is known of the links over which the gateway does not answer.
#[derive(Debug, Default)]
pub struct Portals {
    links: BTreeMap<PathKey, Suspicion>,
    /// Of which others say so.
    told: BTreeSet<PathKey>,
    enabled: bool,
    questions: VecDeque<PathKey>,
    found: VecDeque<PathKey>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Suspicion {
    asked: Option<Instant>,
    /// What the network answered.
    answered: bool,
    /// Whether it was told last that it wants a sign-in.
    found: bool,
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
        let suspicion = self.links.entry(link).or_default();
        let due = suspicion.asked.is_none_or(|asked| now >= asked + AGAIN);
        if self.enabled && due {
            suspicion.asked = Some(now);
            self.questions.push_back(link);
        }
        self.conclude(link);
    }

    /// The gateway answered over this link.
    pub fn clear(&mut self, link: PathKey) {
        self.questions.retain(|asked| *asked != link);
        self.found.retain(|found| *found != link);
        self.links.remove(&link);
    }

    /// The link is gone: another network may be behind it when it is back.
    pub fn forget(&mut self, link: PathKey) {
        self.clear(link);
        self.told.remove(&link);
    }

    /// The network's answer about a link, if it is still in doubt.
    pub fn learn(&mut self, link: PathKey, captive: bool) {
        if let Some(suspicion) = self.links.get_mut(&link) {
            suspicion.answered = captive;
        }
        self.conclude(link);
    }

    /// What the network manager says of a link, in doubt or not.
    pub fn tell(&mut self, link: PathKey, captive: bool) {
        if captive {
            self.told.insert(link);
        } else {
            self.told.remove(&link);
        }
        self.conclude(link);
    }

    fn conclude(&mut self, link: PathKey) {
        let captive = self.is_captive(link);
        let Some(suspicion) = self.links.get_mut(&link) else { return };
        if captive && !suspicion.found {
            self.found.push_back(link);
        }
        suspicion.found = captive;
    }

    /// The next link to ask about.
    pub fn poll_question(&mut self) -> Option<PathKey> {
        self.questions.pop_front()
    }

    /// The next link whose network was found to want a sign-in.
    pub fn poll_found(&mut self) -> Option<PathKey> {
        self.found.pop_front()
    }

    /// Whether this link's network wants a sign-in.
    #[must_use]
    pub fn is_captive(&self, link: PathKey) -> bool {
        let suspicion = self.links.get(&link);
        suspicion.is_some_and(|suspicion| suspicion.answered || self.told.contains(&link))
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
        portals.learn(LINK, true);
        assert_eq!(portals.poll_found(), None, "nobody doubts it");
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
        portals.learn(LINK, true);
        portals.learn(LINK, true);
        assert_eq!((portals.poll_found(), portals.poll_found()), (Some(LINK), None));
        assert!(portals.is_captive(LINK));
        portals.learn(LINK, false);
        assert!(!portals.is_captive(LINK));
        portals.learn(LINK, true);
        assert_eq!(portals.poll_found(), Some(LINK));
        portals.clear(LINK);
        assert!(!portals.is_captive(LINK));
        portals.learn(LINK, true);
        assert!(!portals.is_captive(LINK), "an answer that comes late is about the past");
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
        portals.tell(LINK, true);
        assert_eq!(portals.poll_found(), Some(LINK), "what the network manager says still counts");
    }

    #[test]
    fn a_word_that_comes_before_the_doubt_counts_once_there_is_doubt() {
        let (mut portals, now) = (enabled(), Instant::now());
        portals.tell(LINK, true);
        assert_eq!(portals.poll_found(), None);
        portals.doubt(LINK, now);
        assert!(portals.is_captive(LINK));
        assert_eq!((portals.poll_found(), portals.poll_found()), (Some(LINK), None));
    }

    #[test]
    fn the_network_does_not_overrule_the_network_manager() {
        let (mut portals, now) = (enabled(), Instant::now());
        portals.doubt(LINK, now);
        portals.tell(LINK, true);
        portals.learn(LINK, false);
        assert!(portals.is_captive(LINK));
        portals.tell(LINK, false);
        assert!(!portals.is_captive(LINK));
    }

    #[test]
    fn what_was_said_of_a_link_that_is_gone_is_forgotten() {
        let (mut portals, now) = (enabled(), Instant::now());
        portals.tell(LINK, true);
        portals.forget(LINK);
        portals.doubt(LINK, now);
        assert!(!portals.is_captive(LINK));
    }
}
