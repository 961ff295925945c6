//! `PostgreSQL`: a long `COPY` each way.

use crate::ssh::{listens, plain};
use crate::stage::{Job, Loss, ORIGIN, Stage, command, hash};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// How many rows, about 40 bytes each.
const ROWS: u64 = 3_000_000;

/// The user that Debian's package makes; the server refuses to run as root.
const USER: &str = "postgres";

pub(crate) fn copy() -> Result<()> {
    copy_on(&Stage::raise()?, ROWS)
}

pub(crate) fn copy_wrapped() -> Result<()> {
    copy_on(&Stage::raise_wrapped()?, ROWS / 2)
}

fn copy_on(stage: &Stage, rows: u64) -> Result<()> {
    let server = Server::start(stage)?;
    let make = format!(
        "create unlogged table here as select n as number, md5(n::text) as words \
         from generate_series(1, {rows}) n; \
         create unlogged table there (number bigint, words text)"
    );
    server.ask(stage, "make", &make)?;
    let expected = server.dump(stage, "here")?;
    let out = stage.folder("copy")?.join("rows");
    let fetch = format!("\\copy (select * from here order by number) to '{}'", plain(&out));
    let mut job = stage.start("laptop", "copy-out", server.client("laptop", &fetch))?;
    stage.move_twice(&mut job, Loss::BlackHole)?;
    let said = job.succeed()?;
    ensure!(said.trim() == format!("COPY {rows}"), "psql says {said}");
    ensure!(hash(&out)? == expected, "what was copied out differs from what is there");

    let send = format!("\\copy there from '{}'", plain(&out));
    let mut job = stage.start("laptop", "copy-in", server.client("laptop", &send))?;
    stage.move_twice(&mut job, Loss::LinkDown)?;
    let said = job.succeed()?;
    ensure!(said.trim() == format!("COPY {rows}"), "psql says {said}");
    let count = server.ask(stage, "count", "select count(*) from there")?;
    ensure!(count.trim() == rows.to_string(), "{count} rows arrived");
    ensure!(server.dump(stage, "there")? == expected, "what was copied in differs");
    Ok(())
}

/// A server on the origin.
struct Server {
    // It ends before its folder is removed.
    _job: Job,
    programs: PathBuf,
    folder: TempDir,
}

impl Server {
    fn start(stage: &Stage) -> Result<Self> {
        let programs = find_programs()?;
        // The lab's own folder is root's alone.
        let folder = TempDir::with_prefix("whimbrel-postgres-")?;
        let (user, group) = look_up(USER)?;
        chown(folder.path(), Some(user), Some(group)).context("giving a folder away")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
        let as_user = |program: &str, arguments: &[&str]| {
            let mut command = command(programs.join(program), arguments);
            command.uid(user).gid(group).current_dir(folder.path());
            command
        };
        let data = folder.path().join("data");
        let data = plain(&data);
        let init = ["-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"];
        stage.run("origin", "initdb", as_user("initdb", &init))?;
        let access = fs::OpenOptions::new().append(true).open(format!("{data}/pg_hba.conf"));
        access?.write_all(b"host all all 0.0.0.0/0 trust\n")?;
        let address = format!("listen_addresses={ORIGIN}");
        let sockets = format!("unix_socket_directories={data}");
        let settings = ["fsync=off", "max_wal_size=4GB", "autovacuum=off", &address, &sockets];
        let mut arguments = vec!["-D", data];
        arguments.extend(settings.iter().flat_map(|setting| ["-c", setting]));
        let mut job = stage.start("origin", "postgres", as_user("postgres", &arguments))?;
        job.until("listened", || Ok(listens(stage, 5432)))?;
        let server = Self { _job: job, programs, folder };
        server.until_ready(stage)?;
        Ok(server)
    }

    /// It listens before it answers.
    fn until_ready(&self, stage: &Stage) -> Result<()> {
        let ask = "until \"$0\" -q -h \"$1\"; do sleep 0.1; done";
        let program = self.programs.join("pg_isready");
        let arguments = ["-c", ask, plain(&program), &ORIGIN.to_string()];
        stage.run("origin", "pg_isready", command("sh", arguments)).map(drop)
    }

    fn client(&self, host: &str, text: &str) -> Command {
        let program = self.programs.join("psql");
        let address = ORIGIN.to_string();
        let mut client = command(program, ["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        client.args(["-h", &address, "-U", USER, "-d", "postgres", "-c", text]);
        client.env("PGAPPNAME", host);
        client
    }

    /// Asks on the origin itself.
    fn ask(&self, stage: &Stage, name: &str, text: &str) -> Result<String> {
        stage.run("origin", name, self.client("origin", text))
    }

    /// Has the server write a table to its own disk; the hash of that.
    fn dump(&self, stage: &Stage, table: &str) -> Result<String> {
        let file = self.folder.path().join(table);
        let text = format!("copy (select * from {table} order by number) to '{}'", plain(&file));
        self.ask(stage, &format!("dump-{table}"), &text)?;
        hash(&file)
    }
}

/// Where Debian keeps the newest version's programs, most of which are not in the path.
fn find_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let complete = folders.filter(|folder| folder.join("initdb").exists());
    complete.max().context("no folder below /usr/lib/postgresql has initdb")
}

/// The numbers of a user and its group.
fn look_up(name: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    let line = line.with_context(|| format!("there is no user {name}"))?;
    let number = |field: usize| line.split(':').nth(field).and_then(|text| text.parse().ok());
    number(2).zip(number(3)).with_context(|| format!("not a user: {line}"))
}
