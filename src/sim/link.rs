//! A one-way link: its rate, its delay, and what goes wrong on it.

use std::time::Duration;

use crate::base::hash::Rng;
use crate::base::units::BitRate;
use crate::base::{Nanos, Seed};

/// How a link behaves. The default is perfect: no delay, no limit, no loss.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkSpec {
    /// `None`: as fast as packets come.
    pub rate: Option<BitRate>,
    pub delay: Duration,
    /// Chance that a packet is lost, 0 to 1.
    pub loss: f64,
    /// Chance that a packet arrives twice.
    pub duplicate: f64,
    /// Chance that a packet arrives later than those sent after it.
    pub reorder: f64,
    /// By how much at most a reordered packet is late.
    pub reorder_by: Duration,
}

impl LinkSpec {
    /// A link on which about `percent` in a hundred packets suffer each of the ills.
    pub fn bad(percent: f64, delay: Duration) -> LinkSpec {
        let p = percent / 100.0;
        LinkSpec {
            delay,
            loss: p,
            duplicate: p,
            reorder: p,
            reorder_by: delay * 3,
            ..LinkSpec::default()
        }
    }
}

/// What became of the packets sent over a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    pub sent: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

/// One direction of a cable.
pub struct Link {
    spec: LinkSpec,
    rng: Rng,
    busy_until: Nanos,
    pub stats: LinkStats,
}

impl Link {
    pub fn new(spec: LinkSpec, seed: Seed) -> Link {
        Link { spec, rng: Rng::new(seed), busy_until: Nanos::ZERO, stats: LinkStats::default() }
    }

    /// When the link can take the next packet.
    pub fn free_at(&self) -> Nanos {
        self.busy_until
    }

    /// Sends `len` bytes and says when they arrive: not at all, once or twice.
    pub fn send(&mut self, now: Nanos, len: usize) -> [Option<Nanos>; 2] {
        self.stats.sent += 1;
        let start = now.max(self.busy_until);
        let on_wire = self.spec.rate.map_or(0, |r| {
            (len as u64 * 8).saturating_mul(1_000_000_000) / r.bits_per_sec().max(1)
        });
        self.busy_until = start.saturating_add(on_wire);
        if self.rng.chance(self.spec.loss) {
            self.stats.lost += 1;
            return [None, None];
        }
        let first = self.arrival();
        let second = self.rng.chance(self.spec.duplicate).then(|| {
            self.stats.duplicated += 1;
            self.arrival()
        });
        [Some(first), second]
    }

    fn arrival(&mut self) -> Nanos {
        let mut at = self.busy_until + self.spec.delay;
        if self.rng.chance(self.spec.reorder) {
            self.stats.reordered += 1;
            let late_ns = u32::try_from(self.spec.reorder_by.as_nanos()).unwrap_or(u32::MAX);
            at = at.saturating_add(u64::from(self.rng.below(late_ns)));
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_follow_each_other_at_the_rate() {
        let spec = LinkSpec {
            rate: Some(BitRate(8_000_000)),
            delay: Duration::from_millis(1),
            ..LinkSpec::default()
        };
        let mut link = Link::new(spec, Seed(1));
        assert_eq!(link.send(Nanos(0), 1_000), [Some(Nanos(2_000_000)), None]);
        assert_eq!(link.free_at(), Nanos(1_000_000));
        assert_eq!(link.send(Nanos(0), 1_000), [Some(Nanos(3_000_000)), None]);
    }

    #[test]
    fn ills_come_about_as_often_as_asked() {
        let mut link = Link::new(LinkSpec::bad(10.0, Duration::from_millis(1)), Seed(2));
        for _ in 0..10_000 {
            link.send(Nanos(0), 100);
        }
        let s = link.stats;
        for n in [s.lost, s.duplicated, s.reordered] {
            assert!((800..1_250).contains(&n), "{s:?}");
        }
    }
}
