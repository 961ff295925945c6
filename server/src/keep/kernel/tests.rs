use super::*;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A gateway's socket and the destination's end of it.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (destination, _) = listener.accept().unwrap();
    (gateway, destination)
}

/// What the kernel says once it says what is expected; the last it said when it never does.
fn settled(socket: &OwnedFd, ending: bool, expected: Progress) -> Result<Progress, &'static str> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = progress(socket, ending);
        if found == Ok(expected) || Instant::now() > deadline {
            return found;
        }
        std::thread::yield_now();
    }
}

fn expect(socket: &OwnedFd, ending: bool, expected: Progress) {
    assert_eq!(settled(socket, ending, expected), Ok(expected));
}

const NOTHING: Progress = Progress { written: 0, ended: false, read: 0, read_end: false };

#[test]
fn a_fresh_connection_carried_nothing() {
    let (gateway, _destination) = pair();
    expect(&gateway.into(), false, NOTHING);
}

#[test]
fn bytes_count_when_the_process_has_handled_them() {
    let (mut gateway, mut destination) = pair();
    gateway.write_all(&[1; 1000]).unwrap();
    destination.write_all(&[2; 5000]).unwrap();
    gateway.read_exact(&mut [0; 3000]).unwrap();
    let socket = gateway.into();
    expect(&socket, false, Progress { written: 1000, read: 3000, ..NOTHING });
}

#[test]
fn bytes_nobody_acknowledged_yet_were_written() {
    let (gateway, destination) = pair();
    gateway.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = (&gateway).write(&[0; 65536]) {
        written += count as u64;
    }
    expect(&gateway.into(), false, Progress { written, ..NOTHING });
    drop(destination);
}

#[test]
fn an_end_of_ours_is_no_byte() {
    let (mut gateway, mut destination) = pair();
    gateway.write_all(&[1; 10]).unwrap();
    gateway.shutdown(Shutdown::Write).unwrap();
    assert_eq!(destination.read_to_end(&mut Vec::new()).unwrap(), 10);
    let socket = gateway.into();
    expect(&socket, true, Progress { written: 10, ended: true, ..NOTHING });
}

#[test]
fn an_end_of_theirs_is_no_byte_whether_it_was_read_or_not() {
    for read_it in [false, true] {
        let (mut gateway, mut destination) = pair();
        destination.write_all(&[2; 20]).unwrap();
        destination.shutdown(Shutdown::Write).unwrap();
        gateway.read_exact(&mut [0; 5]).unwrap();
        let read = if read_it {
            assert_eq!(gateway.read_to_end(&mut Vec::new()).unwrap(), 15);
            20
        } else {
            5
        };
        let expected = Progress { read, read_end: read_it, ..NOTHING };
        expect(&gateway.into(), false, expected);
    }
}

#[test]
fn a_connection_both_ended_is_complete() {
    let (mut gateway, mut destination) = pair();
    gateway.write_all(&[1; 7]).unwrap();
    destination.write_all(&[2; 9]).unwrap();
    destination.shutdown(Shutdown::Write).unwrap();
    assert_eq!(gateway.read_to_end(&mut Vec::new()).unwrap(), 9);
    gateway.shutdown(Shutdown::Write).unwrap();
    assert_eq!(destination.read_to_end(&mut Vec::new()).unwrap(), 7);
    let expected = Progress { written: 7, ended: true, read: 9, read_end: true };
    expect(&gateway.into(), true, expected);
}

#[test]
fn a_reset_connection_is_no_connection() {
    let (gateway, destination) = pair();
    socket2::SockRef::from(&destination).set_linger(Some(Duration::ZERO)).unwrap();
    drop(destination);
    let socket = gateway.into();
    let deadline = Instant::now() + Duration::from_secs(10);
    while progress(&socket, false).is_ok() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(progress(&socket, false), Err("the destination reset it"));
}
