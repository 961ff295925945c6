//! Numbered streams down and up.

use super::arrivals::Arrivals;
use super::manners::{connect, exit, until_told};
use super::pattern::{self, Check};
use super::{Moment, Target};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes read or written at a time.
const PIECE: usize = 64 << 10;

/// How often a blocked reader looks whether it was told to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Where a reader stops reading, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) at: u64,
    pub(super) lasts: Duration,
}

/// Asks the source for a stream, checks it and times its arrivals.
pub(super) fn download(target: Target, bytes: Option<u64>, rate: u64, pause: Pause) -> ExitCode {
    let Some(mut stream) = connect(&target) else { return ExitCode::FAILURE };
    let mut arrivals = Arrivals::new(Duration::from_millis(target.gap));
    let mut check = Check::default();
    let told = if bytes.is_none() { until_told() } else { Arc::default() };
    let outcome = ask(&mut stream, bytes.unwrap_or(u64::MAX), rate)
        .and_then(|()| read_all(&mut stream, &target, pause, &told, &mut check, &mut arrivals))
        .and_then(|()| check.finish());
    exit(arrivals.end(check.bytes(), outcome))
}

fn ask(stream: &mut TcpStream, bytes: u64, rate: u64) -> Result<(), String> {
    let request = [bytes.to_be_bytes(), rate.to_be_bytes()].concat();
    stream.write_all(&request).map_err(|error| error.to_string())
}

fn read_all(
    stream: &mut TcpStream,
    target: &Target,
    mut pause: Pause,
    told: &AtomicBool,
    check: &mut Check,
    arrivals: &mut Arrivals,
) -> Result<(), String> {
    let mut buffer = vec![0; PIECE];
    let mut stopping: Option<Moment> = None;
    stream.set_read_timeout(Some(LOOK_EVERY)).map_err(|error| error.to_string())?;
    loop {
        if stopping.is_none() && told.load(Ordering::Relaxed) {
            stopping = Some(Moment::now());
            // The source stops at any byte from us.
            stream.write_all(b".").map_err(|error| error.to_string())?;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                check.take(&buffer[..length]);
                arrivals.note(check.bytes());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
        if check.bytes() >= pause.at {
            pause.at = u64::MAX;
            std::thread::sleep(pause.lasts);
            arrivals.resume();
        }
        if let Some(since) = stopping
            && Moment::now().since(since.max(arrivals.last())).as_secs() >= target.patience
        {
            let silent = Moment::now().since(arrivals.last()).as_secs();
            return Err(format!("no byte for {silent} s"));
        }
    }
}

/// Sends a numbered stream to the sink, and asks it what it thinks.
pub(super) fn upload(target: Target, bytes: Option<u64>) -> ExitCode {
    let Some(mut stream) = connect(&target) else { return ExitCode::FAILURE };
    let mut arrivals = Arrivals::new(Duration::from_millis(target.gap));
    let told = if bytes.is_none() { until_told() } else { Arc::default() };
    let mut sent = 0;
    let outcome =
        write_all(&mut stream, bytes.unwrap_or(u64::MAX), &told, &mut sent, &mut arrivals)
            .map_err(|error| error.to_string())
            .and_then(|()| verdict(&mut stream, &target, sent));
    exit(arrivals.end(sent, outcome))
}

fn write_all(
    stream: &mut TcpStream,
    bytes: u64,
    told: &AtomicBool,
    sent: &mut u64,
    arrivals: &mut Arrivals,
) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    while *sent < bytes && !told.load(Ordering::Relaxed) {
        let length = usize::try_from(bytes - *sent).unwrap_or(PIECE).min(PIECE);
        pattern::fill(&mut buffer[..length], *sent);
        stream.write_all(&buffer[..length])?;
        *sent += length as u64;
        arrivals.note(*sent);
    }
    stream.write_all(&pattern::last_word(*sent))?;
    stream.shutdown(Shutdown::Write)
}

/// The sink answers with the number of bytes it took, or with `u64::MAX` if any was wrong.
fn verdict(stream: &mut TcpStream, target: &Target, sent: u64) -> Result<(), String> {
    let patience = Duration::from_secs(target.patience.max(1));
    let mut answer = [0; 8];
    stream.set_read_timeout(Some(patience)).map_err(|error| error.to_string())?;
    stream.read_exact(&mut answer).map_err(|error| format!("no verdict: {error}"))?;
    match u64::from_be_bytes(answer) {
        u64::MAX => Err("the origin got wrong bytes".into()),
        taken if taken == sent => Ok(()),
        taken => Err(format!("the origin took {taken} of {sent} bytes")),
    }
}
