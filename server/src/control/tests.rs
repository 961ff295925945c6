use whimbrel_host::control::Peer;
use whimbrel_host::{Layout, Role};

use super::*;

const NOW: UnixSeconds = 1_800_000_000;

/// A daemon with one connected client.
struct Model {
    connected: Option<PublicKey>,
}

impl Running for Model {
    fn identity(&self) -> (HostPort, PublicKey) {
        ("gw.example.org:443".parse().unwrap(), key(9))
    }

    fn status(&self) -> Status {
        Status { state: "running".to_owned(), connected: 1, ..Status::default() }
    }

    fn activity(&self, key: &PublicKey) -> Option<Activity> {
        (self.connected == Some(*key)).then(|| Activity { flows: 3, ..Activity::default() })
    }

    fn cut_off(&mut self, key: &PublicKey) -> usize {
        usize::from(self.connected.take_if(|connected| connected == key).is_some())
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
    Request { verb: verb.to_owned(), args, peer }
}

#[test]
fn an_invite_enrols_and_a_revocation_ends_the_session() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let mut model = Model { connected: Some(key(1)) };
    let asked = request("invite", json!({ "name": "laptop", "valid": "1h" }));
    let answered = answer(&asked, &mut state, &mut model, NOW).unwrap();
    let invite: Invite = answered["invite"].as_str().unwrap().parse().unwrap();
    assert_eq!((invite.host.as_str(), invite.gateway_key), ("gw.example.org", key(9)));
    let listed = answer(&request("clients", Value::Null), &mut state, &mut model, NOW).unwrap();
    assert_eq!(listed[0]["state"], "invited");
    assert_eq!(listed[0]["invite_expires"], NOW + 3600);

    state.redeem(&invite.token, key(1), NOW).unwrap();
    let listed = answer(&request("clients", Value::Null), &mut state, &mut model, NOW).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(
        (&listed[0]["state"], &listed[0]["activity"]["flows"]),
        (&json!("connected"), &json!(3))
    );
    let status = answer(&request("status", Value::Null), &mut state, &mut model, NOW).unwrap();
    assert_eq!((&status["clients"], &status["state"]), (&json!(1), &json!("running")));

    let asked = request("revoke", json!({ "name": "laptop" }));
    let answered = answer(&asked, &mut state, &mut model, NOW).unwrap();
    assert_eq!(answered, json!({ "enrolled": true, "sessions": 1 }));
    assert_eq!(model.connected, None);
    assert_eq!(state.admit(&key(1)), None);
}

#[test]
fn bad_requests_get_sentences() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let mut model = Model { connected: None };
    let mut error = |verb: &str, args: Value| {
        answer(&request(verb, args), &mut state, &mut model, NOW).unwrap_err()
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
