//! Sources at work: when each sends its next packet, and in which worker its flows are.

use std::time::Duration;

use super::heap::{Event, Heap};
use super::spec::{DURATION_MAX, Kind, Scenario, Source};
use super::tcp::Sender;
use super::trace::{Trace, Traced};
use crate::base::hash::{Rng, hash1};
use crate::base::units::BitRate;
use crate::base::{Nanos, Seed};
use crate::capture::ReadError;
use crate::packet::ClassId;
use crate::qos::spec::Counting;

/// A packet on its way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet {
    pub source: u32,
    pub flow: u32,
    /// Among those of its flow, where the source counts them.
    pub seq: u64,
    pub sent_at: Nanos,
    pub class: ClassId,
    pub len: u16,
    pub ecn: bool,
}

/// A source at work.
pub struct Running {
    pub spec: Source,
    pub index: u32,
    start: Nanos,
    stop: Nanos,
    /// How the scheduler counts a frame's bytes.
    counting: Counting,
    rng: Rng,
    /// Packets sent.
    count: u64,
    /// Bits sent at a constant rate since it began.
    sent_bits: u64,
    /// When that was, later by as long as it was silent since.
    began: Nanos,
    /// When it is silent next.
    phase_end: Nanos,
    senders: Vec<Sender>,
    trace: Option<Replay>,
    /// Ends of each worker's flows among as many as `skew` has in all.
    skew_ends: Vec<u64>,
}

struct Replay {
    trace: Trace,
    ahead: Option<Traced>,
    /// Of the first packet.
    begun: Nanos,
    last: Nanos,
}

impl Running {
    /// # Errors
    /// A capture that can't be read.
    pub fn new(scenario: &Scenario, index: usize, workers: usize) -> Result<Running, ReadError> {
        let spec = scenario.sources[index].clone();
        let start = Nanos::ZERO + spec.start;
        let trace = match &spec.kind {
            Kind::Trace { file, .. } => {
                let mut trace = Trace::open(file, scenario.tree.mtu)?;
                let ahead = trace.next()?;
                Some(Replay { trace, ahead, begun: start, last: start })
            }
            _ => None,
        };
        let senders = match spec.kind {
            Kind::Tcp { control, .. } => vec![Sender::new(control); spec.flows as usize],
            _ => Vec::new(),
        };
        let mut running = Running {
            index: index as u32,
            start,
            stop: spec.stop.map_or(Nanos::MAX, |stop| Nanos::ZERO + stop),
            counting: scenario.counting(spec.class),
            rng: Rng::new(Seed(hash1(scenario.seed, index as u64))),
            count: 0,
            sent_bits: 0,
            began: start,
            phase_end: Nanos::MAX,
            senders,
            trace,
            skew_ends: skew_ends(&spec.skew, workers),
            spec,
        };
        if let Kind::OnOff { on, is_random, .. } = running.spec.kind {
            running.phase_end = start.saturating_add(running.length(on, is_random));
        }
        Ok(running)
    }

    /// Puts what happens first into the heap.
    pub fn begin(&mut self, heap: &mut Heap) {
        let spread = match self.spec.kind {
            Kind::Tokens { every, .. } => Some(every),
            Kind::Tcp { rtt, .. } => Some(rtt),
            _ => None,
        };
        for flow in 0..spread.map_or(1, |_| self.spec.flows) {
            let within = self.unit() * spread.map_or(0.0, |d| d.as_nanos() as f64);
            let at = self.start.saturating_add(within as u64);
            heap.push(at, Event::Send { source: self.index, flow });
        }
    }

    /// The worker that a flow's packets come to.
    #[inline]
    pub fn worker_of(&self, flow: u32, workers: usize) -> usize {
        match self.skew_ends.last() {
            Some(&all) => {
                let at = u64::from(flow) % all;
                self.skew_ends.partition_point(|&end| end <= at)
            }
            None => (flow as usize + self.index as usize) % workers,
        }
    }

