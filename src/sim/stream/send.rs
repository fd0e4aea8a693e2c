//! The sending half.

use std::time::Duration;

use super::receive::Arrived;
use super::{FLIGHT, Profile, Stand, Tcp, WAIT, WAIT_MAX, WAITS_MAX};
use crate::base::Nanos;
use crate::forward::splice::options::Stamps;
use crate::packet::tcp::flag;
use crate::sim::tcp::Endpoint;

/// How often a slow program reads.
const READ_EVERY: Duration = Duration::from_millis(10);

impl Tcp {
    /// Answers a SYN.
    pub(super) fn accept(
        profile: Profile,
        (local, remote): (Endpoint, Endpoint),
        isn: u32,
        syn: &Arrived<'_>,
    ) -> Tcp {
        let mut tcp = Tcp::new(profile, local, remote, isn);
        tcp.stand = Stand::Accepting;
        tcp.agree(syn);
        if tcp.profile.window_scale.is_none() {
            tcp.peer_scale = 0;
        }
        tcp.window = u32::from(syn.window);
        tcp
    }

    /// Reads, and sends what is due.
    pub fn turn(&mut self, now: Nanos, out: &mut Vec<Vec<u8>>) {
        self.read_some(now);
        match self.stand {
            Stand::Opening => self.send_syn(now, flag::SYN, out),
            Stand::Accepting => self.send_syn(now, flag::SYN | flag::ACK, out),
            Stand::Open => self.send_stream(now, out),
            _ => {}
        }
        if self.must_answer && !matches!(self.stand, Stand::Opening | Stand::Accepting) {
            let at = self.next;
            out.push(self.emit(now, flag::ACK, (at, &[])));
        }
        let all = self.finish && self.acked == self.end() && self.peer_finished;
        if all && self.stand == Stand::Open {
            self.stand = Stand::Closed;
        }
    }

    fn read_some(&mut self, now: Nanos) {
        if self.unread == 0 || now < self.read_at {
            return;
        }
        let before = self.profile.buffer.saturating_sub(self.unread);
        self.unread = self.unread.saturating_sub(self.profile.reads);
        self.read_at = now + READ_EVERY;
        // A window that opens is told (RFC 9293, section 3.8.6.2.2).
        let after = self.profile.buffer.saturating_sub(self.unread);
        self.must_answer |= before < self.profile.buffer / 2 && after > before;
    }

    fn send_syn(&mut self, now: Nanos, flags: u8, out: &mut Vec<Vec<u8>>) {
        if self.is_waiting(now) {
            return;
        }
        out.push(self.emit(now, flags, (0, &[])));
        self.wait(now);
    }

    fn is_waiting(&mut self, now: Nanos) -> bool {
        self.deadline.is_some_and(|at| now < at)
    }

    fn wait(&mut self, now: Nanos) {
        self.deadline = Some(now + (WAIT * 2u32.pow(self.waits.min(5))).min(WAIT_MAX));
        self.waits += 1;
        if self.waits > WAITS_MAX {
            self.stand = Stand::Failed;
        }
    }

    fn send_stream(&mut self, now: Nanos, out: &mut Vec<Vec<u8>>) {
        let late = self.deadline.is_some_and(|at| now >= at);
        if late && self.acked < self.end() {
            (self.again, self.again_end) = (self.acked, self.next);
            self.sacked.clear();
            self.wait(now);
        }
        // With a closed window, one byte asks whether it is still so.
        let probe = u32::from(late && self.window == 0);
        let edge = self.acked + self.window.max(probe);
        let options = self.options(self.stamps.then_some(Stamps::default())).len() as u32;
        let mss = u32::from(self.peer_mss.min(self.profile.mss)) - options;
        let mut budget = if late { 2 } else { FLIGHT };
        while self.again < self.again_end && budget > 0 {
            let from = self.again;
            if let Some(&(_, to)) = self.sacked.iter().find(|r| r.0 <= from && from < r.1) {
                self.again = to;
                continue;
            }
            let end = self.again_end.min(from + mss).min(edge.max(from + 1));
            self.again = end;
            out.push(self.segment(now, from, end));
            budget -= 1;
        }
        while budget > 0 && self.next < self.end().min(edge) {
            if self.next - self.acked >= FLIGHT as u32 * mss {
                break;
            }
            let (from, to) = (self.next, (self.next + mss).min(self.end().min(edge)));
            self.next = to;
            self.sent = self.sent.max(to);
            out.push(self.segment(now, from, to));
            budget -= 1;
        }
        if self.acked == self.end() {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = Some(now + WAIT);
        }
    }

    fn segment(&mut self, now: Nanos, from: u32, to: u32) -> Vec<u8> {
        let len = self.sending.len() as u32;
        let payload = self.sending[from.min(len) as usize..to.min(len) as usize].to_vec();
        let fin = if to > len { flag::FIN } else { 0 };
        self.emit(now, flag::ACK | flag::PSH | fin, (from, &payload))
    }
}
