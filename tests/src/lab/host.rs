//! One host of a lab: a network and a mount namespace, held open by a thread that lives in them.

#![expect(unsafe_code, reason = "what a child does between fork and exec")]

use super::ground;
use super::process::Process;
use super::wiring::Wiring;
use crate::login;
use anyhow::{Context, Result, anyhow};
use rustix::thread::CapabilitySet;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce(&Wiring) + Send>;

/// A host: what runs on its thread, and every process and thread started from there, sees only
/// this host's interfaces and its own empty `/run`.
///
/// Its namespaces vanish with the host and the last of its processes; those die with it.
#[derive(Debug)]
pub struct Host {
    name: String,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Creates the namespaces; [`super::enter`] must have been called.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(name: &str) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let (report, started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || live(&inbox, &report))
            .context("starting the thread of a host")?;
        let host = Self { name: name.to_owned(), jobs: Some(jobs), thread: Some(thread) };
        let outcome = started.recv().context("the thread of a host died")?;
        outcome.with_context(|| format!("setting up the host {name}"))?;
        Ok(host)
    }

    /// The host's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs something on the host's own thread and waits for it. Sockets opened there stay in
    /// the host's network wherever they are used. For what blocks, see [`Host::thread`].
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&Wiring) -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move |wiring| drop(reply.send(job(wiring))));
        let jobs = self.jobs.as_ref().expect("open until the host is dropped");
        let sent = jobs.send(job).is_ok();
        assert!(sent, "the thread of the host {} has panicked", self.name);
        answer.recv().unwrap_or_else(|_| panic!("a job on the host {} has panicked", self.name))
    }

    /// Starts a thread that lives in the host's namespaces.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.run(move |_| std::thread::spawn(work))
    }

    /// Starts a process on the host. It is killed when the host goes away, however that happens.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.run(move |_| {
            // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
            unsafe { command.pre_exec(die_with_parent) };
            command.spawn()
        })
    }

    /// Starts one of this crate's own programs on the host: this very executable under a hidden
    /// name (see [`crate::role`]), its standard output read line by line, its log in `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_role(&self, role: &str, arguments: &[&str], log: &Path) -> Result<Process> {
        let name = format!("{} on {}", role.trim_start_matches('_'), self.name);
        let file = fs::OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("opening the log {}", log.display()))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(role).args(arguments);
        // Whatever the machine's own bus says is not meant for the lab.
        let folder = log.parent().unwrap_or_else(|| Path::new("/"));
        command.env("DBUS_SYSTEM_BUS_ADDRESS", login::address(folder));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let child = self.spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Process::new(name, child, log))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            drop(thread.join());
        }
    }
}

fn live(inbox: &Receiver<Job>, report: &Sender<Result<()>>) {
    match settle() {
        Ok(wiring) => {
            drop(report.send(Ok(())));
            while let Ok(job) = inbox.recv() {
                job(&wiring);
            }
        }
        Err(error) => drop(report.send(Err(error))),
    }
}

fn settle() -> Result<Wiring> {
    if !ground::entered() {
        return Err(anyhow!("lab::enter() must be called first thing in main"));
    }
    ground::separate_thread()?;
    let wiring = Wiring::open()?;
    wiring.set_up("lo")?;
    // What one connection learns about a path must not change how the next one begins.
    set_sysctl("ipv4/tcp_no_metrics_save", "1");
    Ok(wiring)
}

/// Sets a value below `/proc/sys/net`, where the host lets us.
pub(super) fn set_sysctl(key: &str, value: &str) {
    if let Err(error) = fs::write(Path::new("/proc/sys/net").join(key), value) {
        tracing::debug!(key, value, %error, "A sysctl could not be set");
    }
}

/// Lets a command start as a user without privilege, although the lab's only user is root.
pub fn unprivileged(command: &mut Command) {
    // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(give_up_privilege) };
}

/// Leaves nothing but what the kernel asks of whoever maps the user 0 (`user_namespaces(7)`).
fn give_up_privilege() -> io::Result<()> {
    for capability in CapabilitySet::all().difference(CapabilitySet::SETFCAP).iter() {
        // A kernel that does not know one does not give it either.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    Ok(())
}

fn die_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}
