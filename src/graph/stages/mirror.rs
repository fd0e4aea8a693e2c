//! Copies of packets that leave by a port of their own, in GRE to a host that collects them, or go
//! into files: `mirror` of rules.
//!
//! A copy is what the client's side sees: a client's packet as it came, a server's as it goes on to
//! the client. What becomes of the packet itself does not depend on it.

use crate::base::Addr;
use crate::graph::{COPIES_MAX, Cx};
use crate::observe::copies::CopyAbout;
use crate::packet::gre::Envelope;
use crate::packet::{
    Batch, ClassId, CopyTo, Direction, Packet, PacketFlags, PacketMeta, PacketMut, PortId, Verdict,
    complete_checksum, eth,
};

/// Has a packet copied: at once, or as it leaves where it is a server's.
pub(super) fn mirror(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>, to: CopyTo) {
    match packet.meta.direction {
        // What has waited since it was copied.
        Direction::Forward if packet.meta.flags.has(PacketFlags::COPIED) => {}
        Direction::Forward => {
            packet.meta.flags.set(PacketFlags::COPIED);
            copy(cx, packet.frame.bytes(cx.arena), packet.meta, to);
        }
        Direction::Reply => {
            packet.meta.flags.set(PacketFlags::MIRRORED);
            cx.copies.later = true;
        }
    }
}

/// Copies those of a batch that were to be copied as they leave.
#[inline]
pub fn mirror_leaving(cx: &mut Cx<'_>, batch: &mut Batch) {
    if std::mem::take(&mut cx.copies.later) {
        copy_leaving(cx, batch);
    }
}

#[cold]
fn copy_leaving(cx: &mut Cx<'_>, batch: &mut Batch) {
    let (frames, metas) = batch.parts_mut();
    for (frame, meta) in frames.iter().zip(metas) {
        if !meta.flags.has(PacketFlags::MIRRORED) {
            continue;
        }
        if meta.verdict != Verdict::Output {
            // Dropped; or it waits for its neighbour's address, and has no complete header yet.
            cx.counters.mirror_missed += u64::from(meta.verdict == Verdict::Park);
            continue;
        }
        let treatment = cx.flows.steps().treatments.get(cx.flows.get(meta.flow).treatment);
        // Who gets the packet itself gets no copy.
        let own = CopyTo::Port(meta.out_port);
        if let Some(to) = treatment.mirror.filter(|to| *to != own) {
            copy(cx, frame.bytes(cx.arena), meta, to);
        }
    }
}

fn copy(cx: &mut Cx<'_>, bytes: &[u8], meta: &PacketMeta, to: CopyTo) {
    if let CopyTo::Files(files) = to {
        // As it would have left: a local sender's checksum is completed on the way.
        let whole = |copy: &mut [u8]| complete_checksum(copy, &mut meta.clone());
        let about = CopyAbout::Frame(files);
        let ring = cx.copies.ring.as_ref();
        return match ring.is_some_and(|r| r.push_edited(cx.now, about, bytes, whole)) {
            true => cx.counters.mirrored += 1,
            false => cx.counters.mirror_missed += 1,
        };
    }
    let has_room = cx.copies.packets.len() < COPIES_MAX;
    // A port that takes copies too slowly must not cost the packets themselves their frames.
    let made = match to {
        _ if !(cx.pool.is_rich() && has_room) => None,
        CopyTo::Port(port) => as_it_is(cx, bytes, meta, port),
        CopyTo::Host(host) => in_gre(cx, bytes, meta, host),
        CopyTo::Files(_) => None,
    };
    match made {
        Some(packet) => {
            cx.counters.mirrored += 1;
            cx.copies.packets.push(packet);
        }
        None => cx.counters.mirror_missed += 1,
    }
}

