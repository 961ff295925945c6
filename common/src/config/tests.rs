use std::time::Duration;

use proptest::prelude::*;

use super::*;

const KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

fn client(more: &str) -> Result<ClientConfig, ConfigError> {
    let text = format!("gateway = \"gw.example.org:443\"\ngateway_key = \"{KEY}\"\n{more}");
    ClientConfig::parse(&text, "client.toml")
}

fn gateway(more: &str) -> Result<GatewayConfig, ConfigError> {
    let text = format!("public = \"gw.example.org:443\"\n{more}");
    GatewayConfig::parse(&text, "gateway.toml")
}

fn client_error(more: &str) -> String {
    client(more).unwrap_err().to_string()
}

fn gateway_error(more: &str) -> String {
    gateway(more).unwrap_err().to_string()
}

#[test]
fn two_lines_are_a_whole_client_configuration() {
    let config = client("").unwrap();
    assert_eq!(config.gateway.to_string(), "gw.example.org:443");
    assert_eq!(config.capture.mode, CaptureMode::Tcp);
    assert_eq!(config.capture.offline, Offline::Direct);
    assert_eq!(config.capture.interface.as_str(), "whimbrel0");
    assert_eq!(config.capture.include.len(), 2);
    assert_eq!(config.capture.exclude.len(), 7);
    assert_eq!(config.session.hold, Duration::from_hours(24));
    assert_eq!(config, ClientConfig::new(&config.gateway, &config.gateway_key));
}

#[test]
fn one_line_is_a_whole_gateway_configuration() {
    let config = gateway("").unwrap();
    assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
    assert_eq!(config.egress, Egress::default());
    assert_eq!(config.limits.flows_per_client, 20_000);
    assert_eq!(config.limits.buffered_per_client, 256 << 20);
    assert_eq!(config, GatewayConfig::new(&config.public));
}

#[test]
fn samples_set_every_key_to_its_default() {
    let config = ClientConfig::parse(&ClientConfig::sample(), "sample").unwrap();
    let defaults = client("").unwrap();
    assert_eq!(ClientConfig { gateway_key: defaults.gateway_key, ..config }, defaults);
    let config = GatewayConfig::parse(&GatewayConfig::sample(), "sample").unwrap();
    assert_eq!(config, gateway("").unwrap());
}

#[test]
fn defaults_are_written_as_they_are_shown() {
    let commented = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
    let set = |text: &str| {
        text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count()
    };
    // What has no default, and the lists that stand ready to be filled.
    assert_eq!(set(&client("").unwrap().to_toml()), 6);
    assert_eq!(set(&gateway("").unwrap().to_toml()), 3);
    assert!(commented(&client("").unwrap().to_toml()) > 20);
}

#[test]
fn written_configurations_read_back_the_same() {
    let changed = client(
        "[capture]\noffline = \"block\"\nexclude = []\ninterface = \"w1\"\naddress6 = \"fd01::7\"\n\
         [paths]\nprefer = [\"eth0\", \"wlan0\"]\nmetered = [\"wwan0\"]\nunmetered = [\"usb0\"]\n\
         captive_probe = false\nmark = 0x51\n\
         [session]\nhold = \"90s\"\n[run]\nresolvers = [\"9.9.9.9\", \"2620:fe::fe\"]\n",
    )
    .unwrap();
    assert_eq!(changed.paths.mark, 0x51);
    assert_eq!(ClientConfig::parse(&changed.to_toml(), "again"), Ok(changed));

    let changed = gateway(
        "listen = [\"0.0.0.0:4433\", \"[::1]:4433\"]\n\
         [egress]\nallow = [\"10.0.0.0/8\"]\ndeny = [\"203.0.113.0/24\"]\n\
         [limits]\nflows_per_client = 7\nbuffered_per_client = \"8MiB\"\n",
    )
    .unwrap();
    assert_eq!(GatewayConfig::parse(&changed.to_toml(), "again"), Ok(changed));
}

#[test]
fn unknown_keys_name_the_line_and_the_nearest_valid_one() {
    assert_eq!(
        client_error("[capture]\noflline = \"block\"\n"),
        "client.toml:4: unknown key \"capture.oflline\"; the nearest valid one is capture.offline"
    );
    assert_eq!(
        client_error("hold = \"24h\"\n"),
        "client.toml:3: unknown key \"hold\"; the nearest valid one is session.hold"
    );
    assert_eq!(
        client_error("[captures]\nmode = \"tcp\"\n"),
        "client.toml:3: unknown section \"captures\"; the nearest valid one is [capture]"
    );
    assert_eq!(
        gateway_error("[limits]\nflows_per_clients = 1\n"),
        "gateway.toml:3: unknown key \"limits.flows_per_clients\"; \
         the nearest valid one is limits.flows_per_client"
    );
    assert_eq!(
        client_error("[capture.mode]\nx = 1\n"),
        "client.toml:3: capture.mode is a table; write \"tcp\" or \"all\""
    );
    assert_eq!(
        client_error("capture = 1\n"),
        "client.toml:3: capture is a section: write [capture] on a line of its own"
    );
}

