//! Packets that wait for their next hop's MAC address, in bounded numbers and for a bounded time.
//!
//! The kernel resolves neighbours (ARP, RFC 826; ND, RFC 4861); the control plane asks it to for
//! each next hop that [`Parking::wanted`] names, and publishes new [`Routes`] when it has answered.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::mem::Arena;
use crate::base::{Addr, Nanos};
use crate::packet::{DropReason, Packet, PortId, Verdict};

use super::link;
use super::routes::Routes;

/// Packets that wait for one next hop at most: the first ones of flows that begin within the
/// milliseconds that resolving takes. The kernel's own queue (`unres_qlen_bytes`) holds about 90.
pub const PARKED_PER_NEXT_HOP_MAX: usize = 64;
/// Packets that wait at most: frames held here are missing for receiving.
pub const PARKED_MAX: usize = 1024;
/// Next hops waited for at most. Whoever scans a prefix on a link of ours fills this, and no more.
pub const NEXT_HOPS_MAX: usize = 256;
/// How long a packet waits: the kernel's three probes, a second apart (RFC 4861, section 10).
pub const PARK_TIMEOUT: Nanos = Nanos::from_secs(3);
/// A next hop is named as wanted again after this time, should the request have been lost.
pub const WANTED_AGAIN: Nanos = Nanos::from_secs(1);

const _: () = assert!(PARKED_PER_NEXT_HOP_MAX <= PARKED_MAX && NEXT_HOPS_MAX <= PARKED_MAX);

/// The waiting packets of one worker.
pub struct Parking {
    arena: Arc<Arena>,
    /// The latest time that was passed in.
    now: Nanos,
    /// In the order of arrival, which is that of their deadlines.
    packets: VecDeque<Parked>,
    next_hops: Vec<NextHop>,
}

#[derive(Debug)]
struct Parked {
    packet: Packet,
    since: Nanos,
    port: PortId,
    next_hop: Addr,
}

#[derive(Debug)]
struct NextHop {
    port: PortId,
    addr: Addr,
    packets: usize,
    /// To be named by [`Parking::wanted`].
    unasked: bool,
    /// When it was last named.
    asked_at: Nanos,
}

impl Parking {
    /// For packets whose frames are of `arena`. Takes all its memory at once.
    pub fn new(arena: Arc<Arena>) -> Parking {
        Parking {
            arena,
            now: Nanos::ZERO,
            packets: VecDeque::with_capacity(PARKED_MAX),
            next_hops: Vec::with_capacity(NEXT_HOPS_MAX),
        }
    }

    /// Packets that may wait at once.
    pub fn capacity(&self) -> usize {
        PARKED_MAX
    }

    /// Packets that wait now.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Has a packet, rewritten but for its destination MAC, wait for `next_hop` on `port`.
    ///
    /// # Errors
    /// The packet comes back with [`DropReason::NeighbourUnresolved`] where too many wait.
    pub fn park(
        &mut self,
        now: Nanos,
        packet: Packet,
        port: PortId,
        next_hop: Addr,
    ) -> Result<(), (Packet, DropReason)> {
        const REFUSED: DropReason = DropReason::NeighbourUnresolved;
        self.now = now;
        if self.packets.len() >= PARKED_MAX {
            return Err((packet, REFUSED));
        }
        let next_hops_len = self.next_hops.len();
        match self.next_hops.iter_mut().find(|h| h.addr == next_hop && h.port == port) {
            Some(h) if h.packets >= PARKED_PER_NEXT_HOP_MAX => return Err((packet, REFUSED)),
            Some(h) => h.packets += 1,
            None if next_hops_len >= NEXT_HOPS_MAX => return Err((packet, REFUSED)),
            None => {
                let (addr, unasked, asked_at) = (next_hop, true, now);
                self.next_hops.push(NextHop { port, addr, packets: 1, unasked, asked_at });
            }
        }
        self.packets.push_back(Parked { packet, since: now, port, next_hop });
        Ok(())
    }

