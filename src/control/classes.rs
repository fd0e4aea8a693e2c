//! What classes have done: as workers told it last, and over the seconds before.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::crew::Crew;
use super::view::{ClassView, Values};
use crate::base::Nanos;
use crate::config::Config;
use crate::packet::{ClassId, PortId};
use crate::qos::spec::ClassSpec;
use crate::qos::{ClassStats, Sojourn};
use crate::worker::WorkerCommand;
use crate::worker::command::ClassRow;

/// What is shown of a class: name, meaning, and whether it is a gauge.
pub const CLASS_VALUES: [(&str, &str, bool); 27] = [
    ("enqueued_packets", "Packets that arrived, whatever became of them.", false),
    ("enqueued_bytes", "Bytes that arrived, whatever became of them.", false),
    ("moved_in_packets", "Packets that came from another class while they waited.", false),
    ("moved_in_bytes", "Bytes that came from another class while they waited.", false),
    ("moved_out_packets", "Packets that went to another class while they waited.", false),
    ("moved_out_bytes", "Bytes that went to another class while they waited.", false),
    (
        "flows_unmoved",
        "Flows that left for another class, but had too much waiting to move.",
        false,
    ),
    ("sent_packets", "Packets sent.", false),
    ("sent_bytes", "Bytes sent.", false),
    ("dropped_packets", "Packets lost, to overload or to the queue management.", false),
    ("dropped_bytes", "Bytes lost, to overload or to the queue management.", false),
    ("aqm_dropped_packets", "Packets that the queue management dropped.", false),
    ("queue_full_dropped_packets", "Packets lost because a queue was full.", false),
    ("marked_packets", "Packets sent with a mark of congestion (ECN).", false),
    ("borrowed_bytes", "Bytes sent on the rate of a class above.", false),
    ("backlog_packets", "Packets waiting.", true),
    ("backlog_bytes", "Bytes waiting.", true),
    ("sojourn_p50_ns", "Of the last 10 to 20 s: half of the packets waited less.", true),
    ("sojourn_p90_ns", "Of the last 10 to 20 s: 90 of 100 packets waited less.", true),
    ("sojourn_p99_ns", "Of the last 10 to 20 s: 99 of 100 packets waited less.", true),
    ("sojourn_p999_ns", "Of the last 10 to 20 s: 999 of 1000 packets waited less.", true),
    ("rate_bits", "Configured guarantee in bit/s.", true),
    ("ceil_bits", "Configured limit in bit/s.", true),
    ("sent_bits_1s", "Sent in the last second, in bit/s.", true),
    ("sent_bits_10s", "Sent in the last 10 s, in bit/s.", true),
    ("borrowed_bits_1s", "As borrowed_bytes, in the last second, in bit/s.", true),
    ("borrowed_bits_10s", "As borrowed_bytes, in the last 10 s, in bit/s.", true),
];

/// Samples kept of a class, one a second: those of 10 s and the one before.
const SAMPLES: usize = 11;

type Key = (PortId, ClassId);

/// What workers told of their classes last, at most a second ago, and what follows from the times
/// before.
#[derive(Default)]
pub(super) struct Classes {
    by_worker: BTreeMap<u16, (Nanos, Vec<ClassRow>)>,
    awaited: BTreeSet<u16>,
    past: HashMap<Key, Past>,
}

/// The last seconds of one class, all workers together.
#[derive(Default)]
struct Past {
    /// The oldest first.
    samples: VecDeque<Sample>,
    /// Waiting times up to the beginning of the window that is shown, and of the next one.
    waits: [Sojourn; 2],
    ticks: usize,
}

#[derive(Clone, Copy, Default)]
struct Sample {
    at: Nanos,
    sent: u64,
    borrowed: u64,
}

