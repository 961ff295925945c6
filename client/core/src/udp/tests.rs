use super::*;

const TUN: DeviceId = DeviceId(0);

#[expect(clippy::disallowed_methods, reason = "an arbitrary start of a virtual clock")]
fn start() -> Instant {
    Instant::now()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn source(port: u16) -> Source {
    let address = SocketAddr::new([10, 0, 0, 2].into(), port);
    Source { device: TUN, protocol: Protocol::Udp, address }
}

#[test]
fn an_endpoint_has_one_association_whatever_it_sends_to() {
    let (mut table, now) = (Associations::new(7), start());
    let one = table.send(source(1), address("192.0.2.1:53"), 10, now);
    let other = table.send(source(1), address("192.0.2.2:99"), 10, now);
    assert_eq!(one, other);
    assert_ne!(one, table.send(source(2), address("192.0.2.1:53"), 10, now));
    assert_ne!(
        one,
        table.send(Source { device: DeviceId(1), ..source(1) }, address("192.0.2.1:53"), 10, now)
    );
    assert_eq!(table.find(one).unwrap().destination, address("192.0.2.2:99"));
    let echo = Source { protocol: Protocol::Echo, ..source(1) };
    assert_ne!(one, table.send(echo, address("192.0.2.1:0"), 10, now), "a port is no identifier");
}

#[test]
fn what_nobody_asked_for_finds_nobody() {
    let (mut table, now) = (Associations::new(7), start());
    assert_eq!(table.receive(Association(1), 5), None);
    let one = table.send(source(1), address("192.0.2.1:53"), 10, now);
    let entry = table.receive(one, 5).unwrap();
    assert_eq!((entry.source, entry.received_bytes), (source(1), 5));
    table.expire(now + LIFETIME);
    assert_eq!(table.receive(one, 5), None);
}

#[test]
fn sending_keeps_an_endpoint_and_receiving_does_not() {
    let (mut table, now) = (Associations::new(7), start());
    let one = table.send(source(1), address("192.0.2.1:53"), 10, now);
    let later = now + LIFETIME / 2;
    assert_eq!(table.send(source(1), address("192.0.2.1:53"), 10, later), one);
    table.expire(now + LIFETIME);
    assert!(table.receive(one, 1).is_some());
    assert_eq!(table.deadline(), Some(later + LIFETIME));
    table.expire(later + LIFETIME);
    assert!(table.is_empty());
    assert_eq!(table.deadline(), None);
}

#[test]
fn numbers_are_never_used_again() {
    let (mut table, now) = (Associations::new(7), start());
    let one = table.send(source(1), address("192.0.2.1:53"), 10, now);
    table.expire(now + LIFETIME);
    assert!(table.send(source(1), address("192.0.2.1:53"), 10, now + LIFETIME) > one);
}

#[test]
fn a_full_table_forgets_whoever_was_silent_longest() {
    let (mut table, now) = (Associations::with_room_for(3), start());
    let second = |seconds| now + Duration::from_secs(seconds);
    let numbers: Vec<Association> = (1..=3)
        .map(|port| table.send(source(port), address("192.0.2.1:53"), 1, second(port.into())))
        .collect();
    table.send(source(1), address("192.0.2.1:53"), 1, second(10));
    table.send(source(4), address("192.0.2.1:53"), 1, second(11));
    assert_eq!(table.len(), 3);
    assert!(table.find(numbers[1]).is_none(), "the second was silent longest");
    assert!(table.find(numbers[0]).is_some() && table.find(numbers[2]).is_some());
    assert_eq!(table.used_since(second(10)).count(), 2);
}

#[test]
fn a_device_that_goes_takes_its_endpoints_with_it() {
    let (mut table, now) = (Associations::new(7), start());
    table.send(source(1), address("192.0.2.1:53"), 1, now);
    let other =
        table.send(Source { device: DeviceId(7), ..source(1) }, address("192.0.2.1:53"), 1, now);
    table.remove_device(TUN);
    assert_eq!(table.iter().map(|(association, _)| association).collect::<Vec<_>>(), [other]);
}
