//! Which runs there are, and how they are made.

use std::ops::Range;
use std::panic::{self, RefUnwindSafe};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Where every clock starts: anywhere, as nothing but differences count.
pub(crate) fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// The seeds that are asked for (`WHIMBREL_SEEDS`), or as many as are usual.
pub(crate) fn seeds(usual: u64) -> Range<u64> {
    let Ok(wanted) = std::env::var("WHIMBREL_SEEDS") else { return 0..usual };
    let number = |text: &str| text.parse().expect("WHIMBREL_SEEDS is a count or from..to");
    wanted
        .split_once("..")
        .map_or_else(|| 0..number(&wanted), |(from, to)| number(from)..number(to))
}

/// Runs all of them on two threads; what each came to, or the seed that failed and how `command`
/// repeats it.
pub(crate) fn run_all<T: Send>(
    seeds: &[u64],
    command: &str,
    run: impl Fn(u64) -> T + Sync + RefUnwindSafe,
) -> Vec<T> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        loop {
            let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("an index");
            let Some(seed) = seeds.get(at).copied() else { return outcomes };
            let outcome = panic::catch_unwind(|| run(seed));
            let Ok(outcome) = outcome else {
                next.store(seeds.len() as u64, Ordering::Relaxed);
                let (from, to) = (seed, seed + 1);
                panic!(
                    "seed {seed} failed after {at} others; repeat it with \
                     WHIMBREL_SEEDS={from}..{to} {command}"
                );
            };
            outcomes.push(outcome);
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        let joined =
            threads.map(|thread| thread.join().unwrap_or_else(|e| panic::resume_unwind(e)));
        joined.into_iter().flatten().collect()
    })
}
