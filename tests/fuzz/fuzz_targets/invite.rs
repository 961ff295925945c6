//! Invites: the one line a user pastes from anywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whimbrel_common::config::HostPort;
use whimbrel_common::invite::{Invite, InviteError};
use whimbrel_fuzz::{check_message, text};

/// The longest error: 80 characters, each shown as up to ten bytes, and a sentence.
const LONGEST_ERROR: usize = 1024;

fuzz_target!(init: whimbrel_fuzz::seeds::plant("invite"), |bytes: &[u8]| {
    let text = text(bytes);
    match text.parse::<Invite>() {
        Ok(invite) => check_invite(&invite),
        Err(error) => check_refusal(&text, &error),
    }
    match text.parse::<HostPort>() {
        Ok(address) => assert_eq!(address.to_string().parse(), Ok(address)),
        Err(error) => check_message(&error, LONGEST_ERROR),
    }
});

fn check_invite(invite: &Invite) {
    let line = invite.to_string();
    assert_eq!(line.parse().as_ref(), Ok(invite), "written as {line}");
    assert_eq!(invite.gateway().to_string().parse(), Ok(invite.gateway()));
    let (head, token) = line.split_once("&t=").expect("an invite ends with its token");
    let shown = format!("{invite:?}");
    let elsewhere = head.contains(token);
    assert!(elsewhere || !shown.contains(token), "{shown} shows the token");
    // A line that lost its end in a mail never enrols with something else.
    for length in 0..line.len() {
        line[..length].parse::<Invite>().expect_err("half an invite is none");
    }
    assert_eq!(head.parse::<Invite>(), Err(InviteError::MissingToken));
}

fn check_refusal(text: &str, error: &InviteError) {
    check_message(error, LONGEST_ERROR);
    // Whatever is wrong, the message may end in a log: it never says the token.
    let (address, query) = text.split_once('?').unwrap_or_default();
    let token = query.split('&').find_map(|part| part.strip_prefix("t=")).unwrap_or_default();
    // What cannot be a token is no secret: the message shows what is wrong with it.
    let base64url = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if token.len() < 22 || !token.bytes().all(base64url) || address.contains(token) {
        return;
    }
    let said = error.to_string();
    assert!(!said.contains(token), "{said}");
}
