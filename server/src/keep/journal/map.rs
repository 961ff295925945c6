//! The journal's file as memory: its only unsafe code.
#![expect(unsafe_code, reason = "records and rings are memory that outlives the process")]

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::{FLOWS, RECORDS_END, RING, SIZE, ring_at};

/// The file, as memory.
pub(super) struct Map {
    start: NonNull<u8>,
    size: usize,
    pub(super) file: OwnedFd,
    /// Bytes of all rings that may have memory.
    pub(super) resident: AtomicU64,
}

// SAFETY: records are atomics, and each ring belongs to the one `Shelf` of its place.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub(super) fn new(file: OwnedFd) -> io::Result<Self> {
        let size = usize::try_from(SIZE).map_err(io::Error::other)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping at an address of the kernel's choice replaces no other.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size, access, MapFlags::SHARED, &file, 0)
        }?;
        // SAFETY: exactly the mapping just made. It holds what people say to each other: no core
        // dump shall have it.
        unsafe { rustix::mm::madvise(start, size, Advice::LinuxDontDump) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, size, file, resident: AtomicU64::new(0) })
    }

    /// A word of the record at byte `at`.
    pub(super) fn word(&self, at: usize, word: usize) -> &AtomicU64 {
        let offset = at + word * size_of::<u64>();
        debug_assert!(offset + size_of::<u64>() <= RECORDS_END);
        // SAFETY: within the mapping, which is as large as all records and rings.
        let pointer = unsafe { self.start.add(offset) };
        // SAFETY: aligned, as records are; it lives as long as the mapping; and all access to the
        // records is atomic.
        unsafe { AtomicU64::from_ptr(pointer.as_ptr().cast()) }
    }

    /// Bytes of a ring. The caller is the only one to use this ring.
    #[expect(clippy::mut_from_ref, reason = "each ring belongs to one shelf, which lends it out")]
    pub(super) fn ring(&self, slot: u32, at: u64, length: u64) -> &mut [u8] {
        assert!(slot < FLOWS && at <= RING && length <= RING - at, "beyond the ring");
        let offset = usize::try_from(ring_at(slot) + at).expect("within the mapping");
        let length = usize::try_from(length).expect("within the mapping");
        // SAFETY: within the mapping, as just checked.
        let pointer = unsafe { self.start.add(offset) };
        // SAFETY: mapped, initialised to zero by the kernel, and lent to nobody else: there is one
        // shelf of each place, and its methods borrow it mutably.
        unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), length) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: the mapping made in `new`, which nobody borrows any more.
        let unmapped = unsafe { rustix::mm::munmap(start, self.size) };
        debug_assert!(unmapped.is_ok(), "the mapping was whole");
    }
}
