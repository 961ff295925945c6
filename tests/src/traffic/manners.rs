//! How connections begin and end.

use super::{Event, Moment, Target};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longer than any answer to a connection attempt may take, shorter than a test.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// Connects and reports that, or reports the failure.
pub(super) fn connect(target: &Target) -> Option<TcpStream> {
    let since = Moment::now();
    match TcpStream::connect_timeout(&target.to, CONNECT_PATIENCE) {
        Ok(stream) => {
            let at = Moment::now();
            Event::Open { at, took_us: at.0 - since.0, count: 1 }.report();
            Some(stream)
        }
        Err(error) => {
            Event::failed(since, &error).report();
            None
        }
    }
}

/// Becomes true when standard input is closed.
pub(super) fn until_told() -> Arc<AtomicBool> {
    let told = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let told = Arc::clone(&told);
        move || {
            // Whatever ends the input, it is time to stop.
            drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
            told.store(true, Ordering::Relaxed);
        }
    });
    told
}

pub(super) fn exit(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

pub(super) fn knock(target: Target) -> ExitCode {
    exit(connect(&target).is_some())
}

pub(super) fn half_close(target: Target, bytes: u64) -> ExitCode {
    converse(target, |stream| {
        std::io::copy(&mut std::io::repeat(b'w').take(bytes), stream)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let right = answer == format!("{bytes} bytes\n");
        Ok((answer.len() as u64, right.then_some(()).ok_or(answer)))
    })
}

pub(super) fn speak_last(target: Target, bytes: u64) -> ExitCode {
    converse(target, |stream| {
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting)?;
        std::io::copy(&mut std::io::repeat(b'w').take(bytes), stream)?;
        stream.shutdown(Shutdown::Write)?;
        let right = greeting == "that is all\n";
        Ok((greeting.len() as u64, right.then_some(()).ok_or(greeting)))
    })
}

pub(super) fn provoke(target: Target) -> ExitCode {
    converse(target, |stream| {
        stream.write_all(b"!")?;
        let mut rest = Vec::new();
        let bytes = stream.read_to_end(&mut rest)? as u64;
        Ok((bytes, Err("it ended in an orderly way".into())))
    })
}

pub(super) fn abort(target: Target) -> ExitCode {
    converse(target, |stream| {
        let mut echo = [0];
        stream.write_all(b"!")?;
        stream.read_exact(&mut echo)?;
        SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
        Ok((1, Ok(())))
    })
}

/// Runs a conversation and reports its end.
fn converse(
    target: Target,
    talk: impl FnOnce(&mut TcpStream) -> std::io::Result<(u64, Result<(), String>)>,
) -> ExitCode {
    let Some(mut stream) = connect(&target) else { return ExitCode::FAILURE };
    let patience = Duration::from_secs(target.patience.max(1));
    let outcome = stream.set_read_timeout(Some(patience)).and_then(|()| talk(&mut stream));
    let (bytes, error) = match outcome {
        Ok((bytes, outcome)) => (bytes, outcome.err()),
        Err(error) => (0, Some(format!("{:?}", error.kind()))),
    };
    let exact = error.is_none();
    Event::End { at: Moment::now(), bytes, exact, longest_gap_us: 0, error }.report();
    exit(exact)
}
