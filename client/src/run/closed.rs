//! Why a host does not let a command be wrapped, and what to do about it.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use serde_json::Value;
use whimbrel_host::control::Line;
use whimbrel_host::exit;

use crate::report::{CaptureState, Status};

use crate::tun::TunError;

/// Adds to an error what helps, if it is the host that refuses.
pub(super) fn explain(error: anyhow::Error, offers: Vec<String>) -> anyhow::Error {
    let refused = |cause: &io::Error| {
        // ENOSPC, EUSERS: a limit of namespaces. EINVAL: a kernel without them.
        let codes = [libc::EPERM, libc::EACCES, libc::ENOSPC, libc::EUSERS, libc::EINVAL];
        cause.raw_os_error().is_some_and(|code| codes.contains(&code))
    };
    let io_errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    let errnos = error.chain().filter_map(|cause| cause.downcast_ref::<Errno>());
    let by_tun = error.chain().filter_map(|cause| cause.downcast_ref::<TunError>());
    let closed = io_errors.into_iter().any(refused)
        || errnos.map(|errno| (*errno).into()).any(|cause| refused(&cause))
        || by_tun.into_iter().any(|it| matches!(it, TunError::NotPermitted { .. }));
    let text = exit::sentence(&error.context("cannot wrap the command"));
    if !closed {
        return anyhow::anyhow!(text);
    }
    let remedies = remedies(&Facts::gather(), offers);
    anyhow::anyhow!("{text}\n{}", List(&remedies))
}

/// What the host's daemon can do instead.
pub(super) fn ask(daemon: Line) -> Vec<String> {
    let status = daemon.ask("status", &Value::Null, &[]).ok();
    offers(status.and_then(|status| serde_json::from_value(status).ok()).as_ref())
}

fn offers(status: Option<&Status>) -> Vec<String> {
    let carries = status.is_some_and(|status| status.capture == CaptureState::On).then_some(
        "start the command as it is: the daemon carries the new connections of this whole machine",
    );
    let leads = status.is_some_and(|status| status.cgroup_trouble.is_none()).then_some(
        "whimbrel run --cgroup -- COMMAND   (its new connections are carried; what cannot be, such \
         as UDP, is not kept in)",
    );
    [carries, leads].into_iter().flatten().map(str::to_owned).collect()
}

struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Any of these helps:")?;
        self.0.iter().try_for_each(|remedy| write!(f, "\n  - {remedy}"))
    }
}

/// The settings that decide whether a user may make namespaces.
#[derive(Debug, Default)]
struct Facts {
    clone_switch: Option<String>,
    apparmor_switch: Option<String>,
    namespace_limit: Option<String>,
    in_container: bool,
    profile_exists: bool,
}

/// Where the AppArmor profile is installed.
const PROFILE: &str = "/etc/apparmor.d/whimbrel";

impl Facts {
    fn gather() -> Self {
        let read = |path| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let exists = |path: &&str| Path::new(path).exists();
        Self {
            clone_switch: read("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_switch: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            namespace_limit: read("/proc/sys/user/max_user_namespaces"),
            in_container: ["/.dockerenv", "/run/.containerenv"].iter().any(exists),
            profile_exists: exists(&PROFILE),
        }
    }
}

fn remedies(facts: &Facts, offers: Vec<String>) -> Vec<String> {
    let mut remedies = offers;
    if facts.namespace_limit.as_deref() == Some("0") {
        remedies.push("sudo sysctl user.max_user_namespaces=10000".to_owned());
    }
    if facts.clone_switch.as_deref() == Some("0") {
        remedies.push("sudo sysctl kernel.unprivileged_userns_clone=1".to_owned());
    }
    if facts.apparmor_switch.as_deref() == Some("1") {
        let load = format!("sudo apparmor_parser -r {PROFILE}");
        remedies.push(if facts.profile_exists {
            format!("{load}   (lets /usr/bin/whimbrel make user namespaces)")
        } else {
            format!("sudo install -m 644 systemd/apparmor.profile {PROFILE} && {load}")
        });
    }
    if facts.in_container {
        remedies.push(
            "start the container with --cap-add SYS_ADMIN --cap-add NET_ADMIN --device \
             /dev/net/tun --security-opt apparmor=unconfined"
                .to_owned(),
        );
    }
    remedies.push("run `whimbrel run` as root".to_owned());
    remedies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_closed_door_has_its_key() {
        let closed = Facts {
            clone_switch: Some("0".into()),
            apparmor_switch: Some("1".into()),
            namespace_limit: Some("0".into()),
            in_container: true,
            profile_exists: true,
        };
        let text =
            List(&remedies(&closed, vec!["start the command as it is".to_owned()])).to_string();
        for part in [
            "unprivileged_userns_clone=1",
            "apparmor_parser -r /etc/apparmor.d/whimbrel",
            "max_user_namespaces=10000",
            "--cap-add SYS_ADMIN",
            "start the command as it is",
            "as root",
        ] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }

    #[test]
    fn open_doors_are_not_mentioned() {
        let open = Facts {
            clone_switch: Some("1".into()),
            apparmor_switch: Some("0".into()),
            namespace_limit: Some("96365".into()),
            ..Facts::default()
        };
        assert_eq!(remedies(&open, Vec::new()), ["run `whimbrel run` as root"]);
    }
}
