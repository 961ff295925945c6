use std::time::Duration;

use super::{Evidence, Role};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Every constant of time in the decisions about paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A comparison starts after max(srtt + 2·rttvar, this) of silence: late enough that twice the
    /// round trip of good Wi-Fi passes unnoticed, early enough that a 60 ms link has answered when
    /// the verdict is due.
    pub compare_floor: Duration,
    /// A path whose acknowledgements came in dense succession is suspect after
    /// max(1.5·srtt + 2·rttvar, this). A queue that fills within one round trip of 20 ms to 100 ms
    /// stretches the spacing of acknowledgements sixfold: 10 ms becomes 60 ms.
    pub brisk_floor: Duration,
    /// Any other path is suspect after 2·srtt + 4·rttvar, and not before its first probe had this
    /// long to be acknowledged: when one packet is lost just as such a queue fills, the probe meets
    /// 20 + 100 ms of it, 16 ms of jitter and up to 25 ms of the peer's delay.
    pub patient_margin: Duration,
    /// Acknowledgements are dense if any five in a row came within this…
    pub dense_within: Duration,
    /// …for this long: a transfer that keeps its pipe full. What follows a shorter burst may be
    /// its tail, one packet whose loss looks like the loss of all.
    pub dense_for: Duration,
    /// A silence that healed by itself makes a path patient for this long: a minute is the scale on
    /// which radio conditions and neighbours' traffic persist.
    pub heal_memory: Duration,
    /// Something arrived this long after the last acknowledgement: the link delivers in one
    /// direction at least. Longer than the acknowledgement delay of RFC 9000 (25 ms).
    pub one_way_grace: Duration,
    /// Probes in a comparison go out this far apart: eight of them fit before the shortest verdict
    /// and its answer, so 3 % of loss each way does not condemn a healthy path.
    pub comparison_probe: Duration,
    /// How many probes a comparison sends before it counts as a common outage: enough to last
    /// until the verdict over a patient path and the answer of a link opened for it.
    pub comparison_probes: u32,
    /// In a common outage probes go out this far apart at first…
    pub outage_probe: Duration,
    /// …and this far apart at last, however long it lasts. At the client 200 ms: with a round trip
    /// of 60 ms the traffic moves 300 ms after a link's silent return at the latest. It is five
    /// packets of some 80 bytes a second, into links that are up and deliver nothing; a link that
    /// is down costs no probe at all. At the gateway 30 s: thousands of sleeping clients cost
    /// next to nothing, and the first packet from a client that is back triggers a probe at once.
    pub outage_probe_limit: Duration,
    /// How much longer each interval of an outage is than the one before, in percent.
    pub outage_growth_percent: u32,
    /// A packet that arrives in an outage triggers a probe, at most this often.
    pub answer_spacing: Duration,
    /// How long the better of two answers is awaited at most when the slower path is the active.
    pub verdict_patience: Duration,
    /// A spare path is suspect after max(4·srtt + 4·rttvar, this): nothing hangs on it.
    pub spare_floor: Duration,
    /// A suspect spare path is probed this long after it became so, then at doubling intervals.
    pub spare_probe: Duration,
    /// Every path is probed after this long without an answer. Half of the shortest lifetime of a
    /// UDP mapping commonly seen (30 s; RFC 4787 §4.3 asks for 120), with room for one loss.
    pub keep_alive: Duration,
    /// The same for a spare path on a metered link: a mapping that expires costs a rebinding when
    /// the path is needed, three times the probes cost money every day.
    pub keep_alive_metered: Duration,
    /// Two errors on sending within this, and no answer between them, make a link as good as down.
    pub send_error_window: Duration,
    /// A path that does not validate within this is given up: several retransmissions at the
    /// initial round trip of 100 ms.
    pub open_timeout: Duration,
    /// A path is closed 3·PTO after it was left, at least after this.
    pub drain_floor: Duration,
    /// The longest acknowledgement delay of the peer (RFC 9000 §18.2), part of the PTO.
    pub ack_delay: Duration,
    /// A link rests this long after its first failure, doubling with each…
    pub cooldown: Duration,
    /// …up to this.
    pub cooldown_limit: Duration,
    /// While no path answers a link rests no longer than this.
    pub outage_rest: Duration,
    /// Good behaviour for this long makes up for all failures.
    pub forgiveness: Duration,
    /// The traffic stays this long on a path before it moves to a better one.
    pub dwell: Duration,
    /// A better path must answer this many probes…
    pub clean_probes: u32,
    /// …over this long, before the traffic moves to it.
    pub clean_span: Duration,
    /// After a probe went unanswered the next attempt starts this much later.
    pub trial_pause: Duration,
    /// The peer's wish to go back to what we left by choice less than this ago crossed our own.
    pub crossing: Duration,
    /// A silent path that is the only one is steered over another link after this.
    pub steer_after: Duration,
    /// How long an attempt to steer may take, after the last answer to what its own link carried
    /// can have come: one round trip of most networks, and little enough to miss of the path's own
    /// link should that be the one to return.
    pub steer_trial: Duration,
    /// How far apart such attempts are while the path's own link is up.
    pub steer_spacing: Duration,
    /// Called this much later than asked, we did not run, and silence meanwhile proves nothing.
    pub stall: Duration,
    /// At most one such excuse per this long, or a busy machine would never notice anything.
    pub stall_spacing: Duration,
}

