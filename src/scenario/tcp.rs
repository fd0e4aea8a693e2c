//! The sender of a transfer that never ends: how many packets it has under way, and how it answers
//! to losses and marks.
//!
//! The way through the scheduler keeps a flow's order, so an acknowledgement tells at once that
//! everything before it is either acknowledged or lost. Each packet is acknowledged, one round trip
//! after it has left. What is lost is sent again as new packets.

use std::collections::VecDeque;

use super::spec::Control;
use crate::base::Nanos;

/// RFC 6928.
const WINDOW_INITIAL: f64 = 10.0;
const WINDOW_MIN: f64 = 2.0;
/// Packets under way at most: as a receiver's window would have it.
const WINDOW_MAX: f64 = 65_536.0;
/// Of a CUBIC: how much is left after a loss, and how fast it grows again (RFC 9438, section 5).
const CUBIC_BETA: f64 = 0.7;
const CUBIC_C: f64 = 0.4;
const RENO_BETA: f64 = 0.5;
/// As Linux has it; RFC 6298 would have a second.
const TIMEOUT_NS_MIN: u64 = 200_000_000;
const TIMEOUT_NS_MAX: u64 = 60_000_000_000;

/// One flow's sender.
#[derive(Clone, Debug)]
pub struct Sender {
    control: Control,
    /// Packets that may be under way.
    window: f64,
    /// Below it the window doubles each round trip.
    threshold: f64,
    next_seq: u64,
    /// When those under way were sent, the eldest first.
    sent: VecDeque<Nanos>,
    /// Packets sent before this one tell nothing new of a congestion that was answered.
    answered: u64,
    round_trip: Option<RoundTrip>,
    backoff: u32,
    cubic: Cubic,
    /// One is set that fires in time, or earlier.
    pub has_timer: bool,
}

#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    mean_ns: f64,
    deviation_ns: f64,
}

/// The curve on which a window grows back.
#[derive(Clone, Copy, Debug, Default)]
struct Cubic {
    window_max: f64,
    /// The window that Reno would have.
    window_reno: f64,
    /// When it began; `None` until the first packet is acknowledged after a congestion.
    epoch: Option<Nanos>,
    /// Seconds from there until `window_max` is reached.
    k: f64,
}

impl Sender {
    pub fn new(control: Control) -> Sender {
        Sender {
            control,
            window: WINDOW_INITIAL,
            threshold: f64::INFINITY,
            next_seq: 0,
            sent: VecDeque::new(),
            answered: 0,
            round_trip: None,
            backoff: 0,
            cubic: Cubic::default(),
            has_timer: false,
        }
    }

    /// The number of a packet that may be sent now.
    pub fn send(&mut self, now: Nanos) -> Option<u64> {
        if self.sent.len() as f64 >= self.window.floor().max(1.0) {
            return None;
        }
        self.sent.push_back(now);
        self.next_seq += 1;
        Some(self.next_seq - 1)
    }

    /// A packet is acknowledged, those before it not acknowledged are lost.
    pub fn acknowledge(&mut self, now: Nanos, seq: u64, marked: bool) {
        let eldest = self.next_seq - self.sent.len() as u64;
        // One that was given up by the timer.
        let Some(lost) = seq.checked_sub(eldest) else { return };
        let sent = self.sent.drain(..=lost as usize).next_back();
        if let Some(sent) = sent {
            self.measure(now.since(sent) as f64);
        }
        self.backoff = 0;
        if lost > 0 && seq > self.answered || marked && seq >= self.answered {
            self.answered = self.next_seq;
            self.shrink();
        } else if seq >= self.answered {
            self.grow(now);
        }
        self.window = self.window.clamp(1.0, WINDOW_MAX);
    }

    /// When those under way are given up; `None` where there are none.
    pub fn timeout_at(&self) -> Option<Nanos> {
        let wait = self.round_trip.map_or(1e9, |r| r.mean_ns + 4.0 * r.deviation_ns);
        let wait = (wait as u64).max(TIMEOUT_NS_MIN) << self.backoff.min(16);
        // Since the last of them was sent: each acknowledgement sends others.
        self.sent.back().map(|at| at.saturating_add(wait.min(TIMEOUT_NS_MAX)))
    }

    /// Gives up those under way and begins anew with one.
    pub fn time_out(&mut self) {
        self.threshold = (self.window / 2.0).max(WINDOW_MIN);
        self.window = 1.0;
        self.answered = self.next_seq;
        self.sent.clear();
        self.backoff += 1;
        self.cubic.epoch = None;
        self.cubic.window_max = self.threshold;
    }

    /// RFC 6298, section 2.
    fn measure(&mut self, ns: f64) {
        self.round_trip = Some(match self.round_trip {
            None => RoundTrip { mean_ns: ns, deviation_ns: ns / 2.0 },
            Some(r) => RoundTrip {
                mean_ns: 0.875 * r.mean_ns + 0.125 * ns,
                deviation_ns: 0.75 * r.deviation_ns + 0.25 * (r.mean_ns - ns).abs(),
            },
        });
    }

