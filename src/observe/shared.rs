//! How the control plane reads a worker's counters: a copy that the worker publishes now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{Counters, Latencies};
use crate::flow::Serving;
use crate::packet::DropReason;

macro_rules! gauges {
    ($(#[doc = $sdoc:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $field:ident,)+ }) => {
        $(#[doc = $sdoc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl $name {
            /// How many values there are.
            pub const FIELDS: usize = [$(stringify!($field)),+].len();

            /// Names of the values, in order; part of the names of their metrics.
            pub const NAMES: [&str; $name::FIELDS] = [$(stringify!($field)),+];

            /// One sentence for operators, in the order of the names.
            pub const MEANINGS: [&str; $name::FIELDS] = [$(concat!($($doc),+)),+];

            /// The values in the order of the names.
            pub fn values(&self) -> [u64; $name::FIELDS] {
                [$(self.$field),+]
            }

            fn from_values(values: &[u64; $name::FIELDS]) -> $name {
                let [$($field),+] = *values;
                $name { $($field),+ }
            }
        }
    };
}

gauges! {
    /// What a worker holds now.
    Gauges {
        /// Flows in the table.
        flows,
        /// Flows that the table can hold.
        flows_max,
        /// Directions of flows that the XDP program forwards.
        flows_offloaded,
        /// Frames free in the pool.
        frames_available,
        /// Frames of this worker's share, wherever they are.
        frames_owned,
        /// Packets waiting for their neighbour's address.
        parked_now,
        /// Packets waiting in hand-over rings toward this worker.
        handover_backlog,
        /// Turns of the poll loop.
        polls,
        /// Turns that moved no packet.
        polls_idle,
        /// Time of the turns that moved some.
        busy_us,
    }
}

gauges! {
    /// One port as its worker sees it.
    PortGauges {
        /// Packets received.
        rx_packets,
        /// Bytes received.
        rx_bytes,
        /// Packets transmitted.
        tx_packets,
        /// Bytes transmitted.
        tx_bytes,
        /// Packets lost before they reached us for want of a descriptor or a frame.
        rx_missed,
        /// Descriptors that the kernel refused.
        tx_errors,
        /// System calls made to wake the kernel.
        wakeups,
        /// Packets queued for transmission.
        backlog_packets,
        /// Bytes queued for transmission.
        backlog_bytes,
    }
}

/// What a worker publishes, at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub counters: Counters,
    pub gauges: Gauges,
    /// By port.
    pub ports: Vec<PortGauges>,
}

const DROPS_AT: usize = 0;
const COUNTERS_AT: usize = DROPS_AT + DropReason::COUNT;
const GAUGES_AT: usize = COUNTERS_AT + Counters::FIELDS;
const PORTS_AT: usize = GAUGES_AT + Gauges::FIELDS;

/// The copy of one worker's [`Stats`] that others may read. One writer, any number of readers; the
/// writer never waits.
///
/// Aligned so that no two workers write one cache line (128: pairs of lines are fetched together).
#[repr(align(128))]
pub struct SharedStats {
    /// Odd while the writer is at work.
    version: AtomicU64,
    values: Box<[AtomicU64]>,
    ports: usize,
    /// Not published: written as they come.
    latencies: Latencies,
    serving: Arc<Serving>,
}

/// Reads that meet a writer are tried again; a writer takes well under a microsecond.
const READ_TRIES: usize = 1_000;
/// Backends that there is memory to count from the start.
const PLACES: usize = 256;

impl SharedStats {
    pub fn new(ports: usize) -> SharedStats {
        let n = PORTS_AT + ports * PortGauges::FIELDS;
        SharedStats {
            version: AtomicU64::new(0),
            values: (0..n).map(|_| AtomicU64::new(0)).collect(),
            ports,
            latencies: Latencies::new(),
            serving: Arc::new(Serving::new(PLACES)),
        }
    }

