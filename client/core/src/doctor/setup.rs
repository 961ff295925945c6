//! Configuration, key, daemon and unit.

use super::{
    Capture, Daemon, DaemonState, Facts, Group, Key, Names, Remedy, Report, Room, Running, Setup,
    Subject, Unit, UnitState, Weight, advise, run,
};

/// Less room than this does not take the files that are written: a configuration and a key are
/// 4 KiB together, and a file system keeps some for itself.
const ROOM: u64 = 64 << 10;

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    configuration(facts, report);
    daemon(facts, report);
    if let Some(unit) = &facts.unit {
        examine_unit(facts, *unit, report);
    }
    group(facts, report);
    disk(&facts.rooms, report);
}

fn configuration(facts: &Facts, report: &mut Report) {
    report.looked_at(Subject::Configuration);
    let settings = match &facts.setup {
        Setup::Ready(settings) => settings,
        Setup::Missing { file } => {
            let text =
                format!("There is no configuration at {file}: this machine has no gateway yet.");
            let join = run(format!("sudo whimbrel join 'INVITE'{}", facts.option));
            let ask =
                advise("The gateway's owner prints an invite with `whimbrel-gateway invite NAME`.");
            report.find(Subject::Configuration, Weight::Broken, text, [ask, join]);
            return;
        }
        Setup::Wrong { message } => {
            let check = run(format!("whimbrel check{}", facts.option));
            let text = format!("The configuration cannot be used: {message}.");
            let edit = advise("Correct the line, then check it:");
            report.find(Subject::Configuration, Weight::Broken, text, [edit, check]);
            return;
        }
    };
    match &settings.key {
        Key::Fine => report.looked_at(Subject::Key),
        Key::Hidden => {}
        Key::Missing => {
            let text = "There is a configuration, but no key of this client.";
            let away = run(format!("sudo mv {0} {0}.old", settings.file));
            let join = run(format!("sudo whimbrel join 'INVITE'{}", facts.option));
            report.find(Subject::Key, Weight::Broken, text, [away, join]);
        }
        Key::Unusable(why) => {
            report.find(
                Subject::Key,
                Weight::Broken,
                format!("The key cannot be used: {why}."),
                [],
            );
        }
    }
}

fn daemon(facts: &Facts, report: &mut Report) {
    let ready = matches!(facts.setup, Setup::Ready(_));
    match &facts.daemon {
        Daemon::Running(running) => {
            report.looked_at(Subject::Daemon);
            examine_running(facts, running, report);
        }
        Daemon::Broken(why) => {
            let text = format!("The daemon is there, but does not answer: {why}.");
            report.find(Subject::Daemon, Weight::Broken, text, [restart(facts)]);
        }
        Daemon::Denied => {
            let text = "A daemon runs, but you may not ask it: this examination is incomplete.";
            let again = run(format!("sudo whimbrel doctor{}", facts.option));
            report.find(Subject::Daemon, Weight::Remark, text, [again]);
        }
        // The unit says it better.
        Daemon::Absent if facts.unit.is_some_and(|unit| unit.state == UnitState::Failed) => {}
        Daemon::Absent if ready => {
            let text = "Whimbrel is not running: connections are as they are without it.";
            report.find(Subject::Daemon, Weight::Broken, text, [start(facts)]);
        }
        Daemon::Absent => {}
    }
}

