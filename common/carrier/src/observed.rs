//! What a path's acknowledgements say about it.
//!
//! The engine's statistics do not tell when a path last made progress, and packets that arrive say
//! nothing about the other direction. The congestion controller is told of every packet sent and
//! acknowledged on its path, so the wrapper here sees both, whichever path an acknowledgement
//! comes back on.
//!
//! It also lets probes pass a full congestion window. After an outage everything in flight is lost,
//! but the engine learns that only when something newer is acknowledged, and left alone it would
//! ask at the pace of its backed-off timer. It lets a spare path that is to carry start afresh:
//! what its controller learnt from a ping every 20 s is that it is slow. And for the same reason
//! little data is not paced: keystrokes and short connections teach a controller a rate at which
//! the next one waits longer than a round trip.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use noq_proto::RttEstimator;
use noq_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};

/// The progress of one path, as its acknowledgements show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// When the oldest packet since the last acknowledgement was sent; `None` when nothing is
    /// outstanding.
    pub expecting_since: Option<Instant>,
    /// When the last acknowledgement arrived.
    pub last_ack: Option<Instant>,
    /// When the newest packet acknowledged so far was sent.
    pub newest_acked_sent: Option<Instant>,
    /// Smoothed round trip (RFC 6298), the peer's acknowledgement delay included.
    pub srtt: Duration,
    /// Its mean deviation (RFC 6298).
    pub rttvar: Duration,
    /// Bytes acknowledged so far.
    pub acked_bytes: u64,
    /// Bytes deemed lost so far.
    pub lost_bytes: u64,
}

/// Builds observed controllers of the kind `inner` builds.
pub(crate) struct ObservedFactory {
    pub(crate) inner: Arc<dyn ControllerFactory + Send + Sync>,
    pub(crate) initial_rtt: Duration,
    /// Set when the engine asks whether there is room; shared by all paths.
    pub(crate) asked: Arc<AtomicBool>,
}

impl ControllerFactory for ObservedFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Observed {
            inner: Arc::clone(&self.inner).build(now, current_mtu),
            factory: Arc::clone(&self.inner),
            mtu: current_mtu,
            restart: Arc::default(),
            progress: Progress {
                expecting_since: None,
                last_ack: None,
                newest_acked_sent: None,
                srtt: self.initial_rtt,
                rttvar: self.initial_rtt / 2,
                acked_bytes: 0,
                lost_bytes: 0,
            },
            sampled: false,
            in_flight: 0,
            allowance: Arc::default(),
            held: Arc::default(),
            asked: Arc::clone(&self.asked),
        })
    }
}

/// What may leave in one burst, in packets of the path's MTU: RFC 9002 §7.7 asks for pacing only
/// beyond an initial window of ten (§7.2).
const BURST_PACKETS: u64 = 10;

/// The engine's pacer lets a burst of 10 ms of its rate pass, so at this rate a whole one passes.
const BURSTS_PER_SECOND: u32 = 100;

/// Bytes a probe may need beyond the window: itself, and one more packet.
const PROBE_ROOM: u64 = 2 * 1500;

pub(crate) struct Observed {
    inner: Box<dyn Controller>,
    factory: Arc<dyn ControllerFactory + Send + Sync>,
    mtu: u16,
    /// The inner controller is to be replaced; shared with copies of this controller.
    restart: Arc<AtomicBool>,
    progress: Progress,
    sampled: bool,
    in_flight: u64,
    /// Bytes granted beyond the inner controller's window; shared with copies of this controller.
    allowance: Arc<AtomicU64>,
    /// Nothing may be sent; shared with copies of this controller.
    held: Arc<AtomicBool>,
    /// The engine asks whether there is room; shared by all paths of an endpoint.
    asked: Arc<AtomicBool>,
}

impl Observed {
    /// The progress `controller` saw, if it is one of ours.
    pub(crate) fn progress_of(controller: &dyn Controller) -> Option<Progress> {
        let copy = controller.clone_box().into_any().downcast::<Self>().ok()?;
        Some(copy.progress)
    }

    /// Lets one probe pass even if the window of `controller` is full.
    pub(crate) fn admit_probe(controller: &dyn Controller) {
        if let Ok(copy) = controller.clone_box().into_any().downcast::<Self>() {
            let needed = (copy.in_flight + PROBE_ROOM).saturating_sub(copy.inner.window());
            copy.allowance.store(needed, Ordering::Relaxed);
        }
    }