impl Classes {
    /// Asks all workers that have answered the last time. To be called once a second: when all of
    /// them have told, that is a sample.
    pub(super) fn ask(&mut self, crew: &mut Crew, config: &Config) {
        if !self.awaited.is_empty() {
            self.sample(); // one hangs: without it then
        }
        let count: usize = config.qos.iter().map(|q| q.classes.len()).sum();
        for seat in &mut crew.seats {
            if count > 0 && seat.is_reached() && self.awaited.insert(seat.id) {
                // Twice: while a reload is under way a worker may still have the classes before.
                let rows = Vec::with_capacity(2 * count);
                seat.send(WorkerCommand::ListClasses(rows));
            }
        }
    }

    pub(super) fn take(&mut self, worker: u16, at: Nanos, rows: Vec<ClassRow>) {
        self.awaited.remove(&worker);
        self.by_worker.insert(worker, (at, rows));
        if self.awaited.is_empty() {
            self.sample();
        }
    }

    /// All workers together, by port and class: those that are configured, also where no worker
    /// has told of them yet.
    pub(super) fn view(&self, config: &Config) -> Vec<ClassView> {
        let specs: BTreeMap<Key, &ClassSpec> =
            config.qos.iter().flat_map(|q| q.classes.iter().map(|c| ((q.port, c.id), c))).collect();
        let (sums, none) = (self.sums(), Past::default());
        let name = |class: ClassId| config.class_names.get(usize::from(class.0)).cloned();
        let view = |(key, spec): (Key, &ClassSpec)| {
            let stats = sums.get(&key).copied().unwrap_or_default();
            Some(ClassView {
                port: config.ports.get(usize::from(key.0.0))?.name.clone(),
                class: name(key.1)?,
                parent: spec.parent.and_then(name),
                priority: spec.priority,
                weight: spec.weight,
                values: values(&stats, self.past.get(&key).unwrap_or(&none), spec),
            })
        };
        specs.into_iter().filter_map(view).collect()
    }

    fn sums(&self) -> BTreeMap<Key, ClassStats> {
        let mut sums: BTreeMap<Key, ClassStats> = BTreeMap::new();
        for row in self.by_worker.values().flat_map(|(_, rows)| rows) {
            *sums.entry((row.port, row.class)).or_default() += row.stats;
        }
        sums
    }

    fn sample(&mut self) {
        let sums = self.sums();
        self.past.retain(|key, _| sums.contains_key(key));
        let workers = self.by_worker.len().max(1) as u64;
        let told: u64 = self.by_worker.values().map(|(at, _)| at.0 / workers).sum();
        for (key, stats) in sums {
            self.past.entry(key).or_default().add(Nanos(told), &stats);
        }
    }
}

