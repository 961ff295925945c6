use whimbrel_host::control::Peer;

use super::*;
use crate::report::{CaptureState, DatagramReport, EventKind, FlowCounts, SessionState};

/// A daemon that notes what it was told.
#[derive(Default)]
struct Model {
    events: Events,
    told: Vec<String>,
}

impl Running for Model {
    fn status(&mut self) -> Status {
        Status {
            state: SessionState::Attached,
            gateway: "gw.example.org:443".to_owned(),
            session: None,
            paths: Vec::new(),
            flows: FlowCounts { open: 2, held: 0 },
            datagrams: DatagramReport::default(),
            names: crate::report::NamesReport::default(),
            moves: 0,
            last_move: None,
            capture: CaptureState::On,
            pause_left_s: None,
            version: "0.1.0".to_owned(),
            uptime_s: 1,
            trouble: None,
            runs: Vec::new(),
            cgroup_trouble: None,
            trouble_kind: None,
            sleep: None,
        }
    }

    fn flows(&self) -> Vec<FlowReport> {
        Vec::new()
    }

    fn metrics(&mut self) -> String {
        "whimbrel_steps_total 1\n".to_owned()
    }

    fn trace(&mut self, responder: Responder) {
        responder.reply(Ok(json!({})));
    }

    fn events(&mut self) -> &mut Events {
        &mut self.events
    }

    fn relocate(&mut self, to: Target) -> Result<String, String> {
        self.told.push(format!("{to:?}"));
        Ok("moving".to_owned())
    }

    fn pause(&mut self, duration: Option<Duration>) -> Result<String, String> {
        self.told.push(format!("{duration:?}"));
        Ok("paused".to_owned())
    }

    fn run(&mut self, passed: Passed) -> Result<Welcome, String> {
        self.told.push(format!("{:?}", passed.owner));
        Ok(Welcome {})
    }

    fn lead(&mut self, grouped: Grouped) -> Result<Welcome, String> {
        self.told.push(format!("{:?} {}", grouped.owner, grouped.way));
        Ok(Welcome {})
    }

    fn resume(&mut self) -> Result<String, String> {
        Err("nothing to resume".to_owned())
    }
}

fn ask(model: &mut Model, verb: &str, args: Value) -> Result<Value, String> {
    let peer = Peer { uid: 0, gid: 0, pid: None, groups: Vec::new() };
    reply(Request { verb: verb.to_owned(), args, peer, passed: Vec::new() }, model)
}

fn event(at: u64) -> Event {
    Event { at, event: EventKind::Wake, text: "awake".to_owned(), link: None, moved: None }
}

#[test]
fn status_has_the_fields_that_scripts_rely_on() {
    let status = ask(&mut Model::default(), "status", Value::Null).unwrap();
    assert_eq!(status["state"], "attached");
    assert_eq!(status["flows"], json!({ "open": 2, "held": 0 }));
    for field in ["gateway", "session", "paths", "moves", "last_move"] {
        assert!(status.get(field).is_some(), "{field}");
    }
}

#[test]
fn orders_reach_the_daemon_as_they_were_given() {
    let mut model = Model::default();
    ask(&mut model, "move", json!({ "link": "wlan0" })).unwrap();
    ask(&mut model, "move", json!({ "link": null })).unwrap();
    ask(&mut model, "pause", json!({ "duration": "10m" })).unwrap();
    ask(&mut model, "pause", Value::Null).unwrap();
    assert_eq!(model.told, ["Link(InterfaceName(\"wlan0\"))", "Auto", "Some(600s)", "None"]);
    assert_eq!(ask(&mut model, "resume", Value::Null).unwrap_err(), "nothing to resume");
}

#[test]
fn bad_orders_get_sentences() {
    let mut model = Model::default();
    let mut error = |verb: &str, args: Value| ask(&mut model, verb, args).unwrap_err();
    assert!(error("move", json!({ "link": "a/b" })).contains("is not an interface name"));
    assert!(error("move", json!({ "link": 7 })).starts_with("\"link\" is a number"));
    assert!(error("pause", json!({ "duration": "soon" })).contains("is not a duration"));
    assert!(error("pause", json!({ "duration": [] })).starts_with("\"duration\" is a list"));
    assert!(error("dance", Value::Null).starts_with("the running daemon does not know \"dance\""));
    assert!(model.told.is_empty());
}

#[test]
fn old_events_make_room() {
    let mut model = Model::default();
    for at in 0..1005 {
        model.events.record(event(at));
    }
    let events = ask(&mut model, "events", Value::Null).unwrap();
    assert_eq!(events.as_array().unwrap().len(), EVENTS_KEPT);
    assert_eq!(events[0]["at"], 5);
    assert_eq!(events[0]["event"], "wake");
    let events = ask(&mut model, "events", json!({ "last": 2 })).unwrap();
    assert_eq!((events[0]["at"].as_u64(), events[1]["at"].as_u64()), (Some(1003), Some(1004)));
}
