//! Takes out of a text what nobody else needs to know, and leaves what happened.
//!
//! - Secrets are always taken out: invites, keys, and whatever looks like one.
//! - Addresses get numbers, the same address the same number, with what kind it was. Loopback,
//!   unspecified and multicast addresses say nothing about anybody and stay.
//! - Names are taken out that somebody has [named](Redactor::hide).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Redacts texts that belong together.
#[derive(Debug, Default)]
pub struct Redactor {
    keep_addresses: bool,
    names: Vec<(String, String)>,
    seen: BTreeMap<String, String>,
    counts: BTreeMap<&'static str, usize>,
}

const INVITE: &str = "whimbrel://";

/// The public half of a key, and the secret one, in base64.
const KEY: usize = 43;

/// From here on, letters of both kinds mixed with digits are no word. A token of an invite has 22.
const SECRET: usize = 20;

/// From here on, hexadecimal digits are a key or name somebody: 16 bytes.
const HEX: usize = 32;

/// A MAC address as hexadecimal digits.
const MAC: usize = 12;

/// Shorter names are part of too many words.
const SHORTEST_NAME: usize = 3;

impl Redactor {
    /// Addresses are taken out too, unless they are to be kept.
    #[must_use]
    pub fn new(keep_addresses: bool) -> Self {
        Self { keep_addresses, ..Self::default() }
    }

    /// Takes `name` out wherever it stands, whatever its case, and puts `[label]` there.
    pub fn hide(&mut self, name: &str, label: &str) {
        if name.len() >= SHORTEST_NAME && name.is_ascii() && name.parse::<IpAddr>().is_err() {
            self.names.push((name.to_ascii_lowercase(), format!("[{label}]")));
        }
    }

    /// The text without what should not be in it.
    #[must_use]
    pub fn redact(&mut self, text: &str) -> String {
        let text = without_invites(text);
        let text = self.without_names(text);
        let text = self.without_named_macs(text);
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(start) = rest.find(is_part) {
            let (before, from) = rest.split_at(start);
            redacted.push_str(before);
            let end = from.find(|letter| !is_part(letter)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            redacted.push_str(&self.word(word));
            rest = after;
        }
        redacted.push_str(rest);
        redacted
    }

    fn without_names(&self, mut text: String) -> String {
        for (name, label) in &self.names {
            let lower = text.to_ascii_lowercase();
            if !lower.contains(name.as_str()) {
                continue;
            }
            let mut replaced = String::with_capacity(text.len());
            let mut from = 0;
            for (at, found) in lower.match_indices(name.as_str()) {
                replaced.push_str(&text[from..at]);
                replaced.push_str(label);
                from = at + found.len();
            }
            replaced.push_str(&text[from..]);
            text = replaced;
        }
        text
    }

    /// Network interfaces are called after their MAC address where nothing else tells them apart:
    /// `enx00e04c680001` (systemd.net-naming-scheme). The name may be part of another, as that of a
    /// setting.
    fn without_named_macs(&mut self, text: String) -> String {
        if self.keep_addresses {
            return text;
        }
        let mut redacted = String::with_capacity(text.len());
        for piece in text.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric()) {
            let end = piece.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric()).len();
            let (word, after) = piece.split_at(end);
            match named_mac(word) {
                Some((kind, mac)) => {
                    redacted.push_str(kind);
                    redacted.push_str(&self.numbered("mac", mac));
                }
                None => redacted.push_str(word),
            }
            redacted.push_str(after);
        }
        redacted
    }

    /// One word, with the punctuation that ends a sentence or a time.
    fn word(&mut self, word: &str) -> String {
        let core = word.trim_end_matches(['.', ':', '-']);
        // "::" is an address of its own.
        let core = if core.is_empty() || word.ends_with("::") { word } else { core };
        let after = &word[core.len()..];
        match self.label(core) {
            Some(label) => format!("{label}{after}"),
            None => word.to_owned(),
        }
    }

    fn label(&mut self, word: &str) -> Option<String> {
        if let Some(kind) = secret(word) {
            return Some(self.numbered(kind, word));
        }
        if self.keep_addresses {
            return None;
        }
        if is_mac(word) {
            return Some(self.numbered("mac", &word.replace(':', "")));
        }
        let (address, port) = address(word)?;
        let kind = kind(address)?;
        let label = self.numbered(kind, &address.to_string());
        Some(port.map_or_else(|| label.clone(), |port| format!("{label}:{port}")))
    }

    fn numbered(&mut self, kind: &'static str, what: &str) -> String {
        if let Some(label) = self.seen.get(what) {
            return label.clone();
        }
        let count = self.counts.entry(kind).or_insert(0);
        *count += 1;
        let label = format!("[{kind} {count}]");
        self.seen.insert(what.to_owned(), label.clone());
        label
    }
}

