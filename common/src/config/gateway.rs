//! `gateway.toml`.

use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use super::client::hold;
use super::raw::Raw;
use super::schema::{self, Entry, Key, list, quoted};
use super::{ConfigError, HostPort, MetricsPort, metrics_port};
use crate::cidr::Cidr;
use crate::units::{Period, Size};

/// A validated `gateway.toml`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// UDP addresses to listen on. Not used where systemd passes the sockets. Never empty.
    pub listen: Vec<SocketAddr>,
    /// Where clients find this gateway; goes into invites.
    pub public: HostPort,
    /// Data threads; `None` for as many as there are cores and sockets for them.
    pub slots: Option<NonZeroU8>,
    /// Where figures may be read.
    pub metrics: MetricsPort,
    /// What clients may reach.
    pub egress: Egress,
    /// What one client may use.
    pub limits: Limits,
}

/// Section `[egress]`: exceptions to what a client may reach. The longest prefix wins; at equal
/// length `deny` does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Egress {
    /// Ranges to allow although they are denied by default.
    pub allow: Vec<Cidr>,
    /// Ranges to deny as well.
    pub deny: Vec<Cidr>,
}

/// Section `[limits]`: per client, except for `half_open` and `memory`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Flows open at once.
    pub flows_per_client: u32,
    /// Connections to destinations begun per second, with a burst of one second's worth.
    pub dials_per_second: u32,
    /// Bytes held for one client in both directions, over all its flows.
    pub buffered_per_client: u64,
    /// Bytes per second carried for one client, in each direction; zero for as much as there is.
    pub bandwidth_per_client: u64,
    /// Bytes held for all clients together; zero for a share of the machine's memory.
    pub memory: u64,
    /// How long a destination may take to answer.
    pub dial_timeout: Duration,
    /// Peers not admitted yet, over all addresses, before new ones must prove theirs (Retry).
    pub half_open: u32,
    /// The longest that flows of a client out of reach are held, whatever the client asks for.
    pub hold: Duration,
}

