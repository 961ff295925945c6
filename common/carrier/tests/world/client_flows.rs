//! The client's flows: begun, moved, told of, and over.

use std::time::{Duration, Instant};

use whimbrel_carrier::{Connection, Path, Pipe, Stream};
use whimbrel_common::wire::{Control, StreamCode, Taken, WireFlow};

use super::Client;
use crate::ferry::{End, Ferry, Phase};
use crate::story::{Stories, Story};

impl Client {
    /// An application connects.
    pub(crate) fn open(&mut self, flow: WireFlow) {
        self.ferries.insert(flow, Ferry::new(flow));
        self.waiting.insert(flow);
    }

    pub(super) fn attached(&mut self, resumed: bool, stories: &mut Stories) {
        self.alone_since = None;
        if resumed {
            let detached = self.ferries.iter().filter(|(_, ferry)| ferry.detached);
            self.waiting.extend(detached.map(|(flow, _)| *flow));
        } else {
            self.lose_flows(stories);
        }
    }

    /// The session is over: what was open at the gateway is gone.
    pub(super) fn lose_flows(&mut self, stories: &mut Stories) {
        self.alone_since = None;
        let (mut lost, mut over) = (Vec::new(), Vec::new());
        for (flow, ferry) in self.ferries.iter_mut().filter(|(_, ferry)| ferry.detached) {
            if ferry.is_over() {
                over.push(*flow);
            } else if ferry.dial_again() {
                self.waiting.insert(*flow);
            } else {
                lost.push(*flow);
            }
        }
        for flow in over {
            self.ferries.remove(&flow);
        }
        for flow in lost {
            let story = stories.get_mut(&flow).expect("every flow has one");
            self.end(flow, End::ByGateway, story);
        }
    }

    pub(super) fn look_at_applications(&mut self, stories: &mut Stories) {
        for (flow, story) in stories {
            if std::mem::take(&mut story.application.stirred) {
                self.work.insert(*flow);
                if story.application.broken {
                    self.end(*flow, End::ByApplication, story);
                }
            }
        }
    }

    pub(super) fn begin_waiting(&mut self) {
        let Some(connection) = self.connection() else { return };
        while let Some(flow) = self.waiting.first().copied() {
            let waits = |ferry: &&mut Ferry| ferry.phase == Phase::Waiting || ferry.detached;
            if let Some(ferry) = self.ferries.get_mut(&flow).filter(waits) {
                if !ferry.begin(&mut self.endpoint, connection) {
                    break;
                }
                let stream = ferry.pipe.as_ref().map(Pipe::stream);
                self.streams.extend(stream.map(|stream| (stream, flow)));
                self.work.insert(flow);
            }
            self.waiting.remove(&flow);
        }
    }

    /// Moves the flows that `may` to new streams of the same connection.
    pub(crate) fn replay(&mut self, mut may: impl FnMut() -> bool) {
        let Some(connection) = self.connection() else { return };
        for (flow, ferry) in &mut self.ferries {
            let old = ferry.pipe.as_ref().map(Pipe::stream);
            if may() && ferry.replay(&mut self.endpoint, connection) {
                old.and_then(|old| self.streams.remove(&old));
                let new = ferry.pipe.as_ref().map(Pipe::stream);
                self.streams.extend(new.map(|stream| (stream, *flow)));
                self.work.insert(*flow);
                self.counts.moves += 1;
            }
        }
    }

    pub(super) fn taken(&mut self, entries: &[Taken]) {
        for entry in entries {
            let pipe = self.ferries.get_mut(&entry.flow).and_then(|ferry| ferry.pipe.as_mut());
            let Some(pipe) = pipe else { continue };
            pipe.sender
                .acknowledge(entry.offset, entry.limit, entry.fin)
                .expect("the gateway took what was sent");
            self.work.insert(entry.flow);
        }
    }