fn is_part(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | ':' | '_' | '-')
}

/// Every invite, up to the next blank or quote.
fn without_invites(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    // ASCII letters keep their place.
    while let Some(start) = rest.to_ascii_lowercase().find(INVITE) {
        redacted.push_str(&rest[..start]);
        redacted.push_str("[invite]");
        let invite = &rest[start..];
        let ends =
            |letter: char| letter.is_whitespace() || matches!(letter, '"' | '\'' | '`' | '<' | '>');
        rest = &invite[invite.find(ends).unwrap_or(invite.len())..];
    }
    redacted.push_str(rest);
    redacted
}

/// What kind of secret a word may be.
fn secret(word: &str) -> Option<&'static str> {
    // Fields of a key file or of a log are parted by colons and points, keys have none.
    let longest = word.split(['.', ':']).max_by_key(|part| part.len())?;
    let has = |kind: fn(&char) -> bool| longest.chars().any(|letter| kind(&letter));
    let mixed =
        has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit);
    if longest.len() == KEY && (mixed || has(char::is_ascii_uppercase)) {
        Some("key")
    } else if longest.len() >= SECRET && mixed {
        Some("secret")
    } else if longest.len() >= HEX && longest.chars().all(|letter| letter.is_ascii_hexdigit()) {
        Some("hex")
    } else {
        None
    }
}

/// The two parts of an interface's name, of which the second is its MAC address.
fn named_mac(word: &str) -> Option<(&str, &str)> {
    let (kind, mac) = word.split_at_checked(word.len().checked_sub(MAC)?)?;
    let is_kind = (3..=4).contains(&kind.len())
        && kind.ends_with('x')
        && kind.chars().all(|letter| letter.is_ascii_lowercase());
    (is_kind && mac.chars().all(|letter| letter.is_ascii_hexdigit())).then_some((kind, mac))
}

fn is_mac(word: &str) -> bool {
    let is_octet = |part: &str| part.len() == 2 && part.chars().all(|it| it.is_ascii_hexdigit());
    let parts: Vec<&str> = word.split(':').collect();
    parts.len() == 6 && parts.into_iter().all(is_octet)
}

/// An address, and the port after it.
fn address(word: &str) -> Option<(IpAddr, Option<&str>)> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some((address, None));
    }
    let (host, port) = word.rsplit_once(':')?;
    let address: Ipv4Addr = host.parse().ok()?;
    port.parse::<u16>().ok()?;
    Some((address.into(), Some(port)))
}

/// What an address may be called; `None` for one that says nothing about anybody.
fn kind(address: IpAddr) -> Option<&'static str> {
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return None;
    }
    Some(match address {
        IpAddr::V4(v4) if v4.is_broadcast() => return None,
        IpAddr::V4(v4) if v4.is_link_local() => "link-local4",
        IpAddr::V4(v4) if v4.is_private() || is_shared(v4) => "private4",
        IpAddr::V4(_) => "public4",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "link-local6",
        IpAddr::V6(v6) if v6.is_unique_local() => "private6",
        // As in `::/0` and other prefixes that hold nearly everything.
        IpAddr::V6(v6) if v6 == Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0) => return None,
        IpAddr::V6(_) => "public6",
    })
}