    /// Moves packets whose next hop `routes` knows to `out`, ready to send: destination MAC
    /// written, [`Verdict::Output`], in the order in which they came. To be called when routes have
    /// changed.
    pub fn retry(&mut self, now: Nanos, routes: &Routes, out: &mut Vec<Packet>) {
        self.now = now;
        for _ in 0..self.packets.len() {
            let Some(mut parked) = self.packets.pop_front() else { break };
            match routes.neighbour(parked.port, parked.next_hop) {
                Some(mac) => {
                    self.leave(parked.port, parked.next_hop);
                    link::set_destination(parked.packet.frame.bytes_mut(&self.arena), mac);
                    parked.packet.meta.out_port = parked.port;
                    parked.packet.meta.verdict = Verdict::Output;
                    out.push(parked.packet);
                }
                None => self.packets.push_back(parked),
            }
        }
        self.check_invariants();
    }

    /// Moves packets that have waited for [`PARK_TIMEOUT`] to `out`, to be dropped.
    /// To be called every few milliseconds; it also sees to it that next hops are asked for again.
    pub fn expire(&mut self, now: Nanos, out: &mut Vec<Packet>) {
        self.now = now;
        while let Some(oldest) = self.packets.front()
            && now.since(oldest.since) >= PARK_TIMEOUT.0
        {
            let Some(parked) = self.packets.pop_front() else { break };
            self.leave(parked.port, parked.next_hop);
            let mut packet = parked.packet;
            packet.meta.drop_for(DropReason::NeighbourUnresolved);
            out.push(packet);
        }
        for h in &mut self.next_hops {
            h.unasked |= now.since(h.asked_at) >= WANTED_AGAIN.0;
        }
        self.check_invariants();
    }

    /// Moves all packets to `out`, to be dropped: for a stop.
    pub fn drain(&mut self, out: &mut Vec<Packet>) {
        self.next_hops.clear();
        for parked in self.packets.drain(..) {
            let mut packet = parked.packet;
            packet.meta.drop_for(DropReason::Shutdown);
            out.push(packet);
        }
    }

    /// When [`Parking::expire`] next has something to do.
    pub fn next_event(&self) -> Option<Nanos> {
        self.packets.front().map(|p| p.since.saturating_add(PARK_TIMEOUT.0))
    }

    /// A next hop that the kernel is to be asked to resolve; each is named at once, and again every
    /// [`WANTED_AGAIN`] while packets wait for it. `None`: no more for now.
    pub fn wanted(&mut self) -> Option<(PortId, Addr)> {
        let next_hop = self.next_hops.iter_mut().find(|h| h.unasked)?;
        next_hop.unasked = false;
        next_hop.asked_at = self.now;
        Some((next_hop.port, next_hop.addr))
    }

    fn leave(&mut self, port: PortId, addr: Addr) {
        let found = self.next_hops.iter().position(|h| h.addr == addr && h.port == port);
        if let Some(i) = found {
            self.next_hops[i].packets -= 1;
            if self.next_hops[i].packets == 0 {
                self.next_hops.swap_remove(i);
            }
        }
    }

