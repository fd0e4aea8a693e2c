//! How long answers take, in histograms: by class, by service, by backend.
//!
//! Written by one worker as it goes, read by the control plane whenever it likes: every cell is
//! right, though a reader may see one of them an answer later than another. What series there are
//! follows from traffic to what is configured; their number is bounded all the same.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::Addr;
use crate::packet::ClassId;

/// Upper bounds of the buckets, microseconds; one more holds what is longer. Those that
/// OpenTelemetry names for `gen_ai.server.time_to_first_token` and `time_per_output_token` are
/// among them.
pub const BOUNDS_US: [u64; 27] = [
    500, 1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 50_000, 60_000,
    75_000, 80_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000,
];
/// Series of one worker.
pub const SERIES_MAX: usize = 512;
/// Places that are looked at for a series.
const PROBES_MAX: usize = 16;

const BUCKETS: usize = BOUNDS_US.len() + 1;
const KEY_WORDS: usize = 3;
/// Buckets, and the sum.
const HISTOGRAM_WORDS: usize = BUCKETS + 1;
const SERIES_WORDS: usize = KEY_WORDS + Measure::ALL.len() * HISTOGRAM_WORDS;
const TAKEN: u64 = 1 << 63;

const _: () = assert!(SERIES_MAX.is_power_of_two());

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// From the request's last bytes to the answer's first record.
    First,
    /// From an answer's record to its next.
    Gap,
}

impl Measure {
    pub const ALL: [Measure; 2] = [Measure::First, Measure::Gap];
}

/// Whose times: told by what doesn't change with a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Series {
    Class(ClassId),
    /// Address, port and IP protocol that clients use.
    Service(Addr, u16, u8),
    /// The same of a server.
    Backend(Addr, u16, u8),
}

/// The histograms of one worker.
pub struct Latencies {
    cells: Box<[AtomicU64]>,
    /// Measured, but told nowhere: there were too many series.
    untold: AtomicU64,
}

/// A histogram as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub buckets: [u64; BUCKETS],
    pub sum_us: u64,
}

impl Latencies {
    pub fn new() -> Latencies {
        let cells = SERIES_MAX * SERIES_WORDS;
        let cells = (0..cells).map(|_| AtomicU64::new(0)).collect();
        Latencies { cells, untold: AtomicU64::new(0) }
    }

    /// Counts one; only ever called by the one worker that these belong to.
    pub fn record(&self, series: Series, measure: Measure, ns: u64) {
        let us = ns / 1_000;
        let Some(cells) = self.series_cells(series) else {
            add(&self.untold, 1);
            return;
        };
        let from = KEY_WORDS + measure as usize * HISTOGRAM_WORDS;
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        add(&cells[from + bucket], 1);
        add(&cells[from + BUCKETS], us);
    }

    /// Measured, but told nowhere for want of room.
    pub fn untold(&self) -> u64 {
        self.untold.load(Ordering::Relaxed)
    }

    /// All series there are, with the histograms of both measures.
    pub fn read(&self) -> impl Iterator<Item = (Series, [Histogram; 2])> {
        self.cells.chunks_exact(SERIES_WORDS).filter_map(|cells| {
            // The last word of the key is written last, so the others are there.
            let tag = cells[2].load(Ordering::Acquire);
            let [hi, lo] = [0, 1].map(|i| cells[i].load(Ordering::Relaxed));
            let series = Series::from_words([hi, lo, tag])?;
            Some((series, Measure::ALL.map(|m| Histogram::read(&cells[KEY_WORDS..], m))))
        })
    }

