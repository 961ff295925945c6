//! Rings that lose their content whenever the engine says that nothing is in them.
#![expect(unsafe_code, reason = "released pages change under the ring that covers them")]

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use smoltcp::socket::tcp::SocketBuffer;
use whimbrel_client_core::engine::Buffers;

/// Leases and the memory under them; clones share one pool.
#[derive(Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Leases>>);

#[derive(Default)]
struct Leases {
    live: BTreeMap<u32, [Ring; 2]>,
    last: u32,
    limit: usize,
}

struct Ring(NonNull<[u8]>);

// SAFETY: a ring is memory of the heap that belongs to no thread.
unsafe impl Send for Ring {}

/// What is left in released pages: no byte of any stream here.
const JUNK: u8 = 0;

impl Pool {
    pub(crate) fn new(limit: usize) -> Self {
        let pool = Self::default();
        pool.lock().limit = limit;
        pool
    }

    pub(crate) fn live(&self) -> usize {
        self.lock().live.len()
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.0.lock().expect("nothing panics and goes on")
    }
}

impl Ring {
    fn new(bytes: usize) -> (Self, SocketBuffer<'static>) {
        let memory = NonNull::from(Box::leak(vec![JUNK; bytes].into_boxed_slice()));
        // SAFETY: the memory was just leaked; it is freed after the buffer is dropped.
        let lent: &'static mut [u8] = unsafe { &mut *memory.as_ptr() };
        (Self(memory), SocketBuffer::new(lent))
    }

    fn discard(&self) {
        // SAFETY: the memory is live, this long, and nobody looks at it during the call.
        unsafe { self.0.cast::<u8>().write_bytes(JUNK, self.0.len()) };
    }

    fn free(self) {
        // SAFETY: the memory came out of a box, and the buffer that covered it was dropped.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Buffers for Pool {
    fn lease(
        &mut self,
        bytes: usize,
    ) -> Option<(u32, SocketBuffer<'static>, SocketBuffer<'static>)> {
        let mut leases = self.lock();
        if leases.live.len() >= leases.limit {
            return None;
        }
        let ((receive, into), (send, from)) = (Ring::new(bytes), Ring::new(bytes));
        leases.last += 1;
        let lease = leases.last;
        leases.live.insert(lease, [receive, send]);
        Some((lease, into, from))
    }

    fn give_back(&mut self, lease: u32) {
        let rings = self.lock().live.remove(&lease).expect("the lease is out");
        rings.into_iter().for_each(Ring::free);
    }

    fn trim(&mut self, lease: u32) {
        self.lock().live.get(&lease).expect("the lease is out").iter().for_each(Ring::discard);
    }
}
