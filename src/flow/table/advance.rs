//! What a flow's state becomes, and what that means to those who count flows.

use std::mem;

use super::{FlowTable, TCP};
use crate::base::Nanos;
use crate::flow::tcp::{Seen, TcpState};
use crate::flow::wheel::NANOS_PER_TICK;
use crate::packet::{Direction, PacketMeta};

/// Who has no answer sends a SYN again after a second (RFC 6298 section 2), here less what ticks
/// may be off.
const AGAIN_TICKS: u32 = (Nanos::from_secs(1).0 / NANOS_PER_TICK) as u32 - 1;

const CLIENT: usize = Direction::Forward as usize;

impl FlowTable {
    /// The state after a packet that may change it, so many ticks after the one before.
    #[inline(never)]
    pub(super) fn advance(&mut self, at: u32, meta: &PacketMeta, ticks: u32) {
        let flow = &self.flows[at as usize];
        let (before, tcp) = (flow.tcp, flow.proto == TCP);
        let seen = match flow.has_reply_key() {
            false => Seen::Client,
            true if flow.packets()[CLIENT] == 0 => Seen::Server,
            true => Seen::Both,
        };
        let after = before.after(tcp, meta.tcp_flags, meta.direction, seen);
        // Before its SYN is answered a client's RST may be of the connection before.
        let is_early = before == TcpState::SynSent && meta.direction == Direction::Forward;
        let after = match after {
            TcpState::Reset if is_early && flow.is_answered() => before,
            other => other,
        };
        // A FIN after a silence may be one of a row of which the others were lost, and the next
        // will come later still.
        let after = match after {
            TcpState::TimeWait if after != before && ticks >= AGAIN_TICKS => TcpState::LastAck,
            other => other,
        };
        let details = &mut self.details[at as usize];
        details.unheard = match (before, after, meta.direction) {
            (TcpState::SynSent, TcpState::SynSent, Direction::Forward) => {
                details.unheard.saturating_add(1)
            }
            (TcpState::SynSent, _, _) => u8::MAX,
            (_, TcpState::SynSent, _) => 1,
            _ => details.unheard,
        };
        let came_again = details.unheard == 2 && ticks >= AGAIN_TICKS;
        match before.taken(after, meta.tcp_flags, meta.direction) {
            Some(true) => self.serving.took(self.details[at as usize].backend),
            // Told once a connection, and only where answers come this way: anybody can send SYNs
            // of others, as often as they please.
            Some(false) if after != before || came_again && flow.has_reply_key() => {
                self.serving.failed(self.details[at as usize].backend);
            }
            Some(false) | None => {}
        }
        if after != before {
            self.change_state(at, after);
        }
    }

    pub(super) fn change_state(&mut self, at: u32, after: TcpState) {
        let flow = &mut self.flows[at as usize];
        let before = mem::replace(&mut flow.tcp, after);
        let backend = self.details[at as usize].backend;
        match (before.has_ended(), after.has_ended()) {
            (false, true) => self.serving.end(backend),
            (true, false) => self.serving.begin(backend),
            _ => {}
        }
        match (before.is_half_open(), after.is_half_open()) {
            (true, true) => return, // keeps its place: its time runs from the SYN
            (true, false) => self.half_open -= 1,
            _ => {}
        }
        self.schedule(at);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::Seed;
    use crate::flow::{FlowKind, FlowLimits, NewFlow, Serving, Timeouts};
    use crate::packet::{ClassId, FlowKey};

    const SYN: u8 = 0x02;
    const RST_ACK: u8 = 0x14;

    /// Connections that failed, as the backend's count has it, of SYNs that come at these times of
    /// a flow's life. The first one is that with which it begins.
    fn failed(kind: FlowKind, syns_ms: &[u64], refused: bool) -> u64 {
        let mut packets: Vec<_> = syns_ms.iter().map(|&ms| (ms, SYN, Direction::Forward)).collect();
        if refused {
            packets.push((9_000, RST_ACK, Direction::Reply));
        }
        failed_by(kind, &packets)
    }

    /// The same of any packets that follow the first one.
    fn failed_by(kind: FlowKind, packets: &[(u64, u8, Direction)]) -> u64 {
        let limits = FlowLimits { flows_max: 8, half_open_max: 8 };
        let serving = Arc::new(Serving::new(8));
        let table = FlowTable::new(limits, Timeouts::default(), Seed(1));
        let mut table = table.with_serving(Arc::clone(&serving));
        let key = FlowKey { sport: 7, proto: TCP, ..FlowKey::default() };
        let reply = (!kind.is_one_way()).then_some(FlowKey { sport: 8, ..key });
        let (class, idle_established_ms) = (ClassId::UNSET, None);
        let new = NewFlow { key, reply, kind, backend: 0, class, idle_established_ms };
        let syn = PacketMeta { tcp_flags: SYN, ..PacketMeta::default() };
        let at = |ms: u64| Nanos::from_millis(10_000 + ms);
        let flow = table.insert(at(0), &new, &syn).expect("room");
        for &(ms, tcp_flags, direction) in packets {
            let mut meta = PacketMeta { tcp_flags, direction, ..PacketMeta::default() };
            table.touch(at(ms), flow, &mut meta, 60);
        }
        serving.tally(0).failed
    }

    #[test]
    fn a_syn_that_comes_again_after_a_second_has_failed_once() {
        let nat = |syns: &[u64]| failed(FlowKind::Nat, syns, false);
        assert_eq!(nat(&[0]), 0, "it has just begun");
        assert_eq!(nat(&[0, 1_000]), 1);
        assert_eq!(nat(&[0, 1_000, 3_000, 7_000]), 1, "one connection");
        assert_eq!(nat(&[0, 1, 2, 3, 800]), 0, "too soon for nobody to have answered");
        assert_eq!(nat(&[0, 1, 1_001]), 0, "no TCP does that");
        assert_eq!(failed(FlowKind::Nat, &[0], true), 1, "refused");
        assert_eq!(failed(FlowKind::Dsr, &[0, 1_000, 3_000], false), 0, "answers are not seen");
    }

    #[test]
    fn a_flow_that_is_opened_again_may_fail_as_a_new_one() {
        use Direction::{Forward, Reply};
        const ACK: u8 = 0x10;
        const FIN_ACK: u8 = 0x11;
        let opened = [(0, SYN, Forward), (1, SYN | ACK, Reply), (2, ACK, Forward)];
        let ended = [(3, FIN_ACK, Forward), (4, FIN_ACK, Reply), (5, ACK, Forward)];
        let life = [opened, ended].concat();
        let again =
            |syns: &[(u64, u8, Direction)]| failed_by(FlowKind::Nat, &[&life[..], syns].concat());
        assert_eq!(again(&[(5_000, SYN, Forward)]), 0);
        let unheard = [5_000, 6_000, 8_000].map(|ms| (ms, SYN, Forward));
        assert_eq!(again(&unheard), 1, "once");
        assert_eq!(again(&[unheard[0], (5_001, ACK, Reply), unheard[1]]), 0, "it is there");
        let twice = [&unheard[..], &[(8_001, SYN | ACK, Reply), (8_002, RST_ACK, Forward)]];
        let later = [15_000, 16_000].map(|ms| (ms, SYN, Forward));
        assert_eq!(again(&[&twice.concat()[..], &later].concat()), 2, "each time");
    }
}