    pub(super) fn turn_flows(&mut self, stories: &mut Stories, now: Instant) {
        let Some(connection) = self.connection() else { return };
        let path = self.endpoint.path(connection, Path::FIRST);
        let rtt = path.map_or(Duration::from_millis(100), |path| path.rtt);
        while let Some(flow) = self.work.pop_first() {
            let Some(ferry) = self.ferries.get_mut(&flow) else { continue };
            let story = stories.get_mut(&flow).expect("every flow has one");
            let stream = ferry.pipe.as_ref().map(Pipe::stream);
            let turn = ferry.turn(&mut self.endpoint, connection, story, rtt, now);
            if ferry.phase == Phase::Waiting {
                if let Some(stream) = stream {
                    self.streams.remove(&stream);
                    Pipe::supersede(&mut self.endpoint, connection, stream);
                }
                self.waiting.insert(flow);
            } else if let Some(pipe) = &ferry.pipe {
                self.reports.note(flow, &pipe.receiver, now);
                if ferry.is_over() && ferry.is_answered() {
                    self.streams.remove(&pipe.stream());
                }
            }
            if let Err(end) = turn {
                self.end(flow, end, story);
            }
        }
    }

    pub(super) fn report(&mut self, stories: &mut Stories, now: Instant) {
        let Some(live) = self.live.as_mut().filter(|live| live.attached) else { return };
        let ferries = &mut self.ferries;
        let frames = self.reports.collect(now, |flow| {
            let ferry = ferries.get_mut(&flow).filter(|ferry| !ferry.is_over())?;
            Some(ferry.pipe.as_mut()?.receiver.report())
        });
        for frame in &frames {
            live.control.send(frame);
        }
        for frame in &frames {
            let Control::Taken(entries) = frame else { continue };
            for entry in entries {
                let ferry = self.ferries.get(&entry.flow);
                let pipe = ferry.and_then(|ferry| ferry.pipe.as_ref());
                if pipe.is_some_and(Pipe::is_done) {
                    let story = stories.get_mut(&entry.flow).expect("every flow has one");
                    self.end(entry.flow, End::Complete, story);
                }
            }
        }
    }

    pub(super) fn stopped(
        &mut self,
        connection: Connection,
        stream: Stream,
        code: u64,
        stories: &mut Stories,
    ) {
        let flow = self.streams.get(&stream).copied();
        match (flow, StreamCode::from_code(code)) {
            (Some(flow), StreamCode::Reset) => {
                let story = stories.get_mut(&flow).expect("every flow has one");
                self.end(flow, End::ByGateway, story);
            }
            (Some(_), StreamCode::Superseded) => {}
            (None, _) => Pipe::supersede(&mut self.endpoint, connection, stream),
        }
    }

    /// A flow is over. Nothing of its stream stays open.
    pub(super) fn end(&mut self, flow: WireFlow, end: End, story: &mut Story) {
        let connection = self.connection();
        let Some(ferry) = self.ferries.get_mut(&flow) else { return };
        let end = match end {
            End::ByApplication | End::Complete if ferry.is_over() => return,
            End::ByGateway if ferry.is_over() => End::Settled,
            End::ByApplication | End::Complete | End::ByGateway | End::Settled => end,
        };
        let code = match end {
            End::ByApplication => StreamCode::Reset,
            End::Complete | End::ByGateway | End::Settled => StreamCode::Superseded,
        };
        let pipe = ferry.pipe.as_ref();
        let (asks, ended) = pipe.map_or((false, false), |pipe| {
            (pipe.epoch() > pipe.answered(), pipe.sender.is_finished())
        });
        // A stream that has ended both ways cannot be reset: another one must tell. And a reset
        // that overtakes the request to go on would leave the gateway with the stream before.
        let again = end == End::ByApplication && ended;
        let later = end == End::ByApplication && asks && !ended;
        if let (Some(pipe), Some(connection)) = (pipe, connection)
            && !ferry.detached
            && !later
        {
            self.streams.remove(&pipe.stream());
            let code = if again { StreamCode::Superseded } else { code };
            self.endpoint.abort(connection, pipe.stream(), code.code());
        }
        match end {
            End::ByApplication | End::Complete if ferry.pipe.is_some() => {
                ferry.phase = Phase::Over(code);
                if again {
                    ferry.detached = true;
                    self.waiting.insert(flow);
                }
            }
            End::ByApplication | End::Complete | End::ByGateway | End::Settled => {
                if end == End::ByGateway {
                    story.application.tear();
                }
                self.ferries.remove(&flow);
                self.waiting.remove(&flow);
            }
        }
    }
}
