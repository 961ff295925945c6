//! `client.toml`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use super::raw::Raw;
use super::schema::{self, Entry, Key, list, quoted};
use super::{ConfigError, HostPort, InterfaceName, MetricsPort, metrics_port};
use crate::cidr::Cidr;
use crate::identity::PublicKey;
use crate::units::Period;

/// A validated `client.toml`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientConfig {
    /// Where the gateway is; a name may resolve to both families.
    pub gateway: HostPort,
    /// The key the gateway must prove it owns.
    pub gateway_key: PublicKey,
    /// Where figures may be read.
    pub metrics: MetricsPort,
    /// Which of the host's traffic is carried.
    pub capture: Capture,
    /// How uplinks are chosen.
    pub paths: Paths,
    /// How long flows outlive their networks.
    pub session: SessionHold,
    /// What commands of `whimbrel run` get.
    pub run: Run,
}

/// Section `[capture]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capture {
    /// Which protocols are carried.
    pub mode: CaptureMode,
    /// Of whom the host asks names.
    pub dns: Dns,
    /// Destinations to carry. Against `exclude`, the longest prefix wins.
    pub include: Vec<Cidr>,
    /// Destinations to leave alone.
    pub exclude: Vec<Cidr>,
    /// What new connections get while the gateway is out of reach.
    pub offline: Offline,
    /// The name of the TUN device.
    pub interface: InterfaceName,
    /// The TUN's IPv4 address: what captured programs see as their own.
    pub address4: Ipv4Addr,
    /// The TUN's IPv6 address.
    pub address6: Ipv6Addr,
}

/// Which protocols are carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureMode {
    /// New TCP connections.
    Tcp,
    /// UDP too.
    All,
}

/// Of whom the host asks names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dns {
    /// Of the gateway's resolver where UDP is carried too, else as before.
    Auto,
    /// Of the gateway's resolver.
    Gateway,
    /// As before.
    Direct,
}

/// What new connections get while the gateway is out of reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offline {
    /// They go out directly, as if Whimbrel were not there.
    Direct,
    /// They fail at once with "host unreachable".
    Block,
}

/// Section `[paths]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// Interfaces, best first. Those not named follow, by the kernel's route metrics.
    pub prefer: Vec<InterfaceName>,
    /// Interfaces that cost money per byte.
    pub metered: Vec<InterfaceName>,
    /// Interfaces that do not, whatever they look like.
    pub unmetered: Vec<InterfaceName>,
    /// Whether a network over which the gateway does not answer is asked for a sign-in page.
    pub captive_probe: bool,
    /// The firewall mark on Whimbrel's own packets.
    pub mark: u32,
}

/// Section `[session]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionHold {
    /// How long flows are held while no network reaches the gateway.
    pub hold: Duration,
}

/// Section `[run]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Who is asked for names, the next one when one fails. Empty: whom the host asks, if a
    /// gateway can.
    pub resolvers: Vec<IpAddr>,
}

impl ClientConfig {
    /// Reads and validates the text of a `client.toml`. `file` is only for error messages.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let raw = Raw::parse(text, file, KEYS)?;
        Ok(Self {
            gateway: raw.read("gateway")?,
            gateway_key: raw.read("gateway_key")?,
            metrics: metrics_port::read(&raw)?,
            capture: capture(&raw)?,
            paths: Paths {
                prefer: raw.read("paths.prefer")?,
                metered: raw.read("paths.metered")?,
                unmetered: raw.read("paths.unmetered")?,
                captive_probe: raw.read("paths.captive_probe")?,
                mark: raw.read_within("paths.mark", 1..=u32::MAX - 2)?,
            },
            session: SessionHold { hold: hold(&raw, "session.hold")? },
            run: Run { resolvers: raw.read("run.resolvers")? },
        })
    }

    /// This gateway and every default.
    #[must_use]
    pub fn new(gateway: &HostPort, gateway_key: &PublicKey) -> Self {
        let text = format!("gateway = \"{gateway}\"\ngateway_key = \"{gateway_key}\"\n");
        Self::parse(&text, "defaults").expect("the defaults are valid, a test reads them")
    }

    /// The file for this configuration, with every key explained; keys at their default stand
    /// as comments.
    #[must_use]
    pub fn to_toml(&self) -> String {
        schema::write(TITLE, KEYS, Some(self))
    }

    /// A file that sets every key to its default, or to an example where there is none.
    #[must_use]
    pub fn sample() -> String {
        schema::write(TITLE, KEYS, None)
    }

    /// Every key, in the order of the file.
    pub fn entries() -> impl Iterator<Item = Entry> {
        KEYS.iter().map(Key::entry)
    }
}

