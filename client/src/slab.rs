//! Buffers of flows, out of memory that is only resident where it was touched.
//!
//! Every lease is a pair of rings at fixed virtual addresses. Returning or trimming one gives its
//! pages back to the kernel at once; the addresses stay reserved for the life of the process, so
//! a ring that somebody still holds never points into unmapped memory.
#![expect(unsafe_code, reason = "mapping memory, and lending parts of it")]

use std::io;
use std::ptr::NonNull;

use smoltcp::socket::tcp::SocketBuffer;
use whimbrel_client_core::engine::Buffers;

/// Leases per mapping: large enough that 10,000 flows take a few hundred mappings, well below
/// the kernel's default of 65,530 per process.
const LEASES_PER_ARENA: usize = 64;

/// The size every ring is rounded up to, the page size of every supported machine at most.
const GRANULE: usize = 64 * 1024;

/// Lends pairs of rings of one size.
#[derive(Debug)]
pub struct Slab {
    ring: usize,
    arenas: Vec<Arena>,
    free: Vec<u32>,
    leased: Vec<bool>,
}

impl Slab {
    /// A slab of rings of up to `ring` bytes each. Reserves nothing yet.
    #[must_use]
    pub fn new(ring: usize) -> Self {
        let ring = ring.max(1).next_multiple_of(GRANULE);
        Self { ring, arenas: Vec::new(), free: Vec::new(), leased: Vec::new() }
    }

    /// How many leases are out.
    #[must_use]
    pub fn leased(&self) -> usize {
        self.leased.len() - self.free.len()
    }

    fn grow(&mut self) -> Option<()> {
        let arena = Arena::map(self.ring.checked_mul(2 * LEASES_PER_ARENA)?)
            .inspect_err(|error| tracing::warn!(%error, "No memory for more flows"))
            .ok()?;
        let first = u32::try_from(self.leased.len()).ok()?;
        let count = u32::try_from(LEASES_PER_ARENA).ok()?;
        let end = first.checked_add(count)?;
        self.arenas.push(arena);
        self.leased.resize(self.leased.len() + LEASES_PER_ARENA, false);
        self.free.extend((first..end).rev());
        Some(())
    }

    /// The receive and transmit ranges of a lease, each `self.ring` bytes.
    fn rings(&self, lease: u32) -> Option<[Range; 2]> {
        let lease = usize::try_from(lease).ok()?;
        let arena = self.arenas.get(lease / LEASES_PER_ARENA)?;
        let start = lease % LEASES_PER_ARENA * 2 * self.ring;
        Some([arena.range(start, self.ring)?, arena.range(start + self.ring, self.ring)?])
    }

    fn release(&self, lease: u32) {
        for range in self.rings(lease).into_iter().flatten() {
            if let Err(error) = range.discard() {
                tracing::warn!(%error, "Memory of a flow was not released");
            }
        }
    }
}

impl Buffers for Slab {
    /// The rings are all zero. `None` when `bytes` is 0 or more than this slab was made for, or when the process may map
    /// no more memory.
    fn lease(
        &mut self,
        bytes: usize,
    ) -> Option<(u32, SocketBuffer<'static>, SocketBuffer<'static>)> {
        if bytes == 0 || bytes > self.ring {
            return None;
        }
        if self.free.is_empty() {
            self.grow()?;
        }
        let lease = self.free.pop()?;
        *self.leased.get_mut(usize::try_from(lease).ok()?)? = true;
        let rings = self.rings(lease)?;
        // SAFETY: the range lies in a mapping that is never unmapped; the lease was free, so no
        // other ring covers it.
        let receive = unsafe { rings[0].bytes(bytes) };
        // SAFETY: as above, and the two ranges of a lease do not overlap.
        let transmit = unsafe { rings[1].bytes(bytes) };
        Some((lease, SocketBuffer::new(receive), SocketBuffer::new(transmit)))
    }

    /// Takes a lease back and releases its memory. Its rings, and the socket that holds them,
    /// must be dropped before. Unknown leases are ignored.
    fn give_back(&mut self, lease: u32) {
        let Some(leased) = usize::try_from(lease).ok().and_then(|at| self.leased.get_mut(at))
        else {
            return;
        };
        if std::mem::take(leased) {
            self.release(lease);
            self.free.push(lease);
        }
    }

    /// Releases the memory of a lease that stays out. Both rings must be empty: what they hold
    /// is lost. Unknown leases are ignored.
    fn trim(&mut self, lease: u32) {
        let leased = usize::try_from(lease).ok().and_then(|at| self.leased.get(at));
        if leased == Some(&true) {
            self.release(lease);
        }
    }
}

