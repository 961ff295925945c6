use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet};

use super::table::Entry;
use super::{DeviceId, EngineConfig, FlowEvent, FlowId, Refusal, Tenant};
use world::{
    ACK, BOTH, DEVICE, FAR_V4, FAR_V6, FIN, HOST_V4, RST, Raw, SYN, World, config, pattern,
};

mod garbage;
mod own;
mod transfer;
mod world;

const BUFFER: usize = 1 << 16;

#[test]
fn handshake_is_held_until_accept() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let socket = world.connect(far);
        world.run();
        let flow = world.opened();
        assert_eq!(flow, FlowId(1));
        assert!(matches!(
            world.events[..],
            [FlowEvent::Open { device: DEVICE, destination, .. }]
                if destination == SocketAddr::new(far, 80)
        ));
        assert_eq!(world.host.state(socket), State::SynSent);
        assert_eq!(world.engine.flow(flow).unwrap().state, "pending");
        assert_eq!(world.pool.lock().leased, 0);
        assert_eq!(world.engine.poll_timeout(), None);

        world.engine.accept(flow, world.now);
        world.run();
        assert_eq!(world.host.state(socket), State::Established);
        assert_eq!(world.engine.flow(flow).unwrap().state, "established");
        assert_eq!(world.count(FlowEvent::Writable { flow }), 1);
        assert_eq!(world.engine.writable(flow), BUFFER);
    }
}

#[test]
fn refused_is_a_reset_of_the_syn() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let socket = world.connect(far);
        world.run();
        let flow = world.opened();
        world.refuse(flow, Refusal::Refused);
        assert_eq!(world.host.state(socket), State::Closed);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
        world.assert_empty();
    }
}

#[test]
fn unreachable_quotes_the_syn_with_the_code_of_its_reason() {
    let reasons = [
        (Refusal::NetworkUnreachable, 0, 0),
        (Refusal::HostUnreachable, 1, 3),
        (Refusal::Prohibited, 13, 1),
    ];
    for (refusal, code_v4, code_v6) in reasons {
        for far in BOTH {
            let mut world = World::new(BUFFER);
            let syn = Raw { payload: b"early", ..Raw::new(far) };
            world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
            world.run();
            let flow = world.opened();
            world.refuse(flow, refusal);
            let packet = world.other.pop().expect("an ICMP error");
            let quote = if far.is_ipv4() {
                let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
                assert!(ip.verify_checksum());
                assert_eq!(ip.dst_addr(), syn_source_v4());
                let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
                assert!(icmp.verify_checksum());
                assert_eq!((u8::from(icmp.msg_type()), icmp.msg_code()), (3, code_v4));
                &packet[28..]
            } else {
                let ip = Ipv6Packet::new_checked(&packet[..]).unwrap();
                let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
                assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
                assert_eq!((u8::from(icmp.msg_type()), icmp.msg_code()), (1, code_v6));
                &packet[48..]
            };
            let whole = Raw { payload: &[], ..syn }.packet();
            let ports_at = if far.is_ipv4() { 20 } else { 40 };
            assert_eq!(quote.len(), whole.len());
            assert_eq!(quote[ports_at..], whole[ports_at..]);
            world.assert_empty();
        }
    }
}

fn syn_source_v4() -> std::net::Ipv4Addr {
    match HOST_V4 {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => unreachable!(),
    }
}

#[test]
fn timed_out_is_silence_and_the_next_syn_asks_again() {
    let mut world = World::new(BUFFER);
    let socket = world.connect(FAR_V4);
    world.run();
    let first = world.opened();
    world.refuse(first, Refusal::TimedOut);
    assert_eq!(world.host.state(socket), State::SynSent);
    assert_eq!(world.engine.len(), 0);
    world.pass(Duration::from_secs(2));
    let second = world.opened();
    assert!(second > first);
    world.engine.accept(second, world.now);
    world.run();
    assert_eq!(world.host.state(socket), State::Established);
}