    fn shrink(&mut self) {
        let before = self.window;
        let beta = match self.control {
            Control::Reno => RENO_BETA,
            Control::Cubic => CUBIC_BETA,
        };
        self.window = (before * beta).max(WINDOW_MIN);
        self.threshold = self.window;
        // Who did not get as far as last time makes room for others (section 4.7).
        let is_less = before < self.cubic.window_max;
        self.cubic.window_max = if is_less { before * (1.0 + beta) / 2.0 } else { before };
        self.cubic.epoch = None;
    }

    fn grow(&mut self, now: Nanos) {
        if self.window < self.threshold {
            self.window += 1.0;
            return;
        }
        match self.control {
            Control::Reno => self.window += 1.0 / self.window,
            Control::Cubic => {
                let round_trip_s = self.round_trip.map_or(0.0, |r| r.mean_ns / 1e9);
                self.window = self.cubic.window_after(now, self.window, round_trip_s);
            }
        }
    }
}

impl Cubic {
    /// RFC 9438, section 4.
    fn window_after(&mut self, now: Nanos, window: f64, round_trip_s: f64) -> f64 {
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.window_max = self.window_max.max(window);
            self.k = ((self.window_max - window) / CUBIC_C).cbrt();
            self.window_reno = window;
            now
        });
        let t = now.since(epoch) as f64 / 1e9 + round_trip_s - self.k;
        let target = (CUBIC_C * t.powi(3) + self.window_max).clamp(window, 1.5 * window);
        let reno = match self.window_reno < self.window_max {
            true => 3.0 * (1.0 - CUBIC_BETA) / (1.0 + CUBIC_BETA),
            false => 1.0,
        };
        self.window_reno += reno / window;
        (window + (target - window) / window).max(self.window_reno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: u64 = 100_000_000;

    fn fill(sender: &mut Sender, now: Nanos) -> usize {
        std::iter::from_fn(|| sender.send(now)).count()
    }

    /// Round trips in which nothing is lost; the window before each.
    fn rounds(sender: &mut Sender, now: &mut Nanos, n: usize) -> Vec<usize> {
        let mut windows = Vec::new();
        for _ in 0..n {
            fill(sender, *now);
            let (len, next) = (sender.sent.len() as u64, sender.next_seq);
            windows.push(len as usize);
            *now = now.saturating_add(RTT);
            (next - len..next).for_each(|seq| sender.acknowledge(*now, seq, false));
        }
        windows
    }

    #[test]
    fn it_starts_slowly_and_doubles() {
        let mut sender = Sender::new(Control::Reno);
        assert_eq!(rounds(&mut sender, &mut Nanos(0), 4), [10, 20, 40, 80]);
    }

    #[test]
    fn a_loss_is_answered_once_a_round_trip() {
        for (control, left) in [(Control::Reno, 20.0), (Control::Cubic, 28.0)] {
            let (mut sender, mut now) = (Sender::new(control), Nanos(0));
            rounds(&mut sender, &mut now, 2);
            assert_eq!(fill(&mut sender, now), 40);
            // The first and the fifth are lost.
            for seq in (31..34).chain(35..70) {
                sender.acknowledge(now.saturating_add(RTT), seq, false);
            }
            assert!((sender.window - left).abs() < 0.01, "{control:?}: {}", sender.window);
        }
    }

    #[test]
    fn a_mark_is_answered_like_a_loss() {
        let (mut sender, mut now) = (Sender::new(Control::Reno), Nanos(0));
        rounds(&mut sender, &mut now, 1);
        fill(&mut sender, now);
        (10..30).for_each(|seq| sender.acknowledge(now.saturating_add(RTT), seq, seq > 12));
        assert!((sender.window - 11.5).abs() < 0.01, "{}", sender.window);
    }

    #[test]
    fn reno_grows_by_one_a_round_and_cubic_back_to_where_it_was() {
        for control in [Control::Reno, Control::Cubic] {
            let (mut sender, mut now) = (Sender::new(control), Nanos(0));
            rounds(&mut sender, &mut now, 4);
            fill(&mut sender, now);
            let next = sender.next_seq;
            now = now.saturating_add(RTT);
            sender.acknowledge(now, next - 1, false);
            let windows = rounds(&mut sender, &mut now, 60);
            if control == Control::Reno {
                assert!((135..=141).contains(&windows[59]) && windows[0] == 80, "{windows:?}");
                continue;
            }
            // K = cbrt(160 x 0.3 / 0.4) = 4.9 s = 49 rounds.
            assert_eq!(windows[0], 112);
            assert!((157..=162).contains(&windows[49]), "{windows:?}");
            assert!(windows[20] > 140 && windows[59] < 170, "flat near the top: {windows:?}");
        }
    }

    #[test]
    fn silence_ends_with_the_timer() {
        let (mut sender, mut now) = (Sender::new(Control::Cubic), Nanos(0));
        assert_eq!(sender.timeout_at(), None);
        rounds(&mut sender, &mut now, 8);
        fill(&mut sender, now);
        let wait = sender.timeout_at().expect("some are under way").since(now);
        assert!((TIMEOUT_NS_MIN..2 * TIMEOUT_NS_MIN).contains(&wait), "{wait}");
        sender.time_out();
        assert_eq!(fill(&mut sender, now), 1);
        assert_eq!(sender.timeout_at().expect("one is").since(now), 2 * wait);
        sender.acknowledge(now, 5, false);
        assert_eq!(sender.sent.len(), 1, "what was given up is not counted");
    }
}