    fn check_invariants(&self) {
        debug_assert_eq!(
            self.next_hops.iter().map(|h| h.packets).sum::<usize>(),
            self.packets.len()
        );
        debug_assert!(self.next_hops.iter().all(|h| h.packets > 0));
        debug_assert!(self.packets.len() <= PARKED_MAX && self.next_hops.len() <= NEXT_HOPS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Seed;
    use crate::forward::{PortLink, RoutesBuilder};
    use crate::packet::{FramePool, PacketMeta};

    const PORT: PortId = PortId(0);

    fn routes(known: &[Addr]) -> Routes {
        let port = PortLink {
            id: PORT,
            ifindex: 3,
            name: "veth0".into(),
            mac: [2; 6],
            mtu: 1500,
            addrs: vec![],
        };
        let mut b = RoutesBuilder::new(vec![port], Seed(1));
        for a in known {
            b.set_neighbour(3, *a, [9; 6]);
        }
        b.build(1)
    }

    struct Bench {
        pool: FramePool,
        parking: Parking,
        out: Vec<Packet>,
    }

    impl Bench {
        fn new() -> Bench {
            let pool = FramePool::standalone(PARKED_MAX as u32 + 1, 2048);
            let parking = Parking::new(pool.arena().clone());
            Bench { pool, parking, out: Vec::new() }
        }

        /// Parks a packet that carries `tag`; gives the frame back where it is refused.
        fn park(&mut self, now: Nanos, hop: u32, tag: u8) -> bool {
            let frame = self.pool.take_with(&[tag; 60]).expect("stock");
            let packet = Packet { frame, meta: PacketMeta::default() };
            match self.parking.park(now, packet, PORT, Addr::v4(hop)) {
                Ok(()) => true,
                Err((packet, reason)) => {
                    assert_eq!(reason, DropReason::NeighbourUnresolved);
                    self.pool.put(packet.frame);
                    false
                }
            }
        }

        /// Tags, destination MACs and verdicts of what came out; the frames go back.
        fn collect(&mut self) -> Vec<(u8, u8, Verdict)> {
            let mut seen = Vec::new();
            for p in self.out.drain(..) {
                let bytes = p.frame.bytes(self.pool.arena());
                seen.push((bytes[20], bytes[0], p.meta.verdict));
                self.pool.put(p.frame);
            }
            seen
        }

        fn finish(mut self) {
            self.parking.drain(&mut self.out);
            let reasons = self.collect();
            assert!(reasons.iter().all(|r| r.2 == Verdict::Drop(DropReason::Shutdown)));
            assert_eq!(self.pool.outstanding(), 0);
        }
    }

    #[test]
    fn packets_leave_in_order_when_their_neighbour_is_known() {
        let mut b = Bench::new();
        for tag in 0..6 {
            assert!(b.park(Nanos::ZERO, u32::from(tag % 2), tag));
        }
        b.parking.retry(Nanos(1), &routes(&[]), &mut b.out);
        assert!(b.out.is_empty() && b.parking.len() == 6);
        b.parking.retry(Nanos(2), &routes(&[Addr::v4(1)]), &mut b.out);
        let want: Vec<_> = [1, 3, 5].iter().map(|&t| (t, 9, Verdict::Output)).collect();
        assert_eq!(b.collect(), want);
        assert_eq!(b.parking.len(), 3);
        b.finish();
    }

    #[test]
    fn limits_per_next_hop_in_next_hops_and_in_all() {
        let mut b = Bench::new();
        for _ in 0..PARKED_PER_NEXT_HOP_MAX {
            assert!(b.park(Nanos::ZERO, 0, 0));
        }
        assert!(!b.park(Nanos::ZERO, 0, 0));
        for hop in 1..NEXT_HOPS_MAX as u32 {
            assert!(b.park(Nanos::ZERO, hop, 0));
        }
        assert!(!b.park(Nanos::ZERO, NEXT_HOPS_MAX as u32, 0));
        let mut hop = 0;
        while b.parking.len() < PARKED_MAX {
            hop += 1;
            while b.parking.len() < PARKED_MAX && b.park(Nanos::ZERO, hop, 0) {}
        }
        assert!(!b.park(Nanos::ZERO, NEXT_HOPS_MAX as u32 - 1, 0));
        b.finish();
    }

    #[test]
    fn what_waits_too_long_is_dropped() {
        let mut b = Bench::new();
        assert!(b.park(Nanos::from_secs(1), 1, 1));
        assert!(b.park(Nanos::from_secs(2), 1, 2));
        assert_eq!(b.parking.next_event(), Some(Nanos::from_secs(4)));
        b.parking.expire(Nanos(Nanos::from_secs(4).0 - 1), &mut b.out);
        assert!(b.out.is_empty());
        b.parking.expire(Nanos::from_secs(4), &mut b.out);
        let dropped = Verdict::Drop(DropReason::NeighbourUnresolved);
        assert_eq!(b.collect(), vec![(1, 1, dropped)]);
        b.parking.expire(Nanos::from_secs(5), &mut b.out);
        assert_eq!(b.collect(), vec![(2, 2, dropped)]);
        assert!(b.parking.is_empty() && b.parking.next_event().is_none());
        assert_eq!(b.parking.wanted(), None, "nobody waits");
        b.finish();
    }

    #[test]
    fn each_next_hop_is_wanted_once_a_second() {
        let mut b = Bench::new();
        for (hop, tag) in [(1, 1), (2, 2), (1, 3)] {
            assert!(b.park(Nanos::ZERO, hop, tag));
        }
        let mut ask = |ms| {
            let mut list = Vec::new();
            b.parking.expire(Nanos::from_millis(ms), &mut b.out);
            while let Some((port, addr)) = b.parking.wanted() {
                assert_eq!(port, PORT);
                list.push(addr.v4_bits());
            }
            list
        };
        assert_eq!(ask(0), [1, 2]);
        assert_eq!(ask(999), [0; 0]);
        assert_eq!(ask(1000), [1, 2]);
        b.finish();
    }
}
