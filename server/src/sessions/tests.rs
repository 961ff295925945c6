use whimbrel_common::config::GatewayConfig;
use whimbrel_gateway_core::limits::Usage;

use super::*;
use crate::usage::SharedUsage;

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn session(id: u8, owner: u8, epoch: u64) -> Session {
    with(usage().bandwidth(key(owner), start()), id, owner, epoch)
}

fn with(bandwidth: SharedBandwidth, id: u8, owner: u8, epoch: u64) -> Session {
    Session::new(SessionId([id; 16]), key(owner), "laptop".parse().unwrap(), epoch, bandwidth)
}

fn usage() -> SharedUsage {
    let public = "gw.example.org:443".parse().unwrap();
    SharedUsage::new(Usage::new(&GatewayConfig::new(&public).limits))
}

fn start() -> Instant {
    Instant::now()
}

#[test]
fn only_its_owner_with_a_higher_epoch_claims_a_session() {
    let mut parked = Parked::default();
    parked.insert(session(1, 1, 5), start());
    let id = SessionId([1; 16]);
    assert!(parked.claim(id, &key(2), 6).is_none(), "another client");
    assert!(parked.claim(id, &key(1), 5).is_none(), "an old epoch");
    assert!(parked.claim(SessionId([9; 16]), &key(1), 6).is_none(), "another session");
    assert!(parked.claim(id, &key(1), 6).is_some());
    assert!(parked.claim(id, &key(1), 7).is_none(), "it is gone");
}

#[test]
fn the_oldest_gives_way_to_the_newest_of_the_same_client() {
    let (mut parked, now) = (Parked::default(), start());
    parked.insert(session(100, 2, 0), now);
    for id in 0..MOST_PARKED {
        let id = u8::try_from(id).unwrap();
        assert!(parked.insert(session(id, 1, 0), now + Duration::from_secs(id.into())).is_empty());
    }
    let given_up = parked.insert(session(50, 1, 0), now + Duration::from_secs(99));
    assert_eq!(given_up.iter().map(|session| session.id).collect::<Vec<_>>(), [SessionId([0; 16])]);
    assert_eq!(parked.iter().count(), MOST_PARKED + 1, "those of others stay");
}

#[test]
fn sessions_wait_as_long_as_they_are_held() {
    let (mut parked, now, hold) = (Parked::default(), start(), Duration::from_secs(10));
    parked.insert(session(1, 1, 0), now);
    parked.insert(session(2, 2, 0), now + Duration::from_secs(5));
    assert_eq!(parked.deadline(hold), Some(now + hold));
    assert!(parked.expire(now + Duration::from_secs(9), hold).is_empty());
    assert_eq!(parked.expire(now + hold, hold).len(), 1);
    assert_eq!(parked.remove_all(&key(2)).len(), 1);
    assert_eq!(parked.deadline(hold), None);
}

#[test]
fn the_longest_parked_of_those_that_keep_something_goes_first() {
    let (mut parked, now) = (Parked::default(), start());
    for (id, held) in [(1, 0), (2, 10), (3, 10)] {
        let at = now + Duration::from_secs(id.into());
        parked.insert(Session { held, ..session(id, id, 0) }, at);
    }
    let mut evicted = || parked.evict().map(|session| session.id);
    assert_eq!(evicted(), Some(SessionId([2; 16])));
    assert_eq!(evicted(), Some(SessionId([3; 16])));
    assert_eq!(evicted(), None, "one that keeps nothing frees nothing");
}

#[test]
fn sessions_of_a_client_share_its_bandwidth_and_no_others_do() {
    const RATE: u64 = 1_000_000;
    let (usage, now) = (usage(), start());
    let open = |id, owner| with(usage.bandwidth(key(owner), now), id, owner, 1);
    let (mut one, mut other, mut stranger) = (open(1, 1), open(2, 1), open(3, 2));
    let (up, down) = one.room(RATE, now);
    one.count(up.unwrap(), down.unwrap());
    assert!(matches!(other.room(RATE, now), (Err(_), Err(_))));
    assert!(matches!(stranger.room(RATE, now), (Ok(_), Ok(_))));
    drop((one, other));
    assert!(open(4, 1).room(RATE, now).0.is_ok(), "nothing is left of a client that is gone");
}
