//! How long a worker is away between two looks at what it shares, or at its device.

use super::bucket::Bucket;
use crate::base::Nanos;

/// A member of a shared tree is granted what the port sends in this time at least, however often it
/// looks: that much may be in its hands before another's more urgent packets have their turn. To
/// one that is punctual it is no more than this part of what the port may send at once.
const SHORTEST_NS: u64 = 200_000;
const BURST_SHARE: u64 = 8;
/// Grants last for two absences as long as the last ones.
const ABSENCES: u64 = 2;
/// So long an absence is made up for: one that shares its core with others of its kind is kept from
/// it for about 4 ms.
const LONGEST_NS: u64 = 6_000_000;
/// An absence counts half once this long has gone by without such a one.
const HALVED_NS: u64 = 67_000_000;

/// The longest of the last absences.
#[derive(Clone, Copy, Debug)]
pub(super) struct Longest {
    ns: u64,
    /// When `ns` was brought up to date.
    at: Nanos,
}

/// How long a member of a shared tree is away, and what it is granted for that. It counts only
/// while something may go that waits: one that has nothing to send, no room in its device, or
/// nothing to send before a class has tokens, is not late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Absence {
    since: Option<Nanos>,
    longest: Longest,
}

impl Longest {
    pub const NONE: Longest = Longest { ns: 0, at: Nanos::ZERO };

    #[inline]
    pub fn ns(self) -> u64 {
        self.ns
    }

    /// An absence that is over now; of 0: there was none.
    #[inline]
    pub fn learn(&mut self, now: Nanos, ns: u64) {
        let ns = ns.min(LONGEST_NS);
        if ns >= self.ns {
            *self = Longest { ns, at: now };
        } else if now.since(self.at) > HALVED_NS {
            *self = Longest { ns: self.ns / 2, at: now };
        }
    }
}

impl Absence {
    pub const NONE: Absence = Absence { since: None, longest: Longest::NONE };

    /// Something may go from then on.
    pub fn begins(&mut self, at: Nanos) {
        self.since = Some(at);
    }

    /// It is here again, wherever it was.
    pub fn ends(&mut self, now: Nanos) {
        let last = self.since.take().map_or(0, |since| now.since(since));
        self.longest.learn(now, last);
    }

    /// The same without the absence that has begun.
    pub fn interrupted(self) -> Absence {
        Absence { since: None, ..self }
    }

    /// What the port may grant in advance.
    pub fn bytes(&self, port: &Bucket) -> u32 {
        let burst = u64::from(port.cap()) / BURST_SHARE;
        let bytes = port.bytes_in(SHORTEST_NS).min(burst);
        u32::try_from(bytes.max(port.bytes_in(ABSENCES * self.longest.ns()))).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::BitRate;
    use crate::qos::bucket::Rate;

    const MS: u64 = 1_000_000;

    /// Bytes granted after looks so many nanoseconds apart, of a port that sends a byte a
    /// nanosecond and has such a burst.
    fn granted(burst: u32, looks_ns: &[u64]) -> u32 {
        let port = Bucket::new(Rate::new(BitRate(8_000_000_000)), burst);
        let (mut absence, mut now) = (Absence::NONE, Nanos(5 * MS));
        for ns in looks_ns {
            absence.begins(now);
            now = now.saturating_add(*ns);
            absence.ends(now);
        }
        absence.bytes(&port)
    }

    #[test]
    fn grants_last_for_two_absences() {
        let table: [(&[u64], u32); 5] = [
            (&[], 200_000),
            (&[5_000; 100], 200_000),
            (&[1_000_000; 10], 2_000_000),
            (&[20_000, 4_000_000, 20_000, 20_000], 8_000_000),
            (&[90_000_000], 12_000_000),
        ];
        for (looks, bytes) in table {
            assert_eq!(granted(2_000_000, looks), bytes, "{looks:?}");
        }
    }

    #[test]
    fn one_that_is_punctual_is_granted_an_eighth_of_the_burst_at_most() {
        for (burst, bytes) in [(20_000, 2_500), (1_600_000, 200_000), (1_700_000, 200_000)] {
            assert_eq!(granted(burst, &[]), bytes, "{burst}");
            assert_eq!(granted(burst, &[900; 50]), bytes.max(1_800), "{burst}");
        }
        // One that is late is granted what it needs: its tokens bound what it gets.
        assert_eq!(granted(20_000, &[4_000_000]), 8_000_000);
    }

    #[test]
    fn a_long_absence_is_forgotten_however_often_it_looks() {
        for step in [100, 300, 50_000] {
            let looks = 500 * MS / step;
            let all: Vec<u64> = std::iter::once(4 * MS).chain((0..looks).map(|_| step)).collect();
            assert_eq!(granted(2_000_000, &all), 200_000, "looks {step} ns apart");
        }
    }

    #[test]
    fn one_that_waits_for_nothing_is_not_away() {
        let mut absence = Absence::NONE;
        absence.ends(Nanos(900 * MS));
        absence.ends(Nanos(990 * MS));
        assert_eq!(absence.longest.ns(), 0);
        absence.begins(Nanos(995 * MS));
        absence.ends(Nanos(991 * MS));
        assert_eq!(absence.longest.ns(), 0, "tokens would have come later");
    }
}
