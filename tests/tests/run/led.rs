//! Commands that keep the host's network, led by their control group.

use crate::inside::{As, Talk, start, succeed, wrapped_by};
use crate::stage::{ORIGIN, Stage, pair, until};
use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use whimbrel_host::control::Line;
use whimbrel_tests::lab::{ORIGIN_V4, unprivileged};
use whimbrel_tests::role;
use whimbrel_tests::traffic::{port, service};

/// Where the laptop has its control groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// Both daemons, and a control group on the laptop that may be divided further.
struct Led {
    stage: Stage,
    folder: PathBuf,
}

/// `None` where nobody but the machine's root could mark a socket.
fn raise() -> Result<Option<Led>> {
    let users = std::fs::read_to_string("/proc/self/uid_map")?;
    if users.split_whitespace().next_back() != Some("4294967295") {
        // Whoever closed standard error does not want to know.
        drop(writeln!(
            std::io::stderr(),
            "NOT RUN HERE: only the machine's own root may mark the sockets of a control group"
        ));
        return Ok(None);
    }
    let stage = Stage::raise()?;
    let trouble = stage.client.status(&stage.world)?["cgroup_trouble"].clone();
    ensure!(trouble.is_null(), "it leads nobody: {trouble}");
    // Control groups belong to the machine, not to a network.
    let folder = PathBuf::from(format!("{GROUPS}/whimbrel-lab-{}", std::process::id()));
    let made = folder.clone();
    stage.world.host("laptop").run(move |_| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount(c"cgroup2", GROUPS, c"cgroup2", flags, None)?;
        std::fs::create_dir(made)
    })?;
    Ok(Some(Led { stage, folder }))
}

impl Led {
    /// A command that is led, from within our group.
    fn command<A: AsRef<OsStr>>(
        &self,
        who: As,
        option: &str,
        command: impl IntoIterator<Item = A>,
    ) -> Command {
        // `/proc/self` is somebody else's in a shell.
        let program = std::env::current_exe().unwrap_or_default();
        let led = wrapped_by(&self.stage.world, who, &[option], command);
        let join = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", self.folder.display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &join, "sh"]).arg(program).args(led.get_args());
        shell.env("HOME", "/nonexistent");
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if who == As::User {
            unprivileged(&mut shell);
        }
        shell
    }

    fn start(&self, command: Command) -> Result<Child> {
        start(&self.stage.world, command)
    }

    /// Runs one of the lab's downloads in every way there is.
    fn download(&self, option: &str) -> Result<()> {
        for (who, origin) in
            ORIGIN.map(|it| (As::Root, it)).into_iter().chain(ORIGIN.map(|it| (As::User, it)))
        {
            let to = service(origin, port::SOURCE).to_string();
            let program = ["/proc/self/exe", role::TRAFFIC, "download", "--to", &to];
            let command = self.command(who, option, program.iter().chain(&["--bytes", "5000003"]));
            succeed(self.start(command)?.wait_with_output()?)
                .with_context(|| format!("a download from {to} as {who:?}"))?;
        }
        Ok(())
    }

    /// The groups of commands.
    fn groups(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder.clone();
        let all =
            self.stage.world.host("laptop").run(move |_| -> std::io::Result<Vec<PathBuf>> {
                std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
            })?;
        Ok(all.into_iter().filter(|path| path.to_string_lossy().contains("-run-")).collect())
    }

    fn until_over(&mut self) -> Result<()> {
        let over =
            |status: &serde_json::Value| status["runs"].as_array().is_some_and(Vec::is_empty);
        self.stage.client.wait_until(&self.stage.world, "let the commands go", over)?;
        ensure!(self.groups()?.is_empty(), "groups stay: {:?}", self.groups()?);
        Ok(())
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        let folder = self.folder.clone();
        // Whoever is still in there keeps it.
        let _ = self.stage.world.host("laptop").run(move |_| std::fs::remove_dir(folder));
    }
}

pub(crate) fn an_excluded_command_goes_around_the_capture() -> Result<()> {
    let Some(mut led) = raise()? else { return Ok(()) };
    led.download("--exclude")?;
    let carried = led.stage.world.link("gateway/eth0").count();
    ensure!(carried.up.bytes + carried.down.bytes < 1_000_000, "by the gateway: {carried:?}");
    led.until_over()?;
    led.stage.pair(ORIGIN_V4.into())?.converse()
}