#[test]
fn repeated_syn_is_one_flow() {
    let mut world = World::new(BUFFER);
    let socket = world.connect(FAR_V6);
    world.pass(Duration::from_secs(20));
    assert_eq!(world.engine.len(), 1);
    assert!(world.engine.stats().dropped.duplicate_syn >= 3);
    let flow = world.opened();
    world.engine.accept(flow, world.now);
    world.run();
    assert_eq!(world.host.state(socket), State::Established);
}

#[test]
fn a_later_socket_on_the_same_port_gets_the_answer_to_its_own_syn() {
    let mut world = World::new(BUFFER);
    let far = SocketAddr::new(FAR_V4, 80);
    let gone = world.host.connect_from(4321, far, 4096);
    world.run();
    world.host.sockets.remove(gone);
    let socket = world.host.connect_from(4321, far, 4096);
    world.run();
    let flow = world.opened();
    assert_eq!(flow, FlowId(1));
    world.engine.accept(flow, world.now);
    world.run();
    assert_eq!(world.host.state(socket), State::Established);
}

#[test]
fn the_same_ports_on_another_device_are_another_flow() {
    let mut world = World::new(BUFFER);
    let syn = Raw::new(FAR_V4).packet();
    world.engine.handle_packet(DEVICE, &syn, world.now);
    world.engine.handle_packet(DeviceId(8), &syn, world.now);
    assert_eq!(world.engine.len(), 2);
    world.engine.abort_device(DeviceId(8));
    assert_eq!(world.engine.len(), 1);
    assert_eq!(world.engine.flows().next().unwrap().device, DEVICE);
    world.engine.abort_all();
    world.assert_empty();
}

#[test]
fn application_half_close_leaves_our_direction_open() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let (socket, flow) = world.established(far);
        world.host.send(socket, b"question");
        world.host.socket(socket).close();
        world.run();
        assert!(world.count(FlowEvent::Readable { flow }) >= 1);
        assert_eq!(world.read_all(flow), (b"question".to_vec(), true));
        assert_eq!(world.engine.flow(flow).unwrap().state, "close-wait");

        world.pass(Duration::from_secs(600));
        assert_eq!(world.engine.write(flow, b"answer"), 6);
        world.engine.finish(flow);
        assert_eq!(world.engine.write(flow, b"too late"), 0);
        world.run();
        assert_eq!(world.host.receive(socket), b"answer");
        assert_eq!(world.host.state(socket), State::TimeWait);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
        world.assert_empty();
    }
}

#[test]
fn our_half_close_leaves_the_application_direction_open() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let (socket, flow) = world.established(far);
        world.engine.write(flow, b"greeting");
        world.engine.finish(flow);
        world.run();
        assert_eq!(world.host.receive(socket), b"greeting");
        assert_eq!(world.host.state(socket), State::CloseWait);
        assert_eq!(world.read_all(flow), (vec![], false));

        world.pass(Duration::from_secs(600));
        world.host.send(socket, b"more");
        world.run();
        assert_eq!(world.read_all(flow), (b"more".to_vec(), false));
        world.host.socket(socket).close();
        world.run();
        assert_eq!(world.read_all(flow), (vec![], true));
        world.run();
        assert_eq!(world.host.state(socket), State::Closed);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
        world.assert_empty();
    }
}

#[test]
fn finish_before_the_handshake_sends_the_fin_after_it() {
    let mut world = World::new(BUFFER);
    let socket = world.connect(FAR_V4);
    world.run();
    let flow = world.opened();
    world.engine.accept(flow, world.now);
    assert_eq!(world.engine.writable(flow), 0);
    world.engine.finish(flow);
    world.run();
    assert_eq!(world.host.state(socket), State::CloseWait);
    world.host.send(socket, b"still");
    world.host.socket(socket).close();
    world.run();
    assert_eq!(world.read_all(flow), (b"still".to_vec(), true));
    world.run();
    world.assert_empty();
}

#[test]
fn simultaneous_close_ends_in_order() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let (socket, flow) = world.established(far);
        world.host.send(socket, b"last");
        world.host.socket(socket).close();
        world.engine.write(flow, b"words");
        world.engine.finish(flow);
        world.engine.flush(world.now, &mut world.wire);
        world.run();
        assert_eq!(world.read_all(flow), (b"last".to_vec(), true));
        assert_eq!(world.host.receive(socket), b"words");
        world.run();
        assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
        assert_eq!(world.count(FlowEvent::Reset { flow }), 0);
        world.assert_empty();
    }
}

