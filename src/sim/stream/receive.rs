//! The receiving half, and everything that is looked at closely.

use super::{Stand, Tcp};
use crate::base::Nanos;
use crate::forward::splice::options::{Offer, kind, stamps_of, walk};
use crate::packet::field::{u16_at, u32_at};
use crate::packet::tcp::{self, flag};
use crate::packet::{PacketMeta, ParseOptions, parse};

/// A segment as it arrived, checksums looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived<'a> {
    pub meta: &'a PacketMeta,
    pub options: &'a [u8],
    pub payload: &'a [u8],
    pub window: u16,
}

impl<'a> Arrived<'a> {
    pub(super) fn read(frame: &'a [u8], meta: &'a mut PacketMeta) -> Option<Arrived<'a>> {
        let options = ParseOptions { verify_transport_checksum: true };
        parse(frame, crate::base::Seed(0), options, meta).ok()?;
        if meta.key.proto != tcp::PROTOCOL {
            return None;
        }
        let (l4, payload) = (usize::from(meta.l4), usize::from(meta.payload));
        Some(Arrived {
            options: frame.get(l4 + tcp::HEADER_LEN..payload)?,
            payload: frame.get(payload..usize::from(meta.end))?,
            window: u16_at(frame.get(l4..)?, tcp::offset::WINDOW),
            meta,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.meta.tcp_flags & flag != 0
    }
}

impl Tcp {
    pub(super) fn receive(&mut self, now: Nanos, s: &Arrived<'_>, out: &mut Vec<Vec<u8>>) {
        if self.is_over() && self.stand != Stand::Closed {
            return;
        }
        if self.stand == Stand::Opening {
            return self.receive_opening(now, s, out);
        }
        let at = s.meta.tcp_seq.wrapping_sub(self.peer_isn.wrapping_add(1));
        if s.has(flag::RST) {
            if at == self.wanted() {
                self.stand = Stand::Reset;
            } else if at.wrapping_sub(self.wanted()) < self.profile.buffer {
                self.must_answer = true;
            }
            return;
        }
        if s.has(flag::SYN) || !s.has(flag::ACK) {
            self.must_answer = self.stand != Stand::Accepting;
            if self.stand == Stand::Accepting && !s.has(flag::ACK) {
                out.push(self.emit(now, flag::SYN | flag::ACK, (0, &[])));
            }
            return;
        }
        if !self.is_timely(s, at) {
            self.must_answer = true;
            return;
        }
        self.look_at_edges(s, at);
        let acked = s.meta.tcp_ack.wrapping_sub(self.isn.wrapping_add(1));
        if acked as i32 > self.sent as i32 {
            self.fault(format!("{acked} acknowledged, {} sent", self.sent));
            return;
        }
        if self.stand == Stand::Accepting {
            (self.stand, self.deadline, self.waits) = (Stand::Open, None, 0);
        }
        self.acknowledged(s, acked);
        self.take(s, at);
    }

    fn receive_opening(&mut self, now: Nanos, s: &Arrived<'_>, out: &mut Vec<Vec<u8>>) {
        let good = s.has(flag::ACK) && s.meta.tcp_ack == self.isn.wrapping_add(1);
        match (s.has(flag::RST), s.has(flag::SYN), good) {
            (true, _, true) => self.stand = Stand::Reset,
            (false, true, true) => {
                self.agree(s);
                if self.stamps {
                    let echo = stamps_of(s.options).map_or(0, |t| t.echo);
                    self.look_at_echo(echo);
                }
                (self.stand, self.deadline, self.waits) = (Stand::Open, None, 0);
                self.window = u32::from(s.window);
                self.must_answer = true;
            }
            (false, _, false) if s.has(flag::ACK) => {
                self.fault(format!("a SYN's answer acknowledges {}", s.meta.tcp_ack));
                let _ = (now, out);
            }
            _ => {}
        }
    }

    /// Takes over what the peer's SYN or SYN-ACK offers.
    pub(super) fn agree(&mut self, s: &Arrived<'_>) {
        let offer = Offer::parse(s.options);
        self.peer_isn = s.meta.tcp_seq;
        self.sack &= offer.sack;
        self.stamps &= offer.stamps.is_some();
        self.peer_mss = offer.mss.unwrap_or(536);
        let scales = offer.window_scale.is_some() && self.profile.window_scale.is_some();
        self.our_scale = self.profile.window_scale.filter(|_| scales).unwrap_or(0);
        self.peer_scale = offer.window_scale.filter(|_| scales).unwrap_or(0);
        if !scales {
            self.profile.window_scale = None;
        }
        self.recent = offer.stamps.map_or(0, |t| t.value);
    }

