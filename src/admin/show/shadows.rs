//! `show shadow`, as text.

use std::fmt::Write;

use super::or_none;
use crate::admin::table::{Table, grouped};
use crate::control::view::{LatencyTimes, ShadowView};

pub(super) fn shadows(lines: &[ShadowView]) -> String {
    let mut table = Table::new(&[
        "service",
        "shadow",
        ">share",
        ">connections",
        ">open",
        ">requests",
        ">same status",
        ">other status",
        ">same size",
        ">other size",
        ">bytes",
        ">shadow bytes",
    ]);
    let mut first = Table::new(&["first byte of", ">answers", ">p50 ms", ">p95 ms", ">p99 ms"]);
    let mut cut = String::new();
    for s in lines {
        table.row([
            s.service.clone(),
            s.pool.clone(),
            format!("{}%", s.percent),
            grouped(s.connections),
            grouped(s.open),
            grouped(s.requests),
            grouped(s.status_same),
            grouped(s.status_different),
            grouped(s.size_same),
            grouped(s.size_different),
            grouped(s.original_bytes),
            grouped(s.shadow_bytes),
        ]);
        let original = (s.service.clone(), &s.original_first);
        for (name, times) in [original, (format!("its shadow {}", s.pool), &s.shadow_first)] {
            first.row_of(row(name, times));
        }
        let reasons = s.cut.iter().filter(|(_, count)| **count > 0);
        let reasons: Vec<_> =
            reasons.map(|(reason, count)| format!("{reason} {}", grouped(*count))).collect();
        if !reasons.is_empty() {
            let _ = writeln!(cut, "shadows of {} that were cut: {}", s.service, reasons.join(", "));
        }
    }
    match lines.is_empty() {
        true => or_none(&table, "no service is shadowed"),
        false if cut.is_empty() => format!("{table}\n{first}"),
        false => format!("{table}\n{first}\n{cut}"),
    }
}

fn row(name: String, times: &LatencyTimes) -> Vec<String> {
    let ms = |ms: Option<f64>| ms.map_or("-".to_string(), |ms| format!("{ms:.1}"));
    vec![name, grouped(times.count), ms(times.p50_ms), ms(times.p95_ms), ms(times.p99_ms)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_is_shown_beside_its_service_with_what_was_cut() {
        let cut = [("slow", 2), ("late", 0)].map(|(reason, n)| (reason.to_string(), n));
        let view = ShadowView {
            service: "chat".into(),
            pool: "new".into(),
            percent: 2.5,
            requests: 1_200,
            cut: cut.into(),
            shadow_first: LatencyTimes { count: 3, p99_ms: Some(7.25), ..Default::default() },
            ..ShadowView::default()
        };
        let text = shadows(&[view]);
        for part in ["chat", "2.5%", "1 200", "its shadow new", "7.2", "were cut: slow 2\n"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("late"), "{text}");
        assert_eq!(shadows(&[]).trim(), "no service is shadowed");
    }
}
