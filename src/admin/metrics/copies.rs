//! Metrics of copies: shadows, and collectors' files.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{Labels, Page, counter, gauge, histogram};
use crate::control::view::ShadowView;

impl Page {
    pub(super) fn shadows(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let all = &self.0.shadows;
        let labels =
            |s: &ShadowView| vec![("service", s.service.clone()), ("pool", s.pool.clone())];
        let lines = |value: fn(&ShadowView) -> u64| -> Vec<_> {
            all.iter().map(|s| (labels(s), value(s))).collect()
        };
        let begun = "Connections to the pool that hears a service's requests besides.";
        counter(e, "shadow_connections", begun, &lines(|s| s.connections))?;
        gauge(e, "shadow_open", "Those that go on.", &lines(|s| s.open))?;
        counter(e, "shadow_requests", "Requests sent to it.", &lines(|s| s.requests))?;
        // Two answers to one request: by what of them is compared, and whether it is the same.
        let mut pairs: Vec<(Labels, u64)> = Vec::new();
        for s in all {
            for (of, result, count) in [
                ("status", "same", s.status_same),
                ("status", "different", s.status_different),
                ("size", "same", s.size_same),
                ("size", "different", s.size_different),
            ] {
                let more = [("of", of.to_string()), ("result", result.to_string())];
                pairs.push((labels(s).into_iter().chain(more).collect(), count));
            }
        }
        counter(e, "shadow_compared", "Answers compared with the service's own.", &pairs)?;
        let sides = |value: fn(&ShadowView) -> [u64; 2]| -> Vec<_> {
            let side = |s: &ShadowView, of: &str, value| {
                (labels(s).into_iter().chain([("side", of.to_string())]).collect(), value)
            };
            let both = |s| {
                let [original, shadow] = value(s);
                [side(s, "original", original), side(s, "shadow", shadow)]
            };
            all.iter().flat_map(both).collect()
        };
        let bytes = "Bytes of the bodies that were compared.";
        counter(e, "shadow_bytes", bytes, &sides(|s| [s.original_bytes, s.shadow_bytes]))?;
        let cuts = all.iter().flat_map(|s| {
            s.cut.iter().map(|(reason, count)| {
                let mut labels = labels(s);
                labels.push(("reason", reason.clone()));
                (labels, *count)
            })
        });
        let cut = "Connections to it that were cut, by reason.";
        counter(e, "shadow_cut", cut, &cuts.collect::<Vec<_>>())?;
        let times = all.iter().flat_map(|s| {
            [("original", &s.original_first), ("shadow", &s.shadow_first)].map(|(side, times)| {
                let mut labels = labels(s);
                labels.push(("side", side.to_string()));
                (labels, times)
            })
        });
        let first = "From a request's last byte to the first of the answer's body.";
        histogram(e, "shadow_time_to_first_byte", first, times)
    }

    pub(super) fn files(&self, e: &mut DescriptorEncoder) -> fmt::Result {
        let lines = |result: &'static str, count: fn(&crate::control::view::FilesView) -> u64| {
            self.0.files.iter().map(move |f| {
                let collector = ("collector", f.collector.clone());
                (vec![collector, ("result", result.to_string())], count(f))
            })
        };
        let written = lines("written", |f| f.packets).chain(lines("failed", |f| f.failed));
        let help = "Copies that files were to take.";
        counter(e, "collector_packets", help, &written.collect::<Vec<_>>())
    }
}
