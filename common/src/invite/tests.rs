use proptest::prelude::*;

use super::*;

const KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

fn invite(host: &str) -> Invite {
    Invite {
        host: host.to_owned(),
        port: 443,
        gateway_key: KEY.parse().unwrap(),
        token: Token::from_bytes([7; 16]),
    }
}

fn error(text: &str) -> InviteError {
    text.parse::<Invite>().unwrap_err()
}

#[test]
fn text_is_the_one_people_see() {
    assert_eq!(
        invite("gw.example.org").to_string(),
        format!("whimbrel://gw.example.org:443?k={KEY}&t=BwcHBwcHBwcHBwcHBwcHBw")
    );
}

#[test]
fn names_and_both_families_survive_a_round_trip() {
    for host in ["gw.example.org", "192.0.2.1", "2001:db8::1"] {
        let invite = invite(host);
        assert_eq!(invite.to_string().parse(), Ok(invite));
    }
    assert!(invite("2001:db8::1").to_string().starts_with("whimbrel://[2001:db8::1]:443?"));
}

#[test]
fn surrounding_white_space_is_forgiven() {
    let text = format!("  {}\n", invite("gw.example.org"));
    assert_eq!(text.parse(), Ok(invite("gw.example.org")));
}

#[test]
fn every_truncation_is_an_error_that_is_not_about_the_key_itself() {
    let whole = invite("gw.example.org").to_string();
    for end in 0..whole.len() {
        match error(&whole[..end]) {
            InviteError::Empty
            | InviteError::Scheme
            | InviteError::Gateway(_)
            | InviteError::Truncated(_)
            | InviteError::MissingToken
            | InviteError::Unexpected(_) => {}
            other @ (InviteError::TooLong | InviteError::Key | InviteError::Token) => {
                panic!("{end}: {other}")
            }
        }
    }
}

#[test]
fn errors_say_what_to_do() {
    assert_eq!(error(""), InviteError::Empty);
    assert_eq!(error("https://gw.example.org"), InviteError::Scheme);
    assert_eq!(error(&"x".repeat(600)), InviteError::TooLong);
    let token = "t=BwcHBwcHBwcHBwcHBwcHBw";
    assert_eq!(
        error(&format!("whimbrel://gw.example.org:443?k={}!&{token}", &KEY[..42])),
        InviteError::Key
    );
    assert_eq!(
        error(&format!("whimbrel://gw.example.org:443?k={KEY}")).to_string(),
        "the invite has no token (t=); ask for a new one with `whimbrel-gateway invite`"
    );
    assert_eq!(
        error(&format!("whimbrel://gw.example.org:443?k={KEY}&t=Bwc")).to_string(),
        "the invite is truncated: it ends inside the token; copy the whole line, quoted"
    );
    assert_eq!(
        error(&format!("whimbrel://gw.example.org:443?k={KEY}&t=BwcHBwcHBwcHBwcHBwcHB!")),
        InviteError::Token
    );
    assert_eq!(
        error(&format!("whimbrel://gw.example.org:443?k={KEY}&k={KEY}&{token}")),
        InviteError::Unexpected("k".to_owned())
    );
    assert_eq!(
        error(&format!("whimbrel://gw.example.org?k={KEY}&{token}")).to_string(),
        "the gateway's address in the invite is wrong: \"gw.example.org\" has no port: \
         write host:port, as in gw.example.org:443"
    );
}

#[test]
fn token_is_hidden_and_its_hash_is_sha_256() {
    let token = Token::from_bytes([0; 16]);
    assert_eq!(format!("{token:?}"), "Token(hidden)");
    assert_eq!(token.hash().to_string(), "N0cI__dxndWXnsh11WzSKG9tPPfsMXo7JWMqqyjsN7s");
    assert_eq!(token.hash().to_string().parse(), Ok(token.hash()));
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = text.parse::<Invite>();
        let _ = format!("whimbrel://{text}").parse::<Invite>();
    }

    #[test]
    fn one_wrong_letter_is_refused_or_reads_back_the_same(at in 11usize..100, letter in "[ -~]") {
        let right = invite("gw.example.org");
        let mut text = right.to_string();
        if text.is_char_boundary(at) && at < text.len() {
            text.replace_range(at..=at, &letter);
        }
        // Either it is refused, or it is an invite that reads back as itself.
        if let Ok(read) = text.parse::<Invite>() {
            prop_assert_eq!(read.to_string().parse(), Ok(read));
        }
    }
}
