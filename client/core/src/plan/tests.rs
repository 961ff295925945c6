use proptest::prelude::*;

use super::*;

const TUN: u32 = 7;
const MARK: u32 = 0x5748;

fn ranges(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn plan(include: &[&str], exclude: &[&str], own: &[&str], paused: bool) -> Plan {
    let own: Vec<Ipv6Addr> = own.iter().map(|text| text.parse().unwrap()).collect();
    Plan::new(&CaptureInputs {
        tun_index: TUN,
        tun_v4: Some(Ipv4Addr::new(10, 213, 57, 1)),
        tun_v6: Some("fd57::1".parse().unwrap()),
        include: &ranges(include),
        exclude: &ranges(exclude),
        own_v6_addresses: &own,
        mark: MARK,
        commands: false,
        table: TABLE,
        paused,
        datagrams: None,
        echoes: false,
    })
}

const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };

fn lines(plan: &Plan) -> Vec<String> {
    let rules = plan.rules().iter().map(ToString::to_string);
    rules.chain(plan.routes().iter().map(ToString::to_string)).collect()
}

fn steps(current: &Plan, desired: &Plan) -> Vec<String> {
    diff(current, desired).iter().map(ToString::to_string).collect()
}

#[test]
fn the_plan_reads_as_documented() {
    let plan = plan(
        &["0.0.0.0/0", "::/0"],
        &["10.0.0.0/8", "fc00::/7"],
        &["2001:db8::5", "fd57::1"],
        false,
    );
    assert_eq!(
        lines(&plan),
        [
            "rule 5400 fwmark 0x5748 lookup 254",
            "rule 5402 from 10.213.57.1/32 lookup 5211",
            "rule 5404 from 10.213.57.1/32 unreachable",
            "rule 5412 from 0.0.0.0/32 ipproto tcp lookup 254 suppress_prefixlength 0",
            "rule 5414 from 0.0.0.0/32 ipproto tcp lookup 5211",
            "IPv6 rule 5400 fwmark 0x5748 lookup 254",
            "IPv6 rule 5402 from fd57::1/128 lookup 5211",
            "IPv6 rule 5404 from fd57::1/128 unreachable",
            "IPv6 rule 5410 from 2001:db8::5/128 ipproto tcp goto 5420",
            "IPv6 rule 5412 ipproto tcp lookup 254 suppress_prefixlength 0",
            "IPv6 rule 5414 ipproto tcp lookup 5211",
            "IPv6 rule 5420 nop",
            "route 0.0.0.0/0 dev #7 table 5211",
            "route throw 10.0.0.0/8 table 5211",
            "route ::/0 dev #7 table 5211",
            "route throw fc00::/7 table 5211",
        ]
    );
}

#[test]
fn pausing_keeps_captured_flows_and_captures_nothing_new() {
    let running = plan(&["0.0.0.0/0", "::/0"], &[], &["2001:db8::5"], false);
    let paused = plan(&["0.0.0.0/0", "::/0"], &[], &["2001:db8::5"], true);
    assert_eq!(paused.routes(), running.routes());
    assert!(paused.rules().iter().all(|rule| rule.of.is_none()));
    assert_eq!(
        steps(&running, &paused),
        [
            "removing IPv6 rule 5414 ipproto tcp lookup 5211",
            "removing IPv6 rule 5412 ipproto tcp lookup 254 suppress_prefixlength 0",
            "removing IPv6 rule 5410 from 2001:db8::5/128 ipproto tcp goto 5420",
            "removing rule 5414 from 0.0.0.0/32 ipproto tcp lookup 5211",
            "removing rule 5412 from 0.0.0.0/32 ipproto tcp lookup 254 suppress_prefixlength 0",
            "removing IPv6 rule 5420 nop",
        ]
    );
}

#[test]
fn a_family_without_tun_address_or_inclusion_is_left_alone() {
    let only_v4 = plan(&["0.0.0.0/0"], &["fc00::/7"], &["2001:db8::5"], false);
    assert!(only_v4.rules().iter().all(|rule| rule.family == Family::V4));
    assert!(plan(&[], &[], &[], false).rules().is_empty());
    let no_v6 = Plan::new(&CaptureInputs {
        tun_index: TUN,
        tun_v4: Some(Ipv4Addr::new(10, 213, 57, 1)),
        tun_v6: None,
        include: &ranges(&["0.0.0.0/0", "::/0"]),
        exclude: &ranges(&["fc00::/7"]),
        own_v6_addresses: &[],
        mark: MARK,
        commands: false,
        table: TABLE,
        paused: false,
        datagrams: None,
        echoes: false,
    });
    assert_eq!(no_v6.routes().len(), 1);
    assert!(no_v6.rules().iter().all(|rule| rule.family == Family::V4));
}

