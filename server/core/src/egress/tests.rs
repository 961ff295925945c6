use super::*;

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let mut policy = Policy::new(&Egress { allow: ranges(allow), deny: ranges(deny) });
    policy.set_own(["93.184.215.14", "2606:4700::5"].map(|text| text.parse().unwrap()));
    policy
}

fn https(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 443)
}

fn verdict(policy: &Policy, address: &str) -> Result<(), Reason> {
    policy.check(https(address)).map_err(|denied| denied.reason)
}

#[test]
fn the_internet_is_allowed() {
    let policy = policy(&[], &[]);
    for address in
        ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.32.0.1", "223.255.255.255"]
    {
        assert_eq!(verdict(&policy, address), Ok(()), "{address}");
    }
    for address in ["2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "2400::1"] {
        assert_eq!(verdict(&policy, address), Ok(()), "{address}");
    }
}

#[test]
fn everything_near_the_gateway_is_denied() {
    let policy = policy(&[], &[]);
    for (address, reason) in [
        ("127.0.0.1", Reason::Loopback),
        ("127.255.255.254", Reason::Loopback),
        ("::1", Reason::Loopback),
        ("10.0.0.1", Reason::Private),
        ("172.16.0.1", Reason::Private),
        ("172.31.255.255", Reason::Private),
        ("192.168.1.1", Reason::Private),
        ("fd00::1", Reason::Private),
        ("fc00::1", Reason::Private),
        ("fec0::1", Reason::Private),
        ("100.64.0.1", Reason::CarrierNat),
        ("100.127.255.255", Reason::CarrierNat),
        ("169.254.169.254", Reason::LinkLocal),
        ("fe80::1", Reason::LinkLocal),
        ("fd00:ec2::254", Reason::Private),
        ("224.0.0.1", Reason::Multicast),
        ("239.255.255.250", Reason::Multicast),
        ("ff02::1", Reason::Multicast),
        ("198.18.0.1", Reason::Benchmark),
        ("198.19.255.255", Reason::Benchmark),
        ("2001:2::1", Reason::Benchmark),
        ("0.0.0.0", Reason::Reserved),
        ("0.1.2.3", Reason::Reserved),
        ("::", Reason::Reserved),
        ("192.0.0.8", Reason::Reserved),
        ("192.0.2.1", Reason::Reserved),
        ("198.51.100.1", Reason::Reserved),
        ("203.0.113.1", Reason::Reserved),
        ("240.0.0.1", Reason::Reserved),
        ("255.255.255.255", Reason::Reserved),
        ("2001:db8::1", Reason::Reserved),
        ("3fff::1", Reason::Reserved),
        ("100::1", Reason::Reserved),
        ("4000::1", Reason::Reserved),
        ("8000::1", Reason::Reserved),
        ("5f00::1", Reason::Reserved),
        ("64:ff9b:1::808:808", Reason::Reserved),
        ("93.184.215.14", Reason::OwnAddress),
        ("2606:4700::5", Reason::OwnAddress),
    ] {
        assert_eq!(verdict(&policy, address), Err(reason), "{address}");
    }
}

#[test]
fn ipv4_inside_ipv6_is_judged_as_ipv4() {
    let policy = policy(&[], &[]);
    for (address, reason) in [
        ("::ffff:127.0.0.1", Reason::Loopback),
        ("::ffff:169.254.169.254", Reason::LinkLocal),
        ("::ffff:93.184.215.14", Reason::OwnAddress),
        ("64:ff9b::10.0.0.1", Reason::Private),
        ("64:ff9b::127.0.0.1", Reason::Loopback),
        ("64:ff9b::93.184.215.14", Reason::OwnAddress),
        ("2002:7f00:1::", Reason::Loopback),
        ("2002:a9fe:a9fe::1", Reason::LinkLocal),
        ("2002:c0a8:101::1", Reason::Private),
    ] {
        assert_eq!(verdict(&policy, address), Err(reason), "{address}");
    }
    for address in ["::ffff:1.1.1.1", "64:ff9b::8.8.8.8", "2002:101:101::1"] {
        assert_eq!(verdict(&policy, address), Ok(()), "{address}");
    }
}

#[test]
fn teredo_and_compatible_addresses_are_denied_and_stay_so_for_what_they_embed() {
    assert_eq!(verdict(&policy(&[], &[]), "2001:0:101:101::1"), Err(Reason::Reserved));
    assert_eq!(verdict(&policy(&[], &[]), "::1.1.1.1"), Err(Reason::Reserved));

    let open = policy(&["2001::/32", "::/96"], &[]);
    // Server 1.1.1.1, client ^f5ff:fffe = 10.0.0.1.
    assert_eq!(verdict(&open, "2001:0:101:101::f5ff:fffe"), Err(Reason::Private));
    // Server 10.0.0.1, client 8.8.8.8.
    assert_eq!(verdict(&open, "2001:0:a00:1::f7f7:f7f7"), Err(Reason::Private));
    assert_eq!(verdict(&open, "2001:0:101:101::f7f7:f7f7"), Ok(()));
    assert_eq!(verdict(&open, "::10.0.0.1"), Err(Reason::Private));
}

#[test]
fn longest_prefix_wins_between_allow_and_deny() {
    let policy = policy(
        &["10.0.0.0/8", "10.1.2.0/24", "0.0.0.0/0", "8.8.8.8/32"],
        &["10.1.0.0/16", "8.8.8.0/24", "9.9.9.9/32"],
    );
    let rule = |text: &str| Err(Reason::Rule(text.parse().unwrap()));
    assert_eq!(verdict(&policy, "10.7.0.1"), Ok(()));
    assert_eq!(verdict(&policy, "10.1.7.1"), rule("10.1.0.0/16"));
    assert_eq!(verdict(&policy, "10.1.2.1"), Ok(()));
    assert_eq!(verdict(&policy, "8.8.8.8"), Ok(()));
    assert_eq!(verdict(&policy, "8.8.8.7"), rule("8.8.8.0/24"));
    assert_eq!(verdict(&policy, "9.9.9.9"), rule("9.9.9.9/32"));
    // Allowing everything does not reach past the more specific defaults.
    assert_eq!(verdict(&policy, "192.168.0.1"), Err(Reason::Private));
    assert_eq!(verdict(&policy, "127.0.0.1"), Err(Reason::Loopback));
}

#[test]
fn deny_wins_at_equal_length_and_covers_the_internet() {
    let policy = policy(&["1.1.1.0/24"], &["1.1.1.0/24", "::/0"]);
    assert!(matches!(verdict(&policy, "1.1.1.1"), Err(Reason::Rule(_))));
    assert!(matches!(verdict(&policy, "2606:4700::1111"), Err(Reason::Rule(_))));
    assert!(matches!(verdict(&policy, "64:ff9b::8.8.8.8"), Err(Reason::Rule(_))));
}

#[test]
fn an_own_address_needs_a_rule_of_its_own() {
    assert_eq!(
        verdict(&policy(&["93.184.215.0/24"], &[]), "93.184.215.14"),
        Err(Reason::OwnAddress)
    );
    assert_eq!(verdict(&policy(&["93.184.215.14/32"], &[]), "93.184.215.14"), Ok(()));
}

#[test]
fn port_25_is_denied_even_where_the_address_is_allowed() {
    let policy = policy(&["1.1.1.1/32"], &[]);
    let denied = policy.check("1.1.1.1:25".parse().unwrap()).unwrap_err();
    assert_eq!(denied.to_string(), "1.1.1.1:25 is denied: port 25, mail between servers");
    assert_eq!(policy.check("1.1.1.1:587".parse().unwrap()), Ok(()));
}
