use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::*;

const CHANGES: Changes = &["move"];

struct Place {
    _folder: tempfile::TempDir,
    socket: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("gateway.sock");
    Place { _folder: folder, socket }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Sends `bytes` as they are and returns everything that comes back.
fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_folder_of_the_socket_is_made() {
    let place = place();
    let socket = place.socket.with_file_name("run").join("client.sock");
    runtime().block_on(async {
        let _server = ControlServer::bind(&socket, CHANGES).unwrap();
        assert!(socket.exists());
    });
}

#[test]
fn a_question_gets_its_answer() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        let socket = place.socket.clone();
        let asking = spawn_blocking(move || ask(&socket, "move", &json!({ "link": "wlan0" })));
        let (request, responder) = server.next().await;
        assert_eq!((request.verb.as_str(), &request.args["link"]), ("move", &json!("wlan0")));
        assert_eq!(request.peer.uid, rustix::process::geteuid().as_raw());
        responder.reply(Ok(json!({ "moved": true })));
        assert_eq!(asking.await.unwrap().unwrap(), json!({ "moved": true }));
    });
}

#[test]
fn a_refusal_is_told_as_it_is() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        let socket = place.socket.clone();
        let asking = spawn_blocking(move || ask(&socket, "dance", &Value::Null));
        let (_, responder) = server.next().await;
        responder.reply(Err("I do not dance".to_owned()));
        assert_eq!(asking.await.unwrap().unwrap_err().to_string(), "I do not dance");
    });
}

#[test]
fn a_subscriber_gets_every_line_until_it_hangs_up() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        let socket = place.socket.clone();
        let following = spawn_blocking(move || {
            let mut seen = Vec::new();
            follow(&socket, "events", &Value::Null, |value| {
                seen.push(value);
                if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .map(|()| seen)
        });
        let (_, responder) = server.next().await;
        let subscription = responder.subscribe();
        for number in 0..3 {
            assert!(subscription.push(&json!(number)));
        }
        assert_eq!(following.await.unwrap().unwrap(), [json!(0), json!(1), json!(2)]);
        while !subscription.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(!subscription.push(&json!(3)));
    });
}

#[test]
fn a_daemon_that_drops_a_request_is_stopping() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        let socket = place.socket.clone();
        let asking = spawn_blocking(move || ask(&socket, "status", &Value::Null));
        drop(server.next().await);
        let error = asking.await.unwrap().unwrap_err().to_string();
        assert_eq!(error, "the daemon is stopping; try again when it runs");
    });
}

#[test]
fn garbage_gets_an_error_line_and_harms_nobody() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        for garbage in [
            b"hello\n".to_vec(),
            b"\xff\xfe\0\n".to_vec(),
            b"{}\n".to_vec(),
            b"[1,2]\n".to_vec(),
            b"{\"verb\": 1}\n".to_vec(),
            b"{\"verb\": \"status\", \"extra\": 1}\n".to_vec(),
            vec![b'['; LONGEST_REQUEST],
            vec![b'x'; LONGEST_REQUEST + 1],
        ] {
            let socket = place.socket.clone();
            let answer = spawn_blocking(move || {
                let mut garbage = garbage;
                if !garbage.ends_with(b"\n") && garbage.len() <= LONGEST_REQUEST {
                    garbage.pop();
                    garbage.push(b'\n');
                }
                exchange(&socket, &garbage)
            });
            let answer = answer.await.unwrap();
            assert!(answer.starts_with("{\"error\":\"the request is "), "{answer}");
        }
        let socket = place.socket.clone();
        let asking = spawn_blocking(move || ask(&socket, "status", &Value::Null));
        server.next().await.1.reply(Ok(Value::Null));
        asking.await.unwrap().unwrap();
    });
}

#[test]
fn nobody_listening_is_not_running() {
    let place = place();
    let error = ask(&place.socket, "status", &Value::Null).unwrap_err();
    assert!(matches!(error, AskError::NotRunning(_)), "{error}");
    drop(std::os::unix::net::UnixListener::bind(&place.socket).unwrap());
    let error = ask(&place.socket, "status", &Value::Null).unwrap_err();
    assert!(matches!(error, AskError::NotRunning(_)), "{error}");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let place = place();
    drop(std::os::unix::net::UnixListener::bind(&place.socket).unwrap());
    runtime().block_on(async {
        let server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        let error = ControlServer::bind(&place.socket, CHANGES).unwrap_err().to_string();
        assert!(error.starts_with("another instance is running"), "{error}");
        drop(server);
        assert!(!place.socket.exists());
    });
}

#[test]
fn strangers_cannot_connect() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = place();
    runtime().block_on(async {
        let _server = ControlServer::bind(&place.socket, CHANGES).unwrap();
        let mode = std::fs::metadata(&place.socket).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    });
}

#[test]
fn members_of_the_group_may_ask_and_others_may_not() {
    let policy = server::Policy { own: 1000, group: Some(77), changes: CHANGES };
    let peer = |uid, gid, groups: &[u32]| Peer { uid, gid, pid: None, groups: groups.to_vec() };
    for allowed in [peer(0, 0, &[]), peer(1000, 5, &[]), peer(5, 77, &[]), peer(5, 5, &[1, 77])] {
        assert_eq!(policy.check(&allowed, "move"), Ok(()));
        assert_eq!(policy.check(&allowed, "status"), Ok(()));
    }
    assert_eq!(
        policy.check(&peer(5, 5, &[1000, 0]), "move").unwrap_err(),
        "you may not use `move`: run it as root, or join the group whimbrel \
         (`usermod -aG whimbrel $USER`, then log in again)"
    );
}
