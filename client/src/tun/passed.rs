//! A TUN descriptor that another process made, as far as its word is taken.

#![expect(unsafe_code, reason = "TUNGETIFF and TUNGETVNETHDRSZ")]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FileType, fstat, major, minor};

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

/// Checks that a descriptor is a TUN as `Tun::create` makes them. It is touched in no other way
/// before it is known to be a TUN at all.
pub(super) fn check(fd: &OwnedFd) -> Result<(), String> {
    let unreadable = |error| format!("the descriptor cannot be examined: {error}");
    let about = fstat(fd).map_err(unreadable)?;
    let device = (major(about.st_rdev), minor(about.st_rdev));
    if FileType::from_raw_mode(about.st_mode) != FileType::CharacterDevice || device != TUN_DEVICE {
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
