//! A flow with much under way in both directions, while its session moves from slot to slot.

use crate::rogue::Rogue;
use crate::slots::{SLOTS, raise, total};
use crate::stage::{
    ORIGIN, accept, is_numbered, join, listen, no_panics, numbered, receive_to_end, send, tell,
    until,
};
use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};
use whimbrel_carrier::{Read, Stream};
use whimbrel_common::wire::{self, Control, FlowAnswer, FlowHeader, Taken, WireFlow};
use whimbrel_tests::dice::{self, Dice};

/// Bytes of either direction: enough for every move to find some under way.
const BULK: u64 = 24 << 20;

/// How often the session moves.
const MOVES: u64 = 40;

/// Credit of the direction to the client, in bytes.
const CREDIT: u64 = 4 << 20;

/// Progress is told after this many bytes.
const REPORT: u64 = 256 << 10;

/// The numbers of the two streams of bytes.
const DOWN: u64 = 77;
const UP: u64 = 78;

const FLOW: WireFlow = WireFlow(1);

/// Both directions of the flow, at the client.
struct Bulk {
    stream: Stream,
    epoch: u64,
    input: BytesMut,
    answered: bool,
    heard: u64,
    reported: u64,
    /// The destination has ended its direction.
    ended: bool,
    sent: u64,
    /// The end was sent after everything.
    finished: bool,
    /// What the gateway has taken, and how far it may be sent to.
    taken: u64,
    limit: u64,
}

impl Bulk {
    fn over(stream: Stream) -> Self {
        Self {
            stream,
            epoch: 0,
            input: BytesMut::new(),
            answered: false,
            heard: 0,
            reported: 0,
            ended: false,
            sent: 0,
            finished: false,
            taken: 0,
            limit: 0,
        }
    }

    /// Moves what can be moved at once. Whether everything is over.
    fn drive(&mut self, rogue: &mut Rogue) -> Result<bool> {
        ensure!(rogue.lost.is_none(), "lost: {:?}", rogue.lost);
        while let Some(frame) = rogue.hear()? {
            let Control::Taken(entries) = frame else { continue };
            for entry in entries {
                self.taken = self.taken.max(entry.offset);
                self.limit = self.limit.max(entry.limit);
            }
        }
        self.hear(rogue)?;
        if self.answered {
            self.speak(rogue)?;
        }
        if self.heard >= self.reported + REPORT || self.ended {
            self.reported = self.heard;
            let (offset, limit, fin) = (self.heard, self.heard + CREDIT, self.ended);
            rogue.say(&Control::Taken(vec![Taken { flow: FLOW, offset, limit, fin }]))?;
        }
        Ok(self.ended && self.taken == BULK && self.finished)
    }

    fn hear(&mut self, rogue: &mut Rogue) -> Result<()> {
        for _ in 0..64 {
            match rogue.endpoint.read(rogue.connection, self.stream, 1 << 16) {
                Read::Data(bytes) => self.input.extend_from_slice(&bytes),
                Read::Blocked => break,
                Read::End => {
                    self.ended = true;
                    break;
                }
                // It was said once.
                Read::Reset(_) if self.ended => break,
                Read::Reset(code) => bail!("reset with {code} after {} bytes", self.heard),
            }
        }
        if !self.answered {
            match wire::decode_answer(&mut self.input)? {
                None => return Ok(()),
                Some(FlowAnswer::Opened { limit }) => self.limit = limit,
                Some(FlowAnswer::Resumed { taken, offset, limit, .. }) => {
                    ensure!(offset == self.heard, "it goes on at {offset}, not {}", self.heard);
                    ensure!(taken >= self.taken, "it took {} and then {taken}", self.taken);
                    self.limit = self.limit.max(limit);
                }
                Some(other) => bail!("{other:?}"),
            }
            self.answered = true;
        }
        ensure!(is_numbered(DOWN, self.heard, &self.input), "wrong bytes after {}", self.heard);
        self.heard += self.input.len() as u64;
        self.input.clear();
        Ok(())
    }