    /// RFC 7323, section 5: PAWS, and that echoes are of what was sent.
    fn is_timely(&mut self, s: &Arrived<'_>, at: u32) -> bool {
        if !self.stamps {
            return true;
        }
        let Some(stamps) = stamps_of(s.options) else {
            self.fault("a segment without timestamps".into());
            return false;
        };
        self.look_at_echo(stamps.echo);
        if stamps.value.wrapping_sub(self.recent) as i32 >= 0 {
            if at as i32 <= self.wanted() as i32 {
                self.recent = stamps.value;
            }
            return true;
        }
        false
    }

    fn look_at_echo(&mut self, echo: u32) {
        let Some((first, last)) = self.stamps_sent else { return };
        if echo.wrapping_sub(first) > last.wrapping_sub(first) {
            self.fault(format!("timestamp {echo} came back, {first} to {last} were sent"));
        }
    }

    /// Nobody may send more than was allowed, a probe's byte aside.
    fn look_at_edges(&mut self, s: &Arrived<'_>, at: u32) {
        let end = at.wrapping_add(s.payload.len() as u32);
        let beyond = end.wrapping_sub(self.edge_told) as i32;
        if beyond > 1 && !s.payload.is_empty() {
            self.fault(format!("{beyond} bytes beyond the window"));
        }
        if s.payload.len() > usize::from(self.profile.mss) {
            self.fault(format!("a segment of {} bytes", s.payload.len()));
        }
        let base = self.isn.wrapping_add(1);
        for option in walk(s.options).filter(|o| o.kind == kind::SACK) {
            for block in option.body.chunks_exact(8) {
                let (from, to) = (u32_at(block, 0), u32_at(block, 4));
                let (from, to) = (from.wrapping_sub(base), to.wrapping_sub(base));
                if !self.sack || from >= to || to > self.sent {
                    self.fault(format!("{from} to {to} selectively acknowledged"));
                } else {
                    self.sacked.push((from, to));
                }
            }
        }
    }

    fn acknowledged(&mut self, s: &Arrived<'_>, acked: u32) {
        let ahead = acked.wrapping_sub(self.acked) as i32;
        if ahead < 0 {
            return;
        }
        let window = u32::from(s.window) << self.peer_scale;
        if ahead > 0 {
            self.acked = acked;
            self.next = self.next.max(acked);
            self.again = self.again.max(acked);
            (self.waits, self.duplicates, self.deadline) = (0, 0, None);
            self.sacked.retain(|&(_, to)| to > acked);
        } else if s.payload.is_empty() && window == self.window && self.next > self.acked {
            self.duplicates += 1;
            if self.duplicates == 3 {
                (self.again, self.again_end) = (self.acked, self.next);
            }
        }
        self.window = window;
    }

    fn take(&mut self, s: &Arrived<'_>, at: u32) {
        let end = at.wrapping_add(s.payload.len() as u32);
        if s.has(flag::FIN) {
            match self.peer_end {
                Some(known) if known != end => self.fault(format!("FIN at {known} and at {end}")),
                _ => self.peer_end = Some(end),
            }
        }
        if !s.payload.is_empty() || s.has(flag::FIN) || at != self.wanted() {
            self.must_answer = true;
        }
        let have = self.received.len() as u32;
        if (at.wrapping_sub(have) as i32) <= 0 {
            let old = have.wrapping_sub(at) as usize;
            self.append(s.payload.get(old..).unwrap_or_default());
        } else if !s.payload.is_empty() && at.wrapping_sub(have) < self.profile.buffer {
            self.early.push((at, s.payload.to_vec()));
            self.early.sort_by_key(|(at, _)| *at);
        }
        while let Some((at, _)) = self.early.first()
            && *at <= self.received.len() as u32
        {
            let (at, bytes) = self.early.remove(0);
            let old = self.received.len() - at as usize;
            self.append(bytes.get(old..).unwrap_or_default());
        }
        if self.peer_end == Some(self.received.len() as u32) {
            self.peer_finished = true;
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        if self.profile.reads != u32::MAX {
            self.unread += bytes.len() as u32;
        }
    }

    /// Runs of bytes that came early.
    pub(super) fn early_runs(&self) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for (at, bytes) in &self.early {
            let end = at + bytes.len() as u32;
            match runs.last_mut() {
                Some(run) if *at <= run.1 => run.1 = run.1.max(end),
                _ => runs.push((*at, end)),
            }
        }
        runs
    }
}
