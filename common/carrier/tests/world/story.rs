//! One connection of an application to a destination: the sockets at both ends, the programs behind
//! them, and what each may rightly see of the other.

use std::collections::BTreeMap;

use whimbrel_common::wire::WireFlow;

use crate::chance::Chance;

/// Which program of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Application,
    Destination,
}

/// The connections of a run, by the flow that carries each.
pub(crate) type Stories = BTreeMap<WireFlow, Story>;

/// The byte at an offset of the direction with this salt.
fn byte(salt: u64, at: u64) -> u8 {
    (at.wrapping_add(salt)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// The bytes of a direction.
pub(crate) fn bytes(salt: u64, from: u64, to: u64) -> Vec<u8> {
    (from..to).map(|at| byte(salt, at)).collect()
}

/// A socket in its kernel, with a program behind it. It outlives the process that uses it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Names the bytes its program says.
    pub(crate) says: u64,
    /// Names the bytes its program is to be given.
    hears: u64,
    /// What its program will have said in the end.
    pub(crate) total: u64,
    /// What its program has said so far.
    pub(crate) said: u64,
    /// Its program has ended its direction.
    pub(crate) fin: bool,
    /// Bytes taken out of the socket on our side.
    pub(crate) read: u64,
    /// Bytes put into the socket on our side.
    pub(crate) given: u64,
    /// How often our end was put into it.
    pub(crate) ends: u32,
    /// Bytes its program has read.
    heard: u64,
    /// What it takes beyond what its program has read.
    room: u64,
    /// Its program reset the connection.
    pub(crate) broken: bool,
    /// Our side reset the connection.
    pub(crate) torn: bool,
    /// Something changed since our side looked last.
    pub(crate) stirred: bool,
}

/// Bytes a program may say ahead of our reading.
const AHEAD: u64 = 128 * 1024;

impl Socket {
    fn new(says: u64, hears: u64, chance: &mut Chance) -> Self {
        Self {
            says,
            hears,
            total: chance.spread(600_000),
            said: 0,
            fin: false,
            read: 0,
            given: 0,
            ends: 0,
            heard: 0,
            room: 1 + chance.spread(200_000),
            broken: false,
            torn: false,
            stirred: true,
        }
    }

    /// No program is there any more, or our side is not.
    pub(crate) fn is_dead(&self) -> bool {
        self.broken || self.torn
    }

    /// Whether both directions were ended and everything was read.
    fn is_over(&self) -> bool {
        self.fin && self.ends > 0 && self.heard == self.given
    }

    pub(crate) fn say(&mut self, count: u64) {
        let room = (self.read + AHEAD).saturating_sub(self.said);
        let count = count.min(self.total - self.said).min(room);
        if count > 0 && !self.is_dead() && !self.fin {
            self.said += count;
            self.stirred = true;
        }
    }

    pub(crate) fn hear(&mut self, count: u64) {
        let count = count.min(self.given - self.heard);
        if count > 0 && !self.is_dead() {
            self.heard += count;
            self.stirred = true;
        }
    }

    /// The program says no more, whatever it was going to say.
    pub(crate) fn end(&mut self) {
        if !self.is_dead() && !self.fin {
            self.total = self.said;
            self.fin = true;
            self.stirred = true;
        }
    }

    pub(crate) fn break_off(&mut self) {
        if !self.is_dead() && !self.is_over() {
            self.broken = true;
            self.stirred = true;
        }
    }

    /// A patient program: it reads, says all it has to say, and ends. If it is the last thing that
    /// happens, there is memory for everything.
    pub(crate) fn go_on(&mut self, last: bool) {
        if last {
            self.room = self.room.max(AHEAD);
        }
        self.hear(u64::MAX);
        self.say(u64::MAX);
        if self.said == self.total {
            self.end();
        }
    }

    /// What our side can read; `None` once nothing but the end is left.
    pub(crate) fn take(&mut self, most: usize) -> Option<Vec<u8>> {
        let to = self.said.min(self.read + most as u64);
        if self.read == self.said && self.fin {
            return None;
        }
        let read = bytes(self.says, self.read, to);
        self.read = to;
        Some(read)
    }

    /// How many bytes our side can write.
    pub(crate) fn room(&self) -> usize {
        usize::try_from((self.heard + self.room).saturating_sub(self.given)).expect("small")
    }

    /// Our side writes.
    pub(crate) fn put(&mut self, chunk: &[u8]) {
        assert_eq!(self.ends, 0, "bytes after the end");
        assert!(chunk.len() <= self.room(), "more than the socket takes");
        let wrong = (self.given..).zip(chunk).find(|(at, got)| byte(self.hears, *at) != **got);
        assert_eq!(wrong, None, "I1: offset and byte that were never said there");
        self.given += chunk.len() as u64;
    }

    /// Our side says its end.
    pub(crate) fn put_end(&mut self) {
        self.ends += 1;
    }

    /// Our side resets.
    pub(crate) fn tear(&mut self) {
        if !self.broken {
            self.torn = true;
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) application: Socket,
    /// The destination's, once it was dialled.
    pub(crate) destination: Option<Socket>,
    /// What the destination will be like.
    future: Chance,
    salts: (u64, u64),
    /// The destination refuses the dial.
    pub(crate) refuses: bool,
    /// How long it takes to answer, in milliseconds.
    pub(crate) ponders: u64,
    /// Why either end may see a reset that neither program asked for.
    pub(crate) excuse: Option<&'static str>,
}

impl Story {
    pub(crate) fn new(mut chance: Chance) -> Self {
        let salts = (chance.next(), chance.next());
        let application = Socket::new(salts.0, salts.1, &mut chance);
        let (refuses, ponders) = (chance.per_mille(60), chance.spread(400));
        Self {
            application,
            destination: None,
            future: chance,
            salts,
            refuses,
            ponders,
            excuse: None,
        }
    }

    /// A gateway dials the destination.
    pub(crate) fn dial(&mut self) {
        if self.refuses {
            return;
        }
        if let Some(before) = &self.destination {
            assert!(before.is_dead() && before.given == 0, "dialled while a dial stands");
        }
        let mut chance = self.future.clone();
        self.destination = Some(Socket::new(self.salts.1, self.salts.0, &mut chance));
    }

    pub(crate) fn socket(&mut self, side: Side) -> Option<&mut Socket> {
        match side {
            Side::Application => Some(&mut self.application),
            Side::Destination => self.destination.as_mut(),
        }
    }

    pub(crate) fn sockets(&mut self) -> impl Iterator<Item = &mut Socket> {
        std::iter::once(&mut self.application).chain(self.destination.as_mut())
    }

    pub(crate) fn excuse(&mut self, why: &'static str) {
        self.excuse.get_or_insert(why);
    }

    /// At any moment: nobody was given more than was said, nor an end before its time (I1).
    pub(crate) fn check(&self, flow: WireFlow) {
        let Some(destination) = &self.destination else {
            assert_eq!(self.application.given, 0, "{flow:?}: bytes from nowhere");
            assert_eq!(self.application.ends, 0, "{flow:?}: an end from nowhere");
            return;
        };
        for (from, to) in [(&self.application, destination), (destination, &self.application)] {
            assert!(to.given <= from.read && from.read <= from.said, "I1: {flow:?}");
            assert!(to.ends <= 1, "I5: {flow:?} ended twice");
            if to.ends == 1 {
                assert!(from.fin && to.given == from.said, "I1: {flow:?} ended early");
            }
            let cause = from.broken || self.excuse.is_some();
            assert!(!to.torn || cause, "{flow:?} was reset for no reason: {self:#?}");
        }
    }

    /// When everything has come to rest (I5).
    pub(crate) fn check_end(&self, flow: WireFlow) {
        let whole = |socket: &Socket| socket.fin && socket.ends == 1 && socket.read == socket.said;
        let application = &self.application;
        let Some(destination) = &self.destination else {
            let known = self.refuses || application.broken || self.excuse.is_some();
            assert!(application.is_dead() && known, "I5: {flow:?} was never dialled: {self:#?}");
            return;
        };
        if application.is_dead() || destination.is_dead() {
            for socket in [application, destination] {
                assert!(socket.is_dead() || whole(socket), "I5: {flow:?} half reset: {self:#?}");
            }
        } else {
            assert!(whole(application) && whole(destination), "I5: {flow:?} hangs: {self:#?}");
        }
    }
}