    fn speak(&mut self, rogue: &mut Rogue) -> Result<()> {
        let end = self.limit.min(BULK);
        while self.sent < end {
            let length = usize::try_from((end - self.sent).min(16 << 10))?;
            let count = rogue.write(self.stream, &numbered(UP, self.sent, length))?;
            self.sent += count as u64;
            if count < length {
                return Ok(());
            }
        }
        if self.sent == BULK && !self.finished {
            self.finished = true;
            rogue.endpoint.finish(rogue.connection, self.stream).ok().context("it cannot end")?;
        }
        Ok(())
    }

    /// Goes on over another connection, from what the gateway has certainly taken.
    fn resume(&mut self, rogue: &mut Rogue) -> Result<()> {
        self.epoch += 1;
        let header = FlowHeader::Resume {
            flow: FLOW,
            epoch: self.epoch,
            taken: self.heard,
            fin_taken: self.ended,
            offset: self.taken,
            limit: self.heard + CREDIT,
        };
        self.stream = rogue.send_header(&header)?;
        self.input.clear();
        self.answered = false;
        self.sent = self.taken;
        self.finished = false;
        Ok(())
    }
}

pub(crate) fn much_under_way_moves_with_its_session_and_outlives_kills() -> Result<()> {
    let seed = dice::seed();
    let mut dice = Dice::new(seed);
    let mut stage = raise(SLOTS)?;
    let listener = listen(stage.world.host("origin"))?;
    let to = SocketAddr::new(ORIGIN[0], listener.local_addr()?.port());
    let mut rogue = Rogue::admitted(&stage.world, "mover", 1)?;
    let session = rogue.session;
    let mut bulk = Bulk::over(rogue.dial(FLOW.0, to, CREDIT)?);
    let (mut server, _) = accept(&listener)?;
    let mut reader = server.try_clone()?;
    let writing = std::thread::spawn(move || {
        send(&mut server, DOWN, 0, BULK)?;
        server.shutdown(Shutdown::Write)
    });
    let reading = std::thread::spawn(move || receive_to_end(&mut reader, UP, 0));
    let (mut moved, mut busy) = (0, 0);
    for epoch in 2..MOVES + 2 {
        // Steps of the same size, so that the last move still finds something under way.
        let goal = bulk.heard.max(BULK / (MOVES + 5) * (epoch - 1));
        rogue.until("a step", |rogue| Ok(bulk.drive(rogue)? || bulk.heard >= goal))?;
        let pause = Instant::now() + Duration::from_micros(dice.throw(3000));
        rogue.until("a while", |rogue| Ok(bulk.drive(rogue)? || Instant::now() >= pause))?;
        busy += u64::from(!bulk.ended && bulk.sent > bulk.taken);
        if epoch % 5 == 0 {
            moved += total(&stage.adds_up()?, "moved_in");
            stage.gateway.kill()?;
        }
        rogue = Rogue::back(&stage.world, 1, session, epoch)?;
        ensure!(rogue.session == session, "another session, seed {seed}, epoch {epoch}");
        bulk.resume(&mut rogue)?;
    }
    rogue
        .until("everything is over", |rogue| bulk.drive(rogue))
        .with_context(|| format!("seed {seed}: {} heard, {} taken", bulk.heard, bulk.taken))?;
    join(writing)?;
    ensure!(bulk.heard == BULK && join(reading)? == BULK, "{} heard", bulk.heard);
    moved += total(&stage.adds_up()?, "moved_in");
    tell!("seed {seed}: {moved} of {MOVES} attaches led elsewhere, {busy} with much under way");
    ensure!(moved > MOVES / 4 && busy > MOVES / 2);
    until("the flow is forgotten", || {
        rogue.linger(Duration::from_millis(5))?;
        Ok(stage.adds_up()?["flows"] == 0)
    })?;
    no_panics(&stage.world)
}
