//! Configuration: `client.toml`, `gateway.toml`, and every type of value in them.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use whimbrel_common::cidr::Cidr;
use whimbrel_common::config::{ClientConfig, ConfigError, GatewayConfig, HostPort, InterfaceName};
use whimbrel_common::units::{Period, Size};
use whimbrel_fuzz::{Input, check_message, text};

/// A file name as long as they get; errors repeat it.
const FILE: &str = "/etc/whimbrel/some.toml";

/// The longest error: a key and a value, each cut at 80 characters of up to ten bytes as shown,
/// and what may be written instead.
const LONGEST_ERROR: usize = 2048;

fuzz_target!(init: whimbrel_fuzz::seeds::plant("config"), |bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let text = text(input.rest());
    match kind % 5 {
        0 => check_client(&text),
        1 => check_client(&client_with(&text)),
        2 => check_gateway(&text),
        3 => check_gateway(&gateway_with(&text)),
        _ => check_values(&text),
    }
});

fn client_with(more: &str) -> String {
    let key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    format!("gateway = \"gw.example.org:443\"\ngateway_key = \"{key}\"\n{more}")
}

fn gateway_with(more: &str) -> String {
    format!("public = \"gw.example.org:443\"\n{more}")
}

fn check_client(text: &str) {
    match ClientConfig::parse(text, FILE) {
        Ok(config) => {
            let written = config.to_toml();
            assert_eq!(ClientConfig::parse(&written, FILE), Ok(config), "written as {written}");
        }
        Err(error) => check_error(text, &error),
    }
}

fn check_gateway(text: &str) {
    match GatewayConfig::parse(text, FILE) {
        Ok(config) => {
            let written = config.to_toml();
            assert!(!config.listen.is_empty());
            assert_eq!(GatewayConfig::parse(&written, FILE), Ok(config), "written as {written}");
        }
        Err(error) => check_error(text, &error),
    }
}

fn check_error(text: &str, error: &ConfigError) {
    check_message(error, LONGEST_ERROR);
    assert_eq!(error.file, FILE);
    if let Some(line) = error.line {
        let lines = 1 + text.bytes().filter(|byte| *byte == b'\n').count();
        assert!((1..=lines).contains(&line), "line {line} of {lines}");
    }
}

fn check_values(text: &str) {
    check_value::<HostPort>(text);
    check_value::<Cidr>(text);
    check_value::<InterfaceName>(text);
    check_value::<Period>(text);
    check_value::<Size>(text);
}

/// What is read can be written and read again.
fn check_value<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string().parse::<T>();
            assert_eq!(again.ok(), Some(value), "from {text:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
