use whimbrel_common::invite::Token;

use super::*;

const NOW: UnixSeconds = 1_800_000_000;
const DAY: Duration = Duration::from_hours(24);

fn name(text: &str) -> ClientName {
    text.parse().unwrap()
}

fn hash(seed: u8) -> TokenHash {
    Token::from_bytes([seed; 16]).hash()
}

#[test]
fn a_token_enrols_once() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    assert_eq!(invites.redeem(hash(1), NOW + 5), Ok(name("laptop")));
    assert_eq!(invites.redeem(hash(1), NOW + 6), Err(RedeemError::Used));
}

#[test]
fn a_token_expires_to_the_second() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    assert_eq!(invites.redeem(hash(1), NOW + 86_400), Err(RedeemError::Expired));
    assert_eq!(invites.redeem(hash(1), NOW + 86_399), Ok(name("laptop")));
}

#[test]
fn a_guess_is_unknown() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    assert_eq!(invites.redeem(hash(2), NOW), Err(RedeemError::Unknown));
}

#[test]
fn the_last_invite_for_a_name_is_the_one_that_works() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    invites.create(name("phone"), hash(2), NOW, DAY);
    invites.create(name("laptop"), hash(3), NOW, DAY);
    assert_eq!(invites.redeem(hash(1), NOW), Err(RedeemError::Unknown));
    assert_eq!(invites.redeem(hash(2), NOW), Ok(name("phone")));
    assert_eq!(invites.redeem(hash(3), NOW), Ok(name("laptop")));
}

#[test]
fn a_withdrawn_invite_enrols_nobody() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    assert_eq!(invites.withdraw(&name("laptop")), 1);
    assert_eq!(invites.withdraw(&name("laptop")), 0);
    assert_eq!(invites.redeem(hash(1), NOW), Err(RedeemError::Unknown));
}

#[test]
fn the_file_survives_a_round_trip() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    invites.create(name("phone"), hash(2), NOW, DAY);
    invites.redeem(hash(1), NOW + 5).unwrap();
    let text = invites.to_string();
    assert_eq!(text.parse(), Ok(invites));
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn a_damaged_line_is_named() {
    for line in ["laptop", "laptop x 5", "laptop x", "-x y 5"] {
        let text = format!("# comment\n{line}\n");
        assert_eq!(text.parse::<Invites>(), Err(InvitesError { line: 2 }));
    }
    let text = format!("laptop {} 5 6 7\n", hash(1));
    assert_eq!(text.parse::<Invites>(), Err(InvitesError { line: 1 }));
}

#[test]
fn old_invites_are_forgotten_but_recent_ones_are_explained() {
    let mut invites = Invites::default();
    invites.create(name("laptop"), hash(1), NOW, DAY);
    let later = NOW + 86_400 + REMEMBERED.as_secs();
    invites.forget_old(later - 1);
    assert_eq!(invites.redeem(hash(1), later - 1), Err(RedeemError::Expired));
    invites.forget_old(later);
    assert_eq!(invites.redeem(hash(1), later), Err(RedeemError::Unknown));
}
