use std::time::Duration;

use bytes::BytesMut;
use smoltcp::socket::tcp::State;

use super::world::{ACK, BOTH, DEVICE, FAR_V4, FAR_V6, FIN, RST, Raw, SYN, World, pattern};
use crate::engine::{FlowEvent, FlowId};
use smoltcp::iface::SocketHandle;

const MIB: usize = 1 << 20;

/// Moves `bytes` both ways at once until both ends have them.
fn exchange(world: &mut World, socket: SocketHandle, flow: FlowId, bytes: &[u8]) {
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let (mut sent, mut written) = (0, 0);
    for _ in 0..100_000 {
        sent += world.host.send(socket, &bytes[sent..]);
        written += world.engine.write(flow, &bytes[written..]);
        if !world.round() {
            world.pass(Duration::from_millis(50));
        }
        up.extend(world.read_all(flow).0);
        down.extend(world.host.receive(socket));
        if up.len() >= bytes.len() && down.len() >= bytes.len() {
            break;
        }
    }
    assert!(up == bytes, "{} of {} bytes arrived", up.len(), bytes.len());
    assert!(down == bytes, "{} of {} bytes arrived", down.len(), bytes.len());
}

#[test]
fn bulk_is_exact_and_its_super_segments_are_marked() {
    for far in BOTH {
        let mut world = World::new(MIB);
        let (socket, flow) = world.established(far);
        exchange(&mut world, socket, flow, &pattern(4 * MIB + 17));
        let expected = if far.is_ipv4() { (4, 1460) } else { (6, 1440) };
        assert_eq!(world.supers.iter().copied().collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn bulk_of_an_application_that_sends_super_segments_is_exact() {
    let mut world = World::new(MIB).large_host();
    let (socket, flow) = world.established(FAR_V4);
    exchange(&mut world, socket, flow, &pattern(4 * MIB + 17));
}

#[test]
fn bulk_is_exact_with_small_and_odd_buffers() {
    for buffer in [512, 4099, 65_535, 65_536, 100_003] {
        let mut world = World::new(buffer);
        let (socket, flow) = world.established(FAR_V6);
        exchange(&mut world, socket, flow, &pattern(200_003));
    }
}

#[test]
fn bulk_is_exact_over_a_lossy_wire() {
    for every in [7, 13, 50] {
        for far in BOTH {
            let mut world = World::new(MIB);
            let (socket, flow) = world.established(far);
            world.lose_every = Some(every);
            exchange(&mut world, socket, flow, &pattern(MIB));
        }
    }
}

#[test]
fn ending_is_exact_over_a_lossy_wire() {
    // Only towards the host: its smoltcp forgets a lone FIN after three
    // duplicate ACKs, which Linux does not.
    for every in 2..20 {
        let mut world = World::new(MIB);
        let (socket, flow) = world.established(FAR_V4);
        world.lose_every = Some(every);
        world.lose_only_down = true;
        let bytes = pattern(60_000);
        assert_eq!(world.host.send(socket, &bytes), bytes.len());
        world.host.socket(socket).close();
        assert_eq!(world.engine.write(flow, &bytes), bytes.len());
        world.engine.finish(flow);
        let (mut up, mut down, mut fin) = (Vec::new(), Vec::new(), false);
        for _ in 0..1000 {
            world.pass(Duration::from_secs(1));
            let (read, ended) = world.read_all(flow);
            up.extend(read);
            fin |= ended;
            down.extend(world.host.receive(socket));
            if fin && down.len() == bytes.len() {
                break;
            }
        }
        assert!(fin && up == bytes && down == bytes, "lost every {every}th");
        world.pass(Duration::from_secs(200));
        assert_eq!(world.count(FlowEvent::Reset { flow }), 0);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
        world.assert_empty();
    }
}

#[test]
fn reader_that_stops_stops_the_writer() {
    for far in BOTH {
        let mut world = World::new(1 << 16);
        let (socket, flow) = world.established(far);
        let bytes = pattern(MIB);
        let mut sent = 0;
        for _ in 0..200 {
            sent += world.host.send(socket, &bytes[sent..]);
            world.pass(Duration::from_millis(200));
        }
        // The engine's ring, less than a unit of its window, and the
        // application's own buffer.
        let full = (1 << 16) - 1;
        assert_eq!(world.engine.readable(flow), full);
        assert_eq!(sent, full + (1 << 18));
        world.pass(Duration::from_secs(3600));
        assert_eq!(world.engine.readable(flow), full);

        let mut up = Vec::new();
        while up.len() < bytes.len() {
            let before = up.len();
            up.extend(world.read_all(flow).0);
            sent += world.host.send(socket, &bytes[sent..]);
            world.pass(Duration::from_millis(10));
            assert!(up.len() > before || world.engine.readable(flow) > 0, "stalled at {before}");
        }
        assert!(up == bytes);
    }
}

#[test]
fn application_that_stops_reading_stops_our_writing() {
    for far in BOTH {
        let mut world = World::new(1 << 16);
        let (socket, flow) = world.established(far);
        let bytes = pattern(MIB);
        let mut written = 0;
        for _ in 0..100 {
            written += world.engine.write(flow, &bytes[written..]);
            world.pass(Duration::from_millis(200));
        }
        assert_eq!(world.engine.writable(flow), 0);
        assert_eq!(written, (1 << 16) + (1 << 18));
        world.pass(Duration::from_secs(3600));
        world.events.clear();

        let mut down = world.host.receive(socket);
        world.pass(Duration::from_secs(120));
        assert!(world.count(FlowEvent::Writable { flow }) >= 1);
        while down.len() < bytes.len() {
            written += world.engine.write(flow, &bytes[written..]);
            world.pass(Duration::from_millis(10));
            down.extend(world.host.receive(socket));
        }
        assert!(down == bytes);
    }
}

#[test]
fn lost_window_update_is_recovered_by_a_probe() {
    let mut world = World::new(1 << 14);
    let (socket, flow) = world.established(FAR_V6);
    let bytes = pattern(100_000);
    let sent = world.host.send(socket, &bytes);
    assert_eq!(sent, bytes.len());
    world.pass(Duration::from_secs(5));
    let mut up = world.read_all(flow).0;
    world.lose_every = Some(1);
    world.run();
    world.lose_every = None;
    while up.len() < bytes.len() {
        world.pass(Duration::from_secs(1));
        up.extend(world.read_all(flow).0);
    }
    assert!(up == bytes);
}

#[test]
fn sink_that_loses_packets_is_a_lossy_wire() {
    let mut world = World::new(1 << 16);
    let (socket, flow) = world.established(FAR_V4);
    world.wire.ignore = true;
    world.engine.write(flow, b"again");
    world.run();
    world.wire.ignore = false;
    assert_eq!(world.host.receive(socket), b"");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.host.receive(socket), b"again");
}

/// An application of our own making: a connection over `Raw` packets.
fn raw_established(world: &mut World) -> (FlowId, u32) {
    let syn = Raw::new(FAR_V4);
    world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    let Some(FlowEvent::Open { flow, .. }) = world.engine.poll_event() else {
        panic!("no flow was offered");
    };
    world.engine.accept(flow, world.now);
    world.engine.flush(world.now, &mut world.wire);
    let (_, answer, _) = world.wire.packets.pop_front().expect("SYN|ACK");
    assert_eq!(answer[33], SYN | ACK);
    let ours = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
    raw_send(world, ours, 0, ACK, &[]);
    assert_eq!(world.engine.flow(flow).unwrap().state, "established");
    (flow, ours)
}

/// Sends bytes at an offset of the application's stream.
fn raw_send(world: &mut World, ours: u32, offset: usize, flags: u8, payload: &[u8]) {
    let base = Raw::new(FAR_V4);
    let sequence = base.sequence.wrapping_add(1).wrapping_add(u32::try_from(offset).unwrap());
    let segment = Raw { flags, sequence, acknowledgment: ours, options: &[], payload, ..base };
    world.engine.handle_packet(DEVICE, &segment.packet(), world.now);
    world.engine.flush(world.now, &mut world.wire);
}

/// The right edge of the window in the latest packet, as an offset.
fn offered(world: &World) -> usize {
    let (_, packet, _) = world.wire.packets.back().expect("an ACK");
    let ack = u32::from_be_bytes(packet[28..32].try_into().unwrap());
    let window = u32::from(u16::from_be_bytes([packet[34], packet[35]])) << 5;
    usize::try_from(ack.wrapping_sub(Raw::new(FAR_V4).sequence + 1) + window).unwrap()
}

#[test]
fn fin_beyond_a_window_that_moved_back_loses_nothing() {
    let mut world = World::new(MIB);
    let (flow, ours) = raw_established(&mut world);
    let bytes = pattern(MIB);
    // One byte: the window is counted in units of 32, so its edge moves back
    // by 31 from where the ring ends.
    raw_send(&mut world, ours, 0, ACK, &bytes[..1]);
    let edge = offered(&world);
    assert_eq!(edge, MIB - 31);
    let mut at = 1;
    while at < MIB {
        let end = (at + 60_000).min(MIB);
        raw_send(&mut world, ours, at, if end == MIB { ACK | FIN } else { ACK }, &bytes[at..end]);
        at = end;
    }
    assert_eq!(world.engine.readable(flow), edge);
    assert_eq!(world.read_all(flow), (bytes[..edge].to_vec(), false));
    world.engine.flush(world.now, &mut world.wire);
    raw_send(&mut world, ours, MIB - 100, ACK | FIN, &bytes[MIB - 100..]);
    assert_eq!(world.read_all(flow), (bytes[edge..].to_vec(), true));
}

#[test]
fn fin_is_repeated_after_duplicate_acks() {
    let mut world = World::new(MIB);
    let (flow, ours) = raw_established(&mut world);
    world.engine.finish(flow);
    world.engine.flush(world.now, &mut world.wire);
    let (_, fin, _) = world.wire.packets.pop_back().expect("a FIN");
    assert_eq!(fin[33], FIN | ACK);
    for _ in 0..5 {
        raw_send(&mut world, ours, 0, ACK, &[]);
    }
    world.wire.packets.clear();
    for _ in 0..30 {
        world.now += Duration::from_millis(100);
        world.engine.handle_timeout(world.now);
        world.engine.flush(world.now, &mut world.wire);
    }
    let (_, again, _) = world.wire.packets.pop_back().expect("the FIN again");
    assert_eq!(again[20..36], fin[20..36]);
    raw_send(&mut world, ours.wrapping_add(1), 0, ACK, &[]);
    assert_eq!(world.engine.flow(flow).unwrap().state, "fin-wait-2");
}

#[test]
fn lost_data_behind_a_closed_window_is_neither_forgotten_nor_overtaken_by_the_fin() {
    // Room for all of it before the window closed, or for half of it.
    lose_behind_a_closed_window(u16::MAX);
    lose_behind_a_closed_window(4);
}

fn lose_behind_a_closed_window(window: u16) {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    let base = Raw::new(FAR_V4);
    let open = Raw {
        flags: ACK,
        sequence: base.sequence + 1,
        acknowledgment: ours,
        options: &[],
        window,
        ..base
    };
    let closed = Raw { window: 0, ..open };
    world.engine.handle_packet(DEVICE, &open.packet(), world.now);
    world.engine.write(flow, &pattern(1000));
    world.engine.flush(world.now, &mut world.wire);
    world.engine.handle_packet(DEVICE, &closed.packet(), world.now);
    world.engine.finish(flow);
    world.wire.packets.clear();
    for _ in 0..100 {
        world.now += Duration::from_millis(100);
        world.engine.handle_timeout(world.now);
        world.engine.flush(world.now, &mut world.wire);
    }
    let sent: Vec<_> = world.wire.packets.drain(..).map(|(_, packet, _)| packet).collect();
    let mut probes = 0;
    for packet in sent {
        let sequence = u32::from_be_bytes(packet[24..28].try_into().unwrap());
        assert_eq!(packet.len(), 40, "the window is closed");
        if packet[33] & FIN != 0 {
            assert_eq!(sequence, ours.wrapping_add(1000), "the end is where it is");
        } else {
            assert!(ours.wrapping_sub(sequence) < 1 << 31, "a number the application has seen");
            probes += 1;
        }
    }
    assert!(probes > 1, "nobody asks for the window");
    raw_send(&mut world, ours, 0, ACK, &[]);
    let (_, last, _) = world.wire.packets.pop_back().expect("the data again");
    assert_eq!(last[33], FIN | ACK);
    assert_eq!(last[24..28], ours.to_be_bytes());
    assert_eq!(last[40..], pattern(1000));
}

#[test]
fn closed_window_is_not_probed_after_everything_arrived() {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    let base = Raw::new(FAR_V4);
    let closed = Raw {
        flags: ACK,
        sequence: base.sequence + 1,
        acknowledgment: ours,
        options: &[],
        window: 0,
        ..base
    };
    world.engine.handle_packet(DEVICE, &closed.packet(), world.now);
    world.engine.write(flow, &[7]);
    world.engine.finish(flow);
    world.engine.flush(world.now, &mut world.wire);
    let (_, probe, _) = world.wire.packets.pop_back().expect("a probe");
    assert_eq!((probe[33], probe[40..].to_vec()), (ACK | FIN, vec![7]));
    let last = Raw { acknowledgment: ours.wrapping_add(2), ..closed };
    world.engine.handle_packet(DEVICE, &last.packet(), world.now);
    assert_eq!(world.engine.flow(flow).unwrap().state, "fin-wait-2");
    world.wire.packets.clear();
    for _ in 0..100 {
        world.now += Duration::from_secs(1);
        world.engine.handle_timeout(world.now);
        world.engine.flush(world.now, &mut world.wire);
    }
    assert!(world.wire.packets.len() <= 1, "{} packets", world.wire.packets.len());
    assert_eq!(world.engine.poll_timeout(), None);
}

#[test]
fn application_that_ended_first_gets_the_rest_as_soon_as_it_makes_room() {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    raw_send(&mut world, ours, 0, ACK | FIN, &[]);
    assert_eq!(world.read_all(flow), (vec![], true));
    let base = Raw::new(FAR_V4);
    let closed = Raw {
        flags: ACK,
        sequence: base.sequence + 2,
        acknowledgment: ours,
        options: &[],
        window: 0,
        ..base
    };
    world.engine.handle_packet(DEVICE, &closed.packet(), world.now);
    world.engine.write(flow, &pattern(1000));
    world.engine.finish(flow);
    world.engine.flush(world.now, &mut world.wire);
    world.wire.packets.clear();
    raw_send(&mut world, ours, 1, ACK, &[]);
    let (_, data, _) = world.wire.packets.pop_back().expect("the rest");
    assert_eq!(
        (data[24..28].to_vec(), data[40..].to_vec()),
        (ours.to_be_bytes().to_vec(), pattern(1000))
    );
    raw_send(&mut world, ours.wrapping_add(1000), 1, ACK, &[]);
    let (_, fin, _) = world.wire.packets.pop_back().expect("the FIN");
    assert_eq!(fin[33], FIN | ACK);
    raw_send(&mut world, ours.wrapping_add(1001), 1, ACK, &[]);
    world.assert_empty();
}

#[test]
fn nothing_is_lost_when_the_flush_after_the_last_segment_is_late() {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    world.engine.finish(flow);
    world.engine.flush(world.now, &mut world.wire);
    let base = Raw::new(FAR_V4);
    let last = Raw {
        flags: ACK | FIN,
        sequence: base.sequence + 1,
        acknowledgment: ours.wrapping_add(1),
        options: &[],
        payload: &pattern(100),
        ..base
    };
    world.engine.handle_packet(DEVICE, &last.packet(), world.now);
    assert_eq!(world.engine.flow(flow).unwrap().state, "time-wait");
    world.now += Duration::from_secs(60);
    let acknowledgment = Raw { flags: ACK, sequence: last.sequence + 101, payload: &[], ..last };
    world.engine.handle_packet(DEVICE, &acknowledgment.packet(), world.now);
    world.engine.handle_timeout(world.now);
    world.engine.flush(world.now, &mut world.wire);
    assert_eq!(world.read_all(flow), (pattern(100), true));
    world.engine.flush(world.now, &mut world.wire);
    world.assert_empty();
}

#[test]
fn data_beyond_the_ring_is_dropped() {
    let mut world = World::new(1 << 16);
    let syn = Raw::new(FAR_V4);
    world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    world.engine.accept(FlowId(1), world.now);
    world.engine.flush(world.now, &mut world.wire);
    let (_, answer, _) = world.wire.packets.pop_front().unwrap();
    let ours = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
    raw_send(&mut world, ours, 60_000, ACK, &pattern(60_000));
    assert_eq!(world.engine.stats().dropped.excess, 1);
    assert_eq!(world.engine.stats().panics, 0);
    raw_send(&mut world, ours, 0, ACK, &pattern(100));
    assert_eq!(world.read_all(FlowId(1)), (pattern(100), false));
}

#[test]
fn data_beyond_the_ring_is_dropped_after_a_reset_answered_a_wrong_ack() {
    let mut world = World::new(1 << 16);
    let syn = Raw::new(FAR_V4);
    world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    world.engine.accept(FlowId(1), world.now);
    world.engine.flush(world.now, &mut world.wire);
    let (_, answer, _) = world.wire.packets.pop_front().unwrap();
    let ours = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
    raw_send(&mut world, ours.wrapping_add(9), 0, ACK, &[]);
    let (_, answer, _) = world.wire.packets.pop_front().unwrap();
    assert_eq!(answer[33], RST);
    raw_send(&mut world, ours, 60_000, ACK, &pattern(60_000));
    assert_eq!(world.engine.stats().panics, 0);
    assert_eq!(world.engine.stats().dropped.excess, 1);
    raw_send(&mut world, ours, 0, ACK, &pattern(100));
    assert_eq!(world.read_all(FlowId(1)), (pattern(100), false));
}

/// An application that sends, but has no room itself: the engine probes.
fn probed(world: &mut World, ours: u32, offset: usize, payload: &[u8]) {
    let base = Raw::new(FAR_V4);
    let closed = Raw {
        flags: ACK,
        sequence: base.sequence + 1 + u32::try_from(offset).unwrap(),
        acknowledgment: ours,
        window: 0,
        options: &[],
        payload,
        ..base
    };
    world.engine.handle_packet(DEVICE, &closed.packet(), world.now);
    world.engine.flush(world.now, &mut world.wire);
}

#[test]
fn data_beyond_the_fin_is_dropped() {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    raw_send(&mut world, ours, 0, ACK | FIN, &pattern(100));
    assert_eq!(world.read_all(flow), (pattern(100), true));
    raw_send(&mut world, ours, 101, ACK, &pattern(100));
    assert_eq!(world.engine.stats().dropped.excess, 1);
    assert_eq!(world.read_all(flow), (vec![], true));
}

#[test]
fn data_beyond_the_ring_is_dropped_after_a_probe() {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    probed(&mut world, ours, 0, &[]);
    world.engine.write(flow, &[7]);
    world.engine.flush(world.now, &mut world.wire);
    raw_send(&mut world, ours, 65_530, ACK, &pattern(100));
    assert_eq!(world.engine.stats().panics, 0);
    assert_eq!(world.engine.stats().dropped.excess, 1);
}

#[test]
fn fin_is_not_taken_before_its_bytes_when_a_probe_offered_more_room() {
    let mut world = World::new(1 << 16);
    let (flow, ours) = raw_established(&mut world);
    let bytes = pattern(75_000);
    probed(&mut world, ours, 0, &bytes[..50_000]);
    let mut read = BytesMut::new();
    world.engine.read(flow, 10_000, &mut read);
    world.engine.write(flow, &[7]);
    world.engine.flush(world.now, &mut world.wire);
    raw_send(&mut world, ours, 50_000, ACK | FIN, &bytes[50_000..]);
    for _ in 0..3 {
        world.engine.read(flow, usize::MAX, &mut read);
        world.engine.flush(world.now, &mut world.wire);
        let taken = read.len();
        raw_send(&mut world, ours, taken, ACK | FIN, &bytes[taken..]);
    }
    assert_eq!(read, bytes);
    assert!(world.engine.read(flow, 1, &mut read).fin);
}

#[test]
fn pages_are_released_after_bulk_and_only_when_nothing_is_stored() {
    let mut world = World::new(MIB);
    let (flow, ours) = raw_established(&mut world);
    let bytes = pattern(60_000);
    raw_send(&mut world, ours, 0, ACK, &bytes[..30_000]);
    world.read_all(flow);
    // A hole: bytes wait in the ring although nothing can be read.
    raw_send(&mut world, ours, 40_000, ACK, &bytes[40_000..]);
    for _ in 0..50 {
        world.now += Duration::from_millis(100);
        world.engine.handle_timeout(world.now);
        world.engine.flush(world.now, &mut world.wire);
    }
    assert!(world.pool.lock().trimmed.is_empty());
    raw_send(&mut world, ours, 30_000, ACK, &bytes[30_000..40_000]);
    assert_eq!(world.read_all(flow), (bytes[30_000..].to_vec(), false));
    world.engine.flush(world.now, &mut world.wire);
    for _ in 0..50 {
        world.now += Duration::from_millis(100);
        world.engine.handle_timeout(world.now);
        world.engine.flush(world.now, &mut world.wire);
    }
    assert_eq!(world.pool.lock().trimmed, [1]);
    assert_eq!(world.engine.poll_timeout(), None);
}

#[test]
fn one_paused_reader_holds_up_nobody_else() {
    let mut world = World::new(1 << 16);
    let mut paused = Vec::new();
    for _ in 0..20 {
        let (socket, flow) = world.established(FAR_V4);
        world.host.send(socket, &pattern(1 << 18));
        paused.push(flow);
    }
    let (socket, flow) = world.established(FAR_V6);
    exchange(&mut world, socket, flow, &pattern(MIB));
    for flow in paused {
        assert!(world.engine.readable(flow) > (1 << 16) - 4);
    }
}

#[test]
fn single_bytes_go_both_ways() {
    let mut world = World::new(1 << 16);
    let (socket, flow) = world.established(FAR_V4);
    for round in 0..500u16 {
        let byte = [round.to_be_bytes()[1]];
        world.host.send(socket, &byte);
        world.run();
        assert_eq!(world.read_all(flow), (byte.to_vec(), false));
        world.engine.write(flow, &byte);
        world.run();
        assert_eq!(world.host.receive(socket), byte);
    }
    assert_eq!(world.host.state(socket), State::Established);
}