impl Config {
    /// The defaults for one end.
    pub fn new(role: Role) -> Self {
        let (limit, growth) = match role {
            Role::Client => (ms(200), 125),
            Role::Gateway => (ms(30_000), 200),
        };
        Self {
            compare_floor: ms(40),
            brisk_floor: ms(80),
            patient_margin: ms(160),
            dense_within: ms(40),
            dense_for: ms(500),
            heal_memory: ms(60_000),
            one_way_grace: ms(30),
            comparison_probe: ms(10),
            comparison_probes: 24,
            outage_probe: ms(100),
            outage_probe_limit: limit,
            outage_growth_percent: growth,
            answer_spacing: ms(50),
            verdict_patience: ms(100),
            spare_floor: ms(500),
            spare_probe: ms(250),
            keep_alive: ms(20_000),
            keep_alive_metered: ms(60_000),
            send_error_window: ms(1000),
            open_timeout: ms(3000),
            drain_floor: ms(200),
            ack_delay: ms(25),
            cooldown: ms(5000),
            cooldown_limit: ms(300_000),
            outage_rest: ms(1000),
            forgiveness: ms(600_000),
            dwell: ms(10_000),
            clean_probes: 5,
            clean_span: ms(3000),
            trial_pause: ms(5000),
            crossing: ms(1000),
            steer_after: ms(1000),
            steer_trial: ms(250),
            steer_spacing: ms(2000),
            stall: ms(25),
            stall_spacing: ms(500),
        }
    }

    pub(super) fn compare_after(&self, evidence: &Evidence, brisk: bool) -> Duration {
        if brisk {
            return self.compare_floor;
        }
        (evidence.srtt + 2 * evidence.rttvar).max(self.compare_floor)
    }

    pub(super) fn suspect_after(&self, evidence: &Evidence, brisk: bool) -> Duration {
        if brisk {
            return (evidence.srtt * 3 / 2 + 2 * evidence.rttvar).max(self.brisk_floor);
        }
        let probed = self.compare_after(evidence, false) + self.patient_margin;
        (2 * evidence.srtt + 4 * evidence.rttvar).max(probed)
    }

    pub(super) fn spare_after(&self, evidence: &Evidence) -> Duration {
        (4 * evidence.srtt + 4 * evidence.rttvar).max(self.spare_floor)
    }

    /// How long a path that was left stays: 3·PTO (RFC 9002 §6.2.1) of the one that carries.
    pub(super) fn drain(&self, live: &Evidence) -> Duration {
        (3 * (live.srtt + 4 * live.rttvar + self.ack_delay)).max(self.drain_floor)
    }

    /// The pause after the `count`th round of probes.
    pub(super) fn probe_gap(&self, count: u32) -> Duration {
        if count < self.comparison_probes {
            return self.comparison_probe;
        }
        let mut gap = self.outage_probe;
        for _ in self.comparison_probes..count {
            if gap >= self.outage_probe_limit {
                break;
            }
            gap = gap * self.outage_growth_percent / 100;
        }
        gap.min(self.outage_probe_limit)
    }

    /// How long a link rests after its `strikes`th failure in a row.
    pub(super) fn rest(&self, strikes: u32) -> Duration {
        self.cooldown
            .saturating_mul(1 << strikes.saturating_sub(1).min(16))
            .min(self.cooldown_limit)
    }
}
