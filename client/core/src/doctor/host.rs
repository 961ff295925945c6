//! What the machine offers: the TUN device, capabilities, announcements of sleep, the clock.

use super::{Daemon, Facts, Remedy, Report, Sleep, Subject, TunNode, Unit, Weight, advise, run};

/// 2026-01-01: no machine that runs this is younger.
const EPOCH: u64 = 1_767_225_600;

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    // A running daemon has its device and its rights.
    if !matches!(facts.daemon, Daemon::Running(_) | Daemon::Denied) {
        tun(facts, report);
        rights(facts, report);
    }
    sleep(facts, report);
    clock(facts, report);
    namespaces(facts, report);
}

fn namespaces(facts: &Facts, report: &mut Report) {
    report.looked_at(Subject::Namespaces);
    if !facts.closed.is_empty() {
        let text = "`whimbrel run` cannot wrap commands of ordinary users: this machine keeps them \
                    from making namespaces.";
        let open: Vec<Remedy> = facts.closed.iter().map(|door| run(door.command())).collect();
        report.find(Subject::Namespaces, Weight::Remark, text, open);
    }
}

fn tun(facts: &Facts, report: &mut Report) {
    report.looked_at(Subject::TunDevice);
    match facts.tun {
        TunNode::Fine => {}
        TunNode::Missing => {
            let text = "/dev/net/tun does not exist: the kernel's TUN driver is not loaded.";
            let remedies = [
                run("sudo modprobe tun"),
                advise("A container gets the device from outside: `--device /dev/net/tun`."),
            ];
            report.find(Subject::TunDevice, Weight::Broken, text, remedies);
        }
        TunNode::Denied => {
            let text = "/dev/net/tun cannot be opened by ordinary users, as it can elsewhere.";
            let open = run("sudo chmod 666 /dev/net/tun");
            let why = advise("That gives nobody a right: making an interface takes a capability.");
            report.find(Subject::TunDevice, Weight::Broken, text, [open, why]);
        }
    }
}

fn rights(facts: &Facts, report: &mut Report) {
    if !facts.rights.possible {
        let text = "CAP_NET_ADMIN is withheld from everybody here, root included: nothing can be \
                    captured.";
        let give = advise("A container gets it from outside: `--cap-add NET_ADMIN`.");
        report.find(Subject::Rights, Weight::Broken, text, [give]);
        return;
    }
    report.looked_at(Subject::Rights);
    let by_unit = facts.unit.is_some_and(|unit: Unit| unit.installed);
    if facts.rights.root && !facts.rights.capable && !by_unit {
        let text = "This root shell lacks CAP_NET_ADMIN, which the daemon needs.";
        let how: Remedy = advise("Use a full root shell, or the systemd unit.");
        report.find(Subject::Rights, Weight::Broken, text, [how]);
    }
}

fn sleep(facts: &Facts, report: &mut Report) {
    match facts.sleep {
        Sleep::Announced => report.looked_at(Subject::Sleep),
        Sleep::Undelayed => {
            let text = "The daemon may not delay sleep: the machine can be gone before the gateway \
                        holds everything. Connections survive it, but go on a little later.";
            let rules = advise(
                "Install polkit and Whimbrel's rules for it: the package does, or see the README.",
            );
            report.find(Subject::Sleep, Weight::Remark, text, [rules]);
        }
        Sleep::NoLogin | Sleep::NoBus => {
            let missing = if facts.sleep == Sleep::NoBus { "system bus" } else { "login manager" };
            let text = format!(
                "There is no {missing}: Whimbrel learns of a sleep when it is over. Connections \
                 survive it all the same."
            );
            report.find(Subject::Sleep, Weight::Remark, text, []);
        }
    }
}

fn clock(facts: &Facts, report: &mut Report) {
    report.looked_at(Subject::Clock);
    if facts.clock.unix_seconds < EPOCH {
        let text = "The clock is wrong by years: times in reports are wrong too. Nothing else \
                    depends on it.";
        report.find(Subject::Clock, Weight::Remark, text, [run("sudo timedatectl set-ntp true")]);
    } else if facts.clock.synchronised == Some(false) {
        let text = "Nothing keeps the clock right: times in reports may be off. Nothing else \
                    depends on it.";
        report.find(Subject::Clock, Weight::Remark, text, [run("sudo timedatectl set-ntp true")]);
    }
}