pub(crate) fn a_command_is_carried_by_its_group_although_the_host_is_paused() -> Result<()> {
    let Some(mut led) = raise()? else { return Ok(()) };
    led.stage.client.command(&led.stage.world, &["pause"])?;
    led.download("--cgroup")?;
    let carried = led.stage.world.link("gateway/eth0").count();
    ensure!(carried.up.bytes.min(carried.down.bytes) > 20_000_000, "past the gateway: {carried:?}");
    ensure!(!pair(&led.stage.world, ORIGIN_V4.into())?.captured(), "the pause is over");
    // What is carried does not hang on the address of a link.
    let mut talk = led.talk("--cgroup")?;
    ensure!(talk.converse()?, "not carried");
    led.stage.world.link("wifi0").down()?;
    talk.repeat().context("after the link went down")?;
    talk.end()?;
    led.until_over()
}

pub(crate) fn an_excluded_command_outlives_the_daemon() -> Result<()> {
    let Some(mut led) = raise()? else { return Ok(()) };
    let mut talk = led.talk("--exclude")?;
    ensure!(!talk.converse()?, "carried");
    led.stage.client.process().signal(rustix::process::Signal::KILL)?;
    until("the daemon is gone", || Ok(!led.stage.client.process().is_running()))?;
    talk.repeat().context("without a daemon")?;
    ensure!(!talk.converse()?, "carried by nobody");
    led.stage.client = led.stage.world.start_client("laptop")?;
    ensure!(!talk.converse()?, "the next daemon does not know its mark");
    led.stage.pair(ORIGIN_V4.into())?;
    talk.end()?;
    // The next command finds what a daemon that is gone could not take away.
    ensure!(led.groups()?.len() == 1, "{:?}", led.groups()?);
    let next = led.command(As::Root, "--exclude", ["true"]);
    ensure!(led.start(next)?.wait()?.success(), "the next command");
    led.until_over()
}

pub(crate) fn process_and_exit_code_of_a_led_command_are_its_own() -> Result<()> {
    let Some(mut led) = raise()? else { return Ok(()) };
    for option in ["--exclude", "--cgroup"] {
        let start = |script| led.start(led.command(As::User, option, ["sh", "-c", script]));
        let child = start("echo $$")?;
        let pid = child.id().to_string();
        ensure!(succeed(child.wait_with_output()?)?.trim() == pid, "another process");
        ensure!(start("exit 42")?.wait()?.code() == Some(42), "not the exit code");
        let missing = led.command(As::User, option, ["/nonexistent"]);
        ensure!(led.start(missing)?.wait()?.code() == Some(127), "a command that is not there");
    }
    led.until_over()
}

pub(crate) fn what_is_no_control_group_is_refused() -> Result<()> {
    let Some(led) = raise()? else { return Ok(()) };
    let socket = led.stage.client.config().with_extension("sock");
    let (file, folder, empty) = (File::open("/dev/null")?, File::open("/")?, led.folder.clone());
    let empty = led.stage.world.host("laptop").run(move |_| File::open(empty))?;
    for (way, passed, word) in [
        ("direct", vec![file.as_fd()], "no control group"),
        ("direct", vec![folder.as_fd()], "no control group"),
        ("carried", vec![empty.as_fd()], "no process"),
        ("direct", vec![], "0 descriptors"),
        ("about", vec![empty.as_fd()], "\"way\""),
    ] {
        let args = serde_json::json!({ "command": "thief", "way": way });
        let refusal = Line::open(&socket)?.ask("group", &args, &passed);
        let refusal = refusal.err().context("it was taken")?.to_string();
        ensure!(refusal.contains(word), "{refusal}");
    }
    Ok(())
}

pub(crate) fn without_control_groups_it_says_what_to_do() -> Result<()> {
    let stage = Stage::raise()?;
    for option in ["--exclude", "--cgroup"] {
        let command = wrapped_by(&stage.world, As::User, &[option], ["true"]);
        let output = start(&stage.world, command)?.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let helps = said.contains("not mounted") && said.contains("mount -t cgroup2");
        ensure!(output.status.code() == Some(1) && helps, "{}: {said}", output.status);
    }
    Ok(())
}

impl Led {
    fn talk(&self, option: &str) -> Result<Talk> {
        Talk::start(&self.stage, |script| self.command(As::User, option, ["bash", "-c", script]))
    }
}