#[test]
fn application_reset_is_told_once() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let (socket, flow) = world.established(far);
        world.host.send(socket, b"unread");
        world.run();
        world.host.socket(socket).abort();
        world.run();
        assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 0);
        assert_eq!(world.read_all(flow), (vec![], false));
        assert_eq!(world.engine.write(flow, b"x"), 0);
        world.assert_empty();
    }
}

#[test]
fn reset_in_the_handshake_ends_the_flow() {
    let mut world = World::new(BUFFER);
    let syn = Raw::new(FAR_V4);
    world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    world.run();
    let flow = world.opened();
    // Accepted, SYN|ACK on its way, and the application is gone: its kernel
    // answers with a RST.
    world.engine.accept(flow, world.now);
    world.run();
    assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
    world.assert_empty();
}

#[test]
fn reset_of_a_held_syn_is_told_if_its_number_fits() {
    let mut world = World::new(BUFFER);
    let syn = Raw::new(FAR_V4);
    world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    world.run();
    let flow = world.opened();
    let reset = Raw { flags: RST, sequence: syn.sequence + 500, ..syn };
    world.engine.handle_packet(DEVICE, &reset.packet(), world.now);
    assert_eq!(world.engine.len(), 1);
    let reset = Raw { flags: RST, sequence: syn.sequence + 1, ..syn };
    world.engine.handle_packet(DEVICE, &reset.packet(), world.now);
    world.run();
    assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
    world.assert_empty();
}

#[test]
fn our_abort_resets_the_application() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let (socket, flow) = world.established(far);
        world.host.send(socket, b"unread");
        world.run();
        world.engine.abort(flow);
        world.engine.abort(flow);
        world.run();
        assert_eq!(world.host.state(socket), State::Closed);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
        assert_eq!(world.count(FlowEvent::Reset { flow }), 0);
        assert_eq!(world.engine.stats().aborted, 1);
        world.assert_empty();
    }
}

#[test]
fn abort_of_a_held_flow_refuses_it() {
    let mut world = World::new(BUFFER);
    let socket = world.connect(FAR_V4);
    world.run();
    let flow = world.opened();
    world.engine.abort(flow);
    world.run();
    assert_eq!(world.host.state(socket), State::Closed);
    assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
    world.assert_empty();
}

#[test]
fn segment_of_no_flow_is_reset_with_its_own_numbers() {
    for far in BOTH {
        let mut world = World::new(BUFFER);
        let stray = Raw { flags: ACK, sequence: 77, acknowledgment: 4242, ..Raw::new(far) };
        world.engine.handle_packet(DEVICE, &stray.packet(), world.now);
        world.engine.flush(world.now, &mut world.wire);
        let (_, answer, segment) = world.wire.packets.pop_front().expect("a RST");
        let tcp = &answer[if far.is_ipv4() { 20 } else { 40 }..];
        assert_eq!(segment, None);
        assert_eq!(tcp[13], RST);
        assert_eq!(tcp[4..8], 4242u32.to_be_bytes());

        let naked = Raw { flags: FIN, payload: b"abc", ..stray };
        world.engine.handle_packet(DEVICE, &naked.packet(), world.now);
        world.engine.flush(world.now, &mut world.wire);
        let (_, answer, _) = world.wire.packets.pop_front().expect("a RST");
        let tcp = &answer[if far.is_ipv4() { 20 } else { 40 }..];
        assert_eq!(tcp[13], RST | ACK);
        assert_eq!(tcp[8..12], (77u32 + 3 + 1).to_be_bytes());

        let reset = Raw { flags: RST, ..stray };
        world.engine.handle_packet(DEVICE, &reset.packet(), world.now);
        world.engine.flush(world.now, &mut world.wire);
        assert!(world.wire.packets.is_empty());
        assert_eq!(world.engine.stats().strays_reset, 2);
        assert_eq!(world.engine.stats().dropped.stray_reset, 1);
        world.assert_empty();
    }
}

