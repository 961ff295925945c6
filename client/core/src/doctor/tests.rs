use super::*;
use crate::plan::Family;
use crate::trouble::Trouble;

fn link(name: &str, metric: u32) -> Link {
    Link {
        name: name.to_owned(),
        trouble: None,
        families: [true, true],
        mtu: 1500,
        rp_filter: Some(2),
        metric: Some(metric),
    }
}

fn running() -> Running {
    let path = |link: &str| PathFact { link: link.to_owned(), works: true, captive: false };
    Running {
        state: DaemonState::Attached,
        trouble: None,
        capture: Capture::On,
        names: Names::Gateway,
        paths: vec![path("wlan0"), path("wwan0")],
        version: "1.0".to_owned(),
        own_version: "1.0".to_owned(),
    }
}

/// A machine on which everything is as it should be.
fn well() -> Facts {
    let settings = Settings {
        file: "/etc/whimbrel/client.toml".to_owned(),
        gateway: "gw.example.org:443".to_owned(),
        port: 443,
        interface: "whimbrel0".to_owned(),
        address4: "10.213.52.11".parse().unwrap(),
        address6: "fd52:1109:77b6::1".parse().unwrap(),
        mark: 21009,
        key: Key::Fine,
    };
    let ours =
        RuleFact { family: Family::V4, priority: 5400, kind: RuleKind::Ours, mark: Some(21009) };
    Facts {
        option: String::new(),
        rights: Rights { root: true, capable: true, possible: true },
        setup: Setup::Ready(settings),
        daemon: Daemon::Running(running()),
        reach: Reach::NotTried,
        unit: Some(Unit { installed: true, enabled: true, state: UnitState::Active }),
        tun: TunNode::Fine,
        group: Group::Member,
        sleep: Sleep::Announced,
        clock: Clock { unix_seconds: 1_800_000_000, synchronised: Some(true) },
        links: vec![link("wlan0", 600), link("wwan0", 700)],
        networks: Vec::new(),
        rules: Some(vec![ours]),
        vpns: Vec::new(),
        rooms: vec![Room { folder: "/run/whimbrel".to_owned(), free: 1 << 30 }],
    }
}

/// The same without a daemon, which started once and was stopped in order.
fn stopped() -> Facts {
    let unit = Some(Unit { installed: true, enabled: true, state: UnitState::Inactive });
    Facts { daemon: Daemon::Absent, unit, rules: Some(Vec::new()), ..well() }
}

fn settings(facts: &mut Facts) -> &mut Settings {
    match &mut facts.setup {
        Setup::Ready(settings) => settings,
        Setup::Missing { .. } | Setup::Wrong { .. } => panic!("the model is configured"),
    }
}

fn daemon(facts: &mut Facts) -> &mut Running {
    match &mut facts.daemon {
        Daemon::Running(running) => running,
        Daemon::Absent | Daemon::Denied | Daemon::Broken(_) => panic!("the model runs"),
    }
}

/// The only finding there is.
fn only(facts: &Facts) -> Finding {
    let mut report = examine(facts);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    report.findings.remove(0)
}

fn expect(facts: &Facts, subject: Subject, weight: Weight, part: &str) -> Finding {
    let finding = only(facts);
    assert_eq!((finding.subject, finding.weight), (subject, weight), "{finding:#?}");
    assert!(finding.text.contains(part), "{finding:#?}");
    finding
}

fn commands(finding: &Finding) -> Vec<&str> {
    let mut commands = Vec::new();
    for remedy in &finding.remedies {
        if let Remedy::Command(command) = remedy {
            commands.push(command.as_str());
        }
    }
    commands
}

#[test]
fn a_machine_in_order_has_no_findings() {
    let report = examine(&well());
    assert_eq!(report.findings, []);
    assert!(report.is_well());
    assert_eq!(report.fine.len(), 17, "{:?}", report.fine);
}

#[test]
fn a_new_machine_is_told_to_join() {
    let facts = Facts {
        setup: Setup::Missing { file: "/etc/whimbrel/client.toml".to_owned() },
        ..stopped()
    };
    let finding = expect(&facts, Subject::Configuration, Weight::Broken, "no gateway yet");
    assert_eq!(commands(&finding), ["sudo whimbrel join 'INVITE'"]);
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let message = "/etc/whimbrel/client.toml:7: unknown key \"capture.mod\"".to_owned();
    let facts = Facts { setup: Setup::Wrong { message }, ..stopped() };
    expect(&facts, Subject::Configuration, Weight::Broken, "client.toml:7: unknown key");
}

#[test]
fn a_missing_key_and_an_unusable_one_differ() {
    let mut facts = well();
    settings(&mut facts).key = Key::Missing;
    expect(&facts, Subject::Key, Weight::Broken, "no key");
    settings(&mut facts).key = Key::Unusable("the key can be read by others".to_owned());
    expect(&facts, Subject::Key, Weight::Broken, "read by others");
    settings(&mut facts).key = Key::Hidden;
    assert_eq!(examine(&facts).findings, []);
}

