use super::*;

/// A store that keeps nothing.
#[derive(Debug)]
pub(super) struct Nobody;

impl Store for Nobody {
    fn keep(&self, _: &str, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

/// The keeps of two slots.
fn keeps() -> [Keep; 2] {
    let journal = Journal::create().unwrap();
    let numbers = lot::Numbers::default();
    [0, 1].map(|_| {
        let lot = Lot::new(numbers.clone(), Arc::new(Nobody));
        Keep { journal: journal.clone(), lot, leaving: 0 }
    })
}

/// A flow with its socket parked.
fn parked(keep: &mut Keep, place: Place, number: u64) -> (Shelf, std::net::UdpSocket) {
    let destination = "192.0.2.7:443".parse().unwrap();
    let shelf = keep.open_flow(place, WireFlow(number), destination).unwrap();
    // Any socket will do.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    keep.park(&shelf, socket.as_fd()).unwrap();
    (shelf, socket)
}

#[test]
fn a_slot_tidies_up_only_when_what_left_it_has_arrived() {
    let [mut one, mut other] = keeps();
    let place = one.open_session(SessionId([1; 16]), PublicKey::from_bytes([2; 32])).unwrap();
    let (shelf, socket) = parked(&mut one, place, 1);
    one.part(1);
    for number in 2..2000 {
        let (over, _) = parked(&mut one, place, number);
        one.close_flow(over);
    }
    assert!(!one.is_littered(), "what is under way is parked nowhere else yet");
    other.house(&[(shelf.ticket(), socket.as_fd())]).unwrap();
    one.left(1);
    assert!(one.is_littered());
    one.park_again(std::iter::empty()).unwrap();
    assert!(!one.is_littered());
    // Whoever has it now gives it up in its own books.
    other.close_flow(shelf);
    assert!(!other.is_littered());
}

#[test]
fn slots_do_not_use_each_others_places() {
    let [mut one, mut other] = keeps();
    let key = PublicKey::from_bytes([2; 32]);
    let places = [
        one.open_session(SessionId([1; 16]), key).unwrap(),
        other.open_session(SessionId([2; 16]), key).unwrap(),
    ];
    assert_ne!(places[0], places[1]);
    let destination = "192.0.2.7:443".parse().unwrap();
    let mut shelves = Vec::new();
    for number in 0..50 {
        for (keep, place) in [&mut one, &mut other].into_iter().zip(places) {
            shelves.push(keep.open_flow(place, WireFlow(number), destination).unwrap());
        }
    }
    let mut tickets: Vec<Ticket> = shelves.iter().map(Shelf::ticket).collect();
    tickets.sort_unstable();
    tickets.dedup();
    assert_eq!(tickets.len(), 100);
    // What one gives up the other may have.
    let shelf = shelves.pop().unwrap();
    let given_up = shelf.ticket();
    one.close_flow(shelf);
    let again = other.open_flow(places[1], WireFlow(99), destination).unwrap();
    assert_eq!(again.ticket().slot, given_up.slot);
    assert_ne!(again.ticket(), given_up);
}