/// One mapping, leaked on purpose: rings are lent for `'static`.
#[derive(Debug)]
struct Arena {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: an arena is an address and a length; the memory belongs to no thread.
unsafe impl Send for Arena {}

impl Arena {
    fn map(length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice affects no
        // existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A huge page would make 2 MiB resident for the first byte of an idle flow.
        // SAFETY: the range is the mapping just made.
        let advised = unsafe { libc::madvise(start, length, libc::MADV_NOHUGEPAGE) };
        if advised != 0 {
            tracing::debug!("This kernel has no huge pages to switch off");
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, length })
    }

    fn range(&self, offset: usize, length: usize) -> Option<Range> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: the offset was just checked to lie within the mapping.
        let start = unsafe { self.start.add(offset) };
        Some(Range { start, length })
    }
}

/// A part of an arena.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: NonNull<u8>,
    length: usize,
}

impl Range {
    /// The first `length` bytes, at most all.
    ///
    /// # Safety
    /// No other reference to the range may exist while the result does.
    unsafe fn bytes(self, length: usize) -> &'static mut [u8] {
        let length = length.min(self.length);
        // SAFETY: the range lies in a live mapping, readable, writable and zeroed by the kernel;
        // the caller promises that nobody else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), length) }
    }

    /// Gives the pages back; the next touch finds zeros.
    fn discard(self) -> io::Result<()> {
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is page-aligned (the granule is a multiple of every page size) and
        // lies in a private anonymous mapping of ours, which stays mapped. Dropping its content is
        // what `give_back` and `trim` ask their callers to allow.
        if unsafe { libc::madvise(start, self.length, libc::MADV_DONTNEED) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: usize = 1 << 20;

    /// Pages of a range that are resident.
    fn resident(slab: &Slab, lease: u32) -> usize {
        let mut pages = 0;
        for range in slab.rings(lease).unwrap() {
            let mut map = vec![0u8; range.length / 4096];
            let start = range.start.as_ptr().cast();
            // SAFETY: the range is mapped, and `map` has one byte per page of at least 4 KiB.
            assert_eq!(unsafe { libc::mincore(start, range.length, map.as_mut_ptr()) }, 0);
            pages += map.iter().filter(|page| **page & 1 == 1).count();
        }
        pages
    }

    #[test]
    fn only_touched_pages_are_resident_and_all_go_back() {
        let mut slab = Slab::new(RING);
        let (lease, mut receive, mut transmit) = slab.lease(RING).unwrap();
        assert_eq!(receive.capacity(), RING);
        assert_eq!(resident(&slab, lease), 0);
        assert_eq!(receive.enqueue_slice(&[7; 10_000]), 10_000);
        assert_eq!(transmit.enqueue_slice(&[7; 100]), 100);
        assert_eq!(resident(&slab, lease), 4);
        receive.clear();
        transmit.clear();
        slab.trim(lease);
        assert_eq!(resident(&slab, lease), 0);
        assert_eq!(receive.enqueue_slice(&[7; 100]), 100);
        drop((receive, transmit));
        slab.give_back(lease);
        assert_eq!(resident(&slab, lease), 0);
    }

    #[test]
    fn leases_are_zeroed_distinct_and_used_again() {
        let mut slab = Slab::new(RING);
        let mut rings = Vec::new();
        for _ in 0..3 * LEASES_PER_ARENA {
            rings.push(slab.lease(4096).unwrap());
        }
        for (lease, receive, transmit) in &mut rings {
            let _all = receive.enqueue_slice(&lease.to_ne_bytes());
            let _all = transmit.enqueue_slice(&(!*lease).to_ne_bytes());
        }
        for (lease, receive, transmit) in &rings {
            assert_eq!(receive.get_allocated(0, 4), lease.to_ne_bytes());
            assert_eq!(transmit.get_allocated(0, 4), (!lease).to_ne_bytes());
        }
        assert_eq!(slab.leased(), 3 * LEASES_PER_ARENA);
        let numbers: Vec<u32> = rings.drain(..).map(|(lease, ..)| lease).collect();
        for lease in &numbers {
            slab.give_back(*lease);
            slab.give_back(*lease);
        }
        assert_eq!(slab.leased(), 0);
        let (lease, mut receive, _transmit) = slab.lease(4096).unwrap();
        assert!(numbers.contains(&lease));
        assert_eq!(receive.enqueue_many_with(|free| (4096, free.to_vec())).1, vec![0; 4096]);
        assert_eq!(slab.arenas.len(), 3);
    }

    #[test]
    fn impossible_sizes_and_unknown_leases_are_refused() {
        let mut slab = Slab::new(RING);
        assert!(slab.lease(0).is_none());
        assert!(slab.lease(RING + 1).is_none());
        slab.give_back(7);
        slab.trim(u32::MAX);
        assert_eq!(slab.leased(), 0);
        assert!(Slab::new(usize::MAX / 1024).lease(1).is_none());
    }
}