#[test]
fn a_stopped_daemon_is_started_the_way_it_was_installed() {
    let mut facts = stopped();
    let finding = expect(&facts, Subject::Daemon, Weight::Broken, "not running");
    assert_eq!(commands(&finding), ["sudo systemctl enable --now whimbrel.service"]);
    facts.unit = None;
    assert_eq!(commands(&only(&facts)), ["sudo whimbrel up"]);
    facts.option = " --config a.toml".to_owned();
    assert_eq!(commands(&only(&facts)), ["sudo whimbrel up --config a.toml"]);
}

#[test]
fn a_unit_that_failed_is_told_instead_of_a_daemon_that_does_not_run() {
    let mut facts = stopped();
    facts.unit = Some(Unit { installed: true, enabled: true, state: UnitState::Failed });
    let finding = expect(&facts, Subject::Unit, Weight::Broken, "given up");
    assert!(commands(&finding)[0].starts_with("journalctl"));
}

#[test]
fn a_unit_that_is_not_enabled_is_told() {
    let mut facts = well();
    facts.unit = Some(Unit { installed: true, enabled: false, state: UnitState::Active });
    expect(&facts, Subject::Unit, Weight::Hampered, "does not start with the machine");
}

#[test]
fn four_ways_not_to_reach_the_gateway_have_four_sentences() {
    let troubles = [Trouble::Unreachable, Trouble::NotOurs, Trouble::WrongKey, Trouble::Revoked];
    let texts = |facts: &Facts| {
        let gateway = |finding: &Finding| finding.subject == Subject::Gateway;
        let found = examine(facts).findings;
        found.into_iter().find(gateway).map(|it| (it.weight, it.text, it.remedies)).unwrap()
    };
    let mut seen = Vec::new();
    for trouble in troubles {
        let mut facts = well();
        daemon(&mut facts).state = DaemonState::Connecting;
        daemon(&mut facts).trouble = Some((trouble, "in words".to_owned()));
        let told = texts(&facts);
        assert_eq!(told.0, Weight::Broken);
        assert!(!told.2.is_empty(), "{told:?}");
        let without = Facts { reach: Reach::Failed(trouble, "in words".to_owned()), ..stopped() };
        assert_eq!(texts(&without), told, "with a daemon and without it");
        seen.push(told.1);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_captive_network_matters_more_when_it_is_the_only_one() {
    let mut facts = well();
    daemon(&mut facts).paths[1] =
        PathFact { link: "wwan0".to_owned(), works: false, captive: true };
    expect(&facts, Subject::Captive, Weight::Hampered, "wwan0 wants you to sign in");
    daemon(&mut facts).state = DaemonState::Parked;
    daemon(&mut facts).trouble = Some((Trouble::Unreachable, "no answer".to_owned()));
    let report = examine(&facts);
    assert_eq!(report.findings[0].subject, Subject::Captive);
    assert_eq!(report.findings[0].weight, Weight::Broken);
}

#[test]
fn a_spare_link_that_does_not_reach_the_gateway_is_told() {
    let mut facts = well();
    daemon(&mut facts).paths[1].works = false;
    expect(&facts, Subject::Gateway, Weight::Hampered, "cannot be reached over it");
}

#[test]
fn a_machine_without_a_network_says_what_each_interface_lacks() {
    let mut facts = well();
    facts.links[0].trouble = Some(LinkTrouble::NoCarrier);
    facts.links[1].trouble = Some(LinkTrouble::Disabled);
    daemon(&mut facts).state = DaemonState::Offline;
    let finding = expect(
        &facts,
        Subject::Links,
        Weight::Broken,
        "wlan0 has no carrier, wwan0 is switched off",
    );
    assert_eq!(commands(&finding), ["sudo ip link set wwan0 up"]);
}

#[test]
fn a_single_network_is_worth_a_remark() {
    let mut facts = well();
    facts.links.pop();
    expect(&facts, Subject::Links, Weight::Remark, "only network");
    assert!(examine(&facts).is_well());
}

#[test]
fn strict_filtering_hampers_spares_and_not_the_best_link() {
    let mut facts = well();
    facts.links[0].rp_filter = Some(1);
    expect(&facts, Subject::ReversePath, Weight::Remark, "second network");
    facts.links[1].rp_filter = Some(1);
    let finding = expect(&facts, Subject::ReversePath, Weight::Hampered, "arrives on wwan0:");
    assert_eq!(commands(&finding)[0], "sudo sysctl -w net.ipv4.conf.all.rp_filter=2");
    facts.links[1].families = [false, true];
    expect(&facts, Subject::ReversePath, Weight::Remark, "second network");
}

#[test]
fn an_address_that_is_taken_differs_from_a_network_around_it() {
    let mut facts = well();
    let network = |cidr: &str, own| Network {
        cidr: cidr.parse().unwrap(),
        interface: "eth1".to_owned(),
        own,
    };
    facts.networks = vec![network("10.213.0.0/16", false)];
    expect(&facts, Subject::TunAddress, Weight::Hampered, "lies in 10.213.0.0/16");
    facts.networks.push(network("10.213.52.11/32", true));
    expect(&facts, Subject::TunAddress, Weight::Broken, "belongs to eth1");
    facts.networks.iter_mut().for_each(|network| network.interface = "whimbrel0".to_owned());
    assert_eq!(examine(&facts).findings, []);
}

#[test]
fn rules_of_others_matter_by_their_place_and_mark() {
    let mut facts = well();
    let mut with = |priority, kind, mark| {
        facts.rules = Some(vec![RuleFact { family: Family::V4, priority, kind, mark }]);
        facts.clone()
    };
    let everything = RuleKind::Everything { table: 52 };
    expect(&with(5270, everything, None), Subject::Rules, Weight::Broken, "table 52 before");
    expect(&with(5410, RuleKind::Other, None), Subject::Rules, Weight::Hampered, "stands among");
    expect(&with(99, RuleKind::Other, Some(21009)), Subject::Rules, Weight::Hampered, "mark 21009");
    // wg-quick's, after ours.
    assert_eq!(examine(&with(32764, everything, None)).findings, []);
}

#[test]
fn rules_without_a_daemon_were_left_behind() {
    let facts = Facts { rules: well().rules, ..stopped() };
    let report = examine(&facts);
    let left = report.findings.iter().find(|finding| finding.subject == Subject::Rules).unwrap();
    assert_eq!(commands(left), ["sudo whimbrel cleanup"]);
}

#[test]
fn a_vpn_that_takes_everything_is_worse_than_one_that_goes_unused() {
    let mut facts = well();
    let vpn = Vpn { interface: "tun0".to_owned(), halves: false, default_route: true };
    facts.vpns = vec![vpn];
    expect(&facts, Subject::Vpn, Weight::Remark, "go around it");
    facts.vpns[0].halves = true;
    expect(&facts, Subject::Vpn, Weight::Hampered, "does not carry them");
}

#[test]
fn what_a_daemon_needs_is_asked_only_where_none_runs() {
    let mut facts = stopped();
    facts.tun = TunNode::Missing;
    facts.rights = Rights { root: true, capable: false, possible: false };
    let subjects: Vec<Subject> =
        examine(&facts).findings.iter().map(|finding| finding.subject).collect();
    assert_eq!(subjects, [Subject::Daemon, Subject::TunDevice, Subject::Rights]);
    facts.daemon = well().daemon;
    assert_eq!(examine(&facts).findings, []);
}

#[test]
fn a_daemon_that_may_not_delay_sleep_is_told_to_get_the_rules() {
    let facts = Facts { sleep: Sleep::Undelayed, ..well() };
    let finding = expect(&facts, Subject::Sleep, Weight::Remark, "may not delay sleep");
    assert!(matches!(&finding.remedies[..], [Remedy::Advice(it)] if it.contains("polkit")));
}

#[test]
fn small_things_are_small() {
    let mut facts = well();
    facts.group = Group::Outside;
    facts.sleep = Sleep::NoLogin;
    facts.clock.synchronised = Some(false);
    facts.links[1].mtu = 1200;
    facts.rooms[0].free = 0;
    facts.rules = None;
    let report = examine(&facts);
    let found: Vec<(Weight, Subject)> =
        report.findings.iter().map(|finding| (finding.weight, finding.subject)).collect();
    assert_eq!(
        found,
        [
            (Weight::Hampered, Subject::Disk),
            (Weight::Hampered, Subject::Mtu),
            (Weight::Remark, Subject::Group),
            (Weight::Remark, Subject::Sleep),
            (Weight::Remark, Subject::Clock),
        ]
    );
    assert!(!report.is_well());
    assert!(!report.fine.contains(&Subject::Rules), "nobody could read them");
}

#[test]
fn every_sentence_ends_and_every_remedy_says_something() {
    let mut facts = stopped();
    facts.links.clear();
    facts.tun = TunNode::Denied;
    facts.unit = None;
    facts.reach = Reach::Failed(Trouble::NameUnknown, "no such name".to_owned());
    for finding in examine(&facts).findings {
        assert!(finding.text.ends_with('.'), "{finding:?}");
        for remedy in finding.remedies {
            let (Remedy::Command(text) | Remedy::Advice(text)) = remedy;
            assert!(!text.is_empty() && !text.contains("  "), "{text:?}");
        }
    }
}

#[test]
fn names_that_should_be_asked_of_the_gateway_and_are_not_are_told_with_the_reason() {
    let mut facts = well();
    assert!(examine(&facts).fine.contains(&Subject::Names));
    daemon(&mut facts).names = Names::Failed("nobody may write /etc/resolv.conf".to_owned());
    expect(&facts, Subject::Names, Weight::Hampered, "nobody may write /etc/resolv.conf");
    daemon(&mut facts).names = Names::Direct;
    let report = examine(&facts);
    assert!(report.findings.is_empty() && !report.fine.contains(&Subject::Names), "{report:#?}");
}
