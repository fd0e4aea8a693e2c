//! Backends whose connections show that something is wrong: pure, told the time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::Nanos;
use crate::config::outliers::OutlierSpec;
use crate::flow::serving::Tally;

/// A window is looked at in so many parts, of which the oldest is forgotten at a time.
const PARTS: u64 = 10;
/// Times that the time out is doubled at most.
const DOUBLINGS_MAX: u32 = 16;
/// First answers that a mean is made of at least, and requests that a silence is told by.
const FIRSTS_MIN: u64 = 5;

/// One backend.
#[derive(Clone, Debug, Default)]
pub struct Outlier {
    /// As of the last look.
    last: Option<Tally>,
    /// Failed connections since the last one that succeeded.
    failures: u64,
    window: VecDeque<(Nanos, Tally)>,
    /// Requests since the last first answer, and when the first of them was seen.
    asked: u64,
    asked_since: Option<Nanos>,
    /// Until when it is out.
    until: Option<Nanos>,
    /// When it came back last.
    returned: Option<Nanos>,
    /// Times in a row that it was taken out.
    pub ejections: u32,
    /// Why, the last time.
    pub reason: Option<String>,
}

impl Outlier {
    pub fn is_out(&self) -> bool {
        self.until.is_some()
    }

    /// How long it stays out.
    pub fn left(&self, now: Nanos) -> Option<Duration> {
        self.until.map(|until| Duration::from_nanos(until.since(now)))
    }

    /// Takes in what workers have counted by now. `usual_us` is the pool's usual time to first
    /// answers. Tells why it should be taken out, if it should.
    pub fn look(
        &mut self,
        now: Nanos,
        spec: &OutlierSpec,
        total: Tally,
        usual_us: Option<u64>,
    ) -> Option<String> {
        let new = total.less(&self.last.replace(total).unwrap_or(total));
        self.failures = if new.taken > 0 { 0 } else { self.failures + new.failed };
        match new.firsts {
            0 => self.asked += new.asked,
            _ => (self.asked, self.asked_since) = (0, None),
        }
        if self.asked > 0 {
            self.asked_since.get_or_insert(now);
        }
        self.keep(now, spec, new);
        if self.until.is_some() {
            return None;
        }
        if self.failures >= u64::from(spec.failures) {
            return Some(format!("{} connections in a row failed", self.failures));
        }
        self.of_answers(spec, usual_us).or_else(|| {
            let (limit, since) = (spec.silent_for?, self.asked_since?);
            let silent = now.since(since) >= limit.as_nanos() as u64 && self.asked >= FIRSTS_MIN;
            silent.then(|| format!("none of {} requests was answered", self.asked))
        })
    }

    fn of_answers(&self, spec: &OutlierSpec, usual_us: Option<u64>) -> Option<String> {
        let all = self.in_window();
        let enough = all.answers >= u64::from(spec.answers_min) && spec.error_percent > 0;
        if enough && all.errors * 100 >= all.answers * u64::from(spec.error_percent) {
            return Some(format!("{} of {} answers were errors", all.errors, all.answers));
        }
        let (tenths, usual, own) = (spec.slower_tenths?, usual_us?, self.mean_us()?);
        let slow = own.saturating_mul(10) > usual.saturating_mul(u64::from(tenths));
        let [own, usual] = [own, usual].map(|us| us as f64 / 1e3);
        slow.then(|| format!("first answers after {own:.0} ms, others' after {usual:.0} ms"))
    }

    /// The mean time to first answers within the window.
    pub fn mean_us(&self) -> Option<u64> {
        let all = self.in_window();
        (all.firsts >= FIRSTS_MIN).then(|| all.firsts_us / all.firsts)
    }

    fn in_window(&self) -> Tally {
        self.window.iter().fold(Tally::default(), |sum, (_, part)| sum.and(part))
    }

    fn keep(&mut self, now: Nanos, spec: &OutlierSpec, new: Tally) {
        let window = spec.window.as_nanos() as u64;
        let part = window / PARTS;
        match self.window.back_mut().filter(|(since, _)| now.since(*since) < part) {
            Some((_, last)) => *last = last.and(&new),
            None => self.window.push_back((now, new)),
        }
        while self.window.front().is_some_and(|(since, _)| now.since(*since) > window) {
            self.window.pop_front();
        }
    }

    /// Takes it out: the longer, the more often it was in a row.
    pub fn eject(&mut self, now: Nanos, spec: &OutlierSpec, reason: String) {
        // Who was well for as long as it would be out now begins anew.
        let next = time_out(spec, self.ejections);
        let well = self.returned.map_or(u64::MAX, |at| now.since(at));
        if u128::from(well) > next.as_nanos() {
            self.ejections = 0;
        }
        let out = time_out(spec, self.ejections);
        self.ejections += 1;
        self.until = Some(now + out);
        self.reason = Some(reason);
    }

