//! The lab with both daemons up, foreign programs in it, and moves while they run.

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{Context as Hash, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use whimbrel_tests::daemon::{Daemon, edit};
use whimbrel_tests::internet::Shape;
use whimbrel_tests::lab::{BOTH, Layout, ORIGIN_V4, World, unprivileged};
use whimbrel_tests::role;

/// Whatever takes longer than this on a busy machine with two cores does not happen any more.
/// Less than the suite's own patience, so that the reason is told.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How often something cheap is looked at while somebody waits for it.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often the daemon is asked: each time is a process, on cores that move data meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A good Wi-Fi.
const WIFI: (Duration, u64) = (Duration::from_millis(5), 200);

/// A poor cellular network: a link that failed is trusted again only after several
/// seconds, and whatever is transferred must outlast them.
const CELL: (Duration, u64) = (Duration::from_millis(20), 30);

/// What must pass over a link before the next move, in bytes.
const BETWEEN_MOVES: u64 = 5 << 20;

/// Where every server is.
pub(crate) const ORIGIN: Ipv4Addr = ORIGIN_V4;

/// How Wi-Fi is lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// It stays up and swallows everything.
    BlackHole,
    /// The interface goes down and loses its addresses.
    LinkDown,
}

/// Both daemons in the lab, attached, and Wi-Fi in use with cellular warm.
pub(crate) struct Stage {
    // Programs and daemons end before the world they live in.
    client: Daemon,
    _gateway: Daemon,
    world: World,
    /// What runs on the laptop runs in `whimbrel run`.
    wrapped: bool,
}

/// A foreign program on a host of the lab. Dropping it kills it.
pub(crate) struct Job {
    name: String,
    child: Child,
    said: PathBuf,
    complained: PathBuf,
}

impl Stage {
    pub(crate) fn raise() -> Result<Self> {
        let line = |(delay, mbit)| Shape::line(delay, mbit);
        let layout = Layout::standard()
            .with_link("wifi0", |link| (link.up, link.down) = (line(WIFI), line(WIFI)))
            .with_link("cell0", |link| (link.up, link.down) = (line(CELL), line(CELL)));
        let world = World::build(layout)?;
        let gateway = world.start_gateway()?;
        world.join_client("laptop")?;
        let client = world.start_client("laptop")?;
        let stage = Self { client, _gateway: gateway, world, wrapped: false };
        stage.until_active("wifi0")?;
        Ok(stage)
    }