#[test]
fn one_tenant_leaves_room_for_others_and_all_of_them_for_the_host() {
    let mut world = World::new(BUFFER);
    let devices = [1, 2, 3, 4, 5].map(DeviceId);
    // The first two belong to the same user.
    for (device, user) in devices.into_iter().zip([0, 0, 1, 2, 3]) {
        world.engine.assign(device, Tenant(user));
    }
    let flood = |world: &mut World, device| {
        for port in 1..=100 {
            let syn = Raw { source: SocketAddr::new(HOST_V4, port), ..Raw::new(FAR_V4) };
            world.engine.handle_packet(device, &syn.packet(), world.now);
        }
        world.engine.count(device)
    };
    let counts = devices.map(|device| flood(&mut world, device));
    assert_eq!(counts, [16, 0, 16, 16, 0], "of 64");
    assert_eq!(flood(&mut world, DEVICE), 16, "what no user can have is the host's");
    world.engine.abort_device(devices[0]);
    assert_eq!(flood(&mut world, devices[1]), 16, "what the user had there is free");
}

#[test]
fn syn_flood_is_bounded() {
    let mut world = World::new(BUFFER);
    for port in 1..=5000 {
        let syn = Raw { source: SocketAddr::new(HOST_V4, port), ..Raw::new(FAR_V4) };
        world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    }
    assert_eq!(world.engine.len(), 64);
    assert_eq!(world.engine.stats().dropped.pending_full, 5000 - 64);
    assert_eq!(world.pool.lock().leased, 0);
    world.run();
    let flow = world.opened();
    world.refuse(flow, Refusal::Refused);
    assert_eq!(world.engine.len(), 63);
    let syn = Raw { source: SocketAddr::new(HOST_V4, 6000), ..Raw::new(FAR_V4) };
    world.engine.handle_packet(DEVICE, &syn.packet(), world.now);
    assert_eq!(world.engine.len(), 64);
}

#[test]
fn flows_are_bounded() {
    let mut world = World::with(EngineConfig { flow_limit: 3, ..config(4096) });
    for _ in 0..5 {
        world.connect(FAR_V4);
    }
    world.run();
    assert_eq!(world.engine.len(), 3);
    assert_eq!(world.engine.stats().dropped.flows_full, 2);
}

#[test]
fn flow_without_buffers_is_reset() {
    let mut world = World::new(BUFFER);
    world.pool.lock().limit = Some(0);
    let socket = world.connect(FAR_V4);
    world.run();
    let flow = world.opened();
    world.engine.accept(flow, world.now);
    world.run();
    assert_eq!(world.host.state(socket), State::Closed);
    assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
    assert_eq!(world.engine.stats().without_buffers, 1);
    world.assert_empty();
}

#[test]
fn unanswered_handshake_is_given_up() {
    let mut world = World::new(BUFFER);
    let socket = world.connect(FAR_V4);
    world.run();
    let flow = world.opened();
    world.lose_every = Some(1);
    world.host.sockets.remove(socket);
    world.engine.accept(flow, world.now);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.engine.len(), 1);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
    assert_eq!(world.engine.stats().handshakes_expired, 1);
    world.assert_empty();
}

#[test]
fn what_was_not_read_survives_time_wait() {
    let mut world = World::new(BUFFER);
    let (socket, flow) = world.established(FAR_V4);
    world.engine.finish(flow);
    world.run();
    world.host.send(socket, b"late");
    world.host.socket(socket).close();
    world.run();
    assert_eq!(world.host.state(socket), State::Closed);
    world.pass(Duration::from_secs(300));
    let mut bytes = BytesMut::new();
    let read = world.engine.read(flow, 3, &mut bytes);
    assert_eq!((read.bytes, read.fin), (3, false));
    world.pass(Duration::from_secs(300));
    assert_eq!(world.read_all(flow), (b"e".to_vec(), true));
    world.run();
    assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
    world.assert_empty();
}

