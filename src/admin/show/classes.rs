//! `show qos`, as text.

use super::or_none;
use crate::admin::table::{Table, grouped};
use crate::control::view::ClassView;

/// `show qos`.
pub(super) fn classes(lines: &[ClassView]) -> String {
    let mut table = Table::new(&[
        "port",
        "class",
        ">rate",
        ">ceil",
        ">sent 1s",
        ">sent 10s",
        ">borrowed 1s",
        ">borrowed 10s",
        ">sent packets",
        ">queue full",
        ">by AQM",
        ">marked",
        ">waiting packets",
        ">waiting bytes",
        ">p50 us",
        ">p99 us",
        ">p99.9 us",
    ]);
    for c in lines {
        let plain = |name: &str| c.values.get(name).copied().unwrap_or(0);
        let value = |name: &str| grouped(plain(name));
        let rate = |name: &str| bit_rate(plain(name));
        let share = |of: &str, all: &str| {
            let (of, all) = (plain(of) as f64, plain(all).max(1) as f64);
            format!("{:.0}%", 100.0 * (of / all).min(1.0))
        };
        table.row([
            c.port.clone(),
            c.class.clone(),
            rate("rate_bits"),
            rate("ceil_bits"),
            rate("sent_bits_1s"),
            rate("sent_bits_10s"),
            share("borrowed_bits_1s", "sent_bits_1s"),
            share("borrowed_bits_10s", "sent_bits_10s"),
            value("sent_packets"),
            value("queue_full_dropped_packets"),
            value("aqm_dropped_packets"),
            value("marked_packets"),
            value("backlog_packets"),
            value("backlog_bytes"),
            grouped(plain("sojourn_p50_ns") / 1_000),
            grouped(plain("sojourn_p99_ns") / 1_000),
            grouped(plain("sojourn_p999_ns") / 1_000),
        ]);
    }
    or_none(&table, "no port has classes")
}

/// Bits per second with three to four digits.
fn bit_rate(bits: u64) -> String {
    let units = [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")];
    match units.iter().find(|(unit, _)| bits >= *unit) {
        Some((unit, name)) => {
            let n = bits as f64 / *unit as f64;
            let digits = if n < 10.0 { 2 } else { usize::from(n < 100.0) };
            format!("{n:.digits$} {name}")
        }
        None => format!("{bits} bit/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_show_what_they_may_and_what_they_get() {
        let values = [
            ("rate_bits", 1_500_000),
            ("sent_bits_1s", 800),
            ("sent_bits_10s", 400),
            ("borrowed_bits_1s", 600),
            ("borrowed_bits_10s", 100),
        ];
        let values = values.map(|(name, value)| (name.to_string(), value)).into();
        let (port, class) = ("wan".into(), "bulk".into());
        let line = ClassView { port, class, values, ..ClassView::default() };
        let text = classes(&[line]);
        assert!(text.contains("1.50 Mbit/s"), "{text}");
        let words: Vec<&str> = text.lines().last().unwrap_or("").split_whitespace().collect();
        assert_eq!(words[6..12], ["800", "bit/s", "400", "bit/s", "75%", "25%"], "{text}");
        for (bits, shown) in [
            (999, "999 bit/s"),
            (12_345, "12.3 kbit/s"),
            (123_456_000, "123 Mbit/s"),
            (10_000_000_000, "10.0 Gbit/s"),
        ] {
            assert_eq!(bit_rate(bits), shown);
        }
    }
}
