//! A small service manager: starts one service, passes it several sockets of one port, keeps the
//! descriptors it stores, and passes them to the next process of it, as systemd does (sd_notify(3),
//! sd_listen_fds(3)).
//!
//! It runs as a process of its own ([`crate::role::MANAGER`]) and is told what to do, a word a
//! line: `kill` ends the service without warning, `restart` in an orderly way, `upgrade` the same, and
//! starts it from a new file from then on; `litter` and `forget` spoil what it has stored; `scatter`
//! has the kernel choose sockets by hash again; `guard` has it end a process that does not feed its
//! watchdog from now on. It answers `started N` whenever a process of the service has said that it is ready, `N` being the number of
//! descriptors it has stored.

#![expect(unsafe_code, reason = "descriptors are passed by number, and a rare socket option")]

use crate::role;
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use socket2::{Domain, Socket, Type};
use std::ffi::OsString;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

/// The first descriptor passed (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The descriptors to be put in place, for [`exec`].
const DESCRIPTORS: &str = "WHIMBREL_TEST_DESCRIPTORS";

/// Descriptors one service may store, as in our unit (`FileDescriptorStoreMax=`).
const MOST_STORED: usize = 512;

/// A service that says nothing for this long hangs (`WatchdogSec=`), if anybody is on guard.
const WATCHDOG: Duration = Duration::from_secs(4);

/// What the service has stored, by name.
type Store = Vec<(String, OwnedFd)>;

struct Manager {
    notify: UnixDatagram,
    notify_path: OsString,
    /// Where datagrams wait while the service is not there.
    sockets: Vec<UdpSocket>,
    store: Store,
    /// The file that is started.
    program: PathBuf,
    command: Vec<OsString>,
    ready: bool,
    /// Since when the watchdog was not fed, once it is on guard.
    hungry: Option<Instant>,
}

/// The manager: `NOTIFY-SOCKET PORT SOCKETS ROLE ARGUMENT...`, the role and the arguments being those of
/// the service.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::suite::complain(&format!("the service manager: {error:?}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Takes the place of a service's process: puts descriptors where they belong.
pub(crate) fn exec(arguments: Vec<OsString>) -> ExitCode {
    let error = match prepare(arguments) {
        Ok(mut command) => anyhow::Error::new(command.exec()),
        Err(error) => error,
    };
    crate::suite::complain(&format!("starting a service: {error:?}\n"));
    ExitCode::FAILURE
}

fn prepare(arguments: Vec<OsString>) -> Result<Command> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let numbers = std::env::var(DESCRIPTORS).context("nothing to pass")?;
    let numbers = numbers.split(',').filter(|number| !number.is_empty());
    let numbers: Vec<RawFd> = numbers.map(str::parse).collect::<Result<_, _>>()?;
    let end = FIRST + RawFd::try_from(numbers.len())?;
    // Out of the way first: a descriptor may be where another one belongs.
    let mut aside = Vec::new();
    for number in numbers {
        // SAFETY: inherited from the manager for this very use.
        let passed = unsafe { OwnedFd::from_raw_fd(number) };
        aside.push(rustix::io::fcntl_dupfd_cloexec(&passed, end)?);
        if number >= FIRST {
            drop(passed);
        } else {
            let _standard = passed.into_raw_fd();
        }
    }
    for (descriptor, number) in aside.iter().zip(FIRST..) {
        // SAFETY: nothing else is at this number: this process has one thread and has opened
        // nothing else.
        let mut place = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::dup2(descriptor, &mut place)?;
        let _passed = place.into_raw_fd();
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).env_remove(DESCRIPTORS);
    command.env("LISTEN_PID", std::process::id().to_string());
    Ok(command)
}

fn serve(mut arguments: Vec<OsString>) -> Result<()> {
    ensure!(arguments.len() > 3, "called with {arguments:?}");
    let command = arguments.split_off(3);
    let port: u16 = arguments[1].to_str().context("a port")?.parse()?;
    let sockets: usize = arguments[2].to_str().context("a number of sockets")?.parse()?;
    let path = Path::new(&arguments[0]);
    let notify = UnixDatagram::bind(path).with_context(|| format!("{}", path.display()))?;
    notify.set_nonblocking(true)?;
    let sockets = (0..sockets).map(|_| bind(port)).collect::<Result<_>>()?;
    let (notify_path, store) = (arguments.swap_remove(0), Vec::new());
    let program = PathBuf::from("/proc/self/exe");
    let (ready, hungry) = (false, None);
    let mut manager =
        Manager { notify, notify_path, sockets, store, program, command, ready, hungry };
    let mut child = manager.start()?;
    loop {
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        match manager.watch(&process)? {
            Some(Order::Kill) => child.kill()?,
            Some(Order::Restart) => rustix::process::kill_process(pid, Signal::TERM)?,
            Some(Order::Upgrade) => {
                manager.upgrade()?;
                rustix::process::kill_process(pid, Signal::TERM)?;
            }
            Some(Order::Litter) => manager.litter()?,
            Some(Order::Forget) => manager.store.clear(),
            Some(Order::Scatter) => manager.scatter()?,
            Some(Order::Guard) => manager.hungry = Some(Instant::now()),
            Some(Order::End) => {
                child.kill()?;
                child.wait()?;
                return Ok(());
            }
            None => {
                // What it said before it ended counts.
                child.wait()?;
                manager.hear()?;
                child = manager.start()?;
                continue;
            }
        }
    }
}

/// One of several sockets of a port (`ReusePort=yes`); their order is that of their making.
fn bind(port: u16) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket.into())
}

