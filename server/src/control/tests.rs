use whimbrel_host::control::Peer;
use whimbrel_host::{Layout, Role};

use super::*;

const NOW: UnixSeconds = 1_800_000_000;

fn facts() -> Facts {
    let public = "gw.example.org:443".parse().unwrap();
    Facts { public, key: key(9), listen: Vec::new(), uptime_s: 5, outlives: true }
}

/// What a slot says that has connections of this client, or none.
fn report(slot: u8, flows: u64) -> Report {
    let connections = u64::from(flows > 0);
    let activity = Activity { flows, connected_s: 10 * flows, ..Activity::default() };
    Report {
        slot: SlotStatus { slot, connections, flows, ..SlotStatus::default() },
        parked: Waiting { sessions: 1, flows: 2 },
        dials: Dials { connected: 3, failed: 1, denied: 0, limited: 4 },
        activities: (flows > 0).then_some((key(1), activity)).into_iter().collect(),
        tx_bytes: 100,
        ..Report::default()
    }
}

fn done(answer: Answer) -> Value {
    match answer {
        Answer::Now(value) => value,
        Answer::Ask(inquiry) => panic!("{inquiry:?}"),
    }
}

struct Place {
    layout: Layout,
}

impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.layout.state).unwrap();
    }
}

fn place() -> Place {
    let number = u64::from_ne_bytes(whimbrel_host::random::bytes().unwrap());
    let folder = std::env::temp_dir().join(format!("whimbrel-control-{number:016x}"));
    std::fs::create_dir(&folder).unwrap();
    Place { layout: Layout::for_config(Some(folder.join("gw.toml")), Role::Gateway) }
}

fn key(seed: u8) -> PublicKey {
    PublicKey::from_bytes([seed; 32])
}

fn request(verb: &str, args: Value) -> Request {
    let peer = Peer { uid: 0, gid: 0, pid: None, groups: Vec::new() };
    Request { verb: verb.to_owned(), args, peer, passed: Vec::new() }
}

#[test]
fn an_invite_enrols_and_a_revocation_ends_the_session() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let asked = request("invite", json!({ "name": "laptop", "valid": "1h" }));
    let answered = done(answer(&asked, &mut state, &facts(), NOW).unwrap());
    let invite: Invite = answered["invite"].as_str().unwrap().parse().unwrap();
    assert_eq!((invite.host.as_str(), invite.gateway_key), ("gw.example.org", key(9)));
    let listed = |reports| {
        let inquiry = Inquiry::Clients;
        conclude(&inquiry, reports, 0, &mut State::open(&place.layout).unwrap(), &facts(), NOW)
    };
    let rows = listed(Vec::new());
    assert_eq!(rows[0]["state"], "invited");
    assert_eq!(rows[0]["invite_expires"], NOW + 3600);

    state.redeem(&invite.token, key(1), NOW).unwrap();
    let rows = listed(vec![report(0, 3), report(1, 0), report(2, 4)]);
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let activity = &rows[0]["activity"];
    assert_eq!((&rows[0]["state"], &activity["flows"]), (&json!("connected"), &json!(7)));
    assert_eq!(activity["connected_s"], 40);

    let asked = request("revoke", json!({ "name": "laptop" }));
    let answered = answer(&asked, &mut state, &facts(), NOW).unwrap();
    let Answer::Ask(inquiry) = answered else { panic!("{answered:?}") };
    assert_eq!(inquiry, Inquiry::CutOff(key(1)));
    assert_eq!(state.admit(&key(1)), None);
    let value = conclude(&inquiry, Vec::new(), 2, &mut state, &facts(), NOW);
    assert_eq!(value, json!({ "enrolled": true, "sessions": 2 }));

    let again = request("invite", json!({ "name": "phone", "valid": "1h" }));
    answer(&again, &mut state, &facts(), NOW).unwrap();
    let asked = request("revoke", json!({ "name": "phone" }));
    let value = done(answer(&asked, &mut state, &facts(), NOW).unwrap());
    assert_eq!(value, json!({ "enrolled": false, "sessions": 0 }));
}

#[test]
fn the_status_adds_up_what_the_slots_say() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let asked = answer(&request("status", Value::Null), &mut state, &facts(), NOW).unwrap();
    let Answer::Ask(inquiry) = asked else { panic!("{asked:?}") };
    let reports = vec![report(2, 4), report(0, 3), report(1, 0)];
    let value = conclude(&inquiry, reports, 0, &mut state, &facts(), NOW);
    let status: Status = serde_json::from_value(value).unwrap();
    assert_eq!((status.connected, status.flows, status.tx_bytes), (2, 7, 300));
    assert_eq!(status.parked, Waiting { sessions: 3, flows: 6 });
    assert_eq!(status.dials, Dials { connected: 9, failed: 3, denied: 0, limited: 12 });
    let slots: Vec<(u8, u64)> = status.slots.iter().map(|slot| (slot.slot, slot.flows)).collect();
    assert_eq!(slots, [(0, 3), (1, 0), (2, 4)]);
}

#[test]
fn bad_requests_get_sentences() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let mut error = |verb: &str, args: Value| {
        answer(&request(verb, args), &mut state, &facts(), NOW).unwrap_err()
    };
    assert_eq!(error("invite", Value::Null), "the request has no \"name\"");
    assert_eq!(error("invite", json!({ "name": "a" })), "the request has no \"valid\"");
    assert_eq!(
        error("invite", json!({ "name": "a", "valid": "0s" })),
        "an invite can be valid from 1s to 365d"
    );
    assert!(
        error("invite", json!({ "name": "../a", "valid": "1h" })).contains("not a client name")
    );
    assert!(error("revoke", json!({ "name": "nobody" })).starts_with("there is no client nobody"));
    assert_eq!(
        error("dance", Value::Null),
        "the running gateway does not know \"dance\"; it may be an older version: restart it"
    );
}
