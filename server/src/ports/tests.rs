use super::*;
use std::time::Duration;
use whimbrel_common::cid::{self, INITIAL_CID, ServerId};

/// Sockets of one address, in the order in which the kernel counts them.
fn group(count: usize) -> Vec<UdpSocket> {
    let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut sockets = Vec::new();
    for _ in 0..count {
        let kind = socket2::Type::DGRAM;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        address = socket.local_addr().unwrap();
        sockets.push(socket);
    }
    sockets
}

fn listening(counts: &[usize]) -> Listening {
    let sockets = counts.iter().flat_map(|count| group(*count));
    Listening::open(&[], sockets.map(OwnedFd::from).collect()).unwrap()
}

/// Which sockets a datagram from 16 different ports reaches, each of them once.
fn reached(sockets: &[UdpSocket], datagram: &[u8]) -> Vec<usize> {
    let to = sockets[0].local_addr().unwrap();
    for _ in 0..16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(datagram, to).unwrap();
    }
    let mut reached = Vec::new();
    for (at, socket) in sockets.iter().enumerate() {
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut [0; 2048]).is_ok() {
            reached.push(at);
        }
    }
    assert_eq!(reached.len(), 16, "loopback delivers at once");
    reached.dedup();
    reached
}

fn short(slot: u8) -> Vec<u8> {
    [&[0x40], ServerId { node: 0, slot }.encode([3; 8]).as_slice(), &[0; 40]].concat()
}

fn initial(random: u8) -> Vec<u8> {
    let cid = cid::unroutable([random; INITIAL_CID]);
    [&[0xc0, 0, 0, 0, 1, 12], cid.as_slice(), &[0; 1182]].concat()
}

#[test]
fn the_kernel_finds_the_slot_of_a_datagram_whatever_its_source() {
    let sockets = group(4);
    let scattered = reached(&sockets, &short(2));
    assert!(scattered.len() > 1, "without a program it is the source that counts");
    steer::attach(&sockets[1], 4).unwrap();
    for slot in 0..4 {
        assert_eq!(reached(&sockets, &short(slot)), [usize::from(slot)]);
    }
    for random in 0..20 {
        assert_eq!(reached(&sockets, &initial(random)), [usize::from(random % 4)]);
    }
    assert!(reached(&sockets, &short(9)).len() > 1, "no such socket: as without a program");
    assert_eq!(reached(&sockets, &[0x40, 0]), [0], "too short to tell");
    // The next process has fewer slots.
    steer::attach(&sockets[3], 2).unwrap();
    for slot in 0..4 {
        assert_eq!(reached(&sockets, &short(slot)), [usize::from(slot)]);
        assert_eq!(reached(&sockets, &initial(slot)), [usize::from(slot % 2)]);
    }
}

#[test]
fn there_are_no_more_slots_than_sockets_or_cores() {
    let (one, eight, mixed) = (listening(&[1]), listening(&[8]), listening(&[8, 2]));
    assert_eq!(one.slots(None, 16).unwrap(), 1);
    assert_eq!(eight.slots(None, 16).unwrap(), 8);
    assert_eq!(eight.slots(None, 2).unwrap(), 2);
    assert_eq!(eight.slots(None, 0).unwrap(), 1);
    assert_eq!(mixed.slots(None, 16).unwrap(), 2);
    assert_eq!(eight.slots(NonZeroU8::new(4), 2).unwrap(), 4);
    let error = one.slots(NonZeroU8::new(4), 16).unwrap_err();
    assert!(error.starts_with("`slots = 4` needs 4 sockets of each address, and there is only 1"));
    assert!(error.contains("whimbrel-gateway.socket"), "{error}");
}

#[test]
fn every_socket_belongs_to_a_slot_by_its_position() {
    let sockets = group(5);
    let address = sockets[0].local_addr().unwrap();
    let other = group(3);
    let passed = sockets.iter().chain(&other).map(|socket| socket.try_clone().unwrap().into());
    let listening = Listening::open(&[], passed.collect()).unwrap();
    assert_eq!(listening.addresses(), [address, other[0].local_addr().unwrap()]);
    let split = listening.split(2);
    let numbers = |slot: usize| split[slot].iter().map(|(number, _)| *number).collect::<Vec<_>>();
    assert_eq!(numbers(0), [0, 0, 0, 1, 1]);
    assert_eq!(numbers(1), [0, 0, 1]);
    // The third socket of the first address is the second one of slot 0.
    steer::attach(&sockets[0], 5).unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&short(2), address).unwrap();
    assert!(split[0][1].1.recv(&mut [0; 100]).is_ok());
}
