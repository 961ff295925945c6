//! Files that hold keys: key files, the gateway's list of clients and its list of invites.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use whimbrel_common::identity::{ClientName, PublicKey, SecretKey};
use whimbrel_common::invite::TokenHash;
use whimbrel_fuzz::{Input, check_message, text};
use whimbrel_gateway_core::clients::{Client, Clients, Options};
use whimbrel_gateway_core::invites::{Invites, REMEMBERED, RedeemError};

/// The longest error: a word of 80 characters, each shown as up to ten bytes, and a sentence.
const LONGEST_ERROR: usize = 1024;

fuzz_target!(init: whimbrel_fuzz::seeds::plant("keys"), |bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    match kind % 4 {
        0 => check_key_file(&text(input.rest())),
        1 => check_public_key(input.rest()),
        2 => check_clients(&text(input.rest())),
        _ => {
            let now = input.long();
            check_invites(&text(input.rest()), now);
        }
    }
});

fn check_key_file(text: &str) {
    match SecretKey::from_key_file(text) {
        Ok(key) => {
            let again = SecretKey::from_key_file(&key.to_key_file()).expect("a key file");
            assert_eq!(again.seed(), key.seed());
            assert_eq!(again.public(), key.public());
            assert!(key.to_pkcs8().ends_with(key.seed()));
            let seed = PublicKey::from_bytes(*key.seed()).to_string();
            assert!(!format!("{key:?}").contains(&seed), "Debug shows the seed");
        }
        Err(error) => check_message(&error, LONGEST_ERROR),
    }
}

fn check_public_key(bytes: &[u8]) {
    let text = text(bytes);
    match text.parse::<PublicKey>() {
        Ok(key) => {
            assert_eq!(key.to_string(), text, "one key has one text");
            assert_eq!(PublicKey::from_spki(&key.to_spki()), Some(key));
        }
        Err(error) => check_message(&error, LONGEST_ERROR),
    }
    if let Some(key) = PublicKey::from_spki(bytes) {
        assert_eq!(key.to_spki()[..], *bytes);
    }
    match text.parse::<ClientName>() {
        Ok(name) => assert_eq!(name.to_string(), text),
        Err(error) => check_message(&error, LONGEST_ERROR),
    }
    if let Ok(hash) = text.parse::<TokenHash>() {
        assert_eq!(hash.to_string(), text);
    }
}

fn check_clients(text: &str) {
    let mut clients = match text.parse::<Clients>() {
        Ok(clients) => clients,
        Err(error) => {
            check_message(&error, LONGEST_ERROR);
            assert!((1..=text.lines().count()).contains(&error.line));
            return;
        }
    };
    check_written(&clients);
    let lines = clients.to_string().lines().count();
    let all: Vec<Client> = clients.iter().cloned().collect();
    for client in &all {
        assert_eq!(clients.by_key(&client.key), Some(client));
        assert_eq!(clients.by_name(&client.name), Some(client));
        clients.add(client.clone()).expect_err("it is in the list");
    }
    for client in &all {
        assert_eq!(clients.remove(&client.name).as_ref(), Some(client));
        assert_eq!(clients.remove(&client.name), None);
    }
    assert_eq!(clients.iter().count(), 0);
    assert_eq!(clients.to_string().lines().count(), lines - all.len(), "only clients went");
    let key = PublicKey::from_bytes([7; 32]);
    let name = "newcomer".parse().expect("a name");
    clients.add(Client { name, key, options: Options::default() }).expect("the list is empty");
    check_written(&clients);
}

fn check_written(clients: &Clients) {
    let written = clients.to_string();
    let again: Clients = written.parse().expect("what was written can be read");
    assert!(again.iter().eq(clients.iter()), "written as {written}");
    assert_eq!(again.to_string().lines().count(), written.lines().count());
}

fn check_invites(text: &str, now: u64) {
    let mut invites = match text.parse::<Invites>() {
        Ok(invites) => invites,
        Err(error) => {
            check_message(&error, LONGEST_ERROR);
            assert!((1..=text.lines().count()).contains(&error.line));
            return;
        }
    };
    assert_eq!(invites.to_string().parse().as_ref(), Ok(&invites));
    let hashes: Vec<TokenHash> = invites.iter().map(|entry| entry.hash).collect();
    for hash in hashes {
        check_redeem(&mut invites, hash, now);
    }
    let newcomer: ClientName = "newcomer".parse().expect("a name");
    let token = whimbrel_common::invite::Token::from_bytes([3; 16]);
    let open = |invites: &Invites| {
        invites.iter().filter(|entry| entry.name == newcomer && entry.used.is_none()).count()
    };
    invites.create(newcomer.clone(), token.hash(), now, Duration::from_secs(u64::MAX));
    assert_eq!(open(&invites), 1, "one open invite for one name");
    assert_eq!(invites.to_string().parse().as_ref(), Ok(&invites));
    assert_eq!(invites.withdraw(&newcomer), 1);
    invites.forget_old(now);
    let oldest = now.saturating_sub(REMEMBERED.as_secs());
    assert!(invites.iter().all(|entry| entry.used.unwrap_or(entry.expires) >= oldest));
}

/// A token works once, in time.
fn check_redeem(invites: &mut Invites, hash: TokenHash, now: u64) {
    let before = invites.find(hash).cloned().expect("it is in the list");
    let expected = match before.used {
        Some(_) => Err(RedeemError::Used),
        None if now >= before.expires => Err(RedeemError::Expired),
        None => Ok(before.name),
    };
    assert_eq!(invites.redeem(hash, now), expected);
    if expected.is_ok() {
        assert_eq!(invites.redeem(hash, now), Err(RedeemError::Used));
    }
}
