use super::*;
use crate::keep::tests::Nobody;
use std::net::{TcpListener, TcpStream};

/// Connected sockets in a pair of which nobody but the test knows.
fn filled(tickets: std::ops::Range<u64>) -> (OwnedFd, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (entrance, exit) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    let inside = exit.try_clone().unwrap();
    let pair = Pair { name: "keep-lot-0".to_owned(), entrance, _exit: inside };
    let sockets = tickets
        .map(|generation| {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let ticket = Ticket { slot: 5, generation };
            pair.send(&ticket.to_bytes(), &[socket.as_fd()]).unwrap();
            socket
        })
        .collect();
    (exit, sockets)
}

#[test]
fn what_is_parked_is_found_with_its_ticket_again_and_again() {
    let (exit, sockets) = filled(0..20);
    for _ in 0..2 {
        let duplicate = exit.try_clone().unwrap();
        let (parked, names) = inspect(vec![("keep-lot-0".to_owned(), duplicate)]);
        assert_eq!(names, ["keep-lot-0"]);
        assert_eq!(parked.len(), 20);
        for ((ticket, found), (socket, generation)) in parked.iter().zip(sockets.iter().zip(0..)) {
            assert_eq!(*ticket, Ticket { slot: 5, generation });
            let found = TcpStream::from(found.try_clone().unwrap());
            assert_eq!(found.local_addr().unwrap(), socket.local_addr().unwrap());
        }
    }
}

#[test]
fn damaged_messages_and_strange_descriptors_harm_nothing_else() {
    let (exit, _sockets) = filled(0..1);
    let (entrance, damaged) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    let mut nothing = SendAncillaryBuffer::default();
    let slices = [IoSlice::new(b"no ticket at all, and no socket")];
    rustix::net::sendmsg(&entrance, &slices, &mut nothing, SendFlags::empty()).unwrap();
    let file = rustix::fs::memfd_create("no-socket", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let lots = [file, damaged, exit].map(|descriptor| ("keep-lot-3".to_owned(), descriptor));
    let (parked, names) = inspect(lots.into());
    assert_eq!((parked.len(), names.len()), (1, 3));
}

#[test]
fn names_are_not_used_twice() {
    let old = ["keep-lot-7", "keep-lot-12", "keep-lot-x"].map(str::to_owned);
    let numbers = Numbers::beside(&old);
    assert_eq!((numbers.next(), numbers.clone().next(), numbers.next()), (13, 14, 15));
    assert_eq!(Numbers::beside(&[]).next(), 0);
}

#[test]
fn a_lot_is_littered_by_more_than_it_holds() {
    let mut lot = Lot::new(Numbers::default(), Arc::new(Nobody));
    lot.renewed = 500;
    (0..LITTER + 500).for_each(|_| lot.leave());
    assert!(!lot.is_littered());
    lot.leave();
    assert!(lot.is_littered());
}
