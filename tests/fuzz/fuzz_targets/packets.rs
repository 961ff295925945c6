//! Packets of applications, and every call of the terminator, in any order.
//!
//! Two devices share one engine. On one, packets are noise or damaged segments: the engine must
//! stay whole. On the other, applications break every rule of TCP except one, that a byte of the
//! stream is the same each time it is sent: there, what is read and what is sent must be exact.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whimbrel_fuzz::Input;

#[path = "packets/bench.rs"]
mod bench;
#[path = "packets/check.rs"]
mod check;
#[path = "packets/pool.rs"]
mod pool;
#[path = "packets/segment.rs"]
mod segment;

use bench::Bench;

/// Steps of one run, at most: enough for several flows to live and die.
const STEPS: usize = 400;

fuzz_target!(init: whimbrel_fuzz::seeds::plant("packets"), |bytes: &[u8]| {
    let mut input = Input::new(bytes);
    if input.one_in(8) {
        return check::packet(input.rest());
    }
    let mut bench = Bench::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
    }
    bench.settle();
    bench.stop();
});
