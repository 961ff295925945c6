//! Marks on the sockets of a control group, put there as each socket is made.
//!
//! A rule that looks at packets (nftables, `socket cgroupv2`) comes too late for TCP: the kernel
//! has chosen the source address by then, and a connection that has the address of Wi-Fi dies with
//! Wi-Fi. So a program of four instructions runs whenever a socket is made in the group
//! (`BPF_CGROUP_INET_SOCK_CREATE`), and what the socket connects to is routed by its mark from the
//! first packet on. The program belongs to the group: it outlives the daemon, and ends with the
//! group.

#![expect(unsafe_code, reason = "bpf(2)")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tracing::debug;
use whimbrel_client_core::plan::Way;

/// Commands, types and flags of `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_TYPE_CGROUP_SOCK: u32 = 9;
const BPF_CGROUP_INET_SOCK_CREATE: u32 = 2;
/// Programs of others on the same group, such as those of systemd, go on.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The offset of `mark` in `struct bpf_sock`.
const SOCK_MARK: i16 = 16;

/// The programs, one for each [`Way`].
#[derive(Debug)]
pub(crate) struct Stamps {
    direct: OwnedFd,
    carried: OwnedFd,
}

impl Stamps {
    /// Loads the programs, and gives the capability up that this takes (`CAP_BPF`). It belongs to
    /// a thread and is inherited, so this comes before any other thread.
    ///
    /// # Errors
    /// A sentence about what is missing and what to do.
    pub(crate) fn load(carrier: u32) -> Result<Self, String> {
        let load = |way: Way| load(way.mark(carrier));
        let loaded = load(Way::Direct).and_then(|direct| {
            let carried = load(Way::Carried)?;
            Ok(Self { direct, carried })
        });
        if let Err(error) = give_up() {
            debug!(%error, "Capabilities stay as they are");
        }
        loaded.map_err(|error| explain(&error))
    }

    /// Marks what sockets are made in a group from now on.
    ///
    /// # Errors
    /// A sentence about why it cannot.
    pub(crate) fn put(&self, way: Way, group: BorrowedFd<'_>) -> Result<(), String> {
        let done = attach(BPF_PROG_ATTACH, self.program(way), group, BPF_F_ALLOW_MULTI);
        done.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => "the kernel lets the daemon attach nothing to the command's \
                                  control group: it is older than 5.19, or another program there \
                                  forbids further ones"
                .to_owned(),
            Some(_) | None => format!("the command's sockets cannot be marked: {error}"),
        })
    }

    /// Marks no more.
    pub(crate) fn take_off(&self, way: Way, group: BorrowedFd<'_>) {
        if let Err(error) = attach(BPF_PROG_DETACH, self.program(way), group, 0) {
            debug!(%error, "A program ends with its group");
        }
    }

    fn program(&self, way: Way) -> BorrowedFd<'_> {
        match way {
            Way::Direct => self.direct.as_fd(),
            Way::Carried => self.carried.as_fd(),
        }
    }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "the daemon may not mark the sockets of a command; it needs the capability CAP_BPF when \
             it starts: `systemctl edit whimbrel` with \"[Service]\", \
             \"CapabilityBoundingSet=CAP_BPF\" and \"AmbientCapabilities=CAP_BPF\"; in a container \
             --cap-add BPF"
                .to_owned()
        }
        Some(libc::EINVAL | libc::ENOSYS) => {
            "this kernel cannot mark the sockets of a command; it needs Linux 5.19 or newer with \
             CONFIG_CGROUP_BPF"
                .to_owned()
        }
        Some(_) | None => format!("the sockets of a command cannot be marked: {error}"),
    }
}

/// Every other capability stays.
fn give_up() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(CapabilitySet::BPF);
    }
    set_capabilities(None, sets)
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What the kernel reads of `union bpf_attr` to load a program.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attaches_to: u32,
}

/// What it reads to attach one.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// `sk->mark = mark; return 1;`
fn program(mark: u32) -> [Instruction; 4] {
    let step = |code, (to, from): (u8, u8), offset, immediate| {
        // Two fields of four bits, whose order is that of the machine.
        let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
        Instruction { code, registers, offset, immediate }
    };
    [
        // r2 = mark
        step(0xb7, (2, 0), 0, mark.cast_signed()),
        // *(u32 *)(r1 + 16) = r2
        step(0x63, (1, 2), SOCK_MARK, 0),
        // r0 = 1: the socket may be made
        step(0xb7, (0, 0), 0, 1),
        // exit
        step(0x95, (0, 0), 0, 0),
    ]
}

fn load(mark: u32) -> io::Result<OwnedFd> {
    let program = program(mark);
    let licence = c"MIT OR Apache-2.0";
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"whimbrel");
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_SOCK,
        instructions: 4,
        program: program.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name,
        interface: 0,
        attaches_to: BPF_CGROUP_INET_SOCK_CREATE,
    };
    // SAFETY: the kernel reads `load` and the two things it points to, all of which outlive the
    // call, and writes nothing.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    match i32::try_from(answer) {
        // SAFETY: a descriptor that was just made for us (closed on exec, as all of bpf(2) are).
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

fn attach(
    command: libc::c_long,
    program: BorrowedFd<'_>,
    group: BorrowedFd<'_>,
    flags: u32,
) -> io::Result<()> {
    let attach = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_INET_SOCK_CREATE,
        flags,
    };
    // SAFETY: the kernel reads `attach`, which outlives the call, and writes nothing.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attach, size_of::<Attach>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
