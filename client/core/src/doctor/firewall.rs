//! What filters packets: the firewall, and the table of connections it rests on.

use super::{
    Facts, Firewall, Passage, Remedy, Report, Settings, Setup, Subject, Weight, advise, run,
};

/// Beyond this share of the table, in percent, new connections are about to be refused.
const FULL: u64 = 95;

pub(super) fn examine(facts: &Facts, report: &mut Report) {
    if let Setup::Ready(settings) = &facts.setup {
        passage(facts, settings, report);
    }
    tracking(facts, report);
}

fn passage(facts: &Facts, settings: &Settings, report: &mut Report) {
    match facts.passage {
        Passage::NotTried => {}
        Passage::Open => report.looked_at(Subject::Firewall),
        Passage::Closed => {
            let text = format!(
                "Nothing comes back through {}: a firewall of this machine drops what Whimbrel \
                 carries, and new connections hang.",
                settings.interface
            );
            let remedies = let_through(facts.firewall, &settings.interface);
            report.find(Subject::Firewall, Weight::Broken, text, remedies);
        }
    }
}

/// How a firewall lets everything through an interface.
fn let_through(firewall: Firewall, interface: &str) -> Vec<Remedy> {
    match firewall {
        Firewall::Firewalld => vec![
            run(format!(
                "sudo firewall-cmd --permanent --zone=trusted --add-interface={interface}"
            )),
            run("sudo firewall-cmd --reload"),
        ],
        Firewall::Ufw => vec![
            run(format!("sudo ufw allow in on {interface}")),
            run(format!("sudo ufw allow out on {interface}")),
        ],
        Firewall::Iptables => vec![
            run(format!("sudo iptables -I INPUT -i {interface} -j ACCEPT")),
            run(format!("sudo iptables -I OUTPUT -o {interface} -j ACCEPT")),
            advise("For IPv6 the same with ip6tables."),
        ],
        Firewall::Nftables => vec![
            advise("Accept it in the chain that drops it. Where that is Debian's own table:"),
            run(format!("sudo nft insert rule inet filter input iifname {interface} accept")),
            run(format!("sudo nft insert rule inet filter output oifname {interface} accept")),
            advise("Else look for it, and add the rules to the file it comes from too:"),
            run("sudo nft list ruleset"),
        ],
        Firewall::Unknown => {
            vec![advise(format!("Let it accept everything from and to {interface}."))]
        }
    }
}

/// How a firewall lets packets to the gateway out.
pub(super) fn let_out(firewall: Firewall, port: u16) -> Vec<Remedy> {
    match firewall {
        Firewall::Firewalld | Firewall::Unknown => {
            vec![advise(format!("Let it accept outgoing UDP to port {port}."))]
        }
        Firewall::Ufw => vec![run(format!("sudo ufw allow out {port}/udp"))],
        Firewall::Iptables => vec![
            run(format!("sudo iptables -I OUTPUT -p udp --dport {port} -j ACCEPT")),
            advise("For IPv6 the same with ip6tables."),
        ],
        Firewall::Nftables => vec![
            advise("Accept it in the chain that drops it. Where that is Debian's own table:"),
            run(format!("sudo nft insert rule inet filter output udp dport {port} accept")),
            advise("Else look for it:"),
            run("sudo nft list ruleset"),
        ],
    }
}

fn tracking(facts: &Facts, report: &mut Report) {
    let Some((count, most)) = facts.tracked else { return };
    report.looked_at(Subject::Tracking);
    if count.saturating_mul(100) >= most.saturating_mul(FULL) {
        let text = format!(
            "The kernel keeps track of {count} connections and can of {most}: new ones are about to \
             be dropped, Whimbrel's own packets too."
        );
        let more = most.saturating_mul(2);
        let set = run(format!("sudo sysctl -w net.netfilter.nf_conntrack_max={more}"));
        report.find(Subject::Tracking, Weight::Hampered, text, [set]);
    }
}
