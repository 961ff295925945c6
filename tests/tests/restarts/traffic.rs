//! Traffic in both directions of a connection, for as long as a test wants it.

use anyhow::{Context, Result, ensure};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::stage::{Pair, join, receive_to_end, send};

/// Both directions of a connection, each sent by a thread until it is told to stop.
pub(crate) struct Traffic {
    pub(crate) stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl Traffic {
    /// Each direction rests for `pace` after every piece of some 15 KB.
    pub(crate) fn begin(pair: &Pair, number: u64, pace: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let directions = [(&pair.app, &pair.server), (&pair.server, &pair.app)];
        for (number, (from, to)) in (number..).zip(directions) {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Sizes that end anywhere in a segment.
                    let next = sent + 1 + sent * 7 % 30_011;
                    send(&mut from, number, sent, next).context(format!("sending at {sent}"))?;
                    sent = next;
                    std::thread::sleep(pace);
                }
                from.shutdown(Shutdown::Write)?;
                Ok(sent)
            }));
            threads.push(std::thread::spawn(move || receive_to_end(&mut to, number, 0)));
        }
        Ok(Self { stop, threads })
    }

    /// Ends it: every byte must have arrived; how many there were.
    pub(crate) fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let totals: Vec<u64> = self.threads.into_iter().map(join).collect::<Result<_>>()?;
        for pair in totals.chunks(2) {
            ensure!(pair[0] == pair[1], "{} bytes sent, {} received", pair[0], pair[1]);
        }
        Ok(totals[0] + totals[2])
    }
}
