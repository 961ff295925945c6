//! An engine, its applications and its owner, all of whom do what the input says.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use whimbrel_client_core::engine::{
    DeviceId, Engine, EngineConfig, FlowEvent, FlowId, PacketSink, Refusal,
};
use whimbrel_fuzz::{Input, trace};

use crate::check;
use crate::pool::Pool;
use crate::segment::{ACK, FIN, RST, SYN, Segment, Socket, check_addresses, downward, upward};

/// Where applications send what they like.
const NOISE: DeviceId = DeviceId(1);
/// Where every byte of a stream is the same each time it is sent.
const CLEAN: DeviceId = DeviceId(2);

const LIMITS: EngineConfig = EngineConfig { pending_limit: 4, flow_limit: 7, buffer: 0 };
const LEASES: usize = 5;
/// Rings that fill and wrap soon, and ones that are worth releasing.
const RINGS: [usize; 6] = [1, 100, 1 << 10, 1 << 14, 1 << 16, 100_000];

/// More rounds than any flow needs for a byte or for its end, once both sides want it to end.
const ROUNDS: usize = 100;

#[derive(Default)]
struct Wire {
    packets: Vec<(DeviceId, Vec<u8>, Option<NonZeroU16>)>,
    /// Loses what it is given.
    lossy: bool,
}

impl PacketSink for Wire {
    fn send(
        &mut self,
        device: DeviceId,
        len: usize,
        segment: Option<NonZeroU16>,
        fill: &mut dyn FnMut(&mut [u8]),
    ) {
        if self.lossy {
            return;
        }
        let mut packet = vec![0xee; len];
        fill(&mut packet);
        self.packets.push((device, packet, segment));
    }
}

/// What the kernel of the applications knows of one of their sockets.
#[derive(Default)]
struct Port {
    /// What would be sent next; what the engine waits for; what it has sent.
    sequence: u32,
    acked: u32,
    ack: u32,
    /// The flow that answers for this socket, and its initial sequence number.
    flow: Option<FlowId>,
    isn: Option<u32>,
    /// The end of what was sent on this connection, and its FIN: an application that takes back
    /// its end, or sends beyond it, has no stream that could arrive.
    top: Option<u32>,
    fin: Option<u32>,
}

/// What the owner knows of a flow.
struct Flow {
    device: DeviceId,
    socket: Socket,
    /// Sequence number of the application's first byte.
    base: Option<u32>,
    read: u32,
    written: u32,
    fin_read: bool,
    finishing: bool,
    aborted: bool,
    over: bool,
}

pub(crate) struct Bench {
    engine: Engine,
    pool: Pool,
    wire: Wire,
    now: Instant,
    ports: BTreeMap<(DeviceId, Socket), Port>,
    flows: BTreeMap<FlowId, Flow>,
    scratch: BytesMut,
    ring: u32,
    /// How far segments go: beyond every window, but not so far that a tiny ring takes forever.
    reach: u32,
}

impl Bench {
    pub(crate) fn new(input: &mut Input<'_>) -> Self {
        let (pool, now) = (Pool::new(LEASES), Instant::now());
        let buffer = RINGS[usize::from(input.byte()) % RINGS.len()];
        let config = EngineConfig { buffer, ..LIMITS };
        let ring = u32::try_from(buffer).expect("a ring is small");
        Self {
            engine: Engine::new(config, 1, Box::new(pool.clone()), now),
            pool,
            wire: Wire::default(),
            now,
            ports: BTreeMap::new(),
            flows: BTreeMap::new(),
            scratch: BytesMut::new(),
            ring,
            reach: 300 + 2 * ring,
        }
    }

