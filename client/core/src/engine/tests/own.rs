//! Flows that begin here.

use std::net::SocketAddr;

use bytes::BytesMut;

use super::BUFFER;
use super::world::{FAR_V4, HOST_V4, World};
use crate::engine::{FlowEvent, FlowId, Read};

fn originate(world: &mut World) -> FlowId {
    let (source, resolver) = (SocketAddr::from((HOST_V4, 4000)), SocketAddr::from((FAR_V4, 53)));
    let flow = world.engine.originate(source, resolver, b"request").expect("room for a flow");
    world.run();
    assert_eq!(world.opened(), flow);
    flow
}

fn read(world: &mut World, flow: FlowId) -> (Read, BytesMut) {
    let mut bytes = BytesMut::new();
    (world.engine.read(flow, 100, &mut bytes), bytes)
}

#[test]
fn end_of_a_flow_begun_here_is_read_although_the_other_end_came_first() {
    let mut world = World::new(BUFFER);
    let flow = originate(&mut world);
    world.engine.accept(flow, world.now);
    let (first, request) = read(&mut world, flow);
    assert_eq!((first.fin, &request[..]), (false, &b"request"[..]));
    assert_eq!(world.engine.write(flow, b"answer"), 6);
    world.engine.finish(flow);
    assert_eq!(world.engine.received(flow), Some((&b"answer"[..], true)));

    world.engine.hang_up(flow);
    world.run();
    assert_eq!(world.count(FlowEvent::Readable { flow }), 2);
    assert_eq!(world.count(FlowEvent::Closed { flow }), 0);
    assert!(read(&mut world, flow).0.fin);
    world.run();
    assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
    world.assert_empty();
}

#[test]
fn what_comes_after_a_flow_begun_here_was_hung_up_is_taken_and_forgotten() {
    let mut world = World::new(BUFFER);
    let flow = originate(&mut world);
    world.engine.accept(flow, world.now);
    world.engine.hang_up(flow);
    assert!(read(&mut world, flow).0.fin);
    for _ in 0..100 {
        assert_eq!(world.engine.write(flow, &[7; 10_000]), 10_000);
    }
    assert_eq!(world.engine.received(flow), Some((&b""[..], false)));
    world.engine.finish(flow);
    world.run();
    assert_eq!(world.count(FlowEvent::Closed { flow }), 1);
    world.assert_empty();
}

#[test]
fn flow_begun_here_that_nobody_waits_for_any_more_is_reset() {
    for accepted in [false, true] {
        let mut world = World::new(BUFFER);
        let flow = originate(&mut world);
        if accepted {
            world.engine.accept(flow, world.now);
            world.engine.abort(flow);
        } else {
            world.engine.hang_up(flow);
        }
        world.run();
        assert_eq!(world.count(FlowEvent::Reset { flow }), 1);
        assert_eq!(world.count(FlowEvent::Closed { flow }), 0);
        world.assert_empty();
    }
}