#[test]
fn ports_are_free_for_a_new_connection_while_the_old_one_is_read() {
    let mut world = World::new(BUFFER);
    let far = SocketAddr::new(FAR_V4, 80);
    let first = world.host.connect_from(4321, far, 4096);
    world.run();
    let old = world.opened();
    world.engine.accept(old, world.now);
    world.engine.finish(old);
    world.run();
    world.host.send(first, b"old");
    world.host.socket(first).close();
    world.run();
    assert_eq!(world.host.state(first), State::Closed);

    world.host.sockets.remove(first);
    let second = world.host.connect_from(4321, far, 4096);
    world.run();
    let new = world.opened();
    assert_ne!(new, old);
    world.engine.accept(new, world.now);
    world.run();
    assert_eq!(world.host.state(second), State::Established);
    world.host.send(second, b"new");
    world.run();
    assert_eq!(world.read_all(old), (b"old".to_vec(), true));
    assert_eq!(world.read_all(new), (b"new".to_vec(), false));
    world.run();
    assert_eq!(world.engine.len(), 1);
    world.host.send(second, b"er");
    world.run();
    assert_eq!(world.read_all(new), (b"er".to_vec(), false));
}

#[test]
fn panic_costs_one_flow() {
    let mut world = World::new(BUFFER);
    let (victim, flow) = world.established(FAR_V4);
    let (other, neighbour) = world.established(FAR_V4);
    world.engine.write(flow, b"x");
    world.wire.short = true;
    world.engine.flush(world.now, &mut world.wire);
    world.run();
    assert_eq!(world.engine.stats().panics, 1);
    assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
    world.engine.write(neighbour, b"fine");
    world.run();
    assert_eq!(world.host.receive(other), b"fine");
    assert_eq!(world.engine.len(), 1);
    assert_eq!(world.host.state(victim), State::Closed);
}

#[test]
fn idle_flow_has_no_timer() {
    let mut world = World::new(BUFFER);
    let (socket, flow) = world.established(FAR_V4);
    world.engine.write(flow, &pattern(40_000));
    world.run();
    assert_eq!(world.host.receive(socket), pattern(40_000));
    world.pass(Duration::from_secs(10));
    assert_eq!(world.engine.poll_timeout(), None);
    assert_eq!(world.engine.len(), 1);
}

#[test]
fn short_connections_leave_nothing() {
    let mut world = World::new(4096);
    for round in 0..5000u32 {
        let far = if round % 2 == 0 { FAR_V4 } else { FAR_V6 };
        let socket = world.host.connect(SocketAddr::new(far, 443), 4096);
        world.run();
        let flow = world.opened();
        assert_eq!(flow, FlowId(u64::from(round) + 1));
        world.engine.accept(flow, world.now);
        world.run();
        world.host.send(socket, b"ping");
        if round % 3 == 0 {
            world.host.socket(socket).close();
        }
        world.run();
        assert_eq!(world.read_all(flow).0, b"ping");
        world.engine.write(flow, b"pong");
        match round % 3 {
            0 => world.engine.finish(flow),
            1 => {
                world.engine.finish(flow);
                world.run();
                world.host.socket(socket).close();
                world.run();
                assert!(world.read_all(flow).1);
            }
            _ => world.host.socket(socket).abort(),
        }
        world.run();
        world.host.sockets.remove(socket);
        world.events.clear();
    }
    assert_eq!(world.pool.lock().leased, 5000);
    world.assert_empty();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.engine.poll_timeout(), None);
}

#[test]
fn idle_flow_is_small() {
    let entry = size_of::<Entry>();
    let socket = size_of::<smoltcp::iface::SocketStorage<'_>>();
    // A slot, a timer entry, and two hash map entries with their spare room.
    let tables = 8 + 24 + 2 * (size_of::<super::table::Key>() + 8 + 16);
    println!("entry {entry}, socket {socket}, tables {tables}");
    assert!(entry + socket + tables <= 3 * 1024);
}

#[test]
fn reset_never_answers_a_syn_ack_of_a_stranger_with_a_flow() {
    let mut world = World::new(BUFFER);
    let stray = Raw { flags: SYN | ACK, acknowledgment: 9, ..Raw::new(FAR_V4) };
    world.engine.handle_packet(DEVICE, &stray.packet(), world.now);
    assert_eq!(world.engine.stats().strays_reset, 1);
    world.assert_empty();
}
