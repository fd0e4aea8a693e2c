//! Packets of flows that their own batch opens.
//!
//! Where a client opens a connection from the port of one that has ended, the old flow's backend
//! goes on with it: it is the one that knows the old connection's numbers. If that gets no new
//! flows any more (drained, down, taken out), the new connection is balanced as any other is. LVS
//! does so too (`conn_reuse_mode`, Documentation/networking/ipvs-sysctl.rst).
//!
//! Stages look at a batch one after the other, and a flow is entered by a late one. What follows a
//! SYN within the same batch would pass the stages in front as a packet of no flow: a ClientHello
//! that nobody reads. That happens where answers take another way (DSR, a tap) and the worker was
//! away for a moment, so such packets go once more around, as a batch of their own.

use super::offload::Offload;
use super::turn::WorkerParts;
use crate::base::Nanos;
use crate::flow::{Flow, FlowKind, TcpState};
use crate::forward::Tables;
use crate::nic::Port;
use crate::packet::batch::BATCH_MAX;
use crate::packet::tcp::flag::{ACK, SYN};
use crate::packet::{Batch, Direction, FlowKey, Packet, PacketFlags, PacketMeta, Verdict, tcp};

impl<P: Port> WorkerParts<P> {
    /// Forgets what connections of this batch must not go on with; which packets to run later is as
    /// [`followers`] says.
    #[cold]
    pub(super) fn openings(
        &mut self,
        now: Nanos,
        offload: &mut Option<Box<Offload>>,
        batch: &mut Batch,
    ) -> u64 {
        for i in 0..batch.len() {
            let meta = &batch.metas()[i];
            let at = meta.flow;
            if !at.is_some() || !opens(meta) || meta.direction != Direction::Forward {
                continue;
            }
            // Stages may refuse such a SYN.
            if meta.flags.has(PacketFlags::OTHER_HOST) || meta.flags.has(PacketFlags::FRAGMENT) {
                continue;
            }
            let flow = self.flows.get_mut(at);
            if !is_over(flow) || !is_left(&self.snapshot.forward, flow) {
                continue;
            }
            if let Some(offload) = offload {
                offload.take_back(now, at, flow);
            }
            self.pipeline.forget(flow, self.snapshot.seed);
            self.flows.remove(at);
            batch.forget(at);
        }
        followers(batch)
    }
}

/// Whether both sides have closed. Anybody can send a RST, and what one side has closed the other
/// may still be sending on: a SYN in the client's name must not end such a flow.
fn is_over(flow: &Flow) -> bool {
    matches!(flow.tcp, TcpState::TimeWait | TcpState::LastAck)
}

/// Whether a flow's backend would not get it if it were new. With tunnels and `dsr` nobody knows
/// whether it has ended, and what is bound late finds its backend anew in any case.
fn is_left(tables: &Tables, flow: &Flow) -> bool {
    let (client, server) = (flow.client_key(), flow.server_key());
    let gets = || {
        let service = tables.service(client.dst, client.dport, client.proto);
        service.is_some_and(|s| !s.drained && tables.is_among(s.pool, server.src, server.sport))
    };
    matches!(flow.kind, FlowKind::Nat | FlowKind::Dnat) && !gets()
}

/// Which packets of the batch to run later, a bit each: those that belong to no flow and follow a
/// SYN of their connection, in either direction, and SYNs that follow others, which may have opened
/// their flow without them.
#[cold]
fn followers(batch: &Batch) -> u64 {
    const { assert!(BATCH_MAX <= u64::BITS as usize) };
    let metas = batch.metas();
    // A bit for each hash of a SYN, and of others: under a flood most packets need no search.
    let (mut syns, mut others, mut found) = (0_u64, 0_u64, 0_u64);
    for (at, meta) in metas.iter().enumerate().filter(|(_, meta)| is_stray(meta)) {
        let (bit, opening) = (1 << fold(&meta.key), opens(meta));
        let (own, before) = if opening { (&mut syns, others) } else { (&mut others, syns) };
        *own |= bit;
        if before & bit != 0 {
            let answer = meta.key.reversed();
            let mut before = metas[..at].iter().filter(|m| is_stray(m) && opens(m) != opening);
            if before.any(|m| m.key == meta.key || m.key == answer) {
                found |= 1 << at;
            }
        }
    }
    found
}

/// Takes the packets out whose bits are set; both keep their order.
#[cold]
pub(super) fn set_aside(batch: &mut Batch, which: u64, aside: &mut Vec<Packet>) {
    aside.extend(batch.drain());
    let mut at = 0;
    let stay = aside.extract_if(.., |_| {
        at += 1;
        which >> (at - 1) & 1 == 0
    });
    stay.for_each(|packet| batch.push(packet));
}

fn is_stray(meta: &PacketMeta) -> bool {
    !meta.flow.is_some() && meta.verdict == Verdict::Next && meta.key.proto == tcp::PROTOCOL
}

fn opens(meta: &PacketMeta) -> bool {
    meta.tcp_flags & (SYN | ACK) == SYN
}

/// Six bits that both directions share.
fn fold(key: &FlowKey) -> u32 {
    let ports = u64::from(key.sport ^ key.dport);
    let mixed = (key.src.lo ^ key.dst.lo ^ key.src.hi ^ key.dst.hi ^ ports << 17)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 58) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::mem::Arena;
    use crate::base::{Addr, Seed};
    use crate::packet::FramePool;

    #[test]
    fn what_follows_a_syn_of_its_own_or_comes_before_it_goes_later() {
        let (arena, slots) = Arena::map(16, 2_048, false).expect("memory");
        let mut pool = FramePool::new(arena, slots);
        let key = |sport, dport| {
            let [src, dst] = [sport, dport].map(|port| Addr { hi: 7, lo: u64::from(port) });
            FlowKey { src, dst, sport, dport, proto: tcp::PROTOCOL }
        };
        let packets = [
            (key(1, 9), ACK, false),
            (key(1, 9), SYN, true),
            (key(9, 1), SYN | ACK, true),
            (key(2, 9), ACK, false),
            (key(1, 9), ACK, true),
            (key(3, 9), SYN, false),
            (key(3, 9), SYN, false),
            (key(1, 9), SYN, true),
            (key(1, 8), ACK, false),
            (key(3, 9), ACK, true),
        ];
        let mut batch = Batch::new();
        for (key, tcp_flags, _) in packets {
            let hash = key.hash(Seed(1));
            let meta = PacketMeta { key, hash, tcp_flags, ..PacketMeta::default() };
            batch.push(Packet { frame: pool.take().expect("a frame"), meta });
        }
        let which = followers(&batch);
        let want = packets.iter().rev().fold(0, |bits, (.., later)| bits << 1 | u64::from(*later));
        assert_eq!(which, want, "{which:b}");
        let mut aside = Vec::new();
        set_aside(&mut batch, which, &mut aside);
        let keys = |later: bool| {
            let these = packets.iter().filter(move |p| p.2 == later);
            these.map(|p| (p.0, p.1)).collect::<Vec<_>>()
        };
        let got: Vec<_> = batch.metas().iter().map(|m| (m.key, m.tcp_flags)).collect();
        assert_eq!(got, keys(false));
        let got: Vec<_> = aside.iter().map(|p| (p.meta.key, p.meta.tcp_flags)).collect();
        assert_eq!(got, keys(true));
        batch.drain().chain(aside).for_each(|packet| pool.put(packet.frame));
    }
}
