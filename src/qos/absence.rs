//! How long a member of a shared tree is away between two looks, and what it is granted for that.

use super::bucket::Bucket;
use crate::base::Nanos;

/// A member is granted what the port sends in this time at least, however often it looks: that much
/// may be in its hands before another's more urgent packets have their turn.
const SHORTEST_NS: u64 = 200_000;
const BURST_SHARE: u64 = 8;
/// So long an absence is made up for. One that shares its core with others of its kind is kept from
/// it for about 4 ms.
const LONGEST_NS: u64 = 6_000_000;
/// Grants last for two absences as long as the last ones.
const ABSENCES: u64 = 2;
/// In 2^26 ns (67 ms) with shorter ones a long absence is forgotten.
const FORGET_NS_BITS: u32 = 26;

/// Counts only while something waits for tokens: one that has nothing to send, or no room in its
/// device, is not late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Absence {
    since: Option<Nanos>,
    /// The longest of the last ones, in nanoseconds.
    longest: u64,
    /// When `longest` was brought up to date.
    at: Nanos,
}

impl Absence {
    pub fn begins(&mut self, now: Nanos) {
        self.since = Some(now);
    }

    /// It is here again, wherever it was.
    pub fn ends(&mut self, now: Nanos) {
        let elapsed = now.since(self.at).min(1 << FORGET_NS_BITS);
        self.at = now;
        let forgotten = (self.longest * elapsed) >> FORGET_NS_BITS;
        let last = self.since.take().map_or(0, |since| now.since(since).min(LONGEST_NS));
        self.longest = (self.longest - forgotten).max(last);
    }

    /// The same without the absence that has begun.
    pub fn interrupted(self) -> Absence {
        Absence { since: None, ..self }
    }

    /// What the port may grant in advance: to one that is punctual no more than part of what it may
    /// send at once.
    pub fn bytes(&self, port: &Bucket) -> u32 {
        let burst = u64::from(port.cap()) / BURST_SHARE;
        let bytes = port.bytes_in(SHORTEST_NS).min(burst);
        u32::try_from(bytes.max(port.bytes_in(ABSENCES * self.longest))).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::qos::bucket::Rate;

    const MS: u64 = 1_000_000;

    /// Milliseconds that grants last after looks so many microseconds apart, of a port that sends a
    /// byte a nanosecond.
    fn lasts(looks_us: &[u64]) -> f64 {
        let port = Bucket::new(Rate::new(BitRate(8_000_000_000)), 2_000_000);
        let (mut absence, mut now) = (Absence::default(), Nanos(5 * MS));
        for us in looks_us {
            absence.begins(now);
            now = now.saturating_add(us * 1_000);
            absence.ends(now);
        }
        f64::from(absence.bytes(&port)) / MS as f64
    }

    #[test]
    fn grants_last_for_two_absences() {
        let table: [(&[u64], f64); 5] = [
            (&[], 0.2),
            (&[5; 100], 0.2),
            (&[1_000; 10], 2.0),
            (&[20, 4_000, 20, 20], 8.0),
            (&[90_000], 12.0),
        ];
        for (looks, ms) in table {
            assert!((lasts(looks) - ms).abs() < 0.02, "{looks:?}: {} ms", lasts(looks));
        }
    }

    #[test]
    fn a_long_absence_is_forgotten() {
        let looks: Vec<u64> = std::iter::once(4_000).chain([50; 10_000]).collect();
        assert!(lasts(&looks) < 0.21, "{} ms", lasts(&looks));
    }

    #[test]
    fn one_that_waits_for_nothing_is_not_away() {
        let mut absence = Absence::default();
        absence.ends(Nanos(900 * MS));
        absence.ends(Nanos(990 * MS));
        assert_eq!(absence.longest, 0);
    }
}
