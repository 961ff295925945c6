//! Many connections that do nothing, and proof that each still works.

use super::manners::{exit, until_told};
use super::{Event, Moment, Target};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Connections opened at the same time.
const AT_ONCE: usize = 64;

pub(super) fn hold(target: Target, count: usize) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            Event::failed(Moment::now(), &error).report();
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let since = Moment::now();
        let mut streams = match open(&target, count).await {
            Ok(streams) => streams,
            Err(error) => {
                Event::failed(since, &error).report();
                return ExitCode::FAILURE;
            }
        };
        let at = Moment::now();
        Event::Open { at, took_us: at.0 - since.0, count: streams.len() }.report();
        let told = until_told();
        while !told.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let proved = prove(&mut streams, Duration::from_secs(target.patience)).await;
        let error = (proved < count).then(|| format!("{proved} of {count} answered"));
        let exact = error.is_none();
        let bytes = proved as u64 * 8;
        Event::End { at: Moment::now(), bytes, exact, longest_gap_us: 0, error }.report();
        exit(exact)
    })
}

async fn open(target: &Target, count: usize) -> std::io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    let mut opening = JoinSet::new();
    for _ in 0..count {
        if opening.len() >= AT_ONCE
            && let Some(stream) = opening.join_next().await
        {
            streams.push(stream??);
        }
        opening.spawn(TcpStream::connect(target.to));
    }
    while let Some(stream) = opening.join_next().await {
        streams.push(stream??);
    }
    Ok(streams)
}

async fn prove(streams: &mut Vec<TcpStream>, patience: Duration) -> usize {
    let mut proofs = JoinSet::new();
    for (number, mut stream) in streams.drain(..).enumerate() {
        proofs.spawn(async move {
            let message = (number as u64).to_be_bytes();
            let mut echo = [0; 8];
            let exchange = async {
                stream.write_all(&message).await?;
                stream.read_exact(&mut echo).await
            };
            let answered = matches!(tokio::time::timeout(patience, exchange).await, Ok(Ok(_)));
            answered && echo == message
        });
    }
    proofs.join_all().await.into_iter().filter(|proved| *proved).count()
}