fn examine_running(facts: &Facts, running: &Running, report: &mut Report) {
    if running.capture == Capture::Paused {
        let text = "Whimbrel is paused: new connections go direct.";
        let resume = run(format!("whimbrel resume{}", facts.option));
        report.find(Subject::Daemon, Weight::Hampered, text, [resume]);
    }
    if running.capture == Capture::Blocked && running.state != DaemonState::Attached {
        let text = "New connections fail while the gateway is out of reach (capture.offline = \
                    \"block\").";
        let pause = run(format!("whimbrel pause 10m{}", facts.option));
        let advice = advise("To let them go direct for a while, as for a sign-in page:");
        report.find(Subject::Daemon, Weight::Remark, text, [advice, pause]);
    }
    match &running.names {
        Names::Direct => {}
        Names::Gateway => report.looked_at(Subject::Names),
        Names::Failed(why) => {
            let text = format!("Names are not asked of the gateway, but as without it: {why}.");
            let direct =
                advise("To leave them as they are, write dns = \"direct\" under [capture].");
            report.find(Subject::Names, Weight::Hampered, text, [direct]);
        }
    }
    if running.version != running.own_version {
        let text = format!(
            "The daemon that runs is version {}, this command is {}.",
            running.version, running.own_version
        );
        report.find(Subject::Daemon, Weight::Remark, text, [restart(facts)]);
    }
}

fn examine_unit(facts: &Facts, unit: Unit, report: &mut Report) {
    // An instance of one's own is nothing the system should start.
    if !facts.option.is_empty() {
        return;
    }
    if !unit.installed {
        if matches!(facts.daemon, Daemon::Running(_)) {
            let text =
                "The systemd unit is not installed: Whimbrel does not start with the machine.";
            let how = advise("The README says how to install the units.");
            report.find(Subject::Unit, Weight::Remark, text, [how]);
        }
        return;
    }
    report.looked_at(Subject::Unit);
    if unit.state == UnitState::Failed {
        let text = "systemd has given up starting Whimbrel.";
        let why = run("journalctl -u whimbrel -n 20 --no-pager");
        let again = run("sudo systemctl restart whimbrel.service");
        let text_why = advise("Its last words say why; then start it again:");
        report.find(Subject::Unit, Weight::Broken, text, [why, text_why, again]);
    } else if !unit.enabled && matches!(facts.setup, Setup::Ready(_)) {
        let text = "Whimbrel does not start with the machine.";
        let enable = run("sudo systemctl enable whimbrel.service");
        report.find(Subject::Unit, Weight::Hampered, text, [enable]);
    }
}

fn group(facts: &Facts, report: &mut Report) {
    match facts.group {
        Group::Member => report.looked_at(Subject::Group),
        Group::Missing => {
            let text = "There is no group whimbrel: only root may ask and steer the daemon.";
            let make = run("sudo groupadd --system whimbrel");
            report.find(Subject::Group, Weight::Remark, text, [make]);
        }
        Group::Outside => {
            let text =
                "You are not in the group whimbrel: you need sudo to ask and steer the daemon.";
            let join = run("sudo usermod -aG whimbrel $USER");
            let again = advise("It counts after you log in again.");
            report.find(Subject::Group, Weight::Remark, text, [join, again]);
        }
    }
}

fn disk(rooms: &[Room], report: &mut Report) {
    if !rooms.is_empty() {
        report.looked_at(Subject::Disk);
    }
    for room in rooms.iter().filter(|room| room.free < ROOM) {
        let text = format!(
            "The disk is full: {} has {} bytes left, so nothing can be written there.",
            room.folder, room.free
        );
        let look = run(format!("df -h {}", room.folder));
        report.find(Subject::Disk, Weight::Hampered, text, [look]);
    }
}

fn start(facts: &Facts) -> Remedy {
    match facts.unit {
        Some(unit) if unit.installed && facts.option.is_empty() => {
            run("sudo systemctl enable --now whimbrel.service")
        }
        Some(_) | None => run(format!("sudo whimbrel up{}", facts.option)),
    }
}

fn restart(facts: &Facts) -> Remedy {
    match facts.unit {
        Some(unit) if unit.state == UnitState::Active && facts.option.is_empty() => {
            run("sudo systemctl restart whimbrel.service")
        }
        Some(_) | None => {
            advise(format!("Stop it and start it again with `sudo whimbrel up{}`.", facts.option))
        }
    }
}
