//! How much of a port's device a worker may fill. What the device holds leaves in the order in
//! which it went there: the class tree can't let anything more urgent past it any more.

use super::absence::Longest;
use super::spec::PortQosSpec;
use crate::base::Nanos;

/// A port's device holds what the port sends in so many microseconds at most, over all workers'
/// queues ...
const IN_FLIGHT_US: u64 = 1_000;
/// ... or so many of the largest frames of each worker, where that is more: one is on its way while
/// the next is put behind it ...
const IN_FLIGHT_FRAMES: u64 = 2;
/// ... or, where the device ran dry before the worker came again, what the worker's share of the
/// rate sends in so many times that long.
const ABSENCES: u64 = 2;
const SECOND_NS: u128 = 1_000_000_000;

/// While a worker has fewer bytes than this in the device, it may put one more frame there. Beyond
/// that packets wait here, where they are sent in the right order.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    least: u64,
    /// The worker's share of the rate.
    bytes_per_sec: u64,
    /// When it had put as much there as it may, and had more.
    stopped: Option<Nanos>,
    /// Of those in which the device ran dry.
    absence: Longest,
}

impl InFlight {
    /// For ports that nothing shapes.
    pub const UNBOUNDED: InFlight = InFlight::of_bytes(u64::MAX);

    /// Whatever happens.
    pub const fn of_bytes(least: u64) -> InFlight {
        InFlight { least, bytes_per_sec: 0, stopped: None, absence: Longest::NONE }
    }

    /// For one of so many workers.
    pub fn of(spec: &PortQosSpec, workers: u32) -> InFlight {
        let bytes_per_sec = spec.rate.bytes_per_sec() / u64::from(workers.max(1));
        let frame = u64::from(spec.mtu);
        let part = bytes_per_sec.saturating_mul(IN_FLIGHT_US) / 1_000_000;
        let least = part.max(IN_FLIGHT_FRAMES * frame).saturating_sub(frame) + 1;
        InFlight { bytes_per_sec, ..InFlight::of_bytes(least) }
    }

    /// The same bound as another; what was learnt is kept.
    pub fn follow(&mut self, next: &InFlight) {
        (self.least, self.bytes_per_sec) = (next.least, next.bytes_per_sec);
    }

    /// Bytes that may be put there now. The last frame may overshoot them.
    #[inline]
    pub fn room(&mut self, now: Nanos, in_flight: u64) -> u64 {
        if self.stopped.is_some() || self.absence.ns() > 0 {
            let since = self.stopped.take().filter(|_| in_flight == 0);
            self.absence.learn(now, since.map_or(0, |since| now.since(since)));
        }
        let made_up = u128::from(self.bytes_per_sec) * u128::from(ABSENCES * self.absence.ns());
        self.least.max((made_up / SECOND_NS) as u64).saturating_sub(in_flight)
    }

    /// There is more to send than there was room for.
    #[inline]
    pub fn stop(&mut self, now: Nanos) {
        self.stopped = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::packet::ClassId;

    const MS: u64 = 1_000_000;

    fn bound(rate: u64) -> InFlight {
        let spec = PortQosSpec {
            port: crate::packet::PortId(0),
            rate: BitRate(rate),
            burst: 10_000,
            overhead: 0,
            mpu: 0,
            mtu: 1_500,
            default_class: ClassId(0),
            classes: Vec::new(),
        };
        InFlight::of(&spec, 2)
    }

    #[test]
    fn a_millisecond_or_two_frames() {
        for (rate, bytes) in [(8_000_000_000, 500_000 - 1_499), (1_000_000, 1_501)] {
            assert_eq!(bound(rate).room(Nanos::ZERO, 0), bytes, "{rate}");
            assert_eq!(bound(rate).room(Nanos::ZERO, bytes + 1_499), 0, "{rate}");
        }
        let mut all = InFlight::UNBOUNDED;
        assert_eq!(all.room(Nanos::ZERO, 7), u64::MAX - 7);
    }

    /// What a worker has at its looks so many microseconds apart, if the device is done by each.
    fn room_after(looks_us: &[u64], in_flight: u64) -> u64 {
        let (mut bound, mut now, mut room) = (bound(80_000_000), Nanos(MS), 0);
        for us in looks_us {
            bound.stop(now);
            now = now.saturating_add(us * 1_000);
            room = bound.room(now, in_flight);
        }
        room
    }

    #[test]
    fn who_comes_late_to_a_device_that_ran_dry_may_put_more_there() {
        let least = 5_000 - 1_499;
        // Of five bytes a microsecond.
        let table: [(&[u64], u64, u64); 6] = [
            (&[20; 9], 0, least),
            (&[4_000], 0, 2 * 20_000),
            (&[4_000, 20, 20], 0, 2 * 20_000),
            (&[900_000], 0, 2 * 30_000),
            // The device has not: it is what limits.
            (&[4_000], 1, least - 1),
            (&[4_000, 60_000, 8_000, 70_000], 1, least - 1),
        ];
        for (looks, in_flight, room) in table {
            assert_eq!(room_after(looks, in_flight), room, "{looks:?}");
        }
    }

    #[test]
    fn absences_are_forgotten() {
        let looks: Vec<u64> = std::iter::once(4_000).chain([50; 8_000]).collect();
        assert_eq!(room_after(&looks, 0), 5_000 - 1_499);
    }

    #[test]
    fn another_bound_is_followed() {
        let mut bound = bound(8_000_000_000);
        bound.follow(&InFlight::UNBOUNDED);
        assert_eq!(bound.room(Nanos::ZERO, 0), u64::MAX);
    }
}
