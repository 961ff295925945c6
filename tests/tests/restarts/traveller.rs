//! A client that changes its connection often and checks every byte of its flows.

use crate::rogue::Rogue;
use crate::stage::{is_numbered, numbered};
use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use std::net::SocketAddr;
use whimbrel_carrier::{Read, Stream};
use whimbrel_common::wire::{self, FlowAnswer, FlowHeader, SessionId, WireFlow};
use whimbrel_tests::lab::World;

/// Credit for everything a flow ever hears, in bytes.
const PLENTY: u64 = 8 << 20;

/// What may be on its way to the echo and back, in bytes: well below the first credit of a flow.
const UNDER_WAY: u64 = 12_000;

/// A session, on whatever connection it is now.
pub(crate) struct Traveller {
    pub(crate) rogue: Rogue,
    pub(crate) session: SessionId,
    pub(crate) epoch: u64,
    number: u8,
    lines: Vec<Line>,
}

/// A flow to an echo.
struct Line {
    flow: u64,
    stream: Stream,
    epoch: u64,
    sent: u64,
    heard: u64,
    input: BytesMut,
    /// The gateway has answered on this stream.
    answered: bool,
}

impl Traveller {
    /// A new client with this many flows to an echo.
    pub(crate) fn set_out(world: &World, number: u8, echo: SocketAddr, flows: u64) -> Result<Self> {
        let mut rogue = Rogue::admitted(world, &format!("traveller-{number}"), number)?;
        let session = rogue.session.context("not attached")?;
        let mut lines = Vec::new();
        for flow in 1..=flows {
            let stream = rogue.dial(flow, echo, PLENTY)?;
            let input = BytesMut::new();
            let (epoch, sent, heard, answered) = (0, 0, 0, false);
            lines.push(Line { flow, stream, epoch, sent, heard, input, answered });
        }
        let mut traveller = Self { rogue, session, epoch: 1, number, lines };
        traveller.settle()?;
        Ok(traveller)
    }

    /// Says so many bytes on every flow, and does not wait for what comes back.
    pub(crate) fn speak(&mut self, bytes: u64) -> Result<()> {
        for line in &mut self.lines {
            let bytes = bytes.min(UNDER_WAY - (line.sent - line.heard));
            let words = numbered(line.number(self.number), line.sent, usize::try_from(bytes)?);
            self.rogue.write_all(line.stream, &words)?;
            line.sent += bytes;
        }
        Ok(())
    }

    /// Waits until everything said has come back, and checks it.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let (number, lines) = (self.number, &mut self.lines);
        self.rogue.until("everything has come back", |rogue| {
            let mut all = true;
            for line in lines.iter_mut() {
                line.hear(rogue, number).with_context(|| format!("flow {}", line.flow))?;
                all &= line.answered && line.heard == line.sent;
            }
            Ok(all)
        })
    }

    /// Takes in what has come, without waiting for more.
    pub(crate) fn glance(&mut self) -> Result<()> {
        for line in &mut self.lines {
            line.hear(&mut self.rogue, self.number)?;
        }
        Ok(())
    }

    /// Leaves its connection without a word and goes on over a new one.
    pub(crate) fn move_on(&mut self, world: &World) -> Result<()> {
        self.epoch += 1;
        let rogue = Rogue::back(world, self.number, Some(self.session), self.epoch)?;
        self.go_on_with(rogue)
    }

    /// Begins to attach over a new connection, and does not wait for it.
    pub(crate) fn begin_to_move(&mut self, world: &World) -> Result<Rogue> {
        self.epoch += 1;
        Rogue::asking(world, self.number, Some(self.session), self.epoch)
    }

    /// Goes on over a connection that is attached.
    pub(crate) fn go_on_with(&mut self, rogue: Rogue) -> Result<()> {
        ensure!(rogue.session == Some(self.session), "another session");
        self.rogue = rogue;
        for line in &mut self.lines {
            line.epoch += 1;
            let header = FlowHeader::Resume {
                flow: WireFlow(line.flow),
                epoch: line.epoch,
                taken: line.heard,
                fin_taken: false,
                offset: line.heard,
                limit: line.heard + PLENTY,
            };
            line.stream = self.rogue.send_header(&header)?;
            line.answered = false;
            line.input.clear();
            // What came back was taken; of the rest nobody knows.
            let length = usize::try_from(line.sent - line.heard)?;
            let again = numbered(line.number(self.number), line.heard, length);
            self.rogue.write_all(line.stream, &again)?;
        }
        Ok(())
    }

    /// Bytes that went there and came back.
    pub(crate) fn heard(&self) -> u64 {
        self.lines.iter().map(|line| line.heard).sum()
    }
}

impl Line {
    /// Names its stream of bytes.
    fn number(&self, traveller: u8) -> u64 {
        u64::from(traveller) << 32 | self.flow
    }

    fn hear(&mut self, rogue: &mut Rogue, traveller: u8) -> Result<()> {
        loop {
            match rogue.endpoint.read(rogue.connection, self.stream, 1 << 16) {
                Read::Data(bytes) => self.input.extend_from_slice(&bytes),
                Read::Blocked => break,
                Read::End => bail!("its end after {} bytes", self.heard),
                Read::Reset(code) => bail!("reset with {code} after {} bytes", self.heard),
            }
        }
        if !self.answered {
            match wire::decode_answer(&mut self.input)? {
                None => return Ok(()),
                Some(FlowAnswer::Opened { .. }) if self.epoch == 0 => {}
                Some(FlowAnswer::Resumed { taken, offset, .. }) if self.epoch > 0 => {
                    ensure!(offset == self.heard, "it goes on at {offset}, not {}", self.heard);
                    let possible = self.heard..=self.sent;
                    ensure!(possible.contains(&taken), "it took {taken} of {possible:?}");
                }
                Some(other) => bail!("{other:?}"),
            }
            self.answered = true;
        }
        let right = is_numbered(self.number(traveller), self.heard, &self.input);
        ensure!(right, "wrong bytes after {}", self.heard);
        self.heard += self.input.len() as u64;
        self.input.clear();
        ensure!(self.heard <= self.sent, "{} of {} bytes came back", self.heard, self.sent);
        Ok(())
    }
}
