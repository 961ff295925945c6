//! The real daemons in a lab, set up as a person would: `init`, `run`, `invite`, `join`, `up`.

use crate::lab::{GATEWAY_V4, Process, World};
use crate::{login, role};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use toml::Table;

/// How long a daemon may take to answer for the first time, on a busy machine with two cores.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How often a daemon is asked for its state while somebody waits for it.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A gateway or client of the lab: its process and its configuration.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    config: PathBuf,
    host: String,
    program: &'static str,
}

/// What the lab needs to differ from the defaults: the origin lives in ranges that are reserved
/// for tests, which a gateway refuses and a client never sees outside a lab.
const EGRESS: [&str; 2] = ["198.18.0.0/15", "2001:db8::/32"];

/// Sockets the service manager passes, as in our unit.
const SOCKETS: &str = "8";

/// Connections to the reference addresses stay outside, to be compared with.
const REFERENCE: [&str; 2] = ["198.18.1.0/24", "2001:db8:181::/64"];

impl World {
    /// Where the gateway's configuration is.
    #[must_use]
    pub fn gateway_config(&self) -> PathBuf {
        self.folder().join("gateway/gateway.toml")
    }

    /// Where a client's configuration is.
    #[must_use]
    pub fn client_config(&self, client: &str) -> PathBuf {
        self.folder().join(client).join("client.toml")
    }

    /// Makes key and configuration of the gateway, listening on both families, reached at
    /// `public`.
    ///
    /// # Errors
    /// When `init` fails; the error carries what it said.
    pub fn init_gateway(&self, public: SocketAddr) -> Result<()> {
        let config = self.gateway_config();
        let (listen, public) = (format!("[::]:{}", public.port()), public.to_string());
        let place = text(&config);
        make_folder(&config)?;
        let init = ["init", "--config", place, "--listen", &listen, "--public", &public];
        self.ask_gateway(&init)?;
        edit(&config, |table| set(table, "egress", "allow", EGRESS.as_slice()))
    }