    pub(crate) fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 32 {
            0 => {
                let count = usize::from(input.byte());
                let packet = input.bytes(count);
                check::packet(packet);
                self.engine.handle_packet(NOISE, packet, self.now);
            }
            1..=3 => self.send_damaged(input),
            4..=13 => self.send_clean(input),
            14..=16 => self.decide(input),
            17 => self.abort(input),
            18 => self.finish(input),
            19 | 20 => self.read_some(input),
            21 | 22 => self.write(input),
            23 => self.pass(Duration::from_millis(input.byte().into())),
            24 => self.pass(Duration::from_millis(u64::from(input.short()) * 4)),
            25 => self.events(),
            26 => self.wire.lossy = input.one_in(2),
            27 if input.one_in(8) => self.abort_many(input),
            _ => self.flush(),
        }
    }

    fn send_clean(&mut self, input: &mut Input<'_>) {
        let (socket, mut segment) = self.segment(CLEAN, input);
        let length = self.length(input);
        let port = self.ports.entry((CLEAN, socket)).or_default();
        // What a tiny ring would take forever to carry is left unsaid.
        let length =
            if after(segment.end(), port.acked.wrapping_add(4 * self.reach)) { 0 } else { length };
        // Who acknowledges what is still on its way to them will never get it.
        if after(segment.acknowledgment, port.ack)
            && !after(segment.acknowledgment, port.ack.wrapping_add(self.ring + 1))
        {
            segment.acknowledgment = port.ack;
        }
        let payload = port.speak(&mut segment, length);
        segment.payload = &payload;
        if segment.sequence == port.sequence {
            port.sequence = segment.end();
        }
        trace!("application: {segment}");
        self.engine.handle_packet(CLEAN, &segment.packet(), self.now);
    }

    fn send_damaged(&mut self, input: &mut Input<'_>) {
        let (socket, mut segment) = self.segment(NOISE, input);
        if input.one_in(8) {
            segment.sequence = input.word();
        }
        let payload = vec![0xaa; self.length(input) as usize];
        segment.payload = &payload;
        let end = segment.end();
        self.ports.entry((NOISE, socket)).or_default().sequence = end;
        let mut packet = segment.packet();
        for _ in 0..input.byte() % 4 {
            let at = usize::from(input.byte()) % packet.len();
            packet[at] = input.byte();
        }
        if input.one_in(8) {
            packet.truncate(input.byte().into());
        }
        check::packet(&packet);
        self.engine.handle_packet(NOISE, &packet, self.now);
    }

    /// A segment near what the engine waits for, without payload.
    fn segment<'i>(&mut self, device: DeviceId, input: &mut Input<'i>) -> (Socket, Segment<'i>) {
        let choice = input.byte();
        let socket = Socket { six: choice & 1 != 0, port: 1000 + u16::from(choice >> 1) % 3 };
        let flags = match input.byte() {
            0..=79 => ACK,
            80..=119 => SYN,
            120..=159 => ACK | FIN,
            160..=169 => FIN,
            170..=179 => RST,
            180..=189 => RST | ACK,
            190..=199 => SYN | ACK,
            200..=219 => ACK | 0x08,
            other => other,
        };
        let (ahead, acked) = (self.delta(input), self.delta(input));
        let port = self.ports.entry((device, socket)).or_default();
        let sequence = if flags & (SYN | ACK) == SYN && !input.one_in(4) {
            input.word()
        } else {
            port.sequence.wrapping_add_signed(ahead)
        };
        let options = if flags & SYN != 0 { options(input) } else { &[] };
        let segment = Segment {
            socket,
            flags,
            sequence,
            acknowledgment: port.ack.wrapping_add_signed(acked),
            window: if input.one_in(4) { input.short() } else { u16::MAX },
            options,
            payload: &[],
        };
        (socket, segment)
    }

    /// Mostly nothing, sometimes a little, rarely more than any window.
    fn delta(&self, input: &mut Input<'_>) -> i32 {
        match input.byte() {
            0..=159 => 0,
            160..=223 => i32::from(input.byte().cast_signed()),
            _ => (i32::from(input.short().cast_signed()) * 8) % self.reach.cast_signed(),
        }
    }

    fn length(&self, input: &mut Input<'_>) -> u32 {
        match input.byte() {
            0..=119 => 0,
            length @ 120..=199 => u32::from(length) - 119,
            _ => u32::from(input.short()) % self.reach.min(20_000),
        }
    }

    /// A flow, or rarely the number of none.
    fn pick(&self, input: &mut Input<'_>) -> FlowId {
        let choice = usize::from(input.byte());
        let live: Vec<FlowId> =
            self.flows.iter().filter(|(_, flow)| !flow.over).map(|(id, _)| *id).collect();
        match live.len() {
            0 => FlowId(choice as u64),
            _ if choice == 255 => FlowId(u64::MAX),
            count => live[choice % count],
        }
    }

    fn decide(&mut self, input: &mut Input<'_>) {
        let flow = self.pick(input);
        let refusal = match input.byte() {
            0..=15 => Refusal::Refused,
            16..=23 => Refusal::HostUnreachable,
            24..=31 => Refusal::NetworkUnreachable,
            32..=39 => Refusal::Prohibited,
            40..=47 => Refusal::TimedOut,
            _ => return self.accept(flow),
        };
        self.engine.refuse(flow, refusal, self.now);
        if let Some(flow) = self.flows.get_mut(&flow) {
            flow.aborted = true;
        }
    }

    fn accept(&mut self, id: FlowId) {
        self.events();
        let pending = self.engine.flow(id).is_some_and(|view| view.state == "pending");
        self.engine.accept(id, self.now);
        if let Some(flow) = self.flows.get(&id)
            && pending
        {
            let port = self.ports.entry((flow.device, flow.socket)).or_default();
            let Port { sequence, acked, ack, .. } = *port;
            *port = Port { sequence, acked, ack, flow: Some(id), ..Port::default() };
        }
    }

    fn abort(&mut self, input: &mut Input<'_>) {
        let flow = self.pick(input);
        self.engine.abort(flow);
        if let Some(flow) = self.flows.get_mut(&flow) {
            flow.aborted = true;
        }
    }

    fn abort_many(&mut self, input: &mut Input<'_>) {
        let device = if input.one_in(2) { NOISE } else { CLEAN };
        self.engine.abort_device(device);
        for flow in self.flows.values_mut().filter(|flow| flow.device == device) {
            flow.aborted = true;
        }
    }

    fn finish(&mut self, input: &mut Input<'_>) {
        let flow = self.pick(input);
        self.finish_flow(flow);
    }

    fn finish_flow(&mut self, id: FlowId) {
        let accepted = self.engine.flow(id).is_some_and(|view| view.state != "pending");
        trace!("owner of {id}: finishes");
        self.engine.finish(id);
        if let Some(flow) = self.flows.get_mut(&id)
            && accepted
        {
            flow.finishing = true;
        }
    }

    fn read_some(&mut self, input: &mut Input<'_>) {
        let flow = self.pick(input);
        let max = usize::from(input.short());
        self.read(flow, max);
    }

    /// What is read is what was sent, in order and without a hole.
    fn read(&mut self, id: FlowId, max: usize) {
        self.scratch.clear();
        let readable = self.engine.readable(id);
        let read = self.engine.read(id, max, &mut self.scratch);
        assert_eq!(read.bytes, self.scratch.len());
        assert_eq!(read.bytes, readable.min(max));
        let Some(flow) = self.flows.get_mut(&id) else {
            return assert_eq!((read.bytes, read.fin), (0, false));
        };
        assert!(!flow.aborted || (read.bytes, read.fin) == (0, false));
        assert!(!flow.fin_read || read.bytes == 0, "bytes after the end");
        flow.fin_read |= read.fin;
        let from = flow.read;
        flow.read = flow.read.wrapping_add(u32::try_from(read.bytes).expect("a ring is small"));
        let (CLEAN, Some(base)) = (flow.device, flow.base) else { return };
        for (at, got) in (from..).zip(&self.scratch) {
            assert_eq!(*got, upward(base.wrapping_add(at)), "byte {at} of flow {id}");
        }
        if read.fin {
            let end = base.wrapping_add(flow.read);
            let port = &self.ports[&(flow.device, flow.socket)];
            assert!(port.flow != Some(id) || port.fin == Some(end), "flow {id} ends early");
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let id = self.pick(input);
        let count = u32::from(input.short()) * 2;
        let room = self.engine.writable(id);
        let from = self.flows.get(&id).map_or(0, |flow| flow.written);
        let bytes: Vec<u8> = (from..).take(count as usize).map(|at| downward(id.0, at)).collect();
        let written = self.engine.write(id, &bytes);
        trace!("owner of {id}: writes {written}");
        assert_eq!(written, room.min(bytes.len()));
        if let Some(flow) = self.flows.get_mut(&id) {
            assert!(written == 0 || !(flow.finishing || flow.aborted));
            flow.written += u32::try_from(written).expect("a ring is small");
        }
    }

    /// Lets time pass. Whatever was due is done, and does not become due again at once.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        trace!("after {time:?}");
        for _ in 0..64 {
            if self.engine.poll_timeout().is_none_or(|at| at > self.now) {
                return;
            }
            self.engine.handle_timeout(self.now);
            self.flush();
        }
        panic!("the engine spins: {:?}", self.engine);
    }

    fn flush(&mut self) {
        self.engine.flush(self.now, &mut self.wire);
        for (device, packet, segment) in std::mem::take(&mut self.wire.packets) {
            check::outgoing(&packet, segment);
            if device == CLEAN {
                check_addresses(&packet);
            }
            if let Some(sent) = Segment::sent(&packet) {
                self.receive(device, &sent);
            }
        }
        self.events();
        assert_eq!(self.engine.stats().panics, 0);
    }

    /// What the engine sent reaches the application's kernel.
    fn receive(&mut self, device: DeviceId, sent: &Segment<'_>) {
        trace!("engine to device {device}: {sent}");
        let port = self.ports.entry((device, sent.socket)).or_default();
        if sent.flags & RST != 0 {
            return assert!(sent.payload.is_empty());
        }
        port.sequence = sent.acknowledgment;
        port.acked = sent.acknowledgment;
        let flow = port.flow.and_then(|id| Some((id, self.flows.get_mut(&id)?)));
        if sent.flags & SYN != 0 {
            port.isn = Some(sent.sequence);
            port.ack = sent.end();
            let base = sent.acknowledgment;
            port.top = Some(port.top.filter(|top| after(*top, base)).unwrap_or(base));
            if let Some((_, flow)) = flow {
                flow.base = Some(sent.acknowledgment);
            }
            return;
        }
        if after(sent.end(), port.ack) {
            port.ack = sent.end();
        }
        let (CLEAN, Some((id, flow)), Some(isn)) = (device, flow, port.isn) else { return };
        let offset = sent.sequence.wrapping_sub(isn).wrapping_sub(1);
        for (at, got) in (offset..).zip(sent.payload) {
            assert!(at < flow.written, "byte {at} of flow {id} was never written");
            assert_eq!(*got, downward(id.0, at), "byte {at} of flow {id}");
        }
        if sent.flags & FIN != 0 {
            let end = sent.end().wrapping_sub(isn).wrapping_sub(2);
            assert!(flow.finishing, "flow {id} was not finished");
            assert_eq!(end, flow.written, "flow {id} ends early");
        }
    }

    /// Every flow has one Open, and one last event.
    fn events(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            trace!("event: {event:?}");
            match event {
                FlowEvent::Open { flow, device, source, destination } => {
                    assert!(device == NOISE || destination.port() == 80);
                    let socket = Socket { six: source.is_ipv6(), port: source.port() };
                    let before = self.flows.insert(flow, Flow::new(device, socket));
                    assert!(before.is_none(), "flow {flow} opens twice");
                }
                FlowEvent::Reset { flow } | FlowEvent::Closed { flow } => {
                    let flow = self.flows.get_mut(&flow).expect("it was opened");
                    assert!(!std::mem::replace(&mut flow.over, true), "it ends twice");
                }
                FlowEvent::Readable { flow } | FlowEvent::Writable { flow } => {
                    assert!(!self.flows[&flow].over, "flow {flow} is over");
                }
            }
        }
        let live = self.flows.values().filter(|flow| !flow.over).count();
        assert_eq!(live, self.engine.len());
        assert_eq!(live, self.engine.flows().count());
    }

    /// From here on everybody behaves, and wants the end: every flow gets there.
    pub(crate) fn settle(&mut self) {
        self.wire.lossy = false;
        self.engine.abort_device(NOISE);
        self.flush();
        let live: Vec<FlowId> =
            self.flows.iter().filter(|(_, flow)| !flow.over).map(|(id, _)| *id).collect();
        live.iter().for_each(|flow| self.accept(*flow));
        let read = |bench: &Self| -> u64 {
            live.iter().map(|flow| u64::from(bench.flows[flow].read)).sum()
        };
        let (mut round, mut progress) = (0, read(self));
        while round < ROUNDS {
            if live.iter().all(|flow| self.flows[flow].over) {
                return;
            }
            for flow in &live {
                self.end_flow(*flow);
            }
            self.flush();
            let next = self.engine.poll_timeout().unwrap_or(self.now);
            self.pass(next.saturating_duration_since(self.now) + Duration::from_millis(1));
            round = if read(self) > progress { 0 } else { round + 1 };
            progress = read(self);
        }
        let left: Vec<_> = self.engine.flows().collect();
        panic!("flows without an end: {left:?}");
    }

    /// The owner reads to the end and says all; the application acknowledges, and ends too.
    fn end_flow(&mut self, id: FlowId) {
        self.read(id, usize::MAX);
        self.finish_flow(id);
        let Some(view) = self.engine.flow(id) else { return };
        let socket = self.flows[&id].socket;
        let Some(port) = self.ports.get_mut(&(CLEAN, socket)).filter(|port| port.flow == Some(id))
        else {
            return;
        };
        let mut segment = Segment {
            socket,
            flags: ACK,
            sequence: port.acked,
            acknowledgment: port.ack,
            window: u16::MAX,
            options: &[],
            payload: &[],
        };
        let mut payload = Vec::new();
        if ["established", "fin-wait-1", "fin-wait-2"].contains(&view.state) {
            let end = port.fin.or(port.top).filter(|end| after(*end, port.acked));
            let missing = end.map_or(0, |end| end.wrapping_sub(port.acked));
            segment.flags |= FIN;
            payload = port.speak(&mut segment, missing.min(60_000));
        }
        segment.payload = &payload;
        trace!("application: {segment}");
        self.engine.handle_packet(CLEAN, &segment.packet(), self.now);
    }

    /// Nothing is left of anything.
    pub(crate) fn stop(&mut self) {
        self.engine.abort_all();
        self.flush();
        assert!(self.engine.is_empty());
        assert_eq!(self.pool.live(), 0, "leases were not given back");
        self.engine.handle_timeout(self.now + Duration::from_secs(86_400));
        assert_eq!(self.engine.poll_timeout(), None);
    }
}