    fn series_cells(&self, series: Series) -> Option<&[AtomicU64]> {
        let key = series.words();
        let mixed = key.iter().fold(0, |h: u64, w| (h ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let first = (mixed >> 32) as usize;
        for probe in 0..PROBES_MAX {
            let at = (first + probe) % SERIES_MAX * SERIES_WORDS;
            let cells = &self.cells[at..at + SERIES_WORDS];
            if cells[2].load(Ordering::Relaxed) == 0 {
                cells[0].store(key[0], Ordering::Relaxed);
                cells[1].store(key[1], Ordering::Relaxed);
                cells[2].store(key[2], Ordering::Release);
                return Some(cells);
            }
            if (0..KEY_WORDS).all(|i| cells[i].load(Ordering::Relaxed) == key[i]) {
                return Some(cells);
            }
        }
        None
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

/// One writer: no other addition can come between.
fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Series {
    fn words(self) -> [u64; KEY_WORDS] {
        let tag = |kind: u64, proto: u8, n: u16| {
            TAKEN | kind << 32 | u64::from(proto) << 16 | u64::from(n)
        };
        match self {
            Series::Class(class) => [0, 0, tag(0, 0, class.0)],
            Series::Service(a, port, proto) => [a.hi, a.lo, tag(1, proto, port)],
            Series::Backend(a, port, proto) => [a.hi, a.lo, tag(2, proto, port)],
        }
    }

    fn from_words([hi, lo, tag]: [u64; KEY_WORDS]) -> Option<Series> {
        let (addr, proto, n) = (Addr { hi, lo }, (tag >> 16) as u8, tag as u16);
        match (tag & TAKEN != 0, tag >> 32 & 0xff) {
            (false, _) => None,
            (_, 0) => Some(Series::Class(ClassId(n))),
            (_, 1) => Some(Series::Service(addr, n, proto)),
            _ => Some(Series::Backend(addr, n, proto)),
        }
    }
}

impl Histogram {
    pub const EMPTY: Histogram = Histogram { buckets: [0; BUCKETS], sum_us: 0 };

    fn read(histograms: &[AtomicU64], measure: Measure) -> Histogram {
        let cells = &histograms[measure as usize * HISTOGRAM_WORDS..][..HISTOGRAM_WORDS];
        let mut read = Histogram::EMPTY;
        for (bucket, cell) in read.buckets.iter_mut().zip(cells) {
            *bucket = cell.load(Ordering::Relaxed);
        }
        read.sum_us = cells[BUCKETS].load(Ordering::Relaxed);
        read
    }

    /// Counts one time.
    pub fn record(&mut self, ns: u64) {
        let us = ns / 1_000;
        self.buckets[BOUNDS_US.partition_point(|bound| *bound < us)] += 1;
        self.sum_us += us;
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, n)| *sum += n);
        self.sum_us += other.sum_us;
    }

    /// The time that this share of all is not above, microseconds, as far as buckets tell: between
    /// a bucket's bounds times are taken for evenly spread, and those beyond the last for its
    /// bound. `None` where nothing was measured.
    pub fn quantile_us(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let wanted = (share * count as f64).max(1.0);
        let mut below = 0;
        let mut from = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            let to = *BOUNDS_US.get(i).unwrap_or(&from);
            if *n > 0 && (below + n) as f64 >= wanted {
                let part = (wanted - below as f64) / *n as f64;
                return Some(from as f64 + part * (to - from) as f64);
            }
            (below, from) = (below + n, to);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn series_are_kept_apart_and_read_back() {
        let table = Latencies::new();
        let addr = Addr::v4(0x0a00_0001);
        let all = [
            Series::Class(ClassId(3)),
            Series::Class(ClassId::UNSET),
            Series::Service(addr, 443, 6),
            Series::Backend(addr, 443, 6),
            Series::Backend(addr, 444, 6),
        ];
        for (n, series) in (1..).zip(all) {
            (0..n).for_each(|_| table.record(series, Measure::First, 7 * MS));
            table.record(series, Measure::Gap, n * MS);
        }
        let mut read: Vec<_> = table.read().collect();
        read.sort_by_key(|(series, _)| *series);
        for (n, series) in (1..).zip(all) {
            let (_, [first, gap]) = read.iter().find(|(s, _)| *s == series).expect("there");
            assert_eq!((first.count(), first.sum_us), (n, n * 7_000), "{series:?}");
            assert_eq!((gap.count(), gap.sum_us), (1, n * 1_000), "{series:?}");
        }
        assert_eq!((read.len(), table.untold()), (all.len(), 0));
    }

    #[test]
    fn too_many_series_are_counted_instead() {
        let table = Latencies::new();
        let n = 2 * SERIES_MAX as u32;
        (0..n).for_each(|i| table.record(Series::Backend(Addr::v4(i), 1, 6), Measure::Gap, MS));
        let told: u64 = table.read().map(|(_, [_, gap])| gap.count()).sum();
        assert!(told <= SERIES_MAX as u64 && told > SERIES_MAX as u64 / 2);
        assert_eq!(told + table.untold(), u64::from(n));
    }

    #[test]
    fn quantiles_lie_in_their_buckets() {
        let table = Latencies::new();
        let series = Series::Class(ClassId(0));
        for ms in [1, 3, 3, 3, 3, 3, 3, 3, 70, 20_000] {
            table.record(series, Measure::First, ms * MS);
        }
        let (_, [first, gap]) = table.read().next().expect("one");
        assert_eq!(gap.quantile_us(0.5), None);
        let at = |share| first.quantile_us(share).expect("measured") / 1_000.0;
        assert!((2.5..=5.0).contains(&at(0.5)), "{}", at(0.5));
        assert!((60.0..=75.0).contains(&at(0.9)), "{}", at(0.9));
        assert_eq!(at(1.0), 10_000.0);
        assert!(at(0.0) <= 1.0);
    }
}