    /// Whether its time is over: it comes back, and what was is forgotten.
    pub fn returns(&mut self, now: Nanos) -> bool {
        if self.until.is_none_or(|until| now < until) {
            return false;
        }
        self.until = None;
        self.returned = Some(now);
        (self.failures, self.asked, self.asked_since) = (0, 0, None);
        self.window.clear();
        true
    }
}

fn time_out(spec: &OutlierSpec, ejections: u32) -> Duration {
    spec.eject.saturating_mul(1 << ejections.min(DOUBLINGS_MAX)).min(spec.eject_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: OutlierSpec = OutlierSpec {
        failures: 3,
        error_percent: 50,
        answers_min: 10,
        slower_tenths: Some(30),
        silent_for: Some(Duration::from_secs(5)),
        window: Duration::from_secs(10),
        eject: Duration::from_secs(30),
        eject_max: Duration::from_secs(100),
        ejected_percent_max: 50,
    };

    fn at(ms: u64) -> Nanos {
        Nanos::from_millis(ms)
    }

    /// One backend, looked at each 100 ms.
    #[derive(Default)]
    struct World {
        o: Outlier,
        total: Tally,
        ms: u64,
    }

    impl World {
        fn look(&mut self, new: Tally) -> Option<String> {
            self.ms += 100;
            self.total = self.total.and(&new);
            self.o.look(at(self.ms), &SPEC, self.total, Some(20_000))
        }
    }

    fn failed(failed: u64) -> Tally {
        Tally { failed, ..Tally::default() }
    }

    #[test]
    fn connections_that_fail_in_a_row_tell() {
        let mut w = World::default();
        w.look(Tally::default());
        assert_eq!(w.look(failed(2)), None);
        assert_eq!(w.look(Tally { taken: 1, ..failed(2) }), None, "one succeeded");
        assert_eq!(w.look(failed(2)), None);
        assert_eq!(w.look(failed(1)).as_deref(), Some("3 connections in a row failed"));
    }

    #[test]
    fn what_was_counted_before_is_no_news() {
        let mut o = Outlier::default();
        assert_eq!(o.look(at(1), &SPEC, failed(1_000), None), None);
        assert_eq!(o.look(at(2), &SPEC, failed(1_002), None), None);
    }

    #[test]
    fn errors_and_slowness_tell_within_the_window() {
        let mut w = World::default();
        let answers = |answers, errors| Tally { answers, errors, ..Tally::default() };
        w.look(Tally::default());
        assert_eq!(w.look(answers(9, 9)), None, "too few");
        w.ms += 20_000;
        assert_eq!(w.look(answers(9, 0)), None, "those are forgotten");
        assert_eq!(w.look(answers(2, 2)), None);
        let said = w.look(answers(7, 7)).expect("an outlier");
        assert_eq!(said, "9 of 18 answers were errors");
        w.ms += 20_000;
        let firsts = |firsts, us| Tally { firsts, firsts_us: firsts * us, ..Tally::default() };
        assert_eq!(w.look(firsts(10, 60_000)), None, "three times as long");
        let said = w.look(firsts(1, 90_000)).expect("an outlier");
        assert_eq!(said, "first answers after 63 ms, others' after 20 ms");
    }

    #[test]
    fn requests_that_nobody_answers_tell() {
        let mut w = World::default();
        let asked = |asked, firsts| Tally { asked, firsts, ..Tally::default() };
        w.look(Tally::default());
        assert_eq!(w.look(asked(4, 0)), None);
        w.ms += 6_000;
        assert_eq!(w.look(asked(0, 0)), None, "too few");
        assert_eq!(w.look(asked(1, 1)), None, "one was");
        assert_eq!(w.look(asked(9, 0)), None);
        w.ms += 4_800;
        assert_eq!(w.look(asked(0, 0)), None);
        assert_eq!(w.look(asked(0, 0)).as_deref(), Some("none of 9 requests was answered"));
    }

    #[test]
    fn each_time_it_is_out_for_longer_until_it_was_well() {
        let mut o = Outlier::default();
        let mut now = 0;
        let mut out = |o: &mut Outlier, well_secs: u64| {
            now += well_secs * 1_000;
            o.eject(at(now), &SPEC, "why".into());
            let left = o.left(at(now)).expect("it is out").as_secs();
            assert!(!o.returns(at(now + left * 1_000 - 1)) && o.is_out());
            now += left * 1_000;
            assert!(o.returns(at(now)) && !o.is_out());
            left
        };
        let times: Vec<u64> = [0, 1, 1, 1, 99, 101].map(|well| out(&mut o, well)).into();
        assert_eq!(times, [30, 60, 100, 100, 100, 30]);
        assert_eq!(o.ejections, 1);
    }
}