    /// Starts the gateway, after [`World::init_gateway`] if there is no configuration yet.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_gateway(&self) -> Result<Daemon> {
        let config = self.gateway_config();
        if !config.exists() {
            self.init_gateway(SocketAddr::new(GATEWAY_V4.into(), 443))?;
        }
        let log = self.log("gateway");
        let arguments = ["run", "--config", text(&config)];
        let process = self.host("gateway").start_role(role::GATEWAY, &arguments, &log)?;
        let program = role::GATEWAY;
        let mut gateway = Daemon { process, config, host: "gateway".into(), program };
        gateway.wait_until(self, "answers", |_| true)?;
        Ok(gateway)
    }

    /// Starts the gateway under a service manager that passes it as many sockets as our unit does,
    /// and keeps what it stores, see [`crate::manager`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_kept_gateway(&self) -> Result<Daemon> {
        let config = self.gateway_config();
        let socket = self.folder().join("gateway/notify");
        let service = [role::GATEWAY, "run", "--config", text(&config)];
        let arguments = [[text(&socket), "443", SOCKETS].as_slice(), &service].concat();
        let log = self.log("gateway");
        let process = self.host("gateway").start_role(role::MANAGER, &arguments, &log)?;
        let gateway = Daemon { process, config, host: "gateway".into(), program: role::GATEWAY };
        gateway.until_started()?;
        Ok(gateway)
    }

    /// Makes a client of the gateway: invites it and joins from its host.
    ///
    /// # Errors
    /// When `invite` or `join` fails; the error carries what it said.
    pub fn join_client(&self, client: &str) -> Result<()> {
        let gateway = self.gateway_config();
        let invite = self.ask_gateway(&["invite", client, "--config", text(&gateway)])?;
        let config = self.client_config(client);
        make_folder(&config)?;
        self.ask_client(client, &["join", invite.trim(), "--config", text(&config)])?;
        edit(&config, |table| {
            let default = whimbrel_defaults();
            let exclude: Vec<&str> = default.iter().map(String::as_str).chain(REFERENCE).collect();
            set(table, "capture", "exclude", &exclude);
        })
    }

    /// Starts a client's daemon and waits until the gateway carries its flows.
    ///
    /// # Errors
    /// When it does not get there; the error carries the end of its log.
    pub fn start_client(&self, client: &str) -> Result<Daemon> {
        let mut daemon = self.launch_client(client)?;
        daemon.wait_until(self, "is attached", |status| status["state"] == "attached")?;
        Ok(daemon)
    }

    /// Starts a client's daemon without waiting for anything.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn launch_client(&self, client: &str) -> Result<Daemon> {
        let config = self.client_config(client);
        let arguments = ["up", "--config", text(&config)];
        let process = self.host(client).start_role(role::CLIENT, &arguments, &self.log(client))?;
        Ok(Daemon { process, config, host: client.into(), program: role::CLIENT })
    }

    /// Starts a client's daemon under a service manager that keeps what it stores, see
    /// [`crate::manager`], and waits until the gateway carries its flows.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn start_kept_client(&self, client: &str) -> Result<Daemon> {
        let config = self.client_config(client);
        let socket = config.with_file_name("notify");
        let service = [role::CLIENT, "up", "--config", text(&config)];
        let arguments = [[text(&socket), "0", "0"].as_slice(), &service].concat();
        let process = self.host(client).start_role(role::MANAGER, &arguments, &self.log(client))?;
        let mut daemon = Daemon { process, config, host: client.into(), program: role::CLIENT };
        daemon.until_started()?;
        daemon.wait_until(self, "is attached", |status| status["state"] == "attached")?;
        Ok(daemon)
    }

    /// Starts a login manager for the client's host, see [`crate::login`].
    ///
    /// # Errors
    /// When it does not come up, or there is no `dbus-daemon`.
    pub fn start_login(&self) -> Result<Process> {
        let log = self.log("login");
        let folder = text(self.folder());
        let process = self.host("laptop").start_role(role::LOGIN, &[folder], &log)?;
        match process.next_line(START_PATIENCE)?.as_deref() {
            Some("bus") => Ok(process),
            other => bail!("the login manager said {other:?}:\n{}", process.log()),
        }
    }

    /// Runs `whimbrel-gateway` with these arguments on the gateway; what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask_gateway(&self, arguments: &[&str]) -> Result<String> {
        self.ask("gateway", role::GATEWAY, arguments)
    }

    /// Runs `whimbrel` with these arguments on a client's host; what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask_client(&self, client: &str, arguments: &[&str]) -> Result<String> {
        self.ask(client, role::CLIENT, arguments)
    }

    /// Runs `whimbrel` with these arguments on a client's host; how it ended and what it printed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_client(&self, client: &str, arguments: &[&str]) -> Result<Output> {
        self.run(client, role::CLIENT, arguments)
    }

    fn run(&self, host: &str, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(program).args(arguments).stdin(Stdio::null());
        // Whatever the machine's own bus says is not meant for the lab.
        command.env("DBUS_SYSTEM_BUS_ADDRESS", login::address(self.folder()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.host(host).spawn(command).context("starting a command")?;
        child.wait_with_output().context("waiting for a command")
    }

    fn ask(&self, host: &str, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(host, program, arguments)?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let name = program.trim_start_matches('_');
            bail!("`{name} {}` on {host}: {}\n{said}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Daemon {
    /// Ends a daemon's process without warning, under its service manager, and waits for the
    /// next one.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill(&mut self) -> Result<()> {
        self.begin_kill()?;
        self.until_started()
    }

    /// Ends a gateway's process without warning, and does not wait.
    ///
    /// # Errors
    /// When there is no service manager.
    pub fn begin_kill(&mut self) -> Result<()> {
        self.process.say("kill")
    }

    /// Restarts a daemon's process in an orderly way, under its service manager.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart(&mut self) -> Result<()> {
        self.process.say("restart")?;
        self.until_started()
    }

    /// Restarts a gateway from a new file, under its service manager.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn upgrade(&mut self) -> Result<()> {
        self.process.say("upgrade")?;
        self.until_started()
    }

    /// Waits for the daemon's next process.
    ///
    /// # Errors
    /// When there is none.
    pub fn until_started(&self) -> Result<()> {
        match self.process.next_line(START_PATIENCE)? {
            Some(line) if line.starts_with("started") => Ok(()),
            other => bail!("the service manager said {other:?}:\n{}", self.process.log()),
        }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status(&self, world: &World) -> Result<Value> {
        self.show(world, "status")
    }

    /// What `paths`, `flows`, `events` or `clients` says with `--json`.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn show(&self, world: &World, what: &str) -> Result<Value> {
        let arguments = [what, "--json", "--config", text(&self.config)];
        let answer = world.ask(&self.host, self.program, &arguments)?;
        serde_json::from_str(&answer).with_context(|| format!("`{what} --json` is not JSON"))
    }

    /// Runs another command of the daemon's program with its configuration.
    ///
    /// # Errors
    /// When it fails.
    pub fn command(&self, world: &World, arguments: &[&str]) -> Result<String> {
        let place = ["--config", text(&self.config)];
        world.ask(&self.host, self.program, &[arguments, &place].concat())
    }

    /// Waits until the daemon's status fulfils a condition.
    ///
    /// # Errors
    /// When it does not in time, or the daemon ends.
    pub fn wait_until(
        &mut self,
        world: &World,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let status = self.status(world);
            if let Ok(status) = &status
                && condition(status)
            {
                return Ok(status.clone());
            }
            let running = self.process.is_running();
            if !running || Instant::now() >= deadline {
                let last = status.map_or_else(|error| format!("{error:#}"), |it| it.to_string());
                let fate = if running { "still runs" } else { "has ended" };
                let log = self.process.log();
                bail!("{} never {what}; it {fate}; last answer: {last}\n{log}", self.host);
            }
            std::thread::sleep(ASK_EVERY);
        }
    }
}

/// The client's default exclusions, which a list of one's own replaces.
fn whimbrel_defaults() -> Vec<String> {
    [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fe80::/10",
        "fc00::/7",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn make_folder(config: &Path) -> Result<()> {
    let folder = config.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// Changes values of a configuration file.
///
/// # Errors
/// When the file cannot be read, is not TOML, or cannot be written.
pub fn edit(config: &Path, change: impl FnOnce(&mut Table)) -> Result<()> {
    let text =
        fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
    let mut table: Table = text.parse().context("the configuration is not TOML")?;
    change(&mut table);
    fs::write(config, table.to_string()).with_context(|| format!("writing {}", config.display()))
}

/// Sets a list in a section of a configuration.
pub fn set(table: &mut Table, section: &str, key: &str, values: &[&str]) {
    let section = table.entry(section).or_insert_with(|| Table::new().into());
    if let Some(section) = section.as_table_mut() {
        let values: Vec<toml::Value> = values.iter().map(|value| (*value).into()).collect();
        section.insert(key.to_owned(), values.into());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's own folders have plain names")
}