    /// How long answers take, as the worker has seen.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// What backends are busy with, as the worker has seen.
    pub fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    /// Publishes; only ever called by the one worker that this belongs to.
    pub fn publish(&self, counters: &Counters, gauges: &Gauges, ports: &[PortGauges]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // The odd version is seen before any value stored below.
        fence(Ordering::Release);
        self.store(DROPS_AT, &counters.drops);
        self.store(COUNTERS_AT, &counters.values());
        self.store(GAUGES_AT, &gauges.values());
        for (i, port) in ports.iter().take(self.ports).enumerate() {
            self.store(PORTS_AT + i * PortGauges::FIELDS, &port.values());
        }
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    fn store(&self, at: usize, values: &[u64]) {
        for (cell, v) in self.values[at..].iter().zip(values) {
            cell.store(*v, Ordering::Relaxed);
        }
    }

    /// What was published last. Values belong together unless the worker publishes so often that no
    /// read of many falls between two of its writes.
    pub fn read(&self) -> Stats {
        for _ in 0..READ_TRIES {
            let before = self.version.load(Ordering::Acquire);
            if before & 1 == 0 {
                let stats = self.load();
                fence(Ordering::Acquire);
                if self.version.load(Ordering::Relaxed) == before {
                    return stats;
                }
            }
            std::hint::spin_loop();
        }
        self.load()
    }

    fn load(&self) -> Stats {
        let mut drops = [0; DropReason::COUNT];
        self.fetch(DROPS_AT, &mut drops);
        let mut counters = [0; Counters::FIELDS];
        self.fetch(COUNTERS_AT, &mut counters);
        let mut gauges = [0; Gauges::FIELDS];
        self.fetch(GAUGES_AT, &mut gauges);
        let ports = (0..self.ports).map(|i| {
            let mut port = [0; PortGauges::FIELDS];
            self.fetch(PORTS_AT + i * PortGauges::FIELDS, &mut port);
            PortGauges::from_values(&port)
        });
        Stats {
            counters: Counters { drops, ..Counters::from_values(&counters) },
            gauges: Gauges::from_values(&gauges),
            ports: ports.collect(),
        }
    }

    fn fetch(&self, at: usize, values: &mut [u64]) {
        for (v, cell) in values.iter_mut().zip(&self.values[at..]) {
            *v = cell.load(Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_published_is_read() {
        let shared = SharedStats::new(2);
        let mut counters = Counters { rx_packets: 3, ..Counters::default() };
        counters.drop(DropReason::Shutdown);
        let gauges = Gauges { polls_idle: 9, ..Gauges::default() };
        let ports = vec![
            PortGauges { rx_packets: 1, ..PortGauges::default() },
            PortGauges { backlog_bytes: 2, ..PortGauges::default() },
        ];
        shared.publish(&counters, &gauges, &ports);
        assert_eq!(shared.read(), Stats { counters, gauges, ports });
    }

    #[test]
    fn a_reader_sees_values_that_belong_together() {
        let shared = SharedStats::new(1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut c = Counters::default();
                while !stop.load(Ordering::Relaxed) {
                    c.rx_packets += 1;
                    c.tx_packets += 1;
                    let g = Gauges { polls_idle: c.rx_packets, ..Gauges::default() };
                    shared.publish(
                        &c,
                        &g,
                        &[PortGauges { tx_packets: g.polls_idle, ..PortGauges::default() }],
                    );
                    // A worker publishes once a millisecond. One that did nothing else would leave
                    // readers no time on a core of their own.
                    std::thread::sleep(Duration::from_micros(10));
                }
            });
            let belongs_together = |s: &Stats| {
                let sent = s.counters.rx_packets;
                s.counters.held() == 0
                    && sent == s.gauges.polls_idle
                    && sent == s.ports[0].tx_packets
            };
            let torn = (0..2_000).filter(|_| !belongs_together(&shared.read())).count();
            stop.store(true, Ordering::Relaxed);
            assert_eq!(torn, 0);
        });
    }
}
