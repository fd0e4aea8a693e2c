//! Workers' counts of what backends serve, told to each other.

use super::Pools;
use crate::base::Nanos;
use crate::config::Config;
use crate::control::crew::Crew;
use crate::flow::Serving;
use crate::forward::spec::{Balance, PoolSpec};

/// How often workers are told of each other's connections: in between each knows its own exactly.
const SHARED_EVERY_NS: u64 = 10_000_000;

/// Which backends' counts matter to other workers, and when they were told last.
#[derive(Debug, Default)]
pub struct Counts {
    places: Vec<u16>,
    shared: Nanos,
}

impl Counts {
    /// By the backends of this configuration that are chosen by their connections, or may have
    /// only so many.
    pub fn of(config: &Config, place: impl Fn(&PoolSpec, usize) -> u16) -> Counts {
        let mut places = Vec::new();
        for pool in &config.forward.pools {
            let all = !matches!(pool.balance, Balance::Maglev | Balance::RoundRobin);
            let counts = |i: &usize| all || pool.backends[*i].connections_max.is_some();
            places.extend((0..pool.backends.len()).filter(counts).map(|i| place(pool, i)));
        }
        places.sort_unstable();
        places.dedup();
        Counts { places, shared: Nanos::ZERO }
    }

    /// Tells each worker what all others have.
    pub fn share(&mut self, now: Nanos, servings: &[&Serving]) {
        if servings.len() < 2 || now.since(self.shared) < SHARED_EVERY_NS {
            return;
        }
        self.shared = now;
        for &place in &self.places {
            let own = |s: &&Serving| s.own_connections(place);
            let all = servings.iter().map(own).fold(0u32, u32::saturating_add);
            for serving in servings {
                serving.tell_connections(place, all.saturating_sub(own(serving)));
            }
            let peak = servings.iter().map(|s| s.own_peak_us(place, now)).max().unwrap_or(0);
            servings.iter().for_each(|s| s.tell_peak(place, peak));
        }
    }
}

impl Pools {
    /// Tells workers of each other what they choose backends by.
    pub fn share_counts(&mut self, now: Nanos, crew: &Crew) {
        let servings: Vec<&Serving> = crew.seats.iter().map(|s| s.serving()).collect();
        self.counts.share(now, &servings);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::Seed;
    use crate::config;
    use crate::flow::{FlowKind, FlowLimits, FlowTable, NewFlow, Timeouts};
    use crate::packet::{ClassId, FlowKey, PacketMeta};

    const TEXT: &str = "pipeline = \"l4-balancer\"\n[port.p]\ninterface = \"p\"\n[service.s]\n\
                        vip = \"203.0.113.1\"\nport = 80\npool = \"a\"\nmode = \"dnat\"\n\
                        [pool.a]\nbalance = \"least-connections\"\n\
                        [[pool.a.backend]]\naddress = \"10.0.0.1\"\n\
                        [[pool.a.backend]]\naddress = \"10.0.0.2\"\n";

    fn worker() -> FlowTable {
        let limits = FlowLimits { flows_max: 64, half_open_max: 64 };
        FlowTable::new(limits, Timeouts::default(), Seed(1))
    }

    fn open(flows: &mut FlowTable, n: u16, backend: u16) {
        let key = FlowKey { sport: n, proto: 6, ..FlowKey::default() };
        let (class, kind) = (ClassId::UNSET, FlowKind::Dsr);
        let idle_established_ms = None;
        let new = NewFlow { key, reply: None, kind, backend, class, idle_established_ms };
        flows.insert(Nanos(1), &new, &PacketMeta::default()).expect("room");
    }

    #[test]
    fn each_hears_what_the_others_have() {
        let config = config::load_text(Path::new("t.toml"), TEXT).expect("a good file");
        let mut counts = Counts::of(&config, |_, i| i as u16);
        let mut workers = [worker(), worker(), worker()];
        for (worker, connections) in workers.iter_mut().zip([1, 2, 4]) {
            (0..connections).for_each(|n| open(worker, n, 1));
        }
        let heard =
            |workers: &[FlowTable; 3]| workers.each_ref().map(|w| w.serving().connections(1));
        assert_eq!(heard(&workers), [1, 2, 4]);
        let mut share = |ms, workers: &[FlowTable; 3]| {
            let servings: Vec<_> = workers.iter().map(FlowTable::serving).collect();
            counts.share(Nanos::from_millis(ms), &servings);
        };
        share(100, &workers);
        assert_eq!(heard(&workers), [7, 7, 7]);
        open(&mut workers[0], 9, 1);
        assert_eq!(heard(&workers), [8, 7, 7], "its own at once");
        share(105, &workers);
        assert_eq!(heard(&workers), [8, 7, 7]);
        share(110, &workers);
        assert_eq!(heard(&workers), [8, 8, 8]);
        assert_eq!(workers[0].serving().connections(0), 0);
    }
}