/// A hold of up to 30 days; the default is a day. Both ends use this range.
pub(super) fn hold(raw: &Raw<'_>, path: &str) -> Result<Duration, ConfigError> {
    let longest = Period(Duration::from_hours(30 * 24));
    Ok(raw.read_within(path, Period(Duration::from_secs(1))..=longest)?.0)
}

fn capture(raw: &Raw<'_>) -> Result<Capture, ConfigError> {
    let address4: Ipv4Addr = raw.read("capture.address4")?;
    if address4.octets()[0] == 198 && address4.octets()[1] & 0xfe == 18 {
        let because = "is in 198.18.0.0/15, which other tunnels hand out as fake addresses; \
                       write another private address";
        return Err(raw.refuse("capture.address4", because));
    }
    let address6: Ipv6Addr = raw.read("capture.address6")?;
    refuse_unusable(raw, "capture.address4", address4.into())?;
    refuse_unusable(raw, "capture.address6", address6.into())?;
    Ok(Capture {
        mode: raw.read("capture.mode")?,
        dns: raw.read("capture.dns")?,
        include: raw.read("capture.include")?,
        exclude: raw.read("capture.exclude")?,
        offline: raw.read("capture.offline")?,
        interface: raw.read("capture.interface")?,
        address4,
        address6,
    })
}

fn refuse_unusable(raw: &Raw<'_>, path: &str, address: IpAddr) -> Result<(), ConfigError> {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(raw.refuse(path, "cannot be given to an interface; write a private address"));
    }
    Ok(())
}

impl FromStr for CaptureMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "all" => Ok(Self::All),
            _ => Err(()),
        }
    }
}

impl fmt::Display for CaptureMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::All => "all",
        })
    }
}

impl Capture {
    /// Whether names are to be asked of the gateway.
    #[must_use]
    pub fn asks_gateway(&self) -> bool {
        match (self.dns, self.mode) {
            (Dns::Gateway, _) | (Dns::Auto, CaptureMode::All) => true,
            (Dns::Direct, _) | (Dns::Auto, CaptureMode::Tcp) => false,
        }
    }
}

impl FromStr for Dns {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "gateway" => Ok(Self::Gateway),
            "direct" => Ok(Self::Direct),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Gateway => "gateway",
            Self::Direct => "direct",
        })
    }
}

impl FromStr for Offline {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "direct" => Ok(Self::Direct),
            "block" => Ok(Self::Block),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Offline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Block => "block",
        })
    }
}

const TITLE: &str = "Whimbrel client. Check it with `whimbrel check`.";