    /// Both daemons in the lab with everything carried, pings included; what is started on the laptop
    /// may be wrapped.
    pub(crate) fn raise_for_pings(wrapped: bool) -> Result<Self> {
        let world = World::build(Layout::standard())?;
        world
            .host("gateway")
            .run(|_| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"))
            .context("letting the gateway ping")?;
        let gateway = world.start_gateway()?;
        world.join_client("laptop")?;
        edit(&world.client_config("laptop"), |table| {
            let capture = table.entry("capture").or_insert_with(|| toml::Table::new().into());
            if let Some(capture) = capture.as_table_mut() {
                capture.insert("mode".to_owned(), "all".into());
            }
        })?;
        let client = world.start_client("laptop")?;
        let stage = Self { client, _gateway: gateway, world, wrapped };
        let begin = Instant::now();
        while !stage.captures_pings()? {
            ensure!(begin.elapsed() < PATIENCE, "pings are not captured");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(stage)
    }

    /// Whether the host's rules lead pings to the gateway.
    fn captures_pings(&self) -> Result<bool> {
        self.world.host("laptop").run(|wiring| {
            let rules = [wiring.rules(false)?, wiring.rules(true)?];
            let captures = |rules: &_| format!("{rules:?}").contains("DestinationPortRange");
            Ok(rules.iter().all(captures))
        })
    }

    /// Pings that the gateway has answered.
    pub(crate) fn pings(&self) -> Result<u64> {
        let status = self.client.status(&self.world)?;
        status["datagrams"]["echo_replies"].as_u64().context("the status tells of pings")
    }

    /// The same, where everything that is started on the laptop is wrapped, without privilege.
    pub(crate) fn raise_wrapped() -> Result<Self> {
        Ok(Self { wrapped: true, ..Self::raise()? })
    }

    fn wrap(&self, command: &Command) -> Command {
        let config = self.client.config().as_os_str();
        let run = ["run", "--config"].map(OsStr::new).into_iter().chain([config, OsStr::new("--")]);
        let mut wrapped = self::command("/proc/self/exe", [OsStr::new(role::CLIENT)]);
        wrapped.args(run).arg(command.get_program()).args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        unprivileged(&mut wrapped);
        wrapped
    }

    /// A new folder on the machine's disk, shared by all hosts.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.world.folder().join(name);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Starts a program on a host, with nothing of our environment.
    pub(crate) fn start(&self, host: &str, name: &str, command: Command) -> Result<Job> {
        let file = |kind: &str| self.world.folder().join(format!("{name}.{kind}"));
        let (said, complained) = (file("out"), file("err"));
        let (out, err) = (File::create(&said)?, File::create(&complained)?);
        self.start_with(host, name, command, [Stdio::null(), out.into(), err.into()])
    }

    /// The same with standard input, output and error of one's own.
    pub(crate) fn start_with(
        &self,
        host: &str,
        name: &str,
        mut command: Command,
        [input, output, error]: [Stdio; 3],
    ) -> Result<Job> {
        if self.wrapped && host == "laptop" {
            command = self.wrap(&command);
        }
        command.stdin(input).stdout(output).stderr(error);
        let child = self.world.host(host).spawn(command);
        let child = child.with_context(|| format!("starting {name} on {host}"))?;
        let file = |kind: &str| self.world.folder().join(format!("{name}.{kind}"));
        Ok(Job { name: name.to_owned(), child, said: file("out"), complained: file("err") })
    }

    /// Runs a program to its good end; what it printed.
    pub(crate) fn run(&self, host: &str, name: &str, command: Command) -> Result<String> {
        self.start(host, name, command)?.succeed()
    }

    /// Moves to cellular and back while a program transfers: some of it goes over Wi-Fi before,
    /// some over cellular, some over Wi-Fi again, and the program is still busy then.
    pub(crate) fn move_twice(&self, job: &mut Job, loss: Loss) -> Result<()> {
        let before = self.moves()?;
        self.until_carried(job, "wifi0")?;
        self.lose_wifi(loss)?;
        self.until_active("cell0")?;
        self.until_carried(job, "cell0")?;
        self.regain_wifi(loss)?;
        self.until_active("wifi0")?;
        self.until_carried(job, "wifi0")?;
        let moves = self.moves()? - before;
        ensure!(moves >= 2, "only {moves} moves during {}", job.name);
        job.must_run("after the moves")
    }

    pub(crate) fn lose_wifi(&self, loss: Loss) -> Result<()> {
        let wifi = self.world.link("wifi0");
        match loss {
            Loss::BlackHole => wifi.black_hole(&BOTH),
            Loss::LinkDown => wifi.down()?,
        }
        Ok(())
    }

    pub(crate) fn regain_wifi(&self, loss: Loss) -> Result<()> {
        let wifi = self.world.link("wifi0");
        match loss {
            Loss::BlackHole => wifi.heal(),
            Loss::LinkDown => wifi.up()?,
        }
        Ok(())
    }

    /// How often the client has moved.
    pub(crate) fn moves(&self) -> Result<u64> {
        let status = self.client.status(&self.world)?;
        status["moves"].as_u64().with_context(|| format!("no moves in {status}"))
    }

    /// Waits until a link carries the traffic.
    pub(crate) fn until_active(&self, link: &str) -> Result<()> {
        self.until(&format!("{link} carries the traffic"), |status| {
            let mut paths = status["paths"].as_array().into_iter().flatten();
            paths.any(|path| path["link"] == link && path["state"] == "active")
        })
    }

    /// Waits until the client's status is like this.
    pub(crate) fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.client.status(&self.world)?;
            if is(&status) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "never: {what}; {status}");
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Waits until a link has carried some more of what a program transfers.
    fn until_carried(&self, job: &mut Job, link: &str) -> Result<()> {
        let passed = || {
            let count = self.world.link(link).count();
            count.up.bytes + count.down.bytes
        };
        let goal = passed() + BETWEEN_MOVES;
        let what = format!("while {link} carried {BETWEEN_MOVES} bytes");
        job.until(&what, || Ok(passed() >= goal))
    }
}

impl Job {
    /// Waits for something that happens while the program runs.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut condition: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition()? {
            self.must_run(what)?;
            ensure!(Instant::now() < deadline, "{}: never {what}\n{}", self.name, self.words());
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// The file it prints to.
    pub(crate) fn output(&self) -> &Path {
        &self.said
    }

    /// Waits for the end, which must be a good one; what the program printed.
    pub(crate) fn succeed(mut self) -> Result<String> {
        self.finish()?;
        Ok(fs::read_to_string(&self.said).unwrap_or_default())
    }

    /// Waits for the end, which must be a good one.
    pub(crate) fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for a program")? {
                ensure!(status.success(), "{}: {status}\n{}", self.name, self.words());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} still runs\n{}", self.name, self.words());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(crate) fn must_run(&mut self, when: &str) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("waiting for a program")? {
            bail!("{} ended {when}: {status}\n{}", self.name, self.words());
        }
        Ok(())
    }

    /// What it printed, for an error.
    fn words(&self) -> String {
        [&self.said, &self.complained]
            .map(|file| fs::read(file).unwrap_or_default())
            .map(|words| {
                String::from_utf8_lossy(&words[words.len().saturating_sub(4096)..]).into_owned()
            })
            .concat()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // It may have ended already; either way nobody is left behind.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A command with nothing of our environment but the places of programs.
pub(crate) fn command<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("LC_ALL", "C").env("HOME", "/nonexistent");
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Writes a file no program can compress; its hash.
pub(crate) fn write_noise(file: &Path, bytes: usize) -> Result<String> {
    const PIECE: usize = 1 << 20;
    let (random, mut hash) = (SystemRandom::new(), Hash::new(&SHA256));
    let mut out = File::create(file).with_context(|| format!("creating {}", file.display()))?;
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let part = &mut piece[..left.min(PIECE)];
        random.fill(part).ok().context("the system has no randomness")?;
        hash.update(part);
        out.write_all(part)?;
        left -= part.len();
    }
    Ok(hex(hash))
}

/// The hash of a file.
pub(crate) fn hash(file: &Path) -> Result<String> {
    let mut source = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    hash_of(&mut source, u64::MAX)
}

/// The hash of this many bytes, or of all there are.
pub(crate) fn hash_of(source: &mut impl Read, bytes: u64) -> Result<String> {
    let (mut hash, mut source) = (Hash::new(&SHA256), source.take(bytes));
    let mut piece = vec![0; 64 << 10];
    loop {
        match source.read(&mut piece)? {
            0 => return Ok(hex(hash)),
            count => hash.update(&piece[..count]),
        }
    }
}

fn hex(hash: Hash) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
