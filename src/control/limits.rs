//! What limits did.

use super::view::LimitView;
use crate::base::Nanos;
use crate::qos::limits::{Event, Excess, Limits};

const SECOND_NS: f64 = 1e9;

/// A line for what each limit counts.
pub(super) fn limits(all: &Limits, now: Nanos) -> Vec<LimitView> {
    let lines = all.counts(now).flat_map(|limit| {
        [(Event::Connection, "connections"), (Event::Request, "requests")].map(|(event, of)| {
            let counts = limit.events[event as usize]?;
            Some(LimitView {
                name: limit.spec.name.clone(),
                of: of.into(),
                per: if limit.spec.clients.is_some() { "client" } else { "all" }.into(),
                per_sec: f64::from(counts.pace.count) * SECOND_NS / counts.pace.per_ns as f64,
                burst: counts.pace.burst,
                action: match limit.spec.excess {
                    Excess::Drop => "drop".into(),
                    Excess::Reset => "reset".into(),
                    Excess::Delay(_) => "delay".into(),
                },
                passed: counts.passed,
                delayed: counts.delayed,
                refused: counts.refused,
                clients: counts.clients,
                crowded: counts.crowded,
            })
        })
    });
    lines.flatten().collect()
}