/// Carrier-grade NAT (RFC 6598).
fn is_shared(v4: Ipv4Addr) -> bool {
    v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY_TEXT: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

    fn redacted(text: &str) -> String {
        Redactor::new(false).redact(text)
    }

    #[test]
    fn secrets_go_even_where_addresses_stay() {
        let invite = format!(
            "join 'whimbrel://gw.example.org:443?k={KEY_TEXT}&t=BwcHBwcHBwcHBwcHBwcHBw' now"
        );
        let mut redactor = Redactor::new(true);
        assert_eq!(redactor.redact(&invite), "join '[invite]' now");
        assert_eq!(
            redactor.redact(&format!("gateway_key = \"{KEY_TEXT}\" at 192.0.2.1")),
            "gateway_key = \"[key 1]\" at 192.0.2.1"
        );
        assert_eq!(redactor.redact("t=Bw7HBwcHBwcHBwcHBwcHBw"), "t=[secret 1]");
        assert_eq!(redactor.redact("Whimbrel://x?k=1"), "[invite]");
    }

    #[test]
    fn addresses_become_numbers_that_stay_the_same() {
        assert_eq!(
            redacted(
                "203.0.113.5:443 to [2001:db8::7]:22, 203.0.113.5. 192.168.1.4/24 fe80::1%eth0"
            ),
            "[public4 1]:443 to [[public6 1]]:22, [public4 1]. [private4 1]/24 [link-local6 1]%eth0"
        );
        assert_eq!(redacted("02:00:5e:10:00:01 02:00:5e:10:00:01"), "[mac 1] [mac 1]");
        assert_eq!(
            redacted("100.64.0.1 169.254.1.1 fd00::1"),
            "[private4 1] [link-local4 1] [private6 1]"
        );
    }

    #[test]
    fn an_interface_does_not_tell_its_mac_address() {
        assert_eq!(
            redacted("enx00e04c680001: 00:e0:4c:68:00:01, net.ipv4.conf.wlx02005e100001.rp_filter"),
            "enx[mac 1]: [mac 1], net.ipv4.conf.wlx[mac 2].rp_filter"
        );
        let kept = "enx00e04c680001";
        assert_eq!(Redactor::new(true).redact(kept), kept);
        for other in ["wlan0 enp0s31f6 br-0123456789ab", "x00e04c680001", "box of 123456789012"] {
            assert_eq!(redacted(other), other);
        }
    }

    #[test]
    fn what_says_nothing_about_anybody_stays() {
        for text in [
            "127.0.0.1:80, ::1, 0.0.0.0/0 and ::/0",
            "12:03:44 wlan0 to wwan0: black-hole, gap 171.5 ms",
            "2026-11-21 02:44:42 UTC",
            "net.ipv4.conf.all.rp_filter = 2",
            "version 0.1.0-rc.1; whimbrel-gateway.service: a-very-long-name-of-a-unit-file",
            "ünïcödé",
        ] {
            assert_eq!(redacted(text), text);
        }
    }

    #[test]
    fn names_go_whatever_their_case() {
        let mut redactor = Redactor::new(false);
        redactor.hide("gw.example.org", "gateway");
        redactor.hide("ab", "too short");
        assert_eq!(redactor.redact("Is GW.example.org:443 absent?"), "Is [gateway]:443 absent?");
    }

    proptest! {
        #[test]
        fn no_key_and_no_public_address_survives(
            seed in any::<[u8; 32]>(),
            address in any::<[u8; 4]>(),
            around in "[ -~]{0,40}",
        ) {
            let key = whimbrel_common::identity::SecretKey::from_seed(seed).public().to_string();
            let address = Ipv4Addr::from(address);
            let text = format!("{around} {key} {address} {around}");
            let mut redactor = Redactor::new(false);
            let redacted = redactor.redact(&text);
            prop_assert!(!redacted.contains(&key), "{}", redacted);
            if kind(address.into()).is_some() && !around.contains(&address.to_string()) {
                let shown = format!(" {address} ");
                prop_assert!(!redacted.contains(&shown), "{}", redacted);
            }
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>()) {
            let mut redactor = Redactor::new(false);
            redactor.hide("name", "label");
            let _ = redactor.redact(&text);
        }
    }
}
