//! `show limits`, as text.

use super::or_none;
use crate::admin::table::{Table, grouped};
use crate::control::view::LimitView;

pub(super) fn limits(lines: &[LimitView]) -> String {
    let mut table = Table::new(&[
        "limit",
        "of",
        "per",
        ">a second",
        ">burst",
        "action",
        ">passed",
        ">delayed",
        ">refused",
        ">clients",
        ">crowded",
    ]);
    for l in lines {
        table.row([
            l.name.clone(),
            l.of.clone(),
            l.per.clone(),
            format!("{:.*}", if l.per_sec < 10.0 { 2 } else { 0 }, l.per_sec),
            grouped(u64::from(l.burst)),
            l.action.clone(),
            grouped(l.passed),
            grouped(l.delayed),
            grouped(l.refused),
            grouped(l.clients),
            grouped(l.crowded),
        ]);
    }
    or_none(&table, "no limits")
}
