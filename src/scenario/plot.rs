//! An outcome drawn: what classes were granted over time, and how long their packets waited.

use std::fmt::Write;

use super::outcome::{ClassSlice, Outcome};
use crate::base::units::BitRate;

const WIDTH: f64 = 960.0;
const PANEL_HEIGHT: f64 = 260.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 56.0;
const GAP: f64 = 56.0;
const BOTTOM: f64 = 44.0;
/// Classes that are drawn: those that were granted most.
const CLASSES_MAX: usize = 12;
/// Lines across a panel, about.
const TICKS: f64 = 5.0;
/// Told apart by people who see few colours, too (Okabe and Ito), then the same, dashed.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// One of the two drawings, one above the other.
struct Panel {
    title: &'static str,
    top: f64,
    low: f64,
    high: f64,
    is_log: bool,
}

/// The outcome as an SVG image: above what leaves were granted, below the 99th percentile of their
/// packets' delays, both by slices of time.
pub fn plot(outcome: &Outcome) -> String {
    let mut leaves: Vec<usize> = (0..outcome.classes.len())
        .filter(|&i| outcome.classes[i].is_leaf && outcome.classes[i].offered_packets > 0)
        .collect();
    leaves.sort_by(|&a, &b| {
        outcome.classes[b].granted_bps.total_cmp(&outcome.classes[a].granted_bps)
    });
    leaves.truncate(CLASSES_MAX);
    leaves.sort_unstable();
    let delays = |f: fn(f64, f64) -> f64, start: f64| {
        let all = outcome.over_time.iter().flat_map(|s| leaves.iter().map(|&i| &s.classes[i]));
        all.filter_map(delay_us).fold(start, f)
    };
    let most =
        outcome.over_time.iter().flat_map(|s| leaves.iter().map(|&i| s.classes[i].granted_bps));
    let rates = Panel {
        title: "granted",
        top: TOP,
        low: 0.0,
        high: rounded_up(most.fold(outcome.rate_bps as f64 / 20.0, f64::max)),
        is_log: false,
    };
    let low = 10f64.powf(delays(f64::min, 1e3).log10().floor());
    let high = 10f64.powf(delays(f64::max, 1e3).log10().ceil());
    let times = Panel {
        title: "delay of 99 in 100 packets",
        top: TOP + PANEL_HEIGHT + GAP,
        low,
        high: high.max(low * 10.0),
        is_log: true,
    };
    let height = times.top + PANEL_HEIGHT + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{}</text>\n",
        escaped(&outcome.scenario),
    );
    rates.frame(&mut svg, outcome, |bps| BitRate(bps.round() as u64).to_string());
    times.frame(&mut svg, outcome, time);
    for (n, &i) in leaves.iter().enumerate() {
        rates.curve(&mut svg, outcome, n, i, |s| Some(s.granted_bps));
        times.curve(&mut svg, outcome, n, i, delay_us);
        legend(&mut svg, n, &outcome.classes[i].name);
    }
    svg + "</svg>\n"
}

fn delay_us(slice: &ClassSlice) -> Option<f64> {
    slice.delay.map(|d| d.p99_us.max(0.1))
}

impl Panel {
    fn y(&self, value: f64) -> f64 {
        let share = match self.is_log {
            true => (value / self.low).log10() / (self.high / self.low).log10(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.top + PANEL_HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    }

    /// The axes, with a line at each round value.
    fn frame(&self, svg: &mut String, outcome: &Outcome, show: impl Fn(f64) -> String) {
        let (right, bottom) = (WIDTH - RIGHT, self.top + PANEL_HEIGHT);
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{}</text>", self.top - 8.0, self.title);
        for value in self.ticks() {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                show(value),
            );
        }
        let step = round_step(outcome.duration_s / TICKS);
        let ticks = (outcome.duration_s / step + 1e-9) as usize;
        for value in (0..=ticks).map(|i| i as f64 * step) {
            let x = x(outcome, value);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {}V{bottom}\" stroke=\"#eee\"/><text x=\"{x:.1}\" y=\"{}\" \
                 text-anchor=\"middle\">{} s</text>",
                self.top,
                bottom + 16.0,
                trimmed(value),
            );
        }
        if outcome.warmup_s > 0.0 {
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{PANEL_HEIGHT}\" \
                 fill=\"#000\" opacity=\"0.05\"/>",
                self.top,
                x(outcome, outcome.warmup_s) - LEFT,
            );
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.high / self.low).log10().round() as i32;
            return (0..=decades).map(|i| self.low * 10f64.powi(i)).collect();
        }
        let step = round_step(self.high / TICKS);
        (0..=(self.high / step + 1e-9) as usize).map(|i| i as f64 * step).collect()
    }

    /// One class's values; where it has none the curve has a gap.
    fn curve(
        &self,
        svg: &mut String,
        outcome: &Outcome,
        n: usize,
        class: usize,
        value: impl Fn(&ClassSlice) -> Option<f64>,
    ) {
        let mut path = String::new();
        let mut is_open = false;
        for slice in &outcome.over_time {
            let Some(value) = value(&slice.classes[class]) else {
                is_open = false;
                continue;
            };
            let x = x(outcome, slice.from_s + slice.seconds / 2.0);
            let verb = if is_open { 'L' } else { 'M' };
            let _ = write!(path, "{verb}{x:.1} {:.1}", self.y(value));
            is_open = true;
        }
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke-width=\"1.5\" stroke-linecap=\"round\" {}/>",
            stroke(n)
        );
    }
}