#[test]
fn udp_is_captured_beside_tcp_from_ports_the_kernel_chose() {
    let plan = Plan::new(&CaptureInputs {
        tun_index: TUN,
        tun_v4: Some(Ipv4Addr::new(10, 213, 57, 1)),
        tun_v6: Some("fd57::1".parse().unwrap()),
        include: &ranges(&["0.0.0.0/0", "::/0"]),
        exclude: &ranges(&["10.0.0.0/8"]),
        own_v6_addresses: &["2001:db8::5".parse().unwrap()],
        mark: MARK,
        commands: false,
        table: TABLE,
        paused: false,
        datagrams: Some(EPHEMERAL),
        echoes: true,
    });
    let lines = lines(&plan);
    let udp: Vec<&String> = lines.iter().filter(|line| line.contains("udp")).collect();
    assert_eq!(
        udp,
        [
            "rule 5412 from 0.0.0.0/32 ipproto udp sport 32768-60999 lookup 254 \
             suppress_prefixlength 0",
            "rule 5414 from 0.0.0.0/32 ipproto udp sport 32768-60999 lookup 5211",
            "IPv6 rule 5410 from 2001:db8::5/128 ipproto udp sport 32768-60999 goto 5420",
            "IPv6 rule 5412 ipproto udp sport 32768-60999 lookup 254 suppress_prefixlength 0",
            "IPv6 rule 5414 ipproto udp sport 32768-60999 lookup 5211",
        ]
    );
    assert_eq!(lines.iter().filter(|line| line.contains("tcp")).count(), 5);
    for range in ["224.0.0.0/4", "255.255.255.255/32", "ff00::/8"] {
        let thrown = format!("route throw {range} table 5211");
        assert!(lines.contains(&thrown), "multicast stays on the local network: {lines:?}");
    }
}

/// The rules and routes where sockets of commands can be marked.
fn with_commands(include: &[&str], paused: bool) -> Vec<String> {
    lines(&Plan::new(&CaptureInputs {
        tun_index: TUN,
        tun_v4: Some(Ipv4Addr::new(10, 213, 57, 1)),
        tun_v6: Some("fd57::1".parse().unwrap()),
        include: &ranges(include),
        exclude: &ranges(&["10.0.0.0/8"]),
        own_v6_addresses: &["2001:db8::5".parse().unwrap()],
        mark: MARK,
        commands: true,
        table: TABLE,
        paused,
        datagrams: None,
        echoes: false,
    }))
}

#[test]
fn marked_sockets_have_a_way_of_their_own_whatever_the_host_captures() {
    let of_commands = [
        "rule 5400 fwmark 0x5748 lookup 254",
        "rule 5401 fwmark 0x5749 goto 5420",
        "rule 5402 from 10.213.57.1/32 lookup 5211",
        "rule 5403 from 10.213.57.1/32 lookup 5212",
        "rule 5404 from 10.213.57.1/32 unreachable",
        "rule 5411 from 0.0.0.0/32 fwmark 0x574a ipproto tcp lookup 254 suppress_prefixlength 0",
        "rule 5415 from 0.0.0.0/32 fwmark 0x574a ipproto tcp lookup 5212",
        "rule 5420 nop",
        "IPv6 rule 5400 fwmark 0x5748 lookup 254",
        "IPv6 rule 5401 fwmark 0x5749 goto 5420",
        "IPv6 rule 5402 from fd57::1/128 lookup 5211",
        "IPv6 rule 5403 from fd57::1/128 lookup 5212",
        "IPv6 rule 5404 from fd57::1/128 unreachable",
        "IPv6 rule 5410 from 2001:db8::5/128 ipproto tcp goto 5420",
        "IPv6 rule 5411 fwmark 0x574a ipproto tcp lookup 254 suppress_prefixlength 0",
        "IPv6 rule 5415 fwmark 0x574a ipproto tcp lookup 5212",
        "IPv6 rule 5420 nop",
        "route 0.0.0.0/0 dev #7 table 5212",
        "route throw 10.0.0.0/8 table 5212",
        "route ::/0 dev #7 table 5212",
    ];
    let nothing_else = with_commands(&[], false);
    let throw = "route throw 10.0.0.0/8 table 5211";
    let but_for: Vec<&String> = nothing_else.iter().filter(|line| *line != throw).collect();
    assert_eq!(but_for, of_commands);
    for paused in [false, true] {
        let all = with_commands(&["0.0.0.0/0", "::/0"], paused);
        assert!(of_commands.iter().all(|line| all.iter().any(|it| it == line)), "{all:?}");
        let host = all.iter().any(|line| line.starts_with("rule 5414"));
        assert_eq!(host, !paused, "what is unmarked: {all:?}");
    }
}