impl Port {
    /// The payload for `segment`, cut to what its application may say after all it has said.
    fn speak(&mut self, segment: &mut Segment<'_>, length: u32) -> Vec<u8> {
        // Nobody acknowledges from beyond their own end.
        if let Some(fin) = self.fin
            && after(segment.sequence, fin.wrapping_add(1))
        {
            segment.sequence = fin.wrapping_add(1);
        }
        let first = segment.sequence.wrapping_add(u32::from(segment.flags & SYN != 0));
        // Who has not seen the SYN|ACK has no connection to use or to end.
        let length = match self.fin {
            _ if self.isn.is_none() => 0,
            Some(fin) if after(first, fin) => 0,
            Some(fin) => length.min(fin.wrapping_sub(first)),
            None => length,
        };
        let end = first.wrapping_add(length);
        // What lies between was sent too, and is lost.
        let speaks = segment.flags & SYN == 0 && self.isn.is_some() && self.fin.is_none();
        if speaks && self.top.is_none_or(|top| after(end, top)) {
            self.top = Some(end);
        }
        if segment.flags & FIN != 0 {
            let known = self.isn.and(self.top).is_some_and(|top| !after(top, end));
            let whole = segment.flags & (SYN | RST) == 0;
            if whole && self.fin.map_or(known, |fin| fin == end) {
                self.fin = Some(end);
            } else {
                segment.flags &= !FIN;
            }
        }
        (0..length).map(|at| upward(first.wrapping_add(at))).collect()
    }
}

impl Flow {
    fn new(device: DeviceId, socket: Socket) -> Self {
        Self {
            device,
            socket,
            base: None,
            read: 0,
            written: 0,
            fin_read: false,
            finishing: false,
            aborted: false,
            over: false,
        }
    }
}

fn options<'a>(input: &mut Input<'a>) -> &'a [u8] {
    match input.byte() {
        0..=99 => &[2, 4, 5, 180, 3, 3, 7, 1],
        100..=129 => &[2, 4, 5, 180],
        130..=159 => &[],
        160..=179 => &[2, 4, 0, 1, 3, 3, 14, 0],
        180..=199 => &[2, 4, 255, 255, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0],
        _ => {
            let count = usize::from(input.byte()) % 41;
            input.bytes(count)
        }
    }
}

/// Whether `a` comes after `b` in sequence space (RFC 9293 §3.4).
fn after(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}