const KEYS: &[Key<ClientConfig>] = &[
    Key {
        section: "",
        name: "gateway",
        default: None,
        example: "\"gw.example.org:443\"",
        comment: "Where the gateway is: host:port, UDP. A name may have IPv4 and IPv6 addresses.",
        show: |config| quoted(&config.gateway),
    },
    Key {
        section: "",
        name: "gateway_key",
        default: None,
        example: "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"",
        comment: "The public key of the gateway: 43 characters, from `whimbrel-gateway init`.",
        show: |config| quoted(&config.gateway_key),
    },
    Key {
        section: "",
        name: "metrics",
        default: Some("\"\""),
        example: "",
        comment: metrics_port::COMMENT,
        show: |config| quoted(&config.metrics),
    },
    Key {
        section: "capture",
        name: "mode",
        default: Some("\"tcp\""),
        example: "",
        comment: "Which protocols are carried: \"tcp\", or \"all\" for UDP too. A program that sends UDP\n\
                  from a port of its own choosing is left alone, as a server would.",
        show: |config| quoted(&config.capture.mode),
    },
    Key {
        section: "capture",
        name: "dns",
        default: Some("\"auto\""),
        example: "",
        comment: "Of whom this host asks names: \"gateway\" has the gateway's own resolver asked, \"direct\"\n\
                  leaves everything as it is, \"auto\" asks the gateway where mode is \"all\".",
        show: |config| quoted(&config.capture.dns),
    },
    Key {
        section: "capture",
        name: "include",
        default: Some("[\"0.0.0.0/0\", \"::/0\"]"),
        example: "",
        comment: "Destinations to carry, as address/prefix. Where include and exclude both match,\n\
                  the longest prefix wins.",
        show: |config| list(&config.capture.include),
    },
    Key {
        section: "capture",
        name: "exclude",
        default: Some(
            "[\"10.0.0.0/8\", \"172.16.0.0/12\", \"192.168.0.0/16\", \"100.64.0.0/10\", \
             \"169.254.0.0/16\", \"fe80::/10\", \"fc00::/7\"]",
        ),
        example: "",
        comment: "Destinations to leave alone: private, carrier-grade NAT, link-local and ULA.",
        show: |config| list(&config.capture.exclude),
    },
    Key {
        section: "capture",
        name: "offline",
        default: Some("\"direct\""),
        example: "",
        comment: "What new connections get while the gateway is out of reach: \"direct\" lets them\n\
                  go out unprotected, \"block\" fails them at once.",
        show: |config| quoted(&config.capture.offline),
    },
    Key {
        section: "capture",
        name: "interface",
        default: Some("\"whimbrel0\""),
        example: "",
        comment: "The name of the TUN device.",
        show: |config| quoted(&config.capture.interface),
    },
    Key {
        section: "capture",
        name: "address4",
        default: Some("\"10.213.52.11\""),
        example: "",
        comment: "The IPv4 address of the TUN device: what carried programs see as their own.\n\
                  Any private address that no network you visit uses; not from 198.18.0.0/15.",
        show: |config| quoted(&config.capture.address4),
    },
    Key {
        section: "capture",
        name: "address6",
        default: Some("\"fd52:1109:77b6::1\""),
        example: "",
        comment: "The IPv6 address of the TUN device.",
        show: |config| quoted(&config.capture.address6),
    },
    Key {
        section: "paths",
        name: "prefer",
        default: Some("[]"),
        example: "",
        comment: "Interfaces to use, best first, as in [\"eth0\", \"wlan0\"]. Those not named follow\n\
                  in the order of the kernel's route metrics, of equal ones cables before Wi-Fi\n\
                  before phones and modems. A VPN's interface is used only if it is named here.",
        show: |config| list(&config.paths.prefer),
    },
    Key {
        section: "paths",
        name: "metered",
        default: Some("[]"),
        example: "",
        comment: "Interfaces that cost money per byte: used last, and probed sparingly. Without a word\n\
                  here NetworkManager's counts, and else modems and phones cost money.",
        show: |config| list(&config.paths.metered),
    },
    Key {
        section: "paths",
        name: "unmetered",
        default: Some("[]"),
        example: "",
        comment: "Interfaces that cost nothing per byte, whatever they look like.",
        show: |config| list(&config.paths.unmetered),
    },
    Key {
        section: "paths",
        name: "captive_probe",
        default: Some("true"),
        example: "",
        comment: "Where the gateway does not answer over a network, ask that network whether it wants\n\
                  a sign-in: one HTTP request a minute at most, to an address that nobody has\n\
                  (192.0.2.1, 2001:db8::1), so that it reaches no one else.",
        show: |config| config.paths.captive_probe.to_string(),
    },
    Key {
        section: "paths",
        name: "mark",
        default: Some("21009"),
        example: "",
        comment: "The firewall mark on Whimbrel's own packets, 1 to 4294967293. The two after it mark\n\
                  those of `whimbrel run --exclude` and `--cgroup`. Change it only if another\n\
                  program uses one of them.",
        show: |config| config.paths.mark.to_string(),
    },
    Key {
        section: "session",
        name: "hold",
        default: Some("\"24h\""),
        example: "",
        comment: "How long connections are held while no network reaches the gateway: 1s to 30d.",
        show: |config| quoted(&Period(config.session.hold)),
    },
    Key {
        section: "run",
        name: "resolvers",
        default: Some("[]"),
        example: "",
        comment: "Who is asked for names by commands of `whimbrel run`, through the gateway and over\n\
                  TCP, as in [\"9.9.9.9\"]; the next one when one fails. Empty: whom this host asks,\n\
                  if that is a public address, else whom the gateway asks.",
        show: |config| list(&config.run.resolvers),
    },
];