impl Past {
    fn add(&mut self, at: Nanos, stats: &ClassStats) {
        let sample = Sample { at, sent: stats.sent_bytes, borrowed: stats.borrowed_bytes() };
        if self.samples.back().is_some_and(|last| at <= last.at) {
            return; // no worker has told anything since
        }
        if self.samples.back().is_some_and(|last| sample.sent < last.sent) {
            *self = Past::default(); // the class was gone meanwhile, or one of its workers
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.ticks += 1;
        if self.ticks.is_multiple_of(SAMPLES - 1) {
            self.waits = [self.waits[1], stats.sojourn];
        }
    }

    /// Bits per second sent, and of those borrowed, over the last `seconds` samples; as far as
    /// there are any.
    fn rates(&self, seconds: usize) -> (u64, u64) {
        let Some(last) = self.samples.back() else { return (0, 0) };
        let first = self.samples[self.samples.len().saturating_sub(seconds + 1)];
        let ns = u128::from(last.at.since(first.at)).max(1);
        let rate = |to: u64, from: u64| {
            let bits = u128::from(to.saturating_sub(from)) * 8;
            u64::try_from(bits * 1_000_000_000 / ns).unwrap_or(u64::MAX)
        };
        (rate(last.sent, first.sent), rate(last.borrowed, first.borrowed))
    }
}

fn values(s: &ClassStats, past: &Past, spec: &ClassSpec) -> Values {
    let (sent_1s, borrowed_1s) = past.rates(1);
    let (sent_10s, borrowed_10s) = past.rates(SAMPLES - 1);
    let waits = s.sojourn.since(&past.waits[0]);
    let values = [
        s.enqueued_packets,
        s.enqueued_bytes,
        s.moved_in_packets,
        s.moved_in_bytes,
        s.moved_out_packets,
        s.moved_out_bytes,
        s.flows_unmoved,
        s.sent_packets,
        s.sent_bytes,
        s.dropped_packets,
        s.dropped_bytes,
        s.aqm_dropped_packets,
        s.dropped_packets.saturating_sub(s.aqm_dropped_packets),
        s.marked_packets,
        s.borrowed_bytes(),
        s.backlog_packets,
        s.backlog_bytes,
        waits.quantile_ns(0.5),
        waits.quantile_ns(0.9),
        waits.quantile_ns(0.99),
        waits.quantile_ns(0.999),
        spec.rate.0,
        spec.ceil.0,
        sent_1s,
        sent_10s,
        borrowed_1s,
        borrowed_10s,
    ];
    CLASS_VALUES.iter().map(|(name, ..)| (*name).to_string()).zip(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn told(classes: &mut Classes, worker: u16, at: u64, sent: u64, borrowed: u64) {
        let stats =
            ClassStats { sent_bytes: sent, leaf_borrowed_bytes: borrowed, ..ClassStats::default() };
        let row = ClassRow { port: PortId(0), class: ClassId(3), stats };
        classes.take(worker, Nanos(at), vec![row]);
    }

    #[test]
    fn classes_are_shown_before_workers_tell_of_them() {
        let text = "pipeline = \"llm-edge\"
            [port.wan]
            interface = \"lo\"
            [qos.wan]
            rate = \"10Mbit/s\"
            default = \"b\"
            [qos.wan.class.a]
            rate = \"5Mbit/s\"
            [qos.wan.class.b]
            parent = \"a\"
            rate = \"2Mbit/s\"
            priority = 3
            weight = 7";
        let config = match crate::config::load_text(std::path::Path::new("test.toml"), text) {
            Ok(config) => config,
            Err(e) => panic!("{e:?}"),
        };
        let shown = Classes::default().view(&config);
        let of = |c: &ClassView| (c.class.clone(), c.parent.clone(), c.priority, c.weight);
        let shown: Vec<_> = shown.iter().map(of).collect();
        let [a, b] = ["a", "b"].map(str::to_string);
        assert_eq!(shown, [(a.clone(), None, 0, 1), (b, Some(a), 3, 7)]);
    }

    #[test]
    fn rates_are_of_the_last_second_and_the_last_ten() {
        let mut classes = Classes::default();
        // 1000 B/s on each of two workers, half of it borrowed; in the last second 3000 B/s.
        for s in 0..=20u64 {
            let extra = if s == 20 { 2_000 } else { 0 };
            // The workers don't answer at the same moment.
            classes.awaited = [0, 1].into();
            for (worker, late) in [(0, 0), (1, SECOND / 100)] {
                told(&mut classes, worker, s * SECOND + late, s * 1_000 + extra, s * 500);
            }
        }
        let past = &classes.past[&(PortId(0), ClassId(3))];
        assert_eq!(past.samples.len(), SAMPLES);
        assert_eq!(past.rates(1), (8 * 6_000, 8 * 1_000));
        assert_eq!(past.rates(10), (8 * (2 * 1_000 + 4_000 / 10), 8 * 1_000));
    }

    #[test]
    fn a_silent_second_adds_no_sample_and_a_class_that_begins_anew_no_rate() {
        let mut classes = Classes::default();
        let key = (PortId(0), ClassId(3));
        for at in [1, 2, 2, 2] {
            told(&mut classes, 0, at * SECOND, at * 1_000, 0);
        }
        assert_eq!(classes.past[&key].rates(1), (8_000, 0));
        told(&mut classes, 0, 3 * SECOND, 10, 0);
        assert_eq!(classes.past[&key].rates(10), (0, 0));
        classes.take(0, Nanos(4 * SECOND), Vec::new());
        assert!(classes.past.is_empty(), "a class that is gone is forgotten");
    }
}