fn x(outcome: &Outcome, seconds: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * seconds / outcome.duration_s
}

fn legend(svg: &mut String, n: usize, name: &str) {
    let (x, y) = (WIDTH - RIGHT + 12.0, TOP + 8.0 + 20.0 * n as f64);
    let _ = writeln!(
        svg,
        "<path d=\"M{x} {y}h20\" stroke-width=\"3\" {}/><text x=\"{}\" y=\"{}\">{}</text>",
        stroke(n),
        x + 26.0,
        y + 4.0,
        escaped(name),
    );
}

fn stroke(n: usize) -> String {
    let dashes = if n < COLOURS.len() { "" } else { " stroke-dasharray=\"5 3\"" };
    format!("stroke=\"{}\"{dashes}", COLOURS[n % COLOURS.len()])
}

/// 1, 2 or 5 times a power of ten, about `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

/// To the next line across a panel.
fn rounded_up(high: f64) -> f64 {
    let step = round_step(high / TICKS);
    (high / step).ceil() * step
}

fn time(us: f64) -> String {
    match us {
        us if us < 999.0 => format!("{} us", trimmed(us)),
        us if us < 999e3 => format!("{} ms", trimmed(us / 1e3)),
        us => format!("{} s", trimmed(us / 1e6)),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::outcome::{ClassOutcome, Delays, Slice};

    fn outcome(names: &[&str]) -> Outcome {
        let class = |name: &&str| ClassOutcome {
            name: name.to_string(),
            parent: None,
            is_leaf: true,
            rate_bps: 1_000_000,
            ceil_bps: 10_000_000,
            offered_packets: 10,
            offered_bps: 5e6,
            granted_packets: 10,
            granted_bps: 5e6,
            share: 0.5,
            borrowed: 0.0,
            dropped_overload: 0,
            dropped_aqm: 0,
            marked_packets: 0,
            backlog_packets: 0,
            delay: None,
        };
        let slice = |i: usize| Slice {
            from_s: i as f64 * 0.5,
            seconds: 0.5,
            classes: names
                .iter()
                .map(|_| ClassSlice {
                    offered_bps: 5e6,
                    granted_bps: 5e6,
                    dropped_packets: 0,
                    marked_packets: 0,
                    delay: (i != 1).then(|| Delays { p99_us: 250.0, ..Delays::default() }),
                })
                .collect(),
        };
        Outcome {
            scenario: "a < b".to_string(),
            seed: 1,
            workers: 1,
            duration_s: 2.0,
            warmup_s: 0.5,
            rate_bps: 10_000_000,
            link_bps: None,
            granted_bps: 5e6,
            not_simulated: Vec::new(),
            classes: names.iter().map(class).collect(),
            sources: Vec::new(),
            over_time: (0..4).map(slice).collect(),
            expectations: Vec::new(),
        }
    }

    #[test]
    fn each_class_has_a_curve_in_both_panels_and_a_name() {
        let svg = plot(&outcome(&["chat", "batch"]));
        assert_eq!(svg.matches("stroke-width=\"1.5\"").count(), 4);
        assert!(svg.contains(">chat</text>") && svg.contains(">batch</text>"));
        assert!(svg.contains("a &lt; b") && svg.contains(">5Mbit/s</text>"), "{svg}");
        assert!(svg.contains(">100 us</text>") && svg.contains(">1 ms</text>"), "{svg}");
        let gap = svg.lines().filter(|l| l.contains("1.5")).filter(|l| l.matches('M').count() == 2);
        assert_eq!(gap.count(), 2, "no packet, no delay: a gap");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn nothing_and_very_much_are_drawn_too() {
        assert!(!plot(&outcome(&[])).contains("NaN"));
        let names: Vec<String> = (0..40).map(|i| format!("c{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(plot(&outcome(&names)).matches("width=\"1.5\"").count(), 2 * CLASSES_MAX);
    }

    #[test]
    fn steps_are_round() {
        for (about, step) in [(0.4, 0.5), (1.0, 1.0), (1.1, 2.0), (3e7, 5e7), (7e7, 1e8)] {
            assert!(
                (round_step(about) / step - 1.0).abs() < 1e-9,
                "{about}: {}",
                round_step(about)
            );
        }
    }
}
