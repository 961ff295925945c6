use super::*;
use whimbrel_carrier::Stream;
use whimbrel_common::wire::WireFlow;

#[test]
fn a_flow_that_comes_from_another_slot_rests_and_then_gets_its_turn() {
    let destination = "192.0.2.1:443".parse().unwrap();
    let pipe = Pipe::accept(WireFlow(3), Stream::CONTROL, 100);
    let socket = Destination::unconnected(destination).unwrap();
    let mut flow =
        Flow::new((PublicKey::from_bytes([1; 32]), Connection::NONE), pipe, destination, socket);
    flow.dialling = false;
    // It had more to move when it was taken from the slot it was in.
    flow.queued = true;
    flow.settle();
    assert!(flow.parked && !flow.queued);
    assert!(flow.can_read && flow.can_write && flow.closing, "the kernel may not say it again");

    flow.dialling = true;
    flow.settle();
    assert!(!flow.can_write, "what could be written may be the outcome of the dial");
}
