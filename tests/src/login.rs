//! A small login manager on a bus of its own: it says that the machine goes to sleep, and waits for
//! those who delay that, as systemd-logind does (org.freedesktop.login1(5)).
//!
//! It runs as a process of its own ([`crate::role::LOGIN`]) with a real `dbus-daemon`, and is told
//! what to do, a word a line: `sleep` and `awake` announce, `break` ends the bus, `mend` starts it
//! again. It answers `bus` when the bus is up, `delayed` when somebody has asked to delay sleep, and
//! `released` when the last of them has let go.
//!
//! On the same bus is a small NetworkManager: `metered cell0 2` says what a network costs
//! (`NMMetered`), `portal cell0 2` what its look at the Internet came to (`NMConnectivityState`).

use crate::suite;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, connection, interface, zvariant};

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const RESOLVER: &str = "org.freedesktop.resolve1";
const RESOLVER_PATH: &str = "/org/freedesktop/resolve1";

/// Where the bus of a lab listens.
#[must_use]
pub fn address(folder: &Path) -> String {
    format!("unix:path={}", folder.join("bus").display())
}

/// The role: `FOLDER`.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome =
        runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(serve(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            suite::complain(&format!("the login manager: {error:?}\n"));
            ExitCode::FAILURE
        }
    }
}

struct Manager {
    asleep: bool,
    delays: UnboundedSender<Receiver>,
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(
        &self,
        what: &str,
        who: &str,
        why: &str,
        mode: &str,
    ) -> zbus::fdo::Result<zvariant::OwnedFd> {
        if (what, mode) != ("sleep", "delay") || who.is_empty() || why.is_empty() {
            let text = format!("{what:?} {who:?} {why:?} {mode:?}");
            return Err(zbus::fdo::Error::InvalidArgs(text));
        }
        let failed = |error: std::io::Error| zbus::fdo::Error::IOError(error.to_string());
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let reader = Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed)?;
        let _ended = self.delays.send(reader);
        Ok(zvariant::OwnedFd::from(OwnedFd::from(writer)))
    }

    #[zbus(property)]
    fn preparing_for_sleep(&self) -> bool {
        self.asleep
    }

    #[zbus(signal)]
    async fn prepare_for_sleep(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

/// The part of systemd-resolved that is told about links (org.freedesktop.resolve1(5)): it writes
/// down what it is told.
struct Resolver {
    told: PathBuf,
    settings: Arc<Mutex<LinkSettings>>,
}

/// What it was told of a link.
struct Link(Arc<Mutex<LinkSettings>>);

#[derive(Default)]
struct LinkSettings {
    dns: Vec<(i32, Vec<u8>)>,
    domains: Vec<(String, bool)>,
}

impl Resolver {
    fn note(&self, text: &str) -> zbus::fdo::Result<()> {
        let failed = |error: std::io::Error| zbus::fdo::Error::IOError(error.to_string());
        let file = std::fs::File::options().create(true).append(true).open(&self.told);
        writeln!(file.map_err(failed)?, "{text}").map_err(failed)
    }

    fn settings(&self) -> MutexGuard<'_, LinkSettings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[interface(name = "org.freedesktop.resolve1.Manager")]
impl Resolver {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, index: i32, servers: Vec<(i32, Vec<u8>)>) -> zbus::fdo::Result<()> {
        self.note(&format!("dns {index} {servers:?}"))?;
        self.settings().dns = servers;
        Ok(())
    }

    fn set_link_domains(&self, _index: i32, domains: Vec<(String, bool)>) -> zbus::fdo::Result<()> {
        self.note(&format!("domains {domains:?}"))?;
        self.settings().domains = domains;
        Ok(())
    }

    fn set_link_default_route(&self, _index: i32, on: bool) -> zbus::fdo::Result<()> {
        self.note(&format!("default {on}"))
    }

    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, _index: i32, mode: &str) -> zbus::fdo::Result<()> {
        self.note(&format!("tls {mode}"))
    }

    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, _index: i32, mode: &str) -> zbus::fdo::Result<()> {
        self.note(&format!("llmnr {mode}"))
    }

    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, _index: i32, mode: &str) -> zbus::fdo::Result<()> {
        self.note(&format!("mdns {mode}"))
    }

    fn flush_caches(&self) -> zbus::fdo::Result<()> {
        self.note("flush")
    }

    fn revert_link(&self, index: i32) -> zbus::fdo::Result<()> {
        *self.settings() = LinkSettings::default();
        self.note(&format!("revert {index}"))
    }

    fn get_link(&self, _index: i32) -> zbus::fdo::Result<zvariant::OwnedObjectPath> {
        zvariant::OwnedObjectPath::try_from(RESOLVER_PATH)
            .map_err(|error| zbus::fdo::Error::Failed(error.to_string()))
    }
}

#[interface(name = "org.freedesktop.resolve1.Link")]
impl Link {
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> Vec<(i32, Vec<u8>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).dns.clone()
    }

    #[zbus(property)]
    fn domains(&self) -> Vec<(String, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).domains.clone()
    }
}

const NETWORKS: &str = "/org/freedesktop/NetworkManager";

/// The interfaces of the laptop.
const DEVICES: [&str; 2] = ["wifi0", "cell0"];

struct Networks;

