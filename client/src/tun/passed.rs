//! Descriptors that another process made, as far as its word is taken. Until they are known to be a
//! TUN and a pulse, nothing is asked of them that whoever made them could leave unanswered.

#![expect(unsafe_code, reason = "TUNGETIFF and TUNGETVNETHDRSZ")]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, StatxFlags, readlink, statx};

/// Where `/dev/net/tun` is (`MISC_MAJOR`, `TUN_MINOR`).
const TUN_DEVICE: (u32, u32) = (10, 200);

/// `TUNGETIFF` and `TUNGETVNETHDRSZ` of `linux/if_tun.h`.
const TUNGETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<libc::c_uint>(b'T', 210);
const TUNGETVNETHDRSZ: rustix::ioctl::Opcode =
    rustix::ioctl::opcode::read::<libc::c_int>(b'T', 215);

/// Flags that decide what the bytes of a packet mean, or who else reads them.
const MEANING: libc::c_int = libc::IFF_TUN
    | libc::IFF_TAP
    | libc::IFF_NO_PI
    | libc::IFF_VNET_HDR
    | libc::IFF_MULTI_QUEUE
    | libc::IFF_PERSIST;

/// What they must be: packets without Ethernet, each after a virtio header, read by nobody else.
const WANTED: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// What the kernel calls a descriptor of `inotify_init1`.
const INOTIFY: &[u8] = b"anon_inode:inotify";

/// Checks that a descriptor is a pulse, as [`crate::run`] passes it.
pub(crate) fn check_pulse(fd: BorrowedFd<'_>) -> Result<(), String> {
    let named = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let name = readlink(named, Vec::new())
        .map_err(|error| format!("the pulse cannot be examined: {error}"))?;
    if name.as_bytes() == INOTIFY { Ok(()) } else { Err("the pulse is no inotify".to_owned()) }
}

/// Checks that a descriptor is a TUN as `Tun::create` makes them. It is touched in no other way
/// before it is known to be a TUN at all.
pub(crate) fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
    let unreadable = |error| format!("the descriptor cannot be examined: {error}");
    // A file system that somebody serves, as FUSE, is not asked but for what the kernel knows.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let about = statx(fd, c"", flags, StatxFlags::TYPE).map_err(unreadable)?;
    let device = (about.stx_rdev_major, about.stx_rdev_minor);
    let kind = FileType::from_raw_mode(about.stx_mode.into());
    if kind != FileType::CharacterDevice || device != TUN_DEVICE {
        return Err("the descriptor is no TUN".to_owned());
    }
    let mut interface = MaybeUninit::<libc::ifreq>::zeroed();
    // SAFETY: the request writes one `ifreq` to the address it is given.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF.into(), interface.as_mut_ptr()) };
    if told < 0 {
        return Err("the TUN has no interface".to_owned());
    }
    // SAFETY: all of it was zeroed, and zero is a valid `ifreq`.
    let interface = unsafe { interface.assume_init() };
    // SAFETY: TUNGETIFF fills in the flags, and any bits are valid flags.
    let flags = libc::c_int::from(unsafe { interface.ifr_ifru.ifru_flags });
    if flags & MEANING != WANTED {
        return Err(format!("the TUN was made with flags {flags:#x}, not {WANTED:#x}"));
    }
    let mut header: libc::c_int = 0;
    // SAFETY: the request writes one int to the address it is given.
    let told = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETVNETHDRSZ.into(), &raw mut header) };
    if told < 0 || usize::try_from(header) != Ok(super::VNET_HEADER) {
        return Err(format!("the TUN has a header of {header} bytes"));
    }
    Ok(())
}
