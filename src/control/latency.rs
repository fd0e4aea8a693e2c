//! How long answers take: from the workers' histograms to plain data.

use std::collections::BTreeMap;

use super::view::{LatencyBucket, LatencyTimes, LatencyView};
use crate::config::Config;
use crate::observe::Latencies;
use crate::observe::latency::{BOUNDS_US, Histogram, Series};
use crate::packet::ClassId;

/// All workers together, under the names that the configuration has now. What it no longer holds is
/// left out.
pub fn latencies<'a>(
    config: &Config,
    workers: impl Iterator<Item = &'a Latencies>,
) -> Vec<LatencyView> {
    let mut sums: BTreeMap<Series, [Histogram; 2]> = BTreeMap::new();
    for (series, histograms) in workers.flat_map(Latencies::read) {
        let sum = sums.entry(series).or_insert([Histogram::EMPTY; 2]);
        sum.iter_mut().zip(&histograms).for_each(|(sum, h)| sum.add(h));
    }
    let view = |(series, [first, gap]): (Series, [Histogram; 2])| {
        let (of, name) = name(config, series)?;
        Some(LatencyView { of: of.into(), name, first: times(&first), gap: times(&gap) })
    };
    sums.into_iter().filter_map(view).collect()
}

fn name(config: &Config, series: Series) -> Option<(&'static str, String)> {
    match series {
        Series::Class(ClassId::UNSET) => Some(("class", "(default)".into())),
        Series::Class(class) => {
            Some(("class", config.class_names.get(usize::from(class.0))?.clone()))
        }
        Series::Service(addr, port, proto) => {
            let mut services = config.forward.services.iter();
            let found = services.find(|s| (s.vip, s.port, s.proto) == (addr, port, proto));
            Some(("service", found?.name.clone()))
        }
        Series::Backend(addr, port, _) => {
            let found = config.forward.pools.iter().find_map(|pool| {
                let backend = pool.backends.iter().find(|b| (b.addr, b.port) == (addr, port))?;
                Some(format!("{}/{}", pool.name, backend.name))
            });
            Some(("backend", found?))
        }
    }
}

/// A histogram as it is told.
pub fn times(histogram: &Histogram) -> LatencyTimes {
    let ms = |share| histogram.quantile_us(share).map(|us| (us / 10.0).round() / 100.0);
    let bounds = BOUNDS_US.iter().map(|us| Some(*us as f64 / 1e6)).chain([None]);
    let bucket = |(le_secs, &count): (Option<f64>, &u64)| LatencyBucket { le_secs, count };
    LatencyTimes {
        count: histogram.count(),
        sum_secs: histogram.sum_us as f64 / 1e6,
        p50_ms: ms(0.5),
        p95_ms: ms(0.95),
        p99_ms: ms(0.99),
        buckets: bounds.zip(&histogram.buckets).map(bucket).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::Addr;
    use crate::config;
    use crate::observe::latency::Measure;

    const TEXT: &str = "pipeline = \"llm-edge\"\n[port.a]\ninterface = \"v0\"\n\
        [nat]\naddresses = [\"192.0.2.9\"]\n\
        [service.chat]\nvip = \"203.0.113.1\"\nport = 443\npool = \"gpu\"\nmode = \"nat\"\n\
        [[pool.gpu.backend]]\nname = \"one\"\naddress = \"10.0.0.1\"\nport = 8443\n\
        [qos.a]\nrate = \"1Gbit/s\"\ndefault = \"rest\"\n[qos.a.class.rest]\nrate = \"1%\"\n";

    #[test]
    fn workers_are_summed_up_under_the_names_of_the_configuration() {
        let config = config::load_text(Path::new("t.toml"), TEXT).expect("a good file");
        let addr = |text: &str| text.parse::<Addr>().expect("literal");
        let workers = [Latencies::new(), Latencies::new()];
        for worker in &workers {
            for series in [
                Series::Class(ClassId(0)),
                Series::Class(ClassId::UNSET),
                Series::Class(ClassId(99)),
                Series::Service(addr("203.0.113.1"), 443, 6),
                Series::Service(addr("203.0.113.1"), 444, 6),
                Series::Backend(addr("10.0.0.1"), 8443, 6),
                Series::Backend(addr("10.0.0.2"), 8443, 6),
            ] {
                worker.record(series, Measure::First, 150_000_000);
            }
        }
        let views = latencies(&config, workers.iter());
        let told: Vec<_> = views.iter().map(|v| (&v.of[..], &v.name[..])).collect();
        let wanted = [
            ("class", "rest"),
            ("class", "(default)"),
            ("service", "chat"),
            ("backend", "gpu/one"),
        ];
        assert_eq!(told, wanted);
        for view in &views {
            assert_eq!((view.first.count, view.first.sum_secs, view.gap.count), (2, 0.3, 0));
            assert!(view.first.p50_ms.is_some_and(|ms| (100.0..=150.0).contains(&ms)));
            assert_eq!(view.gap.p50_ms, None);
            let within = view.first.buckets.iter().find(|b| b.count > 0).expect("one");
            assert_eq!((within.le_secs, within.count), (Some(0.15), 2));
        }
    }
}
