use std::io::{Read as _, Write as _};

use serde_json::json;
use tokio::task::spawn_blocking;

use super::*;
use crate::control::ControlServer;

fn get(line: &str, host: &str) -> String {
    format!("{line}\r\nHost: {host}\r\nAccept: */*\r\n\r\n")
}

#[test]
fn a_scraper_is_answered_and_nobody_else() {
    let good = ["127.0.0.1:9464", "localhost:9464", "[::1]:9464", "localhost", "127.0.0.1"];
    for host in good {
        assert_eq!(judge(&get("GET /metrics HTTP/1.1", host)), Ok(()), "{host}");
    }
    assert_eq!(judge("GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Ok(()));
    for host in ["evil.example", "evil.example:9464", "10.0.0.1:9464", "127.0.0.1.evil.example", ""]
    {
        let answer = judge(&get("GET /metrics HTTP/1.1", host));
        assert_eq!(answer, Err("403 Forbidden"), "{host}");
    }
    let own = "127.0.0.1";
    assert_eq!(judge(&get("GET / HTTP/1.1", own)), Err("404 Not Found"));
    assert_eq!(judge(&get("POST /metrics HTTP/1.1", own)), Err("405 Method Not Allowed"));
    let twice = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\n\r\n";
    for bad in [
        "",
        "GET /metrics HTTP/1.1\r\n",
        "GET /metrics HTTP/1.1\r\n\r\n",
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET / SPDY\r\n\r\n",
        twice,
    ] {
        assert_eq!(judge(bad), Err("400 Bad Request"), "{bad:?}");
    }
}

#[test]
fn the_process_knows_itself() {
    let process = process();
    assert!(process.resident > 1 << 20, "{process:?}");
    assert!(process.descriptors > 2, "{process:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(process.started < now && now - process.started < Duration::from_hours(24));
}

fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_daemon_answers_at_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut control = ControlServer::bind(&folder.path().join("x.sock"), &[]).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = MetricsServer::open(any, control.asker()).unwrap();
        let address = port.address();
        assert!(MetricsServer::open(address, control.asker()).is_err(), "two on one port");

        let request = get("GET /metrics HTTP/1.1", "localhost");
        let asking = spawn_blocking(move || exchange(address, &request));
        let (request, responder) = control.next().await;
        assert_eq!(request.verb, VERB);
        responder.reply(Ok(json!({ "text": "bird_steps_total 1\n" })));
        let answer = asking.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
        assert!(answer.ends_with("\r\n\r\nbird_steps_total 1\n"), "{answer}");

        for (line, host, status) in [
            ("GET / HTTP/1.1", "localhost", "404 "),
            ("DELETE /metrics HTTP/1.1", "localhost", "405 Method Not Allowed\r\nContent-Type"),
            ("GET /metrics HTTP/1.1", "rebound.example", "403 "),
        ] {
            let request = get(line, host);
            let answer = spawn_blocking(move || exchange(address, &request)).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert_eq!(answer.contains("\r\nAllow: GET, HEAD\r\n"), line.starts_with("DELETE"));
            assert!(!answer.contains("bird_steps"), "{answer}");
        }
        let endless = "x".repeat(LONGEST_REQUEST + 1);
        let asking = spawn_blocking(move || exchange(address, &endless));
        assert!(asking.await.unwrap().starts_with("HTTP/1.1 400 "));
    });
}

#[test]
fn who_says_nothing_or_never_comes_to_an_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut control = ControlServer::bind(&folder.path().join("x.sock"), &[]).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = MetricsServer::open(any, control.asker()).unwrap();
        let address = port.address();
        // As many as are served at once. Half of them send a header without an end, a byte now and then.
        let connect = |_| std::net::TcpStream::connect(address).unwrap();
        let mut loris: Vec<_> = (0..CONNECTIONS).map(connect).collect();
        let request = get("GET /metrics HTTP/1.1", "localhost");
        let asking = spawn_blocking(move || exchange(address, &request));
        let dripping = spawn_blocking(move || {
            while loris.iter_mut().step_by(2).any(|stream| stream.write_all(b"x").is_ok()) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let (_, responder) = control.next().await;
        responder.reply(Ok(json!({ "text": "bird_steps_total 1\n" })));
        assert!(asking.await.unwrap().ends_with("bird_steps_total 1\n"));
        dripping.await.unwrap();
    });
}
