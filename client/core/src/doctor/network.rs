//! Links, addresses, rules and other programs' tunnels.

use std::net::IpAddr;

use crate::plan::{CAPTURE, PRIORITIES};

use super::{
    Capture, Daemon, Facts, Link, LinkTrouble, Remedy, Report, RuleFact, RuleKind, Settings, Setup,
    Subject, Weight, advise, run,
};

/// QUIC needs 1,200 bytes of UDP payload (RFC 9000 §14); IPv6 and UDP add 48.
const SMALLEST_MTU: u32 = 1248;

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    links(facts, report);
    reverse_path(facts, report);
    mtu(facts, report);
    if let Setup::Ready(settings) = &facts.setup {
        addresses(facts, settings, report);
    }
    if let Some(found) = &facts.rules {
        rules(facts, found, report);
    }
    vpns(facts, report);
    ipv6(facts, report);
}

/// Without IPv6 on the TUN nothing of it is captured.
fn ipv6(facts: &Facts, report: &mut Report) {
    let with: Vec<&str> =
        uplinks(facts).filter(|link| link.families[1]).map(|link| link.name.as_str()).collect();
    let Setup::Ready(settings) = &facts.setup else { return };
    if with.is_empty() {
        return;
    }
    report.looked_at(Subject::Ipv6);
    if facts.tun_without_v6 {
        let text = format!(
            "IPv6 is switched off for {}, but {} has it: connections to IPv6 addresses are not \
             carried.",
            settings.interface,
            with.join(" and ")
        );
        let on = run("sudo sysctl -w net.ipv6.conf.default.disable_ipv6=0");
        let again =
            advise("Then restart Whimbrel, and correct the file in /etc/sysctl.d that says it.");
        report.find(Subject::Ipv6, Weight::Hampered, text, [on, again]);
    }
}

fn uplinks(facts: &Facts) -> impl Iterator<Item = &Link> {
    facts.links.iter().filter(|link| link.trouble.is_none())
}

fn links(facts: &Facts, report: &mut Report) {
    match uplinks(facts).count() {
        0 => {
            let (states, remedies): (Vec<String>, Vec<_>) =
                facts.links.iter().filter_map(|link| Some((state(link)?, remedy(link)))).unzip();
            let seen = match states.join(", ") {
                none if none.is_empty() => "there is no interface that could".to_owned(),
                states => states,
            };
            let text = format!("No network leads out of this machine: {seen}.");
            let remedies: Vec<_> = remedies.into_iter().flatten().collect();
            report.find(Subject::Links, Weight::Broken, text, remedies);
        }
        1 => {
            report.looked_at(Subject::Links);
            let only = uplinks(facts).next().map_or("", |link| link.name.as_str());
            let text = format!(
                "{only} is the only network: when it goes, connections wait until it or another \
                 is there."
            );
            let idea = advise("A phone on USB, or a second Wi-Fi adapter, takes over at once.");
            report.find(Subject::Links, Weight::Remark, text, [idea]);
        }
        _ => report.looked_at(Subject::Links),
    }
}

fn state(link: &Link) -> Option<String> {
    let what = match link.trouble? {
        LinkTrouble::Disabled => "is switched off",
        LinkTrouble::NoCarrier => "has no carrier",
        LinkTrouble::NoAddress => "has no address",
        LinkTrouble::NoRoute => "has no default route",
    };
    Some(format!("{} {what}", link.name))
}

fn remedy(link: &Link) -> Option<Remedy> {
    match link.trouble? {
        LinkTrouble::Disabled => Some(run(format!("sudo ip link set {} up", link.name))),
        LinkTrouble::NoCarrier | LinkTrouble::NoAddress | LinkTrouble::NoRoute => None,
    }
}

/// Replies that come in on a spare link do not come the way the main table would send: a strict
/// filter (RFC 3704 §2.2) drops them. The best link passes, and so does the TUN, whose rules lead
/// back to it.
fn reverse_path(facts: &Facts, report: &mut Report) {
    let v4 = || uplinks(facts).filter(|link| link.families[0]);
    if v4().any(|link| link.rp_filter.is_some()) {
        report.looked_at(Subject::ReversePath);
    }
    let best = v4().min_by_key(|link| link.metric.unwrap_or(u32::MAX));
    let spare = |link: &&Link| best.is_none_or(|best| best.name != link.name);
    let is_strict = |link: &&Link| link.rp_filter == Some(1);
    let strict: Vec<&str> =
        v4().filter(spare).filter(is_strict).map(|link| link.name.as_str()).collect();
    let loosen = [
        run("sudo sysctl -w net.ipv4.conf.all.rp_filter=2"),
        run("echo net.ipv4.conf.all.rp_filter=2 | sudo tee /etc/sysctl.d/90-whimbrel.conf"),
    ];
    if !strict.is_empty() {
        let text = format!(
            "Strict reverse-path filtering drops what arrives on {}: Whimbrel cannot keep it ready \
             to take over (IPv4).",
            strict.join(" and ")
        );
        report.find(Subject::ReversePath, Weight::Hampered, text, loosen);
    } else if v4().any(|link| is_strict(&link)) {
        let text = "Strict reverse-path filtering is on: a second network could not be kept ready \
                    to take over (IPv4).";
        report.find(Subject::ReversePath, Weight::Remark, text, loosen);
    }
}

fn mtu(facts: &Facts, report: &mut Report) {
    report.looked_at(Subject::Mtu);
    for link in uplinks(facts).filter(|link| link.mtu < SMALLEST_MTU) {
        let text = format!(
            "{} carries packets of {} bytes at most; QUIC needs {SMALLEST_MTU}.",
            link.name, link.mtu
        );
        let fix = run(format!("sudo ip link set {} mtu 1500", link.name));
        report.find(Subject::Mtu, Weight::Hampered, text, [fix]);
    }
}