#[test]
fn missing_keys_are_named() {
    assert_eq!(
        ClientConfig::parse("", "client.toml").unwrap_err().to_string(),
        "client.toml: gateway is missing: write gateway = followed by \"host:port\", \
         IPv6 addresses in brackets, as in \"gw.example.org:443\""
    );
    assert_eq!(
        ClientConfig::parse("gateway = \"h:1\"", "client.toml").unwrap_err().to_string(),
        "client.toml: gateway_key is missing: write gateway_key = followed by \
         the 43 characters that the gateway shows as its key"
    );
}

#[test]
fn wrong_values_say_what_was_found_and_what_is_allowed() {
    assert_eq!(
        client_error("[capture]\noffline = \"sideways\"\n"),
        "client.toml:4: capture.offline is \"sideways\"; write \"direct\" or \"block\""
    );
    assert_eq!(
        client_error("[capture]\noffline = true\n"),
        "client.toml:4: capture.offline is true; write \"direct\" or \"block\""
    );
    assert_eq!(
        client_error("[capture]\nexclude = [\"10.0.0.0/8\",\n\"10.0.0.0/64\"]\n"),
        "client.toml:4: capture.exclude has an item that is \"10.0.0.0/64\"; \
         write \"address/prefix\", as in \"10.0.0.0/8\""
    );
    assert_eq!(
        client_error("[session]\nhold = 24\n"),
        "client.toml:4: session.hold is the number 24; \
         write a duration as \"90s\", \"10m\" or \"24h\""
    );
    assert_eq!(
        client_error("[session]\nhold = \"31d\"\n"),
        "client.toml:4: session.hold is 31d; \
         write a duration as \"90s\", \"10m\" or \"24h\", from 1s to 30d"
    );
    assert_eq!(
        gateway_error("[limits]\nflows_per_client = -1\n"),
        "gateway.toml:3: limits.flows_per_client is the number -1; write a whole number"
    );
    assert_eq!(
        gateway_error("[limits]\nflows_per_client = 0\n"),
        "gateway.toml:3: limits.flows_per_client is 0; \
         write a whole number, from 1 to 1000000"
    );
    assert_eq!(
        gateway_error("listen = []\n"),
        "gateway.toml:2: listen is empty; write [\"[::]:443\"] for every address"
    );
    assert_eq!(
        gateway_error("listen = \"443\"\n"),
        "gateway.toml:2: listen is \"443\"; \
         write a list of \"address:port\", as in \"0.0.0.0:443\" or \"[::]:443\""
    );
}

#[test]
fn tun_addresses_that_cannot_work_are_refused() {
    assert_eq!(
        client_error("[capture]\naddress4 = \"198.19.0.1\"\n"),
        "client.toml:4: capture.address4 is in 198.18.0.0/15, which other tunnels hand out as \
         fake addresses; write another private address"
    );
    assert_eq!(
        client_error("[capture]\naddress6 = \"::1\"\n"),
        "client.toml:4: capture.address6 cannot be given to an interface; write a private address"
    );
}

#[test]
fn broken_toml_names_its_line() {
    let error = client("[capture\n").unwrap_err();
    assert_eq!(error.line, Some(3));
    assert!(error.message.starts_with("not valid TOML: "), "{error}");
    assert_eq!(
        client_error("[capture]\nmode = \"tcp\"\nmode = \"tcp\"\n"),
        "client.toml:5: not valid TOML: duplicate key"
    );
}

#[test]
fn hosts_are_checked() {
    let error = |text: &str| text.parse::<HostPort>().unwrap_err();
    assert_eq!("[::1]:4433".parse::<HostPort>().unwrap().to_string(), "[::1]:4433");
    assert_eq!("[::1]:4433".parse::<HostPort>().unwrap().literal(), Some("::1".parse().unwrap()));
    assert!(matches!(error("gw"), HostPortError::NoPort(_)));
    assert!(matches!(error("[::1]"), HostPortError::NoPort(_)));
    assert!(matches!(error("gw:0"), HostPortError::Port(_)));
    assert!(matches!(error("gw:+1"), HostPortError::Port(_)));
    assert!(matches!(error("gw:65536"), HostPortError::Port(_)));
    assert!(matches!(error("::1:443"), HostPortError::Brackets(_)));
    assert!(matches!(error("[::1:443"), HostPortError::Brackets(_)));
    assert!(matches!(error("g w:443"), HostPortError::Host(_)));
    assert!(matches!(error(":443"), HostPortError::Host(_)));
    assert!(matches!(error("[gw]:443"), HostPortError::Host(_)));
}

