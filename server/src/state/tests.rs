use whimbrel_host::Role;

use super::*;

const NOW: UnixSeconds = 1_800_000_000;
const DAY: Duration = Duration::from_hours(24);

/// A folder of its own, gone with the test.
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
    let folder = std::env::temp_dir().join(format!("whimbrel-state-{number:016x}"));
    std::fs::create_dir(&folder).unwrap();
    Place { layout: Layout::for_config(Some(folder.join("gw.toml")), Role::Gateway) }
}

fn name(text: &str) -> ClientName {
    text.parse().unwrap()
}

fn key(seed: u8) -> PublicKey {
    PublicKey::from_bytes([seed; 32])
}

#[test]
fn an_invited_key_is_admitted_also_after_a_restart() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    assert_eq!(state.admit(&key(1)), None);
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    assert_eq!(state.redeem(&token, key(1), NOW).unwrap(), name("laptop"));
    assert_eq!(state.admit(&key(1)), Some(name("laptop")));
    let mut again = State::open(&place.layout).unwrap();
    assert_eq!(again.admit(&key(1)), Some(name("laptop")));
    assert_eq!(again.admit(&key(2)), None);
}

#[test]
fn the_token_is_not_on_disk() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    let text = std::fs::read_to_string(&place.layout.invites).unwrap();
    assert!(text.contains(&token.hash().to_string()));
    let invite = whimbrel_common::invite::Invite {
        host: "gw".to_owned(),
        port: 1,
        gateway_key: key(1),
        token,
    };
    let invite = invite.to_string();
    let (_, shown) = invite.split_once("&t=").unwrap();
    assert!(!text.contains(shown));
}

#[test]
fn a_token_serves_one_key_and_that_one_may_ask_again() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    state.redeem(&token, key(1), NOW).unwrap();
    assert_eq!(state.redeem(&token, key(1), NOW + 1).unwrap(), name("laptop"));
    let error = state.redeem(&token, key(2), NOW + 1).unwrap_err().to_string();
    assert_eq!(error, "the invite was used already; ask for a new one");
}

#[test]
fn a_revoked_key_is_a_stranger_whose_invite_stays_used() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    state.redeem(&token, key(1), NOW).unwrap();
    assert_eq!(state.revoke(&name("laptop")).unwrap(), Some(key(1)));
    assert_eq!(state.admit(&key(1)), None);
    let error = state.redeem(&token, key(1), NOW).unwrap_err();
    assert!(matches!(error, EnrolError::Invite(RedeemError::Used)), "{error}");
}

#[test]
fn revoking_a_guest_withdraws_the_invite() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    assert_eq!(state.revoke(&name("laptop")).unwrap(), None);
    let error = state.redeem(&token, key(1), NOW).unwrap_err();
    assert!(matches!(error, EnrolError::Invite(RedeemError::Unknown)), "{error}");
    let error = state.revoke(&name("laptop")).unwrap_err().to_string();
    assert!(error.starts_with("there is no client laptop; `whimbrel-gateway clients"), "{error}");
}

#[test]
fn an_edit_from_outside_takes_effect_at_once() {
    let place = place();
    let mut running = State::open(&place.layout).unwrap();
    let mut command = State::open(&place.layout).unwrap();
    let token = command.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    running.redeem(&token, key(1), NOW).unwrap();
    command.revoke(&name("laptop")).unwrap();
    // Somebody else may see it first.
    assert_eq!(running.admit(&key(1)), None);
    assert!(running.reload());
    assert!(!running.reload());
}

#[test]
fn a_broken_edit_changes_nothing() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    state.redeem(&token, key(1), NOW).unwrap();
    std::fs::write(&place.layout.clients, "laptop not-a-key\n").unwrap();
    assert!(!state.reload());
    assert_eq!(state.admit(&key(1)), Some(name("laptop")));
    let error = whimbrel_host::exit::sentence(&State::open(&place.layout).unwrap_err());
    assert!(error.contains("line 1 of the clients file"), "{error}");
}

#[test]
fn a_taken_name_is_not_invited_again() {
    let place = place();
    let mut state = State::open(&place.layout).unwrap();
    let token = state.issue_invite(&name("laptop"), DAY, NOW).unwrap();
    state.redeem(&token, key(1), NOW).unwrap();
    let error = state.issue_invite(&name("laptop"), DAY, NOW).unwrap_err().to_string();
    assert!(error.starts_with("there is a client laptop already; run `whimbrel-gateway revoke"));
}
