//! TUNs of wrapped commands outlive the daemon's process where a service manager stores their
//! descriptors: the next process serves them on. What is known of a command is in the name.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use tracing::debug;
use whimbrel_client_core::engine::DeviceId;
use whimbrel_host::keeping;

use super::Owner;

/// What the names of our descriptors begin with.
const PREFIX: &str = "run";

/// The two descriptors of a command, by the word in their names.
const TUN: &str = "tun";
const PULSE: &str = "pulse";

/// A command whose descriptors were passed.
pub(super) struct Kept {
    pub(super) device: DeviceId,
    pub(super) owner: Owner,
    pub(super) tun: OwnedFd,
    pub(super) pulse: OwnedFd,
}

/// Stores the descriptors of a command. Without a service manager nothing happens.
pub(super) fn keep(device: DeviceId, owner: &Owner, tun: BorrowedFd<'_>, pulse: &OwnedFd) {
    if !keeping::is_possible() {
        return;
    }
    for (word, descriptor) in [(TUN, tun), (PULSE, pulse.as_fd())] {
        if let Err(error) = keeping::keep(&name(device, owner, word), descriptor) {
            debug!(%device, %error, "A restart of the daemon will cut a command off");
        }
    }
}

/// Gives them up again.
pub(super) fn forget(device: DeviceId, owner: &Owner) {
    if !keeping::is_possible() {
        return;
    }
    for word in [TUN, PULSE] {
        if let Err(error) = keeping::forget(&name(device, owner, word)) {
            debug!(%device, %error, "The descriptors of a command stay stored");
        }
    }
}

/// Sorts what was passed; what is not a whole command is given up.
pub(super) fn sort(passed: Vec<(String, OwnedFd)>) -> Vec<Kept> {
    let mut halves: BTreeMap<(DeviceId, Owner), BTreeMap<String, OwnedFd>> = BTreeMap::new();
    for (name, descriptor) in passed {
        match parse(&name) {
            Some((device, owner, word)) => {
                halves.entry((device, owner)).or_default().insert(word, descriptor);
            }
            None => {
                debug!(name, "A descriptor of nobody's was passed");
                // It would be passed again and again.
                let _ = keeping::forget(&name);
            }
        }
    }
    let mut whole = Vec::new();
    for ((device, owner), mut words) in halves {
        match (words.remove(TUN), words.remove(PULSE)) {
            (Some(tun), Some(pulse)) => whole.push(Kept { device, owner, tun, pulse }),
            (_, _) => forget(device, &owner),
        }
    }
    whole
}

/// Printable ASCII without a colon, 255 octets at most (sd_pid_notify_with_fds(3)).
fn name(device: DeviceId, owner: &Owner, word: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' };
    let command: String = owner.command.chars().map(plain).collect();
    let (device, uid, pid) = (device.0, owner.uid, owner.pid.unwrap_or(0));
    format!("{PREFIX}-{device}-{uid}-{pid}-{word}-{command}")
}

fn parse(name: &str) -> Option<(DeviceId, Owner, String)> {
    let mut parts = name.splitn(6, '-');
    if parts.next()? != PREFIX {
        return None;
    }
    let device = DeviceId(parts.next()?.parse().ok()?);
    let uid = parts.next()?.parse().ok()?;
    let pid = Some(parts.next()?.parse().ok()?).filter(|pid| *pid != 0);
    let word = parts.next()?.to_owned();
    let command = parts.next()?.to_owned();
    Some((device, Owner { uid, pid, command }, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_known_again_by_the_names_of_its_descriptors() {
        let owner = Owner { uid: 1000, pid: Some(4711), command: "git-clone".into() };
        let name_of = |owner: &Owner| name(DeviceId(7), owner, TUN);
        assert_eq!(name_of(&owner), "run-7-1000-4711-tun-git-clone");
        assert_eq!(parse(&name_of(&owner)), Some((DeviceId(7), owner, TUN.to_owned())));
        let strange = Owner { uid: 0, pid: None, command: "a:b\u{fc} c".into() };
        let seen = Owner { uid: 0, pid: None, command: "a_b__c".into() };
        assert_eq!(parse(&name_of(&strange)), Some((DeviceId(7), seen, TUN.to_owned())));
    }

    #[test]
    fn names_of_others_are_left_alone() {
        for name in ["quic", "keep-lot-0", "run", "run-x-0-0-tun-a", "run-1-0-0-tun", ""] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
