//! Copies of what shadowed connections say, for the thread that says it again to another server.
//!
//! Taken where the balancer begins: as the client has sent it, and the server, and of no packet
//! that was refused before. Nothing else is done to the packets.

use crate::graph::Cx;
use crate::observe::copies::{CopiedSegment, CopyAbout};
use crate::packet::tcp::flag::{FIN, RST, SYN};
use crate::packet::{Batch, Direction, FlowRef, PacketFlags, PacketMeta, Verdict, tcp};

/// Copies the segments of shadowed connections that say something.
#[inline]
pub(super) fn copy_shadowed(cx: &mut Cx<'_>, batch: &mut Batch) {
    if cx.snapshot.forward.has_shadows() {
        copy_segments(cx, batch);
    }
}

#[cold]
fn copy_segments(cx: &mut Cx<'_>, batch: &mut Batch) {
    let Some(ring) = &cx.copies.ring else { return };
    let (frames, metas) = batch.parts_mut();
    for (frame, meta) in frames.iter().zip(metas) {
        if meta.verdict != Verdict::Next || !says_something(meta) {
            continue;
        }
        let key = match meta.flow {
            flow if flow.is_some() && meta.direction == Direction::Reply => {
                cx.flows.get(flow).client_key()
            }
            _ => meta.key,
        };
        if !cx.snapshot.forward.shadows(&key) {
            continue;
        }
        let about = CopyAbout::Segment(CopiedSegment {
            key,
            direction: meta.direction,
            seq: meta.tcp_seq,
            ack: meta.tcp_ack,
            flags: meta.tcp_flags,
            is_bound: meta.flow != FlowRef::NONE,
        });
        let part = usize::from(meta.payload)..usize::from(meta.end.max(meta.payload));
        let payload = frame.bytes(cx.arena).get(part).unwrap_or_default();
        match ring.push(cx.now, about, payload) {
            true => cx.counters.shadow_copied += 1,
            false => cx.counters.shadow_missed += 1,
        }
    }
}

fn says_something(meta: &PacketMeta) -> bool {
    meta.key.proto == tcp::PROTOCOL
        && !meta.flags.has(PacketFlags::FRAGMENT)
        && (meta.payload_len() > 0 || meta.tcp_flags & (SYN | FIN | RST) != 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::flow::FlowLimits;
    use crate::forward::Tables;
    use crate::forward::spec::{ForwardMode, PoolId, ShadowSpec};
    use crate::graph::stages::balance::Balance;
    use crate::graph::stages::rig::*;
    use crate::observe::copies::CopyRing;
    use crate::packet::tcp::flag::{ACK, PSH};
    use crate::packet::{DropReason, FlowKey};

    fn rig(share: u16) -> Rig {
        let mut rig = Rig::new(FlowLimits { flows_max: 64, half_open_max: 16 });
        let mut spec = services();
        for service in &mut spec.services {
            service.shadow = Some(ShadowSpec { pool: PoolId(0), share });
        }
        rig.snapshot.forward = Arc::new(Tables::build(&spec, 1, rig.snapshot.seed));
        rig.copies.ring = Some(Arc::new(CopyRing::new(4, 2_048)));
        rig
    }

    fn copies(rig: &Rig) -> Vec<(CopiedSegment, usize)> {
        let ring = rig.copies.ring.as_ref().expect("one");
        let take = || {
            let record = ring.take()?;
            let CopyAbout::Segment(segment) = record.about else { panic!("a frame") };
            let length = record.length;
            ring.give_back(record);
            Some((segment, length))
        };
        std::iter::from_fn(take).collect()
    }

    fn port(of: ForwardMode) -> u16 {
        MODES.iter().find(|(mode, _)| *mode == of).expect("one of three").1
    }

    #[test]
    fn both_sides_are_copied_under_the_clients_key_and_go_on_as_they_are() {
        let (mut rig, mut plain) =
            (rig(10_000), Rig::new(FlowLimits { flows_max: 64, half_open_max: 16 }));
        let (mut balance, mut other) = (Balance::new(), Balance::new());
        let vip = (V4.vip, port(ForwardMode::Dnat));
        let said = |flags, payload| Shape { payload, ..Shape::tcp(flags) };
        let sent = [
            said(SYN, 0).between(V4.client, vip),
            said(SYN | ACK, 0).at_backend().between(V4.backend, V4.client),
            said(ACK | PSH, 100).between(V4.client, vip),
            said(ACK, 0).between(V4.client, vip),
            said(ACK, 100).at_backend().between(V4.backend, V4.client),
        ];
        let mut all = Vec::new();
        for packet in sent {
            let out = rig.run(&mut balance, packet.clone());
            assert!(out.bytes == plain.run(&mut other, packet).bytes, "untouched");
            all.extend(copies(&rig));
        }
        let told: Vec<_> =
            all.iter().map(|(s, length)| (s.direction, s.is_bound, s.flags, *length)).collect();
        use Direction::{Forward, Reply};
        let wanted = [
            (Forward, false, SYN, 0),
            (Reply, true, SYN | ACK, 0),
            (Forward, true, ACK | PSH, 100),
            (Reply, true, ACK, 100),
        ];
        assert_eq!(told, wanted, "but for the bare acknowledgement");
        let keys: Vec<FlowKey> = all.iter().map(|(s, _)| s.key).collect();
        assert!(keys.iter().all(|key| *key == keys[0] && key.dst == addr(V4.vip)), "{keys:?}");
        assert_eq!((rig.counters.shadow_copied, rig.counters.shadow_missed), (4, 0));
    }

    #[test]
    fn a_full_ring_costs_copies_and_no_packets() {
        let mut rig = rig(10_000);
        let mut balance = Balance::new();
        for _ in 0..6 {
            let syn = Shape::syn().between(V4.client, (V4.vip, port(ForwardMode::Dnat)));
            assert_eq!(rig.run(&mut balance, syn).verdict, Verdict::Output);
        }
        assert_eq!((rig.counters.shadow_copied, rig.counters.shadow_missed), (4, 2));
    }

    #[test]
    fn who_is_not_in_the_share_or_was_refused_is_not_copied() {
        let mut rig = rig(0);
        let mut balance = Balance::new();
        let syn = Shape::syn().between(V4.client, (V4.vip, port(ForwardMode::Dnat)));
        rig.run(&mut balance, syn);
        assert_eq!(copies(&rig), []);
        let mut meta = PacketMeta { tcp_flags: SYN, ..PacketMeta::default() };
        meta.key.proto = tcp::PROTOCOL;
        assert!(says_something(&meta));
        meta.flags.set(PacketFlags::FRAGMENT);
        assert!(!says_something(&meta));
        meta.drop_for(DropReason::PolicyDrop);
        assert_ne!(meta.verdict, Verdict::Next);
    }
}
