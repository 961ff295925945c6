//! How each type of value is read, and what to say when it cannot be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use toml::de::DeValue;

use super::{CaptureMode, Dns, HostPort, InterfaceName, MetricsPort, Offline};
use crate::cidr::Cidr;
use crate::identity::PublicKey;
use crate::units::{Period, Size};

/// A value that is not what its key needs.
#[derive(Debug)]
pub(super) struct Wrong {
    /// What was found, as in `is an integer (12)`.
    pub(super) found: String,
    /// What may be written instead.
    pub(super) allowed: String,
}

/// A type that a key can have.
pub(super) trait Value: Sized {
    /// What may be written, to follow the word "write".
    fn allowed() -> String;

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong>;
}

/// Whole numbers. Wide enough for every key; keys narrow it by their range.
impl Value for u32 {
    fn allowed() -> String {
        "a whole number".to_owned()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = value.as_integer().ok_or_else(|| wrong_type::<Self>(value))?;
        let digits = number.as_str().replace('_', "");
        Self::from_str_radix(&digits, number.radix())
            .map_err(|_| Wrong { found: format!("is {}", found(value)), allowed: Self::allowed() })
    }
}

impl Value for bool {
    fn allowed() -> String {
        "true or false".to_owned()
    }

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_bool().ok_or_else(|| wrong_type::<Self>(value))
    }
}

impl<T: Value> Value for Vec<T> {
    fn allowed() -> String {
        format!("a list of {}", T::allowed())
    }

    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let items = value.as_array().ok_or_else(|| wrong_type::<Self>(value))?;
        items
            .iter()
            .map(|item| {
                T::read(item.get_ref()).map_err(|wrong| Wrong {
                    found: format!("has an item that {}", wrong.found),
                    ..wrong
                })
            })
            .collect()
    }
}

macro_rules! text_value {
    ($type:ty, $allowed:literal) => {
        impl Value for $type {
            fn allowed() -> String {
                $allowed.to_owned()
            }

            fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
                let text = value.as_str().ok_or_else(|| wrong_type::<Self>(value))?;
                text.parse().map_err(|_| Wrong {
                    found: format!("is {}", found(value)),
                    allowed: Self::allowed(),
                })
            }
        }
    };
}

text_value!(HostPort, "\"host:port\", IPv6 addresses in brackets, as in \"gw.example.org:443\"");
text_value!(PublicKey, "the 43 characters that the gateway shows as its key");
text_value!(Cidr, "\"address/prefix\", as in \"10.0.0.0/8\"");
text_value!(SocketAddr, "\"address:port\", as in \"0.0.0.0:443\" or \"[::]:443\"");
text_value!(IpAddr, "an IP address in quotes");
text_value!(Ipv4Addr, "an IPv4 address in quotes");
text_value!(Ipv6Addr, "an IPv6 address in quotes");
text_value!(InterfaceName, "an interface name in quotes, at most 15 characters");
text_value!(CaptureMode, "\"tcp\" or \"all\"");
text_value!(Offline, "\"direct\" or \"block\"");
text_value!(MetricsPort, "\"address:port\", as in \"127.0.0.1:9464\", or \"\" for none");
text_value!(Dns, "\"auto\", \"gateway\" or \"direct\"");
text_value!(Period, "a duration as \"90s\", \"10m\" or \"24h\"");
text_value!(Size, "a size as \"512KiB\" or \"8MiB\"");

fn wrong_type<T: Value>(value: &DeValue<'_>) -> Wrong {
    Wrong { found: format!("is {}", found(value)), allowed: T::allowed() }
}

/// Names the type of a value and, where it is short, the value.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", shortened(text)),
        DeValue::Integer(number) => format!("the number {}", shortened(number.as_str())),
        DeValue::Float(number) => format!("the number {}", shortened(number.as_str())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    text.chars().take(77).chain("...".chars()).collect()
}
