use proptest::prelude::*;

use super::*;

const ONE: Association = Association(1);

#[expect(clippy::disallowed_methods, reason = "an arbitrary start of a virtual clock")]
fn start() -> Instant {
    Instant::now()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn after(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

fn opened(remote: &str) -> (Associations, Instant) {
    let (mut table, now) = (Associations::default(), start());
    assert_eq!(table.send(ONE, address(remote), now), Way::New);
    assert_eq!(table.open(ONE, OutletNumber(7), address(remote), now), None);
    (table, now)
}

#[test]
fn an_association_keeps_its_port_whatever_it_sends_to() {
    let (mut table, now) = opened("192.0.2.1:443");
    for remote in ["192.0.2.1:443", "192.0.2.1:53", "198.51.100.9:1"] {
        assert_eq!(table.send(ONE, address(remote), now), Way::Open(OutletNumber(7)));
    }
    assert_eq!(table.len(), 1);
}

#[test]
fn only_whom_it_has_sent_to_may_answer_from_any_port() {
    let (mut table, now) = opened("192.0.2.1:443");
    let stranger = address("198.51.100.9:443").ip();
    assert!(table.admits(ONE, address("192.0.2.1:9").ip()));
    assert!(!table.admits(ONE, stranger) && !table.admits(Association(2), stranger));
    table.send(ONE, address("198.51.100.9:1"), now);
    assert!(table.admits(ONE, stranger));
}

#[test]
fn who_is_denied_now_may_not_answer_any_more() {
    let (mut table, now) = opened("192.0.2.1:443");
    table.send(ONE, address("198.51.100.9:1"), now);
    table.retain_remotes(|remote| remote != address("192.0.2.1:0").ip());
    assert!(!table.admits(ONE, address("192.0.2.1:443").ip()));
    assert!(table.admits(ONE, address("198.51.100.9:1").ip()));
}

#[test]
fn what_the_client_sends_keeps_a_port_for_five_minutes() {
    let (mut table, now) = opened("192.0.2.1:443");
    assert_eq!(table.expire(after(now, 299)), []);
    table.send(ONE, address("192.0.2.1:443"), after(now, 200));
    assert_eq!(table.expire(after(now, 499)), []);
    assert_eq!(table.deadline(), Some(after(now, 500)));
    assert_eq!(table.expire(after(now, 500)), [OutletNumber(7)]);
    assert!(table.is_empty());
    assert_eq!(table.deadline(), None);
}

#[test]
fn an_echo_keeps_its_identifier_for_a_minute_and_is_no_datagram() {
    let (mut table, now) = opened("192.0.2.1:0");
    assert_eq!(table.send(ONE, address("198.51.100.9:0"), now), Way::Open(OutletNumber(7)));
    assert_eq!(table.send(ONE, address("192.0.2.1:443"), now), Way::Impossible);
    assert!(table.admits(ONE, address("198.51.100.9:0").ip()));
    assert_eq!(table.expire(after(now, 59)), []);
    assert_eq!(table.expire(after(now, 60)), [OutletNumber(7)]);
    let (mut table, now) = opened("192.0.2.1:443");
    assert_eq!(table.send(ONE, address("192.0.2.1:0"), now), Way::Impossible);
}

#[test]
fn a_question_to_a_server_of_the_other_family_gets_another_port() {
    let (mut table, now) = opened("192.0.2.1:53");
    let (near, other) = (address("198.51.100.9:53"), address("[2001:db8::1]:53"));
    assert_eq!(table.change_family(ONE, near), None, "this port does");
    assert_eq!(table.send(ONE, other, now), Way::Impossible);
    assert_eq!(table.change_family(ONE, other), Some(OutletNumber(7)));
    assert_eq!(table.send(ONE, other, now), Way::New);
    let (mut table, _) = opened("192.0.2.1:443");
    assert_eq!(table.change_family(ONE, other), None, "it has more to lose than a question");
}

#[test]
fn a_question_to_a_name_server_keeps_a_port_for_seconds() {
    let (mut table, now) = opened("192.0.2.1:53");
    assert_eq!(table.deadline(), Some(now + QUESTION));
    // As soon as it is more than that, it lives as long as any other.
    table.send(ONE, address("192.0.2.1:443"), now);
    assert_eq!(table.deadline(), Some(now + LIFETIME));
    table.send(ONE, address("192.0.2.1:53"), after(now, 5));
    assert_eq!(table.deadline(), Some(after(now, 5) + LIFETIME));
}

#[test]
fn an_association_is_of_one_family() {
    let (mut table, now) = opened("192.0.2.1:443");
    assert_eq!(table.send(ONE, address("[2001:db8::1]:443"), now), Way::Impossible);
    assert!(!table.admits(ONE, address("[2001:db8::1]:443").ip()));
}

#[test]
fn a_full_table_gives_up_whose_time_is_up_first() {
    let (mut table, now) = (Associations::with_room_for(2), start());
    let remote = address("192.0.2.1:443");
    assert_eq!(table.open(Association(1), OutletNumber(1), remote, now), None);
    assert_eq!(table.open(Association(2), OutletNumber(2), remote, after(now, 1)), None);
    table.send(Association(1), remote, after(now, 2));
    assert_eq!(
        table.open(Association(3), OutletNumber(3), remote, after(now, 3)),
        Some(OutletNumber(2))
    );
    assert_eq!(table.outlets().collect::<Vec<_>>(), [OutletNumber(1), OutletNumber(3)]);
}

#[test]
fn so_many_may_answer_and_the_oldest_is_forgotten() {
    let (mut table, now) = opened("192.0.2.1:443");
    for last in 0..MOST_REMOTES {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(last).unwrap());
        table.send(ONE, SocketAddr::new(ip.into(), 1), after(now, 1 + last as u64));
    }
    assert!(!table.admits(ONE, address("192.0.2.1:443").ip()));
    assert!(table.admits(ONE, address("10.0.0.0:1").ip()));
}

#[derive(Debug, Clone)]
enum Act {
    Send { association: u64, port: u16, v4: bool },
    Wait { seconds: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..12_u64, prop_oneof![Just(53_u16), Just(443), Just(0)], any::<bool>())
            .prop_map(|(association, port, v4)| Act::Send { association, port, v4 }),
        1 => (0..400_u64).prop_map(|seconds| Act::Wait { seconds }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_ports_are_bounded_and_given_back_once(
        acts in prop::collection::vec(act(), 0..200)
    ) {
        let (mut table, mut now) = (Associations::with_room_for(8), start());
        let (mut open, mut next) = (BTreeSet::new(), 0);
        for act in acts {
            let gone: Vec<OutletNumber> = match act {
                Act::Wait { seconds } => {
                    now = after(now, seconds);
                    table.expire(now)
                }
                Act::Send { association, port, v4 } => {
                    let association = Association(association);
                    let ip = if v4 { "192.0.2.1" } else { "2001:db8::1" };
                    let remote = SocketAddr::new(ip.parse().unwrap(), port);
                    match table.send(association, remote, now) {
                        Way::Open(outlet) => {
                            prop_assert!(open.contains(&outlet));
                            prop_assert!(table.admits(association, remote.ip()));
                            Vec::new()
                        }
                        Way::Impossible => Vec::new(),
                        Way::New => {
                            next += 1;
                            open.insert(OutletNumber(next));
                            table.open(association, OutletNumber(next), remote, now).into_iter().collect()
                        }
                    }
                }
            };
            for outlet in gone {
                prop_assert!(open.remove(&outlet), "given back twice");
            }
            prop_assert!(table.len() <= 8);
            prop_assert_eq!(table.len(), open.len());
            let mut outlets: Vec<OutletNumber> = table.outlets().collect();
            outlets.sort_unstable();
            prop_assert_eq!(outlets, open.iter().copied().collect::<Vec<_>>());
            prop_assert!(table.deadline().is_none_or(|deadline| deadline > now) || !table.is_empty());
        }
        prop_assert_eq!(table.expire(now + LIFETIME).len(), open.len());
    }
}