#[interface(name = "org.freedesktop.NetworkManager")]
impl Networks {
    fn get_devices(&self) -> Vec<zvariant::OwnedObjectPath> {
        DEVICES.iter().filter_map(|name| device_path(name).try_into().ok()).collect()
    }
}

struct Device {
    name: &'static str,
    metered: u32,
    connectivity: u32,
}

#[interface(name = "org.freedesktop.NetworkManager.Device")]
impl Device {
    #[zbus(property)]
    fn ip_interface(&self) -> &str {
        self.name
    }

    #[zbus(property)]
    fn metered(&self) -> u32 {
        self.metered
    }

    #[zbus(property)]
    fn ip4_connectivity(&self) -> u32 {
        self.connectivity
    }
}

fn device_path(name: &str) -> String {
    format!("{NETWORKS}/Devices/{name}")
}

/// A bus, and the managers on it.
struct Bus {
    daemon: Child,
    connection: Connection,
}

impl Bus {
    async fn start(folder: &Path, delays: UnboundedSender<Receiver>) -> Result<Self> {
        let config = configure(folder)?;
        // This process is killed when its test is over, and would leave the bus behind.
        let mut daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "dbus-daemon"])
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile", "--nosyslog", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting dbus-daemon; on Debian: apt-get install dbus")?;
        let stdout = daemon.stdout.take().context("its output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        ensure!(!line.is_empty(), "dbus-daemon does not start");
        let manager = Manager { asleep: false, delays };
        let told = folder.join("resolver");
        let settings = Arc::<Mutex<LinkSettings>>::default();
        let link = Link(Arc::clone(&settings));
        let resolver = Resolver { told, settings };
        let connection = connection::Builder::address(address(folder).as_str())?
            .serve_at(PATH, manager)?
            .serve_at(NETWORKS, Networks)?
            .name(SERVICE)?
            .serve_at(RESOLVER_PATH, resolver)?
            .serve_at(RESOLVER_PATH, link)?
            .name(RESOLVER)?
            .name("org.freedesktop.NetworkManager")?
            .build()
            .await?;
        for name in DEVICES {
            let device = Device { name, metered: 0, connectivity: 0 };
            connection.object_server().at(device_path(name), device).await?;
        }
        say("bus")?;
        Ok(Self { daemon, connection })
    }

    /// Lets the network manager know something: a property, an interface and a number.
    async fn note(&self, words: &[&str]) -> Result<()> {
        let [property, name, number] = words else { bail!("it was told to {words:?}") };
        let device =
            self.connection.object_server().interface::<_, Device>(device_path(name)).await?;
        let number = number.parse().context("a number")?;
        match *property {
            "metered" => {
                device.get_mut().await.metered = number;
                device.get().await.metered_changed(device.signal_emitter()).await?;
            }
            "portal" => {
                device.get_mut().await.connectivity = number;
                device.get().await.ip4_connectivity_changed(device.signal_emitter()).await?;
            }
            other => bail!("it was told to {other:?}"),
        }
        Ok(())
    }

    async fn announce(&self, asleep: bool) -> Result<()> {
        let manager = self.connection.object_server().interface::<_, Manager>(PATH).await?;
        manager.get_mut().await.asleep = asleep;
        Manager::prepare_for_sleep(manager.signal_emitter(), asleep).await?;
        Ok(())
    }
}

fn configure(folder: &Path) -> Result<PathBuf> {
    let file = folder.join("bus.conf");
    let listen = address(folder);
    std::fs::write(
        &file,
        format!(
            "<busconfig><type>system</type><listen>{listen}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>"
        ),
    )?;
    Ok(file)
}

async fn serve(arguments: Vec<OsString>) -> Result<()> {
    let [folder] = arguments.as_slice() else { bail!("called with {arguments:?}") };
    let folder = Path::new(folder);
    let (sender, mut delays) = unbounded_channel();
    let (ended, mut ends) = unbounded_channel();
    let mut bus = Some(Bus::start(folder, sender.clone()).await?);
    let mut orders =
        BufReader::new(Receiver::from_owned_fd(rustix::io::dup(std::io::stdin())?)?).lines();
    let mut open = 0_u32;
    loop {
        tokio::select! {
            biased;
            Some(delay) = delays.recv() => {
                open += 1;
                let ended = ended.clone();
                tokio::spawn(async move {
                    until_closed(delay).await;
                    let _ended = ended.send(());
                });
                say("delayed")?;
            }
            Some(()) = ends.recv() => {
                open -= 1;
                if open == 0 {
                    say("released")?;
                }
            }
            order = orders.next_line() => match (order?.as_deref(), bus.as_mut()) {
                (Some("sleep"), Some(bus)) => bus.announce(true).await?,
                (Some("awake"), Some(bus)) => bus.announce(false).await?,
                (Some("break"), Some(old)) => {
                    old.daemon.kill().await?;
                    bus = None;
                }
                (Some("mend"), None) => bus = Some(Bus::start(folder, sender.clone()).await?),
                (None, _) => return Ok(()),
                (Some(order), Some(bus)) => {
                    bus.note(&order.split_whitespace().collect::<Vec<_>>()).await?;
                }
                (other, _) => bail!("it was told to {other:?}"),
            },
        }
    }
}

async fn until_closed(mut delay: Receiver) {
    let mut nothing = [0];
    while delay.read(&mut nothing).await.is_ok_and(|count| count > 0) {}
}

fn say(word: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{word}")?;
    output.flush()?;
    Ok(())
}