#[test]
fn interface_names_are_those_of_linux() {
    for text in ["eth0", "wlp0s20f3", "br-lan", "x".repeat(15).as_str()] {
        assert!(text.parse::<InterfaceName>().is_ok(), "{text}");
    }
    for text in ["", ".", "..", "a/b", "a b", "a:1", "x".repeat(16).as_str()] {
        assert!(text.parse::<InterfaceName>().is_err(), "{text}");
    }
}

#[test]
fn odd_interface_names_survive_being_written() {
    let odd = client("[paths]\nprefer = [\"wlan\u{e9}\", 'a\"b\\c', \"'\"]\n").unwrap();
    assert_eq!(odd.paths.prefer[1].as_str(), "a\"b\\c");
    assert_eq!(ClientConfig::parse(&odd.to_toml(), "again"), Ok(odd));
}

#[test]
fn absurd_nesting_is_an_error() {
    for (open, close) in [("[", "]"), ("{a=", "}")] {
        let text = format!("x = {}1{}", open.repeat(50_000), close.repeat(50_000));
        ClientConfig::parse(&text, "client.toml").unwrap_err();
        ClientConfig::parse(&format!("x = {}", open.repeat(50_000)), "client.toml").unwrap_err();
    }
    ClientConfig::parse(&"a.".repeat(50_000), "client.toml").unwrap_err();
}

/// Pieces that lead deep into the reader, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("gateway = "),
        Just("gateway_key = "),
        Just("public = "),
        Just("listen = "),
        Just("[capture]\n"),
        Just("[limits]\n"),
        Just("capture.mode = "),
        Just("exclude = "),
        Just("hold = "),
        Just("mark = "),
        Just("\"gw.example.org:443\"\n"),
        Just("\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"\n"),
        Just("[\"10.0.0.0/8\", "),
        Just("]\n"),
        Just("{ a = 1 }\n"),
        Just("99999999999999999999\n"),
        Just("0xffffffff\n"),
        Just("\"24h\"\n"),
        Just("1979-05-27\n"),
        Just("\n"),
        Just("\u{1f426}"),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics_and_what_is_read_can_be_written(text in prop_oneof![pieces(), any::<String>()]) {
        if let Ok(config) = ClientConfig::parse(&text, "f") {
            prop_assert_eq!(ClientConfig::parse(&config.to_toml(), "f"), Ok(config));
        }
        if let Ok(config) = GatewayConfig::parse(&text, "f") {
            prop_assert_eq!(GatewayConfig::parse(&config.to_toml(), "f"), Ok(config));
        }
    }

    #[test]
    fn errors_are_one_line_and_bounded(text in any::<String>()) {
        if let Err(error) = ClientConfig::parse(&text, "f") {
            let shown = error.to_string();
            prop_assert!(!shown.contains('\n'), "{}", shown);
            prop_assert!(shown.len() < 1000, "{}", shown);
        }
    }
}

#[test]
fn figures_are_for_this_machine_alone() {
    assert_eq!(client("").unwrap().metrics, MetricsPort(None));
    for own in ["127.0.0.1:9464", "[::1]:9464", "127.1.2.3:1", "[::ffff:127.0.0.1]:9464"] {
        let config = gateway(&format!("metrics = \"{own}\"\n")).unwrap();
        assert_eq!(config.metrics.0.unwrap().to_string(), own);
        assert_eq!(GatewayConfig::parse(&config.to_toml(), "again"), Ok(config));
    }
    assert_eq!(
        gateway_error("metrics = \"0.0.0.0:9464\"\n"),
        "gateway.toml:2: metrics is 0.0.0.0:9464, which others could reach; write an address of this \
         machine alone, as in \"127.0.0.1:9464\""
    );
    assert!(client_error("metrics = \"[2001:db8::1]:9464\"\n").contains("others could reach"));
    assert!(client_error("metrics = \"127.0.0.1:0\"\n").contains("has no port"));
    for wrong in ["\"9464\"", "\"localhost:9464\"", "9464", "true"] {
        let error = client_error(&format!("metrics = {wrong}\n"));
        assert!(error.contains("write \"address:port\""), "{error}");
    }
}

#[test]
fn a_bandwidth_that_carries_nothing_is_refused() {
    let rate = |text: &str| gateway(&format!("[limits]\nbandwidth_per_client = \"{text}\"\n"));
    assert_eq!(rate("0B").unwrap().limits.bandwidth_per_client, 0);
    assert_eq!(rate("12MiB").unwrap().limits.bandwidth_per_client, 12 << 20);
    let error = rate("10KiB").unwrap_err().to_string();
    assert!(error.contains("limits.bandwidth_per_client is less than 64KiB per second"), "{error}");
}
