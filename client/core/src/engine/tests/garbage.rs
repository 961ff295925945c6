use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;

use super::world::{
    ACK, DEVICE, FAR_V4, FAR_V6, FIN, RST, Raw, SYN, SharedPool, Wire, config, origin,
};
use crate::engine::{Engine, FlowEvent, FlowId, Refusal};

#[derive(Debug, Clone)]
enum Step {
    Noise(Vec<u8>),
    /// A segment near the expected numbers, some of its bytes overwritten.
    Segment {
        six: bool,
        port: u16,
        flags: u8,
        sequence: i32,
        ack: i32,
        window: u16,
        payload: usize,
        damage: Vec<(usize, u8)>,
        cut: usize,
    },
    Decide(u64, u8),
    Read(u64, usize),
    Write(u64, usize),
    Finish(u64),
    Abort(u64),
    Pass(u64),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        4 => Just(SYN), 6 => Just(ACK), 2 => Just(ACK | FIN), 1 => Just(RST), 1 => Just(SYN | ACK),
        1 => Just(RST | ACK), 1 => any::<u8>(),
    ];
    let near = || prop_oneof![6 => -2..3i32, 2 => -70_000..70_000i32, 1 => any::<i32>()];
    let payload = prop_oneof![4 => Just(0usize), 3 => 1..100usize, 2 => 100..9000usize];
    let damage = prop_oneof![
        6 => Just(vec![]),
        2 => proptest::collection::vec((0..100usize, any::<u8>()), 1..4),
    ];
    let cut = prop_oneof![9 => Just(usize::MAX), 1 => 0..80usize];
    let segment =
        (any::<bool>(), 1..4u16, flags, near(), near(), any::<u16>(), payload, damage, cut)
            .prop_map(|(six, port, flags, sequence, ack, window, payload, damage, cut)| {
                Step::Segment { six, port, flags, sequence, ack, window, payload, damage, cut }
            });
    let flow = || 1..6u64;
    prop_oneof![
        1 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Noise),
        12 => segment,
        4 => (flow(), 0..8u8).prop_map(|(flow, way)| Step::Decide(flow, way)),
        2 => (flow(), 0..20_000usize).prop_map(|(flow, max)| Step::Read(flow, max)),
        2 => (flow(), 0..20_000usize).prop_map(|(flow, length)| Step::Write(flow, length)),
        1 => flow().prop_map(Step::Finish),
        1 => flow().prop_map(Step::Abort),
        1 => (0..100_000u64).prop_map(Step::Pass),
        6 => Just(Step::Flush),
    ]
}

/// What the peer of one port would send next.
#[derive(Debug, Default, Clone, Copy)]
struct Position {
    sequence: u32,
    ack: u32,
}

struct Bench {
    engine: Engine,
    pool: SharedPool,
    wire: Wire,
    now: std::time::Instant,
    positions: std::collections::BTreeMap<(bool, u16), Position>,
    open: std::collections::BTreeSet<FlowId>,
}

impl Bench {
    fn new() -> Self {
        let (pool, now) = (SharedPool::default(), origin());
        let engine = Engine::new(config(1 << 14), 1, Box::new(pool.clone()), now);
        Self {
            engine,
            pool,
            wire: Wire::default(),
            now,
            positions: Default::default(),
            open: Default::default(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Noise(bytes) => self.engine.handle_packet(DEVICE, &bytes, self.now),
            Step::Segment { six, port, flags, sequence, ack, window, payload, damage, cut } => {
                let base = Raw::new(if six { FAR_V6 } else { FAR_V4 });
                let position = self.positions.entry((six, port)).or_default();
                let mut source = base.source;
                source.set_port(port);
                let bytes = vec![port.to_be_bytes()[1]; payload];
                let segment = Raw {
                    source,
                    flags,
                    sequence: position.sequence.wrapping_add_signed(sequence),
                    acknowledgment: position.ack.wrapping_add_signed(ack),
                    window,
                    options: if flags & SYN != 0 { base.options } else { &[] },
                    payload: &bytes,
                    ..base
                };
                let mut packet = segment.packet();
                for (at, value) in damage {
                    let at = at % packet.len();
                    packet[at] = value;
                }
                packet.truncate(cut);
                self.engine.handle_packet(DEVICE, &packet, self.now);
            }
            Step::Decide(flow, way) => self.decide(FlowId(flow), way),
            Step::Read(flow, max) => {
                let read = self.engine.read(FlowId(flow), max, &mut BytesMut::new());
                assert!(read.bytes <= max);
            }
            Step::Write(flow, length) => {
                let room = self.engine.writable(FlowId(flow));
                assert_eq!(self.engine.write(FlowId(flow), &vec![7; length]), room.min(length));
            }
            Step::Finish(flow) => self.engine.finish(FlowId(flow)),
            Step::Abort(flow) => self.engine.abort(FlowId(flow)),
            Step::Pass(millis) => {
                self.now += Duration::from_millis(millis);
                self.engine.handle_timeout(self.now);
            }
            Step::Flush => self.flush(),
        }
    }

    fn decide(&mut self, flow: FlowId, way: u8) {
        match way {
            0 => self.engine.refuse(flow, Refusal::Refused, self.now),
            1 => self.engine.refuse(flow, Refusal::HostUnreachable, self.now),
            2 => self.engine.refuse(flow, Refusal::TimedOut, self.now),
            _ => self.engine.accept(flow, self.now),
        }
    }

    fn flush(&mut self) {
        self.engine.flush(self.now, &mut self.wire);
        while let Some((_, packet, _)) = self.wire.packets.pop_front() {
            let six = packet[0] >> 4 == 6;
            let (protocol, at) = if six { (packet[6], 40) } else { (packet[9], 20) };
            if protocol == 6 {
                let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
                let port = u16::from_be_bytes([packet[at + 2], packet[at + 3]]);
                let next = if packet[at + 13] & SYN != 0 { 1 } else { 0 };
                let position =
                    Position { sequence: word(at + 8), ack: word(at + 4).wrapping_add(next) };
                self.positions.insert((six, port), position);
            }
        }
        self.check_events();
    }

    /// Every flow has one Open, and one last event.
    fn check_events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            match event {
                FlowEvent::Open { flow, .. } => assert!(self.open.insert(flow)),
                FlowEvent::Reset { flow } | FlowEvent::Closed { flow } => {
                    assert!(self.open.remove(&flow), "{flow} ended twice");
                }
                FlowEvent::Readable { .. } | FlowEvent::Writable { .. } => {}
            }
        }
        assert_eq!(self.open.len(), self.engine.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_and_no_order_of_calls_panics(steps in proptest::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new();
        for step in steps {
            bench.take(step);
        }
        bench.flush();
        prop_assert_eq!(bench.engine.stats().panics, 0);
        bench.engine.abort_all();
        bench.flush();
        prop_assert!(bench.engine.is_empty());
        prop_assert!(bench.pool.lock().live.is_empty());
        prop_assert!(bench.open.is_empty());
    }

    #[test]
    fn noise_is_dropped_and_counted(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..50)) {
        let mut bench = Bench::new();
        for packet in &packets {
            bench.engine.handle_packet(DEVICE, packet, bench.now);
        }
        let stats = bench.engine.stats();
        let taken = stats.opened + stats.strays_reset;
        prop_assert_eq!(stats.dropped.total() + taken, packets.len() as u64);
    }
}