    /// Lets the path of `controller` start afresh with its next packet.
    pub(crate) fn restart(controller: &dyn Controller) {
        if let Ok(copy) = controller.clone_box().into_any().downcast::<Self>() {
            copy.restart.store(true, Ordering::Relaxed);
        }
    }

    /// Keeps everything that is subject to congestion control off the path of `controller`, or lets
    /// it go again.
    pub(crate) fn hold(controller: &dyn Controller, held: bool) {
        if let Ok(copy) = controller.clone_box().into_any().downcast::<Self>() {
            copy.held.store(held, Ordering::Relaxed);
        }
    }

    fn begin_if_asked(&mut self, now: Instant) {
        if self.restart.swap(false, Ordering::Relaxed) {
            self.inner = Arc::clone(&self.factory).build(now, self.mtu);
        }
    }

    /// RFC 6298 §2.
    fn sample(&mut self, rtt: Duration) {
        let progress = &mut self.progress;
        if self.sampled {
            let deviation = progress.srtt.abs_diff(rtt);
            progress.rttvar = (3 * progress.rttvar + deviation) / 4;
            progress.srtt = (7 * progress.srtt + rtt) / 8;
        } else {
            progress.srtt = rtt;
            progress.rttvar = rtt / 2;
            self.sampled = true;
        }
    }
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed")
            .field("inner", &self.inner)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Controller for Observed {
    fn on_sent(&mut self, now: Instant, bytes: u64, largest_pn: u64) {
        self.inner.on_sent(now, bytes, largest_pn);
    }

    fn on_packet_sent(&mut self, now: Instant, bytes: u16, pn: u64) {
        self.begin_if_asked(now);
        self.progress.expecting_since.get_or_insert(now);
        self.in_flight += u64::from(bytes);
        self.inner.on_packet_sent(now, bytes, pn);
    }

    fn on_cwnd_limited(&mut self) {
        self.inner.on_cwnd_limited();
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        pn: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.begin_if_asked(now);
        let progress = &mut self.progress;
        progress.last_ack = Some(now);
        progress.acked_bytes += bytes;
        if progress.newest_acked_sent.is_none_or(|newest| sent > newest) {
            progress.newest_acked_sent = Some(sent);
        }
        self.inner.on_ack(now, sent, bytes, pn, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.in_flight = in_flight;
        if self.progress.last_ack == Some(now) {
            self.allowance.store(0, Ordering::Relaxed);
            self.progress.expecting_since = (in_flight > 0).then_some(now);
            if let Some(sent) = self.progress.newest_acked_sent {
                self.sample(now.saturating_duration_since(sent));
            }
        }
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest_lost_pn: u64,
    ) {
        self.progress.lost_bytes += lost_bytes;
        self.inner.on_congestion_event(
            now,
            sent,
            is_persistent_congestion,
            is_ecn,
            lost_bytes,
            largest_lost_pn,
        );
    }

    fn on_packet_lost(&mut self, lost_bytes: u16, pn: u64, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(u64::from(lost_bytes));
        self.inner.on_packet_lost(lost_bytes, pn, now);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.inner.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn on_ack_frequency_update(
        &mut self,
        ack_eliciting_threshold: u64,
        requested_max_ack_delay: Duration,
    ) {
        self.inner.on_ack_frequency_update(ack_eliciting_threshold, requested_max_ack_delay);
    }

    fn window(&self) -> u64 {
        self.asked.store(true, Ordering::Relaxed);
        if self.held.load(Ordering::Relaxed) {
            return 0;
        }
        let asked = self.restart.load(Ordering::Relaxed);
        let fresh = if asked { self.inner.initial_window() } else { 0 };
        self.inner.window().max(fresh) + self.allowance.load(Ordering::Relaxed)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        let burst = BURST_PACKETS * u64::from(self.mtu);
        if self.in_flight < burst {
            let unhindered = burst * u64::from(BURSTS_PER_SECOND);
            metrics.pacing_rate = metrics.pacing_rate.map(|rate| rate.max(unhindered));
        }
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            factory: Arc::clone(&self.factory),
            mtu: self.mtu,
            restart: Arc::clone(&self.restart),
            progress: self.progress,
            sampled: self.sampled,
            in_flight: self.in_flight,
            allowance: Arc::clone(&self.allowance),
            held: Arc::clone(&self.held),
            asked: Arc::clone(&self.asked),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
