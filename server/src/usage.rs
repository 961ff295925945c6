//! What clients use, as far as several slots count it together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use whimbrel_common::identity::PublicKey;
use whimbrel_gateway_core::limits::{Bandwidth, Exceeded, Usage};

/// What clients use, over all slots. It is held when a flow or a port begins or ends, never for a byte.
#[derive(Debug, Clone)]
pub struct SharedUsage {
    usage: Arc<Mutex<Usage>>,
    bandwidths: Arc<Mutex<BTreeMap<PublicKey, Weak<Mutex<Ways>>>>>,
}

/// To and from destinations.
type Ways = (Bandwidth, Bandwidth);

impl SharedUsage {
    /// What is used so far.
    #[must_use]
    pub fn new(usage: Usage) -> Self {
        Self { usage: Arc::new(Mutex::new(usage)), bandwidths: Arc::default() }
    }

    /// Looks at it, or changes it. Not to be held.
    pub fn lock(&self) -> MutexGuard<'_, Usage> {
        // Counters are right between any two of their changes.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bandwidth of a client, for one of its sessions.
    pub(crate) fn bandwidth(&self, client: PublicKey, now: Instant) -> SharedBandwidth {
        let mut all = self.bandwidths.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&client).and_then(Weak::upgrade) {
            return SharedBandwidth(known);
        }
        // Those of clients whose last session is over.
        all.retain(|_, bandwidth| bandwidth.strong_count() > 0);
        let fresh = Arc::new(Mutex::new((Bandwidth::new(now), Bandwidth::new(now))));
        all.insert(client, Arc::downgrade(&fresh));
        SharedBandwidth(fresh)
    }

    /// Counts one more port of a client.
    ///
    /// # Errors
    /// It may have no more, or not yet.
    pub(crate) fn open_port(&self, key: PublicKey, now: Instant) -> Result<PortLease, Exceeded> {
        self.lock().open_port(&key, now)?;
        Ok(PortLease { usage: self.clone(), key })
    }
}

/// The bandwidth of one client, over all its sessions and slots. It is held for a few additions, and
/// waited for by sessions of the same client only.
#[derive(Debug, Clone)]
pub(crate) struct SharedBandwidth(Arc<Mutex<Ways>>);

impl SharedBandwidth {
    /// Looks at it, or changes it. Not to be held.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Ways> {
        // Counters, as above.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port that counts for its client as long as this is there.
#[derive(Debug)]
pub(crate) struct PortLease {
    usage: SharedUsage,
    key: PublicKey,
}

impl PortLease {
    /// Whose port it is.
    pub(crate) fn key(&self) -> PublicKey {
        self.key
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        self.usage.lock().close_port(&self.key);
    }
}