/// A copy for a port.
fn as_it_is(cx: &mut Cx<'_>, bytes: &[u8], meta: &PacketMeta, port: PortId) -> Option<Packet> {
    // Sent back to where it came from it might come again.
    let is_elsewhere = port != meta.in_port;
    let egress = cx.snapshot.routes.egress(port).filter(|_| is_elsewhere)?;
    if usize::from(meta.end) > usize::from(egress.mtu) + usize::from(meta.l3) {
        return None;
    }
    let mut frame = cx.pool.take_with(bytes)?;
    // Among the port's own packets copies have no class: its default takes them.
    let mut meta = PacketMeta {
        class: ClassId::UNSET,
        out_port: port,
        verdict: Verdict::Output,
        ..meta.clone()
    };
    complete_checksum(frame.bytes_mut(cx.arena), &mut meta);
    Some(Packet { frame, meta })
}

/// A copy for a host, the whole frame or as much as fits the way there: none where that is not
/// known, neighbour included.
fn in_gre(cx: &mut Cx<'_>, bytes: &[u8], meta: &PacketMeta, host: Addr) -> Option<Packet> {
    let routes = &cx.snapshot.routes;
    let way = routes.resolve(host, &meta.key).ok()?;
    let envelope = Envelope {
        source: routes.own_address(way.port, host.is_v4())?,
        destination: host,
        source_mac: routes.egress(way.port)?.mac,
        destination_mac: way.mac?,
    };
    let mut frame = cx.pool.take_with(bytes)?;
    complete_checksum(frame.bytes_mut(cx.arena), &mut meta.clone());
    let room = envelope.room(way.mtu);
    cx.counters.mirror_cut += u64::from(bytes.len() > room);
    frame.truncate(room);
    if !frame.push_front(envelope.len()) {
        cx.pool.put(frame);
        return None;
    }
    envelope.emit(frame.bytes_mut(cx.arena));
    let meta = PacketMeta {
        hash: meta.hash,
        in_port: meta.in_port,
        out_port: way.port,
        verdict: Verdict::Output,
        l3: eth::HEADER_LEN as u16,
        end: frame.len() as u16,
        ..PacketMeta::default()
    };
    Some(Packet { frame, meta })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::flow::FlowLimits;
    use crate::forward::spec::ForwardMode;
    use crate::graph::Stage;
    use crate::graph::stages::balance::Balance;
    use crate::graph::stages::classify::Classify;
    use crate::graph::stages::rig::*;
    use crate::observe::copies::CopyRing;
    use crate::packet::FilesId;
    use crate::packet::build::ChecksumFill;
    use crate::packet::tcp::flag::{ACK, SYN};
    use crate::policy::Rules;
    use crate::policy::spec::{Mirror, RuleSpec};

    /// As in a pipeline.
    struct Whole(Balance);

    impl Stage for Whole {
        fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
            Classify::new(true).process(cx, batch);
            self.0.process(cx, batch);
            mirror_leaving(cx, batch);
        }
    }

    fn rig(to: CopyTo) -> (Rig, Whole) {
        let mut rig = Rig::new(FlowLimits { flows_max: 64, half_open_max: 16 });
        let mirror = Some(Mirror { to, share: Mirror::ALL });
        let rule = RuleSpec { mirror, mark: Some(46), ..RuleSpec::default() };
        rig.snapshot.rules = Arc::new(Rules::compile(&[rule]));
        (rig, Whole(Balance::new()))
    }

    /// The port of the service whose packets keep their source.
    fn dnat() -> u16 {
        MODES.iter().find(|(mode, _)| *mode == ForwardMode::Dnat).expect("one of three").1
    }

    #[test]
    fn copies_show_the_clients_side() {
        for family in [&V4, &V6] {
            let (mut rig, mut whole) = rig(CopyTo::Port(MONITOR_PORT));
            let sent = Shape::syn().between(family.client, (family.vip, dnat()));
            let out = rig.run(&mut whole, sent.clone());
            assert_eq!((out.meta.out_port, out.meta.dscp()), (BACKEND_PORT, 46));
            let copies = rig.copied();
            assert_eq!(copies.len(), 1);
            assert!(copies[0].bytes == sent, "as it came, before it was marked");
            let answer = Shape::tcp(SYN | ACK).at_backend();
            let out = rig.run(&mut whole, answer.between(family.backend, family.client));
            assert_eq!((out.verdict, out.meta.out_port), (Verdict::Output, CLIENT_PORT));
            let copies = rig.copied();
            assert_eq!(copies.len(), 1);
            assert!(copies[0].bytes == out.bytes, "as it goes on");
            let meta = &copies[0].meta;
            assert_eq!((meta.out_port, meta.class), (MONITOR_PORT, ClassId::UNSET));
            assert_eq!((rig.counters.mirrored, rig.counters.mirror_missed), (2, 0));
        }
    }

    #[test]
    fn what_has_waited_is_copied_once() {
        let (mut rig, mut whole) = rig(CopyTo::Port(MONITOR_PORT));
        let sent = Shape::udp().between(V4.client, (V4.vip, dnat()));
        let out = rig.run(&mut whole, sent.clone());
        assert_eq!(rig.copied().len(), 1);
        // Its flow is known by now.
        let again = |meta: &mut PacketMeta| meta.flags = out.meta.flags;
        let (again, _) = rig.run_with(&mut whole, &[sent], again);
        assert_eq!((again[0].verdict, rig.copied().len()), (Verdict::Output, 0));
    }

    #[test]
    fn what_must_not_be_copied_is_not_and_is_counted() {
        let syn = || Shape::syn().between(V4.client, (V4.vip, dnat()));
        for (to, missed) in [(CLIENT_PORT, 1), (PortId(9), 1), (MONITOR_PORT, 0)] {
            let (mut rig, mut whole) = rig(CopyTo::Port(to));
            assert_eq!(rig.run(&mut whole, syn()).verdict, Verdict::Output);
            assert_eq!(rig.copied().len() as u64, 1 - missed, "{to:?}");
            assert_eq!(rig.counters.mirror_missed, missed, "{to:?}");
        }
        // The server's answers leave by the client's port, who would get them twice.
        let (mut rig, mut whole) = rig(CopyTo::Port(CLIENT_PORT));
        rig.run(&mut whole, syn());
        let answer = Shape::tcp(SYN | ACK).at_backend();
        rig.run(&mut whole, answer.between(V4.backend, V4.client));
        assert!(rig.copied().is_empty());
        // Larger than the monitor's link takes.
        let (mut rig, mut whole) = self::rig(CopyTo::Port(MONITOR_PORT));
        let large = Shape { payload: 1_440, ..Shape::udp() };
        rig.run_answered(&mut whole, large.between(V4.client, (V4.vip, dnat())));
        assert_eq!((rig.copied().len(), rig.counters.mirror_missed), (0, 1));
    }

    #[test]
    fn a_host_that_collects_copies_gets_them_in_gre() {
        for family in [&V4, &V6] {
            let host = addr(family.backend.0);
            let (mut rig, mut whole) = rig(CopyTo::Host(host));
            let sent = Shape::syn().between(family.client, (family.vip, dnat()));
            let out = rig.run(&mut whole, sent.clone());
            let answer = Shape::tcp(SYN | ACK).at_backend();
            let answer = rig.run(&mut whole, answer.between(family.backend, family.client));
            let copies = rig.copied();
            assert_eq!(copies.len(), 2);
            for (copy, inner) in copies.iter().zip([&sent, &answer.bytes]) {
                let headers = copy.bytes.len() - inner.len();
                assert_eq!(copy.meta.out_port, BACKEND_PORT);
                assert_eq!(copy.bytes[..12], out.bytes[..12], "to the same neighbour");
                assert_eq!(copy.bytes[headers - 4..headers], [0, 0, 0x65, 0x58]);
                assert!(copy.bytes[headers..] == **inner, "as the client's side sees it");
                assert_eq!(usize::from(copy.meta.end), copy.bytes.len());
            }
            // What a device was to complete is complete.
            let partial = Shape { sum: ChecksumFill::Partial, ..Shape::syn() };
            let other = (family.client.0, family.client.1 + 1);
            rig.run(&mut whole, partial.between(other, (family.vip, dnat())));
            let whole_one = Shape::syn().between(other, (family.vip, dnat()));
            let copies = rig.copied();
            assert!(copies[0].bytes.ends_with(&whole_one), "{:02x?}", copies[0].bytes);
            // A large one is cut to what the link takes; the packet itself is whole.
            let large = Shape { payload: 1_440, ..Shape::udp() };
            rig.run_answered(&mut whole, large.between(family.client, (family.vip, dnat())));
            let copies = rig.copied();
            assert_eq!(copies.len(), 1);
            assert_eq!((copies[0].bytes.len(), rig.counters.mirror_cut), (1_414, 1));
            assert_eq!((rig.counters.mirrored, rig.counters.mirror_missed), (4, 0));

            let nobody = CopyTo::Host(addr(family.unresolved.0));
            let (mut rig, mut whole) = self::rig(nobody);
            assert_eq!(rig.run(&mut whole, sent).verdict, Verdict::Output);
            assert_eq!((rig.copied().len(), rig.counters.mirror_missed), (0, 1));
        }
    }

    #[test]
    fn copies_leave_half_of_the_frames_alone() {
        let (mut rig, mut whole) = rig(CopyTo::Port(MONITOR_PORT));
        let owned = rig.pool.owned();
        let mut kept = Vec::new();
        for _ in 0..owned {
            rig.run(&mut whole, Shape::syn().between(V4.client, (V4.vip, dnat())));
            kept.append(&mut rig.copies.packets);
            if rig.counters.mirror_missed > 0 {
                break;
            }
        }
        assert!(kept.len() >= owned / 2 - 2, "{}", kept.len());
        assert!(rig.pool.available() >= owned / 2, "{}", rig.pool.available());
        kept.into_iter().for_each(|copy| rig.pool.put(copy.frame));
    }

    #[test]
    fn files_get_both_sides_and_cost_copies_only_where_they_are_not_written() {
        let files = FilesId(9);
        let (mut rig, mut whole) = rig(CopyTo::Files(files));
        let syn = || Shape::syn().between(V4.client, (V4.vip, dnat()));
        assert_eq!(rig.run(&mut whole, syn()).verdict, Verdict::Output);
        assert_eq!(
            (rig.counters.mirrored, rig.counters.mirror_missed),
            (0, 1),
            "nobody takes them"
        );
        rig.copies.ring = Some(Arc::new(CopyRing::new(2, 2_048)));
        let sent = syn();
        rig.run(&mut whole, sent.clone());
        let answer = Shape::tcp(SYN | ACK).at_backend();
        let out = rig.run(&mut whole, answer.between(V4.backend, V4.client));
        assert_eq!(rig.run(&mut whole, syn()).verdict, Verdict::Output);
        assert_eq!((rig.counters.mirrored, rig.counters.mirror_missed), (2, 2), "both wait");
        let ring = rig.copies.ring.as_ref().expect("one");
        for wanted in [&sent, &out.bytes] {
            let record = ring.take().expect("a copy");
            assert_eq!(record.about, CopyAbout::Frame(files));
            assert!(record.bytes() == wanted.as_slice(), "as the client's side sees it");
            ring.give_back(record);
        }
        // What a device was to complete is complete.
        let partial = Shape { sum: ChecksumFill::Partial, ..Shape::syn() };
        let other = (V4.client.0, V4.client.1 + 1);
        rig.run(&mut whole, partial.between(other, (V4.vip, dnat())));
        let ring = rig.copies.ring.as_ref().expect("one");
        let record = ring.take().expect("a copy");
        assert!(record.bytes() == Shape::syn().between(other, (V4.vip, dnat())).as_slice());
    }
}
