//! What was sent, received and measured.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::base::Nanos;

/// Latencies beyond this count as this much.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Counts while the generator runs.
pub(super) struct Meter {
    interface: String,
    native: bool,
    zero_copy: bool,
    tx: Side,
    rx: Side,
    latency: Option<Histogram<u64>>,
    line_at: Nanos,
    line_tx: u64,
    line_rx: u64,
}

/// Packets of one direction and when the first and the last were seen.
#[derive(Clone, Copy, Default)]
struct Side {
    packets: u64,
    bytes: u64,
    first: Option<Nanos>,
    last: Nanos,
}

impl Side {
    fn add(&mut self, now: Nanos, packets: u64, bytes: u64) {
        self.first.get_or_insert(now);
        self.last = now;
        self.packets += packets;
        self.bytes += bytes;
    }

    fn report(&self) -> Direction {
        let ns = self.first.map_or(0, |first| self.last.since(first));
        let per_second = |n: u64| if ns == 0 { 0.0 } else { n as f64 * 1e9 / ns as f64 };
        Direction {
            packets: self.packets,
            bytes: self.bytes,
            seconds: ns as f64 / 1e9,
            packets_per_second: per_second(self.packets),
            bits_per_second: per_second(self.bytes * 8),
        }
    }
}

impl Meter {
    pub(super) fn new(interface: &str, native: bool, zero_copy: bool, now: Nanos) -> Meter {
        Meter {
            interface: interface.to_owned(),
            native,
            zero_copy,
            tx: Side::default(),
            rx: Side::default(),
            // Fails only on bounds out of order.
            latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).ok(),
            line_at: now,
            line_tx: 0,
            line_rx: 0,
        }
    }

    pub(super) fn tx_packets(&self) -> u64 {
        self.tx.packets
    }

    pub(super) fn rx_packets(&self) -> u64 {
        self.rx.packets
    }

    pub(super) fn sent(&mut self, now: Nanos, packets: usize, bytes: usize) {
        self.tx.add(now, packets as u64, bytes as u64);
    }

    pub(super) fn received(&mut self, now: Nanos, bytes: usize, latency_ns: Option<u64>) {
        self.rx.add(now, 1, bytes as u64);
        if let (Some(ns), Some(histogram)) = (latency_ns, &mut self.latency) {
            histogram.saturating_record(ns);
        }
    }

    /// The progress since the last line.
    pub(super) fn line(&mut self, now: Nanos) -> String {
        let us = (now.since(self.line_at) / 1_000).max(1) as f64;
        let mpps = |now: u64, before: u64| (now - before) as f64 / us;
        let line = format!(
            "{}: tx {:.3} Mpps, rx {:.3} Mpps (in all {} and {})",
            self.interface,
            mpps(self.tx.packets, self.line_tx),
            mpps(self.rx.packets, self.line_rx),
            self.tx.packets,
            self.rx.packets,
        );
        (self.line_at, self.line_tx, self.line_rx) = (now, self.tx.packets, self.rx.packets);
        line
    }

    pub(super) fn report(&self, rx_missed: u64) -> Report {
        let latency = self.latency.as_ref().filter(|h| !h.is_empty()).map(|h| Latency {
            packets: h.len(),
            min_ns: h.min(),
            mean_ns: h.mean(),
            p50_ns: h.value_at_quantile(0.5),
            p90_ns: h.value_at_quantile(0.9),
            p99_ns: h.value_at_quantile(0.99),
            p999_ns: h.value_at_quantile(0.999),
            max_ns: h.max(),
        });
        Report {
            interface: self.interface.clone(),
            native: self.native,
            zero_copy: self.zero_copy,
            tx: self.tx.report(),
            rx: self.rx.report(),
            rx_missed,
            latency,
        }
    }
}

/// The result, as printed with `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub interface: String,
    /// XDP ran in the driver.
    pub native: bool,
    pub zero_copy: bool,
    pub tx: Direction,
    pub rx: Direction,
    /// Lost for want of room in the receive ring.
    pub rx_missed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// Rates are over the time from the first packet to the last.
#[derive(Clone, Debug, Serialize)]
pub struct Direction {
    pub packets: u64,
    /// Of frames without their check sequence.
    pub bytes: u64,
    pub seconds: f64,
    pub packets_per_second: f64,
    pub bits_per_second: f64,
}

/// From sending to receiving, of packets that carried their time.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub packets: u64,
    pub min_ns: u64,
    pub mean_ns: f64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub max_ns: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attach = if self.native { "native" } else { "generic" };
        let copy = if self.zero_copy { "zero-copy" } else { "copy" };
        writeln!(f, "{}: {attach} XDP, {copy}", self.interface)?;
        for (name, d) in [("tx", &self.tx), ("rx", &self.rx)] {
            writeln!(
                f,
                "{name}  {:>12} packets  {:>8.3} Mpps  {:>10.1} Mbit/s  in {:.2} s",
                d.packets,
                d.packets_per_second / 1e6,
                d.bits_per_second / 1e6,
                d.seconds,
            )?;
        }
        writeln!(f, "rx missed {}", self.rx_missed)?;
        if let Some(l) = &self.latency {
            let us = |ns: u64| ns as f64 / 1e3;
            writeln!(
                f,
                "latency of {}: min {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, \
                 max {:.1} us",
                l.packets,
                us(l.min_ns),
                us(l.p50_ns),
                us(l.p90_ns),
                us(l.p99_ns),
                us(l.p999_ns),
                us(l.max_ns),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_time_of_packets() {
        let mut side = Side::default();
        assert_eq!(side.report().packets_per_second, 0.0);
        side.add(Nanos::from_secs(10), 500, 30_000);
        side.add(Nanos::from_secs(12), 500, 30_000);
        let report = side.report();
        assert_eq!(report.packets_per_second, 500.0);
        assert_eq!(report.bits_per_second, 240_000.0);
        assert_eq!(report.seconds, 2.0);
    }
}
