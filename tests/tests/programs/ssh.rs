//! The `OpenSSH` client and server, with keys of the moment.

use crate::stage::{Job, Loss, ORIGIN, PATIENCE, Stage, command, hash, write_noise};
use crate::terminal::Terminal;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `scp` copies, in bytes.
const COPY: usize = 200_000_000;

/// What the shell at the origin says when it is ready.
const PROMPT: &str = "ready> ";

/// Enough lines for several packets.
const LINES: u32 = 2000;

pub(crate) fn converse() -> Result<()> {
    converse_on(&Stage::raise()?)
}

pub(crate) fn converse_wrapped() -> Result<()> {
    converse_on(&Stage::raise_wrapped()?)
}

fn converse_on(stage: &Stage) -> Result<()> {
    let server = Server::start(stage)?;
    let shell = format!("exec env PS1='{PROMPT}' sh -i");
    let host = format!("root@{ORIGIN}");
    let client = server.client("ssh", &["-t", &host, &shell]);
    let (terminal, ends) = Terminal::open()?;
    let job = stage.start_with("laptop", "ssh", client, ends)?;
    let mut session = Session { terminal, job, asked: 0 };
    session.terminal.find(PROMPT).context("waiting for the shell")?;
    session.ask().context("before the moves")?;
    let before = stage.moves()?;
    for loss in [Loss::BlackHole, Loss::LinkDown] {
        stage.lose_wifi(loss)?;
        session.ask().with_context(|| format!("during {loss:?}"))?;
        stage.until_active("cell0")?;
        session.ask().context("on cellular")?;
        stage.regain_wifi(loss)?;
        session.ask().context("while Wi-Fi returns")?;
        stage.until_active("wifi0")?;
        session.ask().context("on Wi-Fi again")?;
    }
    let moves = stage.moves()? - before;
    ensure!(moves >= 4, "only {moves} moves during the session");
    session.job.must_run("after the moves")?;
    session.terminal.press("exit\n")?;
    session.terminal.read("exit\r\n")?;
    session.job.succeed().map(drop)
}

pub(crate) fn send() -> Result<()> {
    copy(Loss::BlackHole, |here, there| [here.to_owned(), format!("root@{ORIGIN}:{there}")])
}

pub(crate) fn fetch() -> Result<()> {
    copy(Loss::LinkDown, |here, there| [format!("root@{ORIGIN}:{here}"), there.to_owned()])
}

/// Copies a file, moving meanwhile. Both hosts see one disk, so only the order tells where the
/// source is.
fn copy(loss: Loss, places: impl Fn(&str, &str) -> [String; 2]) -> Result<()> {
    let stage = Stage::raise()?;
    let server = Server::start(&stage)?;
    let folder = stage.folder("copies")?;
    let (source, copy) = (folder.join("source"), folder.join("copy"));
    let expected = write_noise(&source, COPY)?;
    let [from, to] = places(plain(&source), plain(&copy));
    let client = server.client("scp", &[&from, &to]);
    let mut job = stage.start("laptop", "scp", client)?;
    stage.move_twice(&mut job, loss)?;
    job.succeed()?;
    ensure!(hash(&copy)? == expected, "the copy differs from its source");
    Ok(())
}

/// A person's shell at the origin.
struct Session {
    terminal: Terminal,
    job: Job,
    asked: u32,
}

impl Session {
    /// Types commands; every byte on the screen must be right.
    fn ask(&mut self) -> Result<()> {
        self.asked += 1;
        let sum = self.asked + 1000;
        let typed = format!("echo \"<$(({} + 1000))>\"", self.asked);
        self.say(&typed, &format!("<{sum}>\r\n"))?;
        let count: String = (sum..=sum + LINES).map(|line| format!("{line}\r\n")).collect();
        self.say(&format!("seq {sum} {}", sum + LINES), &count)
    }

    fn say(&mut self, typed: &str, answer: &str) -> Result<()> {
        self.terminal.press(&format!("{typed}\n"))?;
        self.terminal.read(&format!("{typed}\r\n{answer}{PROMPT}"))
    }
}

/// `sshd` on the origin, and what a client needs to know about it.
struct Server {
    _job: Job,
    folder: PathBuf,
}

impl Server {
    fn start(stage: &Stage) -> Result<Self> {
        let folder = stage.folder("ssh")?;
        for key in ["host", "person"] {
            let file = folder.join(key);
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", plain(&file)];
            stage.run("origin", "ssh-keygen", command("ssh-keygen", arguments))?;
        }
        let host_key = fs::read_to_string(folder.join("host.pub"))?;
        fs::write(folder.join("known"), format!("{ORIGIN} {host_key}"))?;
        fs::write(folder.join("config"), configuration(plain(&folder)))?;
        // Debian's sshd insists on this folder, and a host's /run is its own.
        stage.world().host("origin").run(|_| fs::create_dir("/run/sshd"))?;
        let config = folder.join("config");
        let server = command("/usr/sbin/sshd", ["-D", "-e", "-f", plain(&config)]);
        let mut job = stage.start("origin", "sshd", server)?;
        job.until("listened", || Ok(listens(stage, 22)))?;
        Ok(Self { _job: job, folder })
    }

    /// `ssh` or `scp`, knowing only this server and this person.
    fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let file = |name: &str| plain(&self.folder.join(name)).to_owned();
        let known = format!("UserKnownHostsFile={}", file("known"));
        let person = file("person");
        let mut options = vec!["-F", "none", "-i", &person];
        for option in [
            &known,
            "GlobalKnownHostsFile=none",
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
        ] {
            options.extend(["-o", option]);
        }
        command(program, options.into_iter().chain(arguments.iter().copied()))
    }
}

fn configuration(folder: &str) -> String {
    format!(
        "ListenAddress {ORIGIN}:22\n\
         HostKey {folder}/host\n\
         AuthorizedKeysFile {folder}/person.pub\n\
         PidFile none\n\
         UsePAM no\n\
         StrictModes no\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         PrintMotd no\n\
         PrintLastLog no\n\
         Subsystem sftp internal-sftp\n"
    )
}

/// Whether somebody listens on a port of the origin.
pub(crate) fn listens(stage: &Stage, port: u16) -> bool {
    let address = SocketAddr::new(ORIGIN.into(), port);
    let host = stage.world().host("origin");
    host.run(move |_| std::net::TcpStream::connect_timeout(&address, PATIENCE).is_ok())
}

/// The lab's own folders have plain names.
pub(crate) fn plain(path: &Path) -> &str {
    path.to_str().expect("the lab's own folders have plain names")
}
