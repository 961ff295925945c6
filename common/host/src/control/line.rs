//! A request line on its way, and the descriptors that travel with it (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::LONGEST_REQUEST;

/// Descriptors of one request at most: no verb takes more.
const PASSED: usize = 4;

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
pub(super) async fn receive(stream: &UnixStream) -> Result<(Vec<u8>, Vec<OwnedFd>), String> {
    let (mut text, mut passed) = (Vec::new(), Vec::new());
    let failed = |error: io::Error| format!("the request cannot be read: {error}");
    loop {
        stream.readable().await.map_err(failed)?;
        let read = stream.try_io(Interest::READABLE, || take(stream, &mut text, &mut passed));
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
        if passed.len() > PASSED {
            return Err(format!("more than {PASSED} descriptors came with the request"));
        }
    }
}

fn take(stream: &UnixStream, text: &mut Vec<u8>, passed: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut piece = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            passed.extend(descriptors);
        }
    }
    text.extend_from_slice(&piece[..message.bytes]);
    Ok(message.bytes)
}