impl GatewayConfig {
    /// Reads and validates the text of a `gateway.toml`. `file` is only for error messages.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let raw = Raw::parse(text, file, KEYS)?;
        let listen: Vec<SocketAddr> = raw.read("listen")?;
        if listen.is_empty() {
            return Err(raw.refuse("listen", "is empty; write [\"[::]:443\"] for every address"));
        }
        Ok(Self {
            listen,
            public: raw.read("public")?,
            slots: u8::try_from(raw.read_within("slots", 0..=255_u32)?)
                .ok()
                .and_then(NonZeroU8::new),
            metrics: metrics_port::read(&raw)?,
            egress: Egress { allow: raw.read("egress.allow")?, deny: raw.read("egress.deny")? },
            limits: limits(&raw)?,
        })
    }

    /// Reached at `public`, and every default.
    #[must_use]
    pub fn new(public: &HostPort) -> Self {
        let text = format!("public = \"{public}\"\n");
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

fn limits(raw: &Raw<'_>) -> Result<Limits, ConfigError> {
    let size = raw.read_within("limits.buffered_per_client", Size(1 << 20)..=Size(1 << 40))?;
    let memory = raw.read_within("limits.memory", Size(0)..=Size(1 << 40))?;
    let timeout = Period(Duration::from_secs(1))..=Period(Duration::from_mins(10));
    Ok(Limits {
        flows_per_client: raw.read_within("limits.flows_per_client", 1..=1_000_000)?,
        dials_per_second: raw.read_within("limits.dials_per_second", 1..=1_000_000)?,
        buffered_per_client: size.0,
        bandwidth_per_client: bandwidth(raw)?,
        memory: memory.0,
        dial_timeout: raw.read_within("limits.dial_timeout", timeout)?.0,
        half_open: raw.read_within("limits.half_open", 1..=1_000_000)?,
        hold: hold(raw, "limits.hold")?,
    })
}

/// Less than this is not worth a tunnel, and more likely a slip of the pen.
const LEAST_BANDWIDTH: Size = Size(64 << 10);

fn bandwidth(raw: &Raw<'_>) -> Result<u64, ConfigError> {
    let path = "limits.bandwidth_per_client";
    let size = raw.read_within(path, Size(0)..=Size(1 << 40))?;
    if size > Size(0) && size < LEAST_BANDWIDTH {
        let because =
            format!("is less than {LEAST_BANDWIDTH} per second; write \"0B\" for no limit");
        return Err(raw.refuse(path, &because));
    }
    Ok(size.0)
}

const TITLE: &str =
    "Whimbrel gateway. Reload it after a change; `listen`, `slots` and `metrics` need a restart.";

const KEYS: &[Key<GatewayConfig>] = &[
    Key {
        section: "",
        name: "listen",
        default: Some("[\"[::]:443\"]"),
        example: "",
        comment: "UDP addresses to listen on, as address:port. [::] takes IPv4 too. Not used where\n\
                  systemd passes the sockets (whimbrel-gateway.socket).",
        show: |config| list(&config.listen),
    },
    Key {
        section: "",
        name: "public",
        default: None,
        example: "\"gw.example.org:443\"",
        comment: "Where clients find this gateway: host:port. It goes into invites.",
        show: |config| quoted(&config.public),
    },
    Key {
        section: "",
        name: "slots",
        default: Some("0"),
        example: "",
        comment: "Threads that carry clients: 0 to 255, 0 for one per core. More than one need as many\n\
                  sockets of each address, which systemd passes (whimbrel-gateway.socket).",
        show: |config| config.slots.map_or(0, NonZeroU8::get).to_string(),
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
        section: "egress",
        name: "allow",
        default: Some("[]"),
        example: "",
        comment: "Destinations to allow although they are denied by default (loopback, private,\n\
                  link-local, reserved ranges and this machine), as address/prefix. Between allow\n\
                  and deny the longest prefix wins. Port 25 is denied everywhere.",
        show: |config| list(&config.egress.allow),
    },
    Key {
        section: "egress",
        name: "deny",
        default: Some("[]"),
        example: "",
        comment: "Destinations to deny as well.",
        show: |config| list(&config.egress.deny),
    },
    Key {
        section: "limits",
        name: "flows_per_client",
        default: Some("20000"),
        example: "",
        comment: "Connections one client may have open at once: 1 to 1000000.",
        show: |config| config.limits.flows_per_client.to_string(),
    },
    Key {
        section: "limits",
        name: "dials_per_second",
        default: Some("10000"),
        example: "",
        comment: "Connections one client may begin per second, with a burst of as many: 1 to 1000000.",
        show: |config| config.limits.dials_per_second.to_string(),
    },
    Key {
        section: "limits",
        name: "buffered_per_client",
        default: Some("\"256MiB\""),
        example: "",
        comment: "Bytes held for one client over all its connections: 1MiB to 1024GiB.",
        show: |config| quoted(&Size(config.limits.buffered_per_client)),
    },
    Key {
        section: "limits",
        name: "bandwidth_per_client",
        default: Some("\"0B\""),
        example: "",
        comment: "Bytes per second carried for one client in each direction: 64KiB to 1024GiB, 0B for as\n\
                  much as there is, which clients share evenly.",
        show: |config| quoted(&Size(config.limits.bandwidth_per_client)),
    },
    Key {
        section: "limits",
        name: "memory",
        default: Some("\"0B\""),
        example: "",
        comment: "Bytes held for all clients together: up to 1024GiB, 0B for a quarter of the memory\n\
                  there is. Parked clients are given up before it is reached, the oldest first.",
        show: |config| quoted(&Size(config.limits.memory)),
    },
    Key {
        section: "limits",
        name: "dial_timeout",
        default: Some("\"30s\""),
        example: "",
        comment: "How long a destination may take to answer: 1s to 10m.",
        show: |config| quoted(&Period(config.limits.dial_timeout)),
    },
    Key {
        section: "limits",
        name: "half_open",
        default: Some("1000"),
        example: "",
        comment: "Peers that have not said yet who they are before newcomers must first prove their\n\
                  address, and half as many as there may be at all: 1 to 1000000.",
        show: |config| config.limits.half_open.to_string(),
    },
    Key {
        section: "limits",
        name: "hold",
        default: Some("\"24h\""),
        example: "",
        comment: "The longest that connections of a client out of reach are held: 1s to 30d.",
        show: |config| quoted(&Period(config.limits.hold)),
    },
];
