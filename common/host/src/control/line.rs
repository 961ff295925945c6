//! A request line on its way, and the descriptors that travel with it (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::LONGEST_REQUEST;
use super::foreign::{Connection, Foreign};

/// Descriptors of one request at most: no verb takes more.
const PASSED: usize = 4;

/// Descriptors of one message at most (`SCM_MAX_FD` of the kernel). What there is no room for would
/// be closed by the kernel while it serves us.
const RECEIVED: usize = 253;

/// Writes all of `text`; the descriptors go with its first byte.
pub(super) fn send(stream: &Blocking, text: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(io::Error::other("too many descriptors for one request"));
    }
    // A line is far smaller than the socket's buffer, but nothing promises one piece.
    let mut sent = sendmsg(stream, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    while sent < text.len() {
        let mut none = SendAncillaryBuffer::default();
        sent += sendmsg(stream, &[IoSlice::new(&text[sent..])], &mut none, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Reads up to the first end of a line, or of the stream.
pub(super) async fn receive(connection: &Connection) -> Result<(Vec<u8>, Vec<Foreign>), String> {
    let stream = connection.stream();
    let (mut text, mut passed) = (Vec::new(), Vec::new());
    let failed = |error: io::Error| format!("the request cannot be read: {error}");
    loop {
        stream.readable().await.map_err(failed)?;
        let read = stream.try_io(Interest::READABLE, || take(connection, &mut text, &mut passed));
        if passed.len() > PASSED {
            return Err(format!("more than {PASSED} descriptors came with the request"));
        }
        match read {
            Ok(0) => return Ok((text, passed)),
            Ok(_) if text.contains(&b'\n') => return Ok((text, passed)),
            Ok(_) if text.len() > LONGEST_REQUEST => {
                return Err(format!("the request is longer than {LONGEST_REQUEST} bytes"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Resolves when the peer has closed its end, or says more than its one line.
pub(super) async fn over(stream: &UnixStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        // Reading would let go, here, of descriptors that came along.
        let look = || Ok(recv(stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?);
        match stream.try_io(Interest::READABLE, look) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn take(
    connection: &Connection,
    text: &mut Vec<u8>,
    passed: &mut Vec<Foreign>,
) -> io::Result<usize> {
    let mut piece = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RECEIVED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let stream = connection.stream();
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            let slot = connection.slot();
            passed.extend(descriptors.map(|fd| Foreign::new(fd, Arc::clone(slot))));
        }
    }
    text.extend_from_slice(&piece[..message.bytes]);
    Ok(message.bytes)
}
