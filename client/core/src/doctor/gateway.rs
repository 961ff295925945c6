//! The way to the gateway.

use crate::trouble::Trouble;

use super::firewall::let_out;
use super::{
    Daemon, DaemonState, Facts, Reach, Remedy, Report, Running, Settings, Setup, Subject, Weight,
    advise, run,
};

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    let Setup::Ready(settings) = &facts.setup else { return };
    match (&facts.daemon, &facts.reach) {
        (Daemon::Running(running), _) => of_daemon(facts, settings, running, report),
        (Daemon::Absent | Daemon::Broken(_) | Daemon::Denied, Reach::Proved | Reach::Admitted) => {
            report.looked_at(Subject::Gateway);
        }
        (Daemon::Absent | Daemon::Broken(_) | Daemon::Denied, Reach::Failed(trouble, text)) => {
            trouble_of(facts, settings, *trouble, text, report);
        }
        (Daemon::Absent | Daemon::Broken(_) | Daemon::Denied, Reach::NotTried) => {}
    }
}

fn of_daemon(facts: &Facts, settings: &Settings, running: &Running, report: &mut Report) {
    report.looked_at(Subject::Gateway);
    report.looked_at(Subject::Captive);
    for path in running.paths.iter().filter(|path| path.captive) {
        let text = format!(
            "The network behind {} wants you to sign in: it answers for everybody and lets nothing \
             through. Nothing is moved onto it.",
            path.link
        );
        let sign = advise("Open any http:// page in a browser, and sign in.");
        let weight = match running.state {
            DaemonState::Attached => Weight::Hampered,
            DaemonState::Connecting | DaemonState::Parked | DaemonState::Offline => Weight::Broken,
        };
        report.find(Subject::Captive, weight, text, [sign]);
    }
    if running.state == DaemonState::Attached {
        let dead = running.paths.iter().filter(|path| !path.works && !path.captive);
        for path in dead {
            let text = format!(
                "{} is up, but the gateway cannot be reached over it: it cannot take over.",
                path.link
            );
            let why = advise(format!(
                "Its network may block UDP to port {}, or be out of order.",
                settings.port
            ));
            report.find(Subject::Gateway, Weight::Hampered, text, [why]);
        }
        return;
    }
    // Without a network there is nothing to say about the gateway.
    if running.state == DaemonState::Offline {
        return;
    }
    match &running.trouble {
        Some((trouble, text)) => trouble_of(facts, settings, *trouble, text, report),
        None => {
            let text = format!("The daemon looks for the gateway {}.", settings.gateway);
            report.find(
                Subject::Gateway,
                Weight::Broken,
                text,
                [advise("Ask again in a few seconds.")],
            );
        }
    }
}

fn trouble_of(
    facts: &Facts,
    settings: &Settings,
    trouble: Trouble,
    text: &str,
    report: &mut Report,
) {
    let Settings { gateway, port, file, .. } = settings;
    let anew = || {
        let away = run(format!("sudo mv {file} {file}.old"));
        [away, run(format!("sudo whimbrel join 'INVITE'{}", facts.option))]
    };
    let (text, mut remedies): (String, Vec<Remedy>) = match trouble {
        Trouble::NameUnknown => (
            format!("The gateway's name leads nowhere: {text}."),
            vec![
                advise("Is there a network, and is the name right? Look with:"),
                run(format!("getent hosts {}", host(gateway))),
            ],
        ),
        Trouble::NoFamily => (
            format!(
                "The gateway {gateway} has no address of a family this machine's networks have."
            ),
            vec![advise("Give the gateway's name an address of the other family too.")],
        ),
        Trouble::Unreachable => (
            format!("The gateway {gateway} does not answer."),
            vec![
                advise(format!("Does it run, and does its firewall let UDP port {port} in?")),
                advise("On the server:"),
                run("sudo whimbrel-gateway status"),
                advise("If it works over another network, as a phone's, this one blocks UDP."),
            ],
        ),
        Trouble::Forbidden => (
            format!("A firewall of this machine forbids UDP to the gateway {gateway}."),
            let_out(facts.firewall, *port),
        ),
        Trouble::NotOurs => (
            format!("What answers at {gateway} is no Whimbrel gateway."),
            vec![advise(format!(
                "Something else has UDP port {port} there, as a web server with HTTP/3. Correct the \
                 port in {file}, or at the gateway."
            ))],
        ),
        Trouble::WrongKey => (
            format!("What answers at {gateway} has another key than this gateway's."),
            vec![advise(
                "If the gateway was set up anew, join it anew. If not, somebody poses as it: do \
                 not go on.",
            )],
        ),
        Trouble::Revoked => (
            "The gateway does not admit this client: it was revoked there, or never joined."
                .to_owned(),
            vec![advise("Ask the gateway's owner for a new invite, then:")],
        ),
        Trouble::Version => (
            "Client and gateway are too far apart in version.".to_owned(),
            vec![advise("Upgrade the older of the two.")],
        ),
        Trouble::Busy => (
            "The gateway has reached a limit and admits nobody at the moment.".to_owned(),
            vec![advise("Ask its owner; `whimbrel-gateway status` shows why.")],
        ),
        Trouble::Other => (format!("The gateway {gateway} cannot be used: {text}."), Vec::new()),
    };
    if matches!(trouble, Trouble::WrongKey | Trouble::Revoked) {
        remedies.extend(anew());
    }
    report.find(Subject::Gateway, Weight::Broken, text, remedies);
}

fn host(gateway: &str) -> &str {
    gateway.rsplit_once(':').map_or(gateway, |(host, _)| host)
}
