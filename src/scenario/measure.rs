//! What is counted while a scenario runs.

use hdrhistogram::Histogram;

use super::outcome::{Delays, Slice, SourceOutcome};
use super::source::Packet;
use super::spec::Scenario;
use crate::base::Nanos;
use crate::qos::ClassStats;
use crate::qos::spec::Counting;

/// Significant digits of delays: they are right to a hundredth.
const DIGITS: u8 = 2;

/// Of classes, by their position in the tree, and of sources.
pub struct Meter {
    /// By class id.
    position: Vec<usize>,
    /// By position, as what follows: how frames are counted.
    countings: Vec<Counting>,
    totals: Vec<Option<Delay>>,
    slice: Vec<Option<Delay>>,
    pub sources: Vec<SourceMeter>,
    /// What classes had done at the end of the warm-up, and of the slice before.
    pub at_warmup: Vec<ClassStats>,
    at_slice: Vec<ClassStats>,
    slice_began: Nanos,
    pub slices: Vec<Slice>,
}

/// How long packets took.
struct Delay(Box<Histogram<u64>>);

pub struct SourceMeter {
    outcome: SourceOutcome,
    delay: Delay,
}

impl Delay {
    fn new() -> Delay {
        // It grows with what it is told.
        Delay(Box::new(Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!("two digits fit"))))
    }

    fn record(&mut self, ns: u64) {
        let _ = self.0.record(ns);
    }

    fn told(&self) -> Option<Delays> {
        if self.0.is_empty() {
            return None;
        }
        let us = |q: f64| self.0.value_at_quantile(q) as f64 / 1e3;
        Some(Delays {
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: self.0.max() as f64 / 1e3,
        })
    }
}

impl Meter {
    pub fn new(scenario: &Scenario) -> Meter {
        let classes = &scenario.tree.classes;
        let ids = classes.iter().map(|c| usize::from(c.id.0) + 1).max().unwrap_or(0);
        let mut position = vec![0; ids];
        classes.iter().enumerate().for_each(|(i, c)| position[usize::from(c.id.0)] = i);
        let none = || classes.iter().map(|_| None).collect();
        let source = |s: &super::spec::Source| SourceMeter {
            outcome: SourceOutcome {
                name: s.name.clone(),
                class: scenario.class_name(s.class).to_string(),
                ..SourceOutcome::default()
            },
            delay: Delay::new(),
        };
        Meter {
            position,
            countings: scenario.tree.countings(),
            totals: none(),
            slice: none(),
            sources: scenario.sources.iter().map(source).collect(),
            at_warmup: vec![ClassStats::default(); classes.len()],
            at_slice: vec![ClassStats::default(); classes.len()],
            slice_began: Nanos::ZERO,
            slices: Vec::new(),
        }
    }

    /// The class's position in the tree.
    pub fn position(&self, class: crate::packet::ClassId) -> usize {
        self.position.get(usize::from(class.0)).copied().unwrap_or(0)
    }

    pub fn offered(&mut self, packet: &Packet) {
        let bytes = self.counted(packet);
        let outcome = &mut self.sources[packet.source as usize].outcome;
        outcome.offered_packets += 1;
        outcome.offered_bytes += bytes;
    }

    pub fn dropped(&mut self, packet: &Packet) {
        self.sources[packet.source as usize].outcome.dropped_packets += 1;
    }

    pub fn sent(&mut self, packet: &Packet, at: Nanos, marked: bool) {
        let (ns, class) = (at.since(packet.sent_at), self.position(packet.class));
        let bytes = self.counted(packet);
        for delays in [&mut self.totals, &mut self.slice] {
            delays[class].get_or_insert_with(Delay::new).record(ns);
        }
        let source = &mut self.sources[packet.source as usize];
        source.outcome.granted_packets += 1;
        source.outcome.granted_bytes += bytes;
        source.outcome.marked_packets += u64::from(marked);
        source.delay.record(ns);
    }

    /// The warm-up is over: what was is forgotten.
    pub fn begin(&mut self, stats: Vec<ClassStats>) {
        self.at_warmup = stats;
        self.totals.iter_mut().for_each(|d| *d = None);
        for source in &mut self.sources {
            let SourceOutcome { name, class, .. } = std::mem::take(&mut source.outcome);
            source.outcome = SourceOutcome { name, class, ..SourceOutcome::default() };
            source.delay.0.reset();
        }
    }

    /// A slice of time is over.
    pub fn slice(&mut self, now: Nanos, stats: Vec<ClassStats>) {
        let seconds = now.since(self.slice_began) as f64 / 1e9;
        let bps = |now: u64, before: u64| (now - before) as f64 * 8.0 / seconds;
        let of = |(i, now): (usize, &ClassStats)| {
            let before = &self.at_slice[i];
            super::outcome::ClassSlice {
                offered_bps: bps(now.enqueued_bytes, before.enqueued_bytes),
                granted_bps: bps(now.sent_bytes, before.sent_bytes),
                dropped_packets: now.dropped_packets - before.dropped_packets,
                marked_packets: now.marked_packets - before.marked_packets,
                delay: self.slice[i].as_ref().and_then(Delay::told),
            }
        };
        let classes = stats.iter().enumerate().map(of).collect();
        self.slices.push(Slice { from_s: self.slice_began.0 as f64 / 1e9, seconds, classes });
        self.slice.iter_mut().flatten().for_each(|d| d.0.reset());
        (self.at_slice, self.slice_began) = (stats, now);
    }

    pub fn delays(&self, class: usize) -> Option<Delays> {
        self.totals[class].as_ref().and_then(Delay::told)
    }

    pub fn source_outcomes(&self) -> Vec<SourceOutcome> {
        let told = |s: &SourceMeter| SourceOutcome { delay: s.delay.told(), ..s.outcome.clone() };
        self.sources.iter().map(told).collect()
    }

    fn counted(&self, packet: &Packet) -> u64 {
        let counting = self.countings[self.position(packet.class)];
        u64::from(counting.counted(usize::from(packet.len)))
    }
}