    pub fn is_active(&self, now: Nanos) -> bool {
        now >= self.start && now < self.stop
    }

    pub fn is_greedy(&self) -> bool {
        matches!(self.spec.kind, Kind::Greedy)
    }

    /// Bytes that the scheduler counts for a frame.
    #[inline]
    pub fn counted(&self, len: u16) -> u32 {
        self.counting.counted(usize::from(len))
    }

    /// A source or one of its flows sends, and says when it does next.
    ///
    /// # Errors
    /// A capture that is damaged.
    pub fn send(
        &mut self,
        now: Nanos,
        flow: u32,
        heap: &mut Heap,
        out: &mut Vec<Packet>,
    ) -> Result<(), ReadError> {
        if now >= self.stop {
            return Ok(());
        }
        let next = match self.spec.kind {
            Kind::Greedy => None,
            Kind::Constant { rate } | Kind::OnOff { rate, .. } => {
                let packet = self.in_turn(now);
                out.push(packet);
                Some(self.after(rate, packet.len))
            }
            Kind::Poisson { rate } => {
                let packet = self.in_turn(now);
                out.push(packet);
                let bits = f64::from(self.counted(packet.len)) * 8.0;
                let mean_ns = bits * 1e9 / rate.0 as f64;
                Some(now.saturating_add(self.exponential(mean_ns)))
            }
            Kind::Tokens { bytes, every } => {
                self.send_tokens(now, flow, bytes, out);
                Some(now + every)
            }
            Kind::Tcp { .. } => {
                self.send_window(now, flow, heap, out);
                None
            }
            Kind::Trace { speed, repeats, .. } => self.replay(now, speed, repeats, out)?,
        };
        if let Some(next) = next.filter(|next| *next < self.stop) {
            heap.push(next, Event::Send { source: self.index, flow });
        }
        Ok(())
    }

    /// The next packet, of the flow whose turn it is.
    #[inline]
    pub fn in_turn(&mut self, now: Nanos) -> Packet {
        let flow = (self.count % u64::from(self.spec.flows)) as u32;
        self.packet_of(flow, now)
    }

    #[inline]
    pub fn packet_of(&mut self, flow: u32, now: Nanos) -> Packet {
        let lengths = &self.spec.packets;
        // Each flow sends all lengths, whatever their numbers.
        let round = self.count / u64::from(self.spec.flows);
        let len = lengths[((self.count + round) % lengths.len() as u64) as usize];
        let seq = self.count;
        self.count += 1;
        self.packet(now, flow, seq, len)
    }

    #[inline]
    fn packet(&self, sent_at: Nanos, flow: u32, seq: u64, len: u16) -> Packet {
        let Source { class, ecn, .. } = self.spec;
        Packet { source: self.index, flow, seq, sent_at, class, len, ecn }
    }

    /// An acknowledgement is back: others may be sent for it.
    pub fn acknowledge(
        &mut self,
        now: Nanos,
        flow: u32,
        seq: u64,
        marked: bool,
        heap: &mut Heap,
        out: &mut Vec<Packet>,
    ) {
        self.senders[flow as usize].acknowledge(now, seq, marked);
        if now < self.stop {
            self.send_window(now, flow, heap, out);
        }
    }

    /// A timer of a flow fires: in earnest, or it is set again.
    pub fn time_out(&mut self, now: Nanos, flow: u32, heap: &mut Heap, out: &mut Vec<Packet>) {
        let sender = &mut self.senders[flow as usize];
        sender.has_timer = false;
        if sender.timeout_at().is_some_and(|at| at <= now) {
            sender.time_out();
        }
        if now < self.stop {
            self.send_window(now, flow, heap, out);
        }
    }