fn addresses(facts: &Facts, settings: &Settings, report: &mut Report) {
    report.looked_at(Subject::TunAddress);
    let keys: [(IpAddr, &str); 2] = [
        (settings.address4.into(), "capture.address4"),
        (settings.address6.into(), "capture.address6"),
    ];
    for (address, key) in keys {
        let others = || facts.networks.iter().filter(|it| it.interface != settings.interface);
        let own = others().find(|it| it.own && it.cidr.contains(address));
        let network =
            others().find(|it| !it.own && it.cidr.prefix() > 1 && it.cidr.contains(address));
        let change = advise(format!(
            "Set {key} in {} to a private address of no network you use, and restart Whimbrel.",
            settings.file
        ));
        if let Some(own) = own {
            let text = format!(
                "The TUN's address {address} belongs to {} already: the daemon cannot start.",
                own.interface
            );
            report.find(Subject::TunAddress, Weight::Broken, text, [change]);
        } else if let Some(network) = network {
            let text = format!(
                "The TUN's address {address} lies in {}, which {} leads to: one machine there is \
                 out of reach.",
                network.cidr, network.interface
            );
            report.find(Subject::TunAddress, Weight::Hampered, text, [change]);
        }
    }
}

fn rules(facts: &Facts, found: &[RuleFact], report: &mut Report) {
    report.looked_at(Subject::Rules);
    our_rules(facts, found, report);
    let foreign = || found.iter().filter(|rule| rule.kind != RuleKind::Ours);
    for rule in foreign() {
        let priority = rule.priority;
        let show = run(format!("ip rule show priority {priority}"));
        if let RuleKind::Everything { table } = rule.kind
            && priority < *PRIORITIES.start()
        {
            let text = format!(
                "Another program's rule {priority} leads everything to table {table} before \
                 Whimbrel's rules ({}): nothing is captured while it is there.",
                PRIORITIES.start()
            );
            let stop = advise("It is a VPN's, as a rule: let it leave the default route alone.");
            report.find(Subject::Rules, Weight::Broken, text, [stop, show]);
        } else if PRIORITIES.contains(&priority) {
            let text = format!(
                "Another program's rule {priority} stands among Whimbrel's ({} to {}).",
                PRIORITIES.start(),
                PRIORITIES.end()
            );
            let away = advise("Give it another priority, or stop what made it:");
            report.find(Subject::Rules, Weight::Hampered, text, [away, show]);
        }
    }
    if let Setup::Ready(settings) = &facts.setup
        && let Some(rule) = foreign().find(|rule| rule.mark == Some(settings.mark))
    {
        let text = format!(
            "Another program's rule {} uses the firewall mark {} of Whimbrel's own packets.",
            rule.priority, settings.mark
        );
        let change = advise(format!("Set paths.mark in {} to another number.", settings.file));
        report.find(Subject::Rules, Weight::Hampered, text, [change]);
    }
}

fn our_rules(facts: &Facts, found: &[RuleFact], report: &mut Report) {
    let mut ours = found.iter().filter(|rule| rule.kind == RuleKind::Ours);
    match &facts.daemon {
        Daemon::Absent if facts.captor.is_none() && ours.next().is_some() => {
            let text =
                "A daemon that was killed left its rules behind: what it carried cannot go on.";
            report.find(Subject::Rules, Weight::Broken, text, [run("sudo whimbrel cleanup")]);
        }
        Daemon::Running(running) if matches!(running.capture, Capture::On | Capture::Blocked) => {
            if !ours.any(|rule| rule.priority == CAPTURE) {
                let text = "Whimbrel's routing rules are gone: no new connection is carried. Another \
                            program removes them as often as they are put back.";
                report.find(Subject::Rules, Weight::Broken, text, keep_rules());
            } else if running.restored > 0 {
                let times = match running.restored {
                    1 => "once".to_owned(),
                    more => format!("{more} times"),
                };
                let text = format!(
                    "Another program removed Whimbrel's routing rules, {times} since the daemon \
                     started; each time they were put back at once."
                );
                report.find(Subject::Rules, Weight::Remark, text, keep_rules());
            }
        }
        Daemon::Running(_) | Daemon::Absent | Daemon::Denied | Daemon::Broken(_) => {}
    }
}

/// `ManageForeignRoutingPolicyRules` and `ManageForeignRoutes` of networkd.conf(5).
fn keep_rules() -> [Remedy; 3] {
    [
        advise(
            "systemd-networkd does so when it starts, unless it is told to leave others' alone:",
        ),
        run(
            "printf '[Network]\\nManageForeignRoutingPolicyRules=no\\nManageForeignRoutes=no\\n' | \
             sudo install -D -m 644 /dev/stdin /etc/systemd/networkd.conf.d/whimbrel.conf",
        ),
        run("sudo systemctl restart systemd-networkd"),
    ]
}

fn vpns(facts: &Facts, report: &mut Report) {
    report.looked_at(Subject::Vpn);
    for vpn in &facts.vpns {
        if vpn.halves {
            let text = format!(
                "{} takes nearly every connection by routes more specific than a default route: \
                 they go through that VPN, and Whimbrel does not carry them.",
                vpn.interface
            );
            let stop = advise("Stop that VPN, or let it leave the default route alone.");
            report.find(Subject::Vpn, Weight::Hampered, text, [stop]);
        } else if vpn.default_route {
            let text = format!(
                "{} is a VPN with a default route: the connections Whimbrel carries go around it.",
                vpn.interface
            );
            report.find(Subject::Vpn, Weight::Remark, text, []);
        }
    }
}