enum Order {
    Kill,
    Restart,
    /// Restart from a new file.
    Upgrade,
    /// Store what the service cannot have stored.
    Litter,
    /// Lose everything it stored.
    Forget,
    /// Take away what tells the kernel which socket a datagram is for.
    Scatter,
    /// End it when it does not feed the watchdog.
    Guard,
    End,
}

impl Manager {
    fn start(&mut self) -> Result<Child> {
        self.ready = false;
        let own = self.sockets.iter().map(|socket| ("quic", socket.as_fd()));
        let stored =
            self.store.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd()));
        let (mut names, mut inherited) = (Vec::new(), Vec::new());
        for (name, descriptor) in own.chain(stored) {
            names.push(name);
            // A duplicate without close-on-exec.
            inherited.push(rustix::io::dup(descriptor)?);
        }
        let numbers: Vec<String> =
            inherited.iter().map(|descriptor| descriptor.as_raw_fd().to_string()).collect();
        let mut service = Command::new(&self.program);
        service.arg(role::SERVICE).args(&self.command);
        service.env(DESCRIPTORS, numbers.join(","));
        service.env("LISTEN_FDS", numbers.len().to_string());
        service.env("LISTEN_FDNAMES", names.join(":"));
        service.env("NOTIFY_SOCKET", &self.notify_path);
        service.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        service.stdin(std::process::Stdio::null());
        service.spawn().context("starting the service")
    }

    /// Waits for an order, or `None` for the end of the service.
    fn watch(&mut self, process: &OwnedFd) -> Result<Option<Order>> {
        loop {
            let stdin = io::stdin();
            let mut wanted = [
                PollFd::new(&self.notify, PollFlags::IN),
                PollFd::new(process, PollFlags::IN),
                PollFd::new(&stdin, PollFlags::IN),
            ];
            let left = self.hungry.map(|since| WATCHDOG.saturating_sub(since.elapsed()));
            let left = left.map(Timespec::try_from).transpose()?;
            rustix::event::poll(&mut wanted, left.as_ref())?;
            let [notify, process, input] = wanted.map(|one| !one.revents().is_empty());
            if notify {
                self.hear()?;
            }
            if process {
                return Ok(None);
            }
            if self.hungry.is_some_and(|since| since.elapsed() >= WATCHDOG) {
                self.hungry = None;
                return Ok(Some(Order::Kill));
            }
            if input {
                return Ok(Some(match read_line()?.as_str() {
                    "kill" => Order::Kill,
                    "restart" => Order::Restart,
                    "upgrade" => Order::Upgrade,
                    "litter" => Order::Litter,
                    "forget" => Order::Forget,
                    "scatter" => Order::Scatter,
                    "guard" => Order::Guard,
                    "" => Order::End,
                    other => bail!("it was told to {other:?}"),
                }));
            }
        }
    }

    /// Installs the program once more, as a package would: under a new name, then in the place of
    /// the old one.
    fn upgrade(&mut self) -> Result<()> {
        let place = Path::new(&self.notify_path).with_extension("program");
        let fresh = place.with_extension("new");
        std::fs::copy("/proc/self/exe", &fresh)?;
        std::fs::rename(&fresh, &place)?;
        self.program = place;
        Ok(())
    }

    /// Garbage under the names the service uses.
    fn litter(&mut self) -> Result<()> {
        for name in ["keep-journal", "keep-lot-0", "keep-lot-x", "keep-", "other"] {
            self.store.push((name.to_owned(), std::fs::File::open("/dev/null")?.into()));
            self.store.push((name.to_owned(), UdpSocket::bind("127.0.0.1:0")?.into()));
        }
        Ok(())
    }

    fn scatter(&self) -> Result<()> {
        let nothing: libc::c_int = 0;
        let size = libc::socklen_t::try_from(size_of_val(&nothing))?;
        // SAFETY: the option reads at most an integer, which outlives the call.
        let outcome = unsafe {
            libc::setsockopt(
                self.sockets[0].as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_DETACH_REUSEPORT_BPF,
                (&raw const nothing).cast(),
                size,
            )
        };
        ensure!(outcome == 0, "detaching the program: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Takes everything the service has said.
    fn hear(&mut self) -> Result<()> {
        let mut text = [0; 4096];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut slices = [IoSliceMut::new(&mut text)];
            let heard = rustix::net::recvmsg(&self.notify, &mut slices, &mut control, flags);
            let length = match heard {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let descriptors = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                RecvAncillaryMessage::ScmCredentials(_) | _ => None,
            });
            let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
            let words = str::from_utf8(&text[..length])?.to_owned();
            self.heed(&words, descriptors)?;
        }
    }

    fn heed(&mut self, words: &str, descriptors: Vec<OwnedFd>) -> Result<()> {
        let value =
            |key: &str| words.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let name = value("FDNAME").unwrap_or("stored");
        if value("FDSTORE") == Some("1") {
            for descriptor in descriptors {
                if self.store.len() < MOST_STORED {
                    self.store.push((name.to_owned(), descriptor));
                }
            }
        }
        if value("FDSTOREREMOVE") == Some("1") {
            self.store.retain(|(stored, _)| stored != name);
        }
        if value("WATCHDOG") == Some("1") {
            self.hungry = self.hungry.map(|_| Instant::now());
        }
        if value("READY") == Some("1") && !std::mem::replace(&mut self.ready, true) {
            let mut output = io::stdout().lock();
            writeln!(output, "started {}", self.store.len())?;
            output.flush()?;
        }
        Ok(())
    }
}

/// A line of standard input and nothing beyond it: the next one must still wake us.
fn read_line() -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while rustix::io::read(io::stdin(), &mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    Ok(String::from_utf8(line)?)
}