    fn send_window(&mut self, now: Nanos, flow: u32, heap: &mut Heap, out: &mut Vec<Packet>) {
        let len = self.spec.packets[0];
        while let Some(seq) = self.senders[flow as usize].send(now) {
            out.push(self.packet(now, flow, seq, len));
        }
        // A timer that is set already fires too early at worst, and is then set again.
        let sender = &mut self.senders[flow as usize];
        if let Some(at) = sender.timeout_at().filter(|_| !sender.has_timer) {
            sender.has_timer = true;
            heap.push(at, Event::Timeout { source: self.index, flow });
        }
    }

    fn send_tokens(&mut self, now: Nanos, flow: u32, bytes: u32, out: &mut Vec<Packet>) {
        let most = self.spec.packets[0];
        let mut left = bytes;
        while left > 0 {
            let len = u16::try_from(left).unwrap_or(most).min(most);
            left -= u32::from(len);
            let seq = self.count;
            self.count += 1;
            out.push(self.packet(now, flow, seq, len.max(super::spec::PACKET_MIN)));
        }
    }

    fn replay(
        &mut self,
        now: Nanos,
        speed: f64,
        repeats: bool,
        out: &mut Vec<Packet>,
    ) -> Result<Option<Nanos>, ReadError> {
        let Some(replay) = &mut self.trace else { return Ok(None) };
        if let Some(Traced { len, flow, .. }) = replay.ahead.take() {
            let (seq, Source { class, ecn, .. }) = (self.count, &self.spec);
            let (class, ecn) = (*class, *ecn);
            out.push(Packet { source: self.index, flow, seq, sent_at: now, class, len, ecn });
            self.count += 1;
            replay.last = now;
        }
        let mut next = replay.trace.next()?;
        if let (None, true, Kind::Trace { file, .. }) = (next, repeats, &self.spec.kind) {
            replay.trace = replay.trace.again(file)?;
            // A round takes as long as the capture, and a little: it may be of one moment.
            replay.begun = replay.last.saturating_add(REPEAT_GAP_NS);
            next = replay.trace.next()?;
        }
        replay.ahead = next;
        Ok(next.map(|t| replay.begun.saturating_add((t.after_ns as f64 / speed) as u64)))
    }

    /// When a constant rate lets the next packet go after one of `len` bytes. What of a packet's
    /// time lies beyond a phase is waited for in the next ones: begun anew in each, a packet a
    /// phase would go however short they are.
    fn after(&mut self, rate: BitRate, len: u16) -> Nanos {
        self.sent_bits += u64::from(self.counted(len)) * 8;
        let ns = u128::from(self.sent_bits) * 1_000_000_000 / u128::from(rate.0.max(1));
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        let next = |began: Nanos| began.saturating_add(ns);
        let Kind::OnOff { on, off, is_random, .. } = self.spec.kind else {
            return next(self.began);
        };
        while next(self.began) >= self.phase_end && self.phase_end < NEVER {
            let silence = self.length(off, is_random);
            self.began = self.began.saturating_add(silence);
            let on = self.length(on, is_random);
            self.phase_end = self.phase_end.saturating_add(silence).saturating_add(on);
        }
        next(self.began)
    }

    fn length(&mut self, mean: Duration, is_random: bool) -> u64 {
        let mean_ns = mean.as_nanos() as f64;
        if is_random { self.exponential(mean_ns) } else { mean_ns as u64 }
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-(1.0 - self.unit()).ln() * mean) as u64
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

const REPEAT_GAP_NS: u64 = 1_000;
/// Later than any scenario lasts.
const NEVER: Nanos = Nanos(DURATION_MAX.as_nanos() as u64 + 1);

/// Empty where workers get flows in turn.
fn skew_ends(skew: &[u32], workers: usize) -> Vec<u64> {
    let mut end = 0;
    let ends = skew.iter().cycle().take(if skew.is_empty() { 0 } else { workers }).map(|&n| {
        end += u64::from(n);
        end
    });
    let ends: Vec<u64> = ends.collect();
    if ends.last().is_none_or(|&all| all == 0) { Vec::new() } else { ends }
}

#[cfg(test)]
mod tests;
