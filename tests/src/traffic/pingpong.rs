//! Small numbered messages there and back, and when each came back.

use super::arrivals::Arrivals;
use super::manners::{connect, exit, until_told};
use super::{Event, Moment, Target};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A message: its number and when it left, in microseconds.
const MESSAGE: usize = 16;

pub(super) fn play(target: Target, every: Duration, count: Option<u64>, each: bool) -> ExitCode {
    let Some(stream) = connect(&target) else { return ExitCode::FAILURE };
    let mut arrivals = Arrivals::new(Duration::from_millis(target.gap));
    let mut received = 0;
    let outcome = exchange(&stream, &target, every, count, each, &mut received, &mut arrivals);
    exit(arrivals.end(received * MESSAGE as u64, outcome))
}

fn exchange(
    stream: &TcpStream,
    target: &Target,
    every: Duration,
    count: Option<u64>,
    each: bool,
    received: &mut u64,
    arrivals: &mut Arrivals,
) -> Result<(), String> {
    let words = |error: std::io::Error| error.to_string();
    stream.set_nodelay(true).map_err(words)?;
    let told = if count.is_none() { until_told() } else { Arc::default() };
    let sent = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let back = Arc::new(AtomicU64::new(0));
    let sender = std::thread::spawn({
        let stream = stream.try_clone().map_err(words)?;
        let (sent, done, back) = (Arc::clone(&sent), Arc::clone(&done), Arc::clone(&back));
        move || {
            let outcome = send(&stream, every, count.unwrap_or(u64::MAX), &told, &sent, &back);
            done.store(true, Ordering::Release);
            outcome
        }
    });
    let outcome = listen(stream, target, each, &done, &back, arrivals);
    *received = back.load(Ordering::Relaxed);
    if outcome.is_err() {
        // The sender may be blocked in a write to a dead connection.
        drop(stream.shutdown(Shutdown::Both));
    }
    outcome?;
    sender.join().map_err(|_| "the sender panicked".to_owned())?.map_err(words)?;
    let sent = sent.load(Ordering::Relaxed);
    if sent == *received { Ok(()) } else { Err(format!("{received} of {sent} came back")) }
}

fn send(
    mut stream: &TcpStream,
    every: Duration,
    count: u64,
    told: &AtomicBool,
    sent: &AtomicU64,
    back: &AtomicU64,
) -> std::io::Result<()> {
    let mut next = Instant::now();
    for sequence in 0..count {
        if told.load(Ordering::Relaxed) {
            break;
        }
        let message = [sequence.to_be_bytes(), Moment::now().0.to_be_bytes()].concat();
        stream.write_all(&message)?;
        sent.store(sequence + 1, Ordering::Relaxed);
        if every.is_zero() {
            while back.load(Ordering::Relaxed) <= sequence && !told.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        } else {
            next += every;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    stream.shutdown(Shutdown::Write)
}

fn listen(
    mut stream: &TcpStream,
    target: &Target,
    each: bool,
    done: &AtomicBool,
    back: &AtomicU64,
    arrivals: &mut Arrivals,
) -> Result<(), String> {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    stream.set_read_timeout(Some(LOOK_EVERY)).map_err(|error| error.to_string())?;
    let mut message = Vec::with_capacity(MESSAGE);
    let mut buffer = [0; 4096];
    let mut stopping: Option<Moment> = None;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if message.is_empty() => return Ok(()),
            Ok(0) => return Err("the last message ended short".into()),
            Ok(length) => {
                for byte in &buffer[..length] {
                    message.push(*byte);
                    if message.len() == MESSAGE {
                        let expected = back.load(Ordering::Relaxed);
                        check(&message, expected, each)?;
                        back.store(expected + 1, Ordering::Relaxed);
                        message.clear();
                    }
                }
                arrivals.note(back.load(Ordering::Relaxed) * MESSAGE as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
        if done.load(Ordering::Acquire) {
            let since = *stopping.get_or_insert_with(Moment::now);
            if Moment::now().since(since.max(arrivals.last())).as_secs() >= target.patience {
                let silent = Moment::now().since(arrivals.last()).as_secs();
                return Err(format!("no answer for {silent} s"));
            }
        }
    }
}

fn check(message: &[u8], expected: u64, each: bool) -> Result<(), String> {
    let word = |range: std::ops::Range<usize>| {
        u64::from_be_bytes(message[range].try_into().expect("a word is eight bytes"))
    };
    let (sequence, left) = (word(0..8), Moment(word(8..16)));
    if sequence != expected {
        return Err(format!("message {sequence} came back instead of {expected}"));
    }
    if each {
        let at = Moment::now();
        let rtt = at.since(left).as_micros();
        Event::Pong { at, sequence, rtt_us: u64::try_from(rtt).unwrap_or(u64::MAX) }.report();
    }
    Ok(())
}
