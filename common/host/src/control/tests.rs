use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::*;

const CHANGES: Changes = &["move"];
const TAKES: Takes = &["run"];

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
        let _server = ControlServer::bind(&socket, CHANGES, TAKES).unwrap();
        assert!(socket.exists());
    });
}

#[test]
fn a_question_gets_its_answer() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
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
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
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
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
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
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
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
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
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
        let server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        let error = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap_err().to_string();
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
        let _server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        let mode = std::fs::metadata(&place.socket).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    });
}

#[test]
fn members_of_the_group_may_ask_and_others_may_not() {
    let policy = server::Policy { own: 1000, group: Some(77), changes: CHANGES, takes: TAKES };
    let peer = |uid, gid, groups: &[u32]| Peer { uid, gid, pid: None, groups: groups.to_vec() };
    for allowed in [peer(0, 0, &[]), peer(1000, 5, &[]), peer(5, 77, &[]), peer(5, 5, &[1, 77])] {
        assert_eq!(policy.check(&allowed, "move", 0), Ok(()));
        assert_eq!(policy.check(&allowed, "status", 0), Ok(()));
    }
    assert_eq!(
        policy.check(&peer(5, 5, &[1000, 0]), "move", 0).unwrap_err(),
        "you may not use `move`: run it as root, or join the group whimbrel \
         (`usermod -aG whimbrel $USER`, then log in again)"
    );
}

/// A socket whose end waits for its peer, for longer than anybody asks.
fn lingering() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(1000))).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    (socket, peer)
}

/// Sends a request of these pieces; with the last goes a lingering socket, of which no other copy is
/// left. The server must not have a turn meanwhile.
fn send_with_socket(socket: &Path, pieces: [&str; 2]) -> (UnixStream, std::net::TcpStream) {
    let (lingering, peer) = lingering();
    let stream = UnixStream::connect(socket).unwrap();
    let [first, last] = pieces.map(str::as_bytes);
    (&stream).write_all(first).unwrap();
    line::send(&stream, last, &[lingering.as_fd()]).unwrap();
    (stream, peer)
}

fn answer_on(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_descriptor_that_does_not_want_to_close_stops_nobody() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        let status = send_with_socket(&place.socket, ["{\"verb\":", "\"status\"}\n"]);
        let run = send_with_socket(&place.socket, ["{\"verb\":", "\"run\"}\n"]);
        let socket = place.socket.clone();
        let asking = spawn_blocking(move || {
            let (refused, answered) = (answer_on(status.0), answer_on(run.0));
            let after = ask(&socket, "status", &Value::Null);
            // Only this lets the sockets of before go.
            drop((status.1, run.1));
            (refused, answered, after)
        });
        let (request, responder) = server.next().await;
        assert_eq!((request.verb.as_str(), request.passed.len()), ("run", 1));
        drop(request);
        responder.reply(Ok(json!("served")));
        server.next().await.1.reply(Ok(Value::Null));
        let (refused, answered, after) = asking.await.unwrap();
        let refusal = "{\"error\":\"\\\"status\\\" takes no descriptors, and 1 came with it\"}\n";
        assert_eq!((refused.as_str(), answered.as_str()), (refusal, "{\"ok\":\"served\"}\n"));
        after.unwrap();
    });
}

#[test]
fn a_descriptor_that_nobody_reads_stops_nobody() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        // More than is read at a time: what follows the line stays where it is.
        let request = format!("{{\"verb\":\"events\"}}\n{}", " ".repeat(8192));
        let unread = send_with_socket(&place.socket, [&request, "more"]);
        let socket = place.socket.clone();
        let asking = spawn_blocking(move || {
            drop(unread.0);
            let after = ask(&socket, "status", &Value::Null);
            drop(unread.1);
            after
        });
        loop {
            let (request, responder) = server.next().await;
            if request.verb == "status" {
                responder.reply(Ok(Value::Null));
                break;
            }
        }
        asking.await.unwrap().unwrap();
    });
}

/// Takes as long to write as whoever holds the other end likes.
struct Slow(std::sync::mpsc::Receiver<u32>);

impl serde::Serialize for Slow {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0.recv().map_err(serde::ser::Error::custom)?)
    }
}

#[test]
fn nobody_waits_for_a_long_answer_of_somebody_else() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        let (go_on, slow) = std::sync::mpsc::channel();
        let socket = place.socket.clone();
        let long = spawn_blocking(move || ask(&socket, "flows", &Value::Null));
        server.next().await.1.reply_long(Slow(slow));
        let socket = place.socket.clone();
        let short = spawn_blocking(move || ask(&socket, "status", &Value::Null));
        server.next().await.1.reply(Ok(json!("fine")));
        assert_eq!(short.await.unwrap().unwrap(), "fine");
        go_on.send(7).unwrap();
        assert_eq!(long.await.unwrap().unwrap(), 7);
    });
}

#[test]
fn whoever_connects_as_a_daemon_ends_is_served_or_finds_nobody() {
    let place = place();
    runtime().block_on(async {
        let mut server = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        // The server's task has not had a turn to notice.
        let line = Line::open(&place.socket).unwrap();
        assert!(!server.retire());
        let asking = spawn_blocking(move || line.ask("status", &Value::Null, &[]));
        server.next().await.1.reply(Ok(json!("here")));
        assert_eq!(asking.await.unwrap().unwrap(), "here");
        while !server.retire() {
            tokio::task::yield_now().await;
        }
        let error = Line::open(&place.socket).unwrap_err();
        assert!(matches!(error, AskError::NotRunning(_)), "{error}");
        let other = ControlServer::bind(&place.socket, CHANGES, TAKES).unwrap();
        drop(server);
        assert!(place.socket.exists(), "it is the other one's");
        drop(other);
    });
}