#[test]
fn exclude_wins_over_an_equal_prefix() {
    let plan = plan(&["192.0.2.0/24", "0.0.0.0/0"], &["192.0.2.0/24"], &[], false);
    assert!(lines(&plan).contains(&"route throw 192.0.2.0/24 table 5211".to_owned()));
    assert_eq!(plan.routes().len(), 2);
}

#[test]
fn a_new_own_address_adds_one_rule_and_touches_nothing_else() {
    let before = plan(&["::/0"], &[], &["2001:db8::5"], false);
    let after = plan(&["::/0"], &[], &["2001:db8::5", "2001:db8::6"], false);
    let added = "adding IPv6 rule 5410 from 2001:db8::6/128 ipproto tcp goto 5420";
    assert_eq!(steps(&before, &after), [added]);
}

#[test]
fn exemptions_come_before_and_go_after_what_captures() {
    let full = plan(&["0.0.0.0/0", "::/0"], &["10.0.0.0/8"], &["2001:db8::5"], false);
    let up = diff(&Plan::default(), &full);
    let capture = |change: &Change| matches!(change, Change::AddRule(r) | Change::RemoveRule(r) if r.priority == CAPTURE);
    let nop = |change: &Change| matches!(change, Change::AddRule(r) | Change::RemoveRule(r) if r.action == Action::Nop);
    let bound = |change: &Change| matches!(change, Change::AddRule(r) | Change::RemoveRule(r) if r.priority == BOUND);
    let route = |change: &Change| matches!(change, Change::PutRoute(_) | Change::RemoveRoute(_));
    let at =
        |steps: &[Change], what: &dyn Fn(&Change) -> bool| steps.iter().position(what).unwrap();
    assert!(up.iter().rposition(route).unwrap() < at(&up, &capture));
    assert!(at(&up, &nop) < at(&up, &bound));
    assert!(at(&up, &bound) < up.iter().rposition(capture).unwrap());
    let down = diff(&full, &Plan::default());
    assert!(down.iter().rposition(capture).unwrap() < at(&down, &route));
    assert!(at(&down, &capture) < at(&down, &bound));
    assert!(at(&down, &bound) < at(&down, &nop));
}

#[test]
fn a_changed_target_replaces_the_route_in_one_step() {
    let captured = plan(&["192.0.2.0/24"], &[], &[], false);
    let thrown = plan(&["192.0.2.0/24"], &["192.0.2.0/24"], &[], false);
    let routes: Vec<Change> = diff(&captured, &thrown)
        .into_iter()
        .filter(|change| matches!(change, Change::PutRoute(_) | Change::RemoveRoute(_)))
        .collect();
    assert_eq!(routes, [Change::PutRoute(thrown.routes()[0])]);
}

fn apply(plan: &Plan, changes: &[Change]) -> Plan {
    let mut rules = plan.rules().to_vec();
    let mut routes = plan.routes().to_vec();
    for change in changes {
        match *change {
            Change::RemoveRule(rule) => rules.retain(|other| *other != rule),
            Change::AddRule(rule) => rules.push(rule),
            Change::RemoveRoute(route) => routes.retain(|other| *other != route),
            Change::PutRoute(route) => {
                let place = |route: &Route| (route.table, route.destination);
                routes.retain(|other| place(other) != place(&route));
                routes.push(route);
            }
        }
    }
    Plan::of(routes, rules)
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let range = (any::<u32>(), 0..=32u8)
        .prop_map(|(bits, prefix)| Cidr::new(Ipv4Addr::from_bits(bits).into(), prefix).unwrap());
    let ranges = proptest::collection::vec(range, 0..6);
    let own = proptest::collection::vec(any::<u128>().prop_map(Ipv6Addr::from_bits), 0..4);
    (ranges.clone(), ranges, own, any::<[bool; 3]>()).prop_map(|(include, exclude, own, flags)| {
        let [paused, all, commands] = flags;
        let anything = "::/0".parse().unwrap();
        Plan::new(&CaptureInputs {
            tun_index: TUN,
            tun_v4: Some(Ipv4Addr::new(10, 213, 57, 1)),
            tun_v6: Some("fd57::1".parse().unwrap()),
            include: &[include, vec![anything]].concat(),
            exclude: &exclude,
            own_v6_addresses: &own,
            mark: MARK,
            commands,
            table: TABLE,
            paused,
            datagrams: all.then_some(EPHEMERAL),
            echoes: all,
        })
    })
}

proptest! {
    #[test]
    fn diff_leads_from_any_plan_to_any_other(a in any_plan(), b in any_plan()) {
        prop_assert!(diff(&b, &b).is_empty());
        prop_assert_eq!(apply(&a, &diff(&a, &b)), b);
    }
}
