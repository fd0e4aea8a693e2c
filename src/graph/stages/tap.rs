//! The tap: follows the flows of what it sees, and transmits nothing.

use super::egress::each_overheard;
use super::transit::{has_flow, open};
use crate::flow::InsertError;
use crate::graph::{Cx, Stage};
use crate::packet::tcp::flag::{ACK, SYN};
use crate::packet::{Batch, DropReason, FlowRef, PacketMeta, PacketMut, tcp};

/// Ends every packet's way. It keeps nothing itself.
///
/// TCP, UDP and echo packets open flows, so that the stages in front read what follows and the
/// class is decided by it. What was seen ends as [`DropReason::TapOnly`]; what the table has no
/// room for, as the reason for that: then there is more than is listed.
#[derive(Clone, Debug, Default)]
pub struct Tap;

impl Tap {
    pub fn new() -> Tap {
        Tap
    }
}

impl Stage for Tap {
    fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
        each_overheard(cx, batch, |cx, packet| Err(see(cx, packet)));
    }
}

fn see(cx: &mut Cx<'_>, packet: &mut PacketMut<'_>) -> DropReason {
    let meta = &mut *packet.meta;
    // Earlier in this batch it may have been opened.
    if meta.flow == FlowRef::NONE
        && let Some((flow, direction)) = cx.flows.lookup(&meta.key, meta.hash)
    {
        (meta.flow, meta.direction) = (flow, direction);
    }
    if meta.flow == FlowRef::NONE {
        if !has_flow(meta) || answers(meta) {
            return DropReason::TapOnly;
        }
        meta.flow = match open(cx, meta) {
            Ok(flow) => flow,
            Err(InsertError::Drop(reason)) => return reason,
            // The other direction of a flow of a service, from before a reload.
            Err(InsertError::KeyTaken) => return DropReason::TapOnly,
        };
    }
    cx.flows.touch(cx.now, meta.flow, meta, packet.frame.len() as u32);
    DropReason::TapOnly
}

/// A SYN-ACK opens nothing: a flow's first packet is taken for its client's. Where two ports see
/// one direction each it may come before its SYN.
fn answers(meta: &PacketMeta) -> bool {
    meta.key.proto == tcp::PROTOCOL && meta.tcp_flags & (SYN | ACK) == SYN | ACK
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::Nanos;
    use crate::flow::{FlowLimits, TcpState};
    use crate::graph::stages::classify::Classify;
    use crate::graph::stages::inspect::Inspect;
    use crate::graph::stages::rig::*;
    use crate::inspect::tls::tests::rustls_hello;
    use crate::packet::build::{IpSpec, LinkSpec, TcpSpec, ip_packet, tcp_packet};
    use crate::packet::tcp::flag::RST;
    use crate::packet::{ClassId, PacketFlags, Verdict};
    use crate::policy::Rules;
    use crate::policy::spec::{NamePattern, RuleSpec};

    const LIMITS: FlowLimits = FlowLimits { flows_max: 64, half_open_max: 16 };
    const SEEN: Verdict = Verdict::Drop(DropReason::TapOnly);
    const SERVER: Endpoint = ("192.0.2.99", 443);
    const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

    /// As hosts beyond a mirror port send: none of the MAC addresses is ours.
    fn foreign(shape: Shape) -> Shape {
        Shape { macs: (SERVER_MAC, CLIENT_MAC), ..shape }
    }

    /// The shipped pipeline's stages.
    struct Whole {
        inspect: Inspect,
        classify: Classify,
    }

    impl Stage for Whole {
        fn process(&mut self, cx: &mut Cx<'_>, batch: &mut Batch) {
            self.inspect.process(cx, batch);
            self.classify.process(cx, batch);
            Tap::new().process(cx, batch);
        }
    }

    #[test]
    fn flows_are_followed_and_nothing_is_changed_or_sent() {
        for family in [&V4, &V6] {
            let mut rig = Rig::new(LIMITS);
            let server = (family.vip, 443);
            let (there, back) = ((family.client, server), (server, family.client));
            for (flags, (src, dst)) in
                [(SYN, there), (SYN | ACK, back), (ACK, there), (ACK, back), (ACK, there)]
            {
                let packet = foreign(Shape::tcp(flags)).between(src, dst);
                let got = rig.run(&mut Tap, packet.clone());
                assert_eq!((got.verdict, got.bytes), (SEEN, packet));
            }
            let (_, flow) = rig.flows.iter().next().expect("a flow");
            assert_eq!((flow.packets(), flow.tcp), ([3, 2], TcpState::Established));
            assert_eq!((rig.flows.len(), rig.counters.flows_opened), (1, 1));
            assert_eq!(flow.client_key().src, addr(family.client.0));
        }
    }

    #[test]
    fn names_and_classes_come_to_flows() {
        let mut rig = Rig::new(LIMITS);
        let by_port = RuleSpec { port: vec![SERVER.1], class: ClassId(2), ..RuleSpec::default() };
        let sni = vec![NamePattern::Exact("api.openai.com".into())];
        let by_name = RuleSpec { sni, class: ClassId(1), ..RuleSpec::default() };
        rig.snapshot.rules = Arc::new(Rules::compile(&[by_name, by_port]));
        let inspect = Inspect::new(&inspect_limits(16_384, 16));
        let mut whole = Whole { inspect, classify: Classify::new(false) };
        let ends = ((addr(V4.client.0), V4.client.1), (addr(SERVER.0), SERVER.1));
        let mut send = |rig: &mut Rig, flags, seq, payload: &[u8]| {
            let mut spec = TcpSpec::new(ends.0, ends.1, flags, payload);
            (spec.seq, spec.link.destination) = (seq, SERVER_MAC);
            assert_eq!(rig.run(&mut whole, tcp_packet(&spec)).verdict, SEEN);
        };
        let class = |rig: &Rig| rig.flows.iter().next().expect("a flow").1.class;
        send(&mut rig, SYN, 100, b"");
        assert_eq!(class(&rig), ClassId(2));
        let hello = rustls_hello("api.openai.com", rustls::ALL_VERSIONS, &["h2"]);
        let (early, late) = hello.split_at(hello.len() / 2);
        send(&mut rig, ACK, 101, early);
        send(&mut rig, ACK, 101 + early.len() as u32, late);
        assert_eq!(class(&rig), ClassId(1));
        assert_eq!(rig.counters.names_found, 1);
    }

    #[test]
    fn what_belongs_to_no_flow_is_seen_all_the_same() {
        let mut rig = Rig::new(LIMITS);
        let (src, dst) = (addr(V4.client.0), addr(SERVER.0));
        let gre = ip_packet(&LinkSpec::default(), &IpSpec::new(src, dst), 47, &[0; 24]);
        let reset = Shape::tcp(RST).between(V4.client, SERVER);
        let early = Shape::tcp(SYN | ACK).between(SERVER, V4.client);
        let (out, _) = rig.run_with(&mut Tap, &[gre, reset, early], |_| {});
        assert!(out.iter().all(|o| o.verdict == SEEN), "{out:?}");
        let fragment = |meta: &mut PacketMeta| meta.flags.set(PacketFlags::FRAGMENT);
        let udp = Shape::udp().between(V4.client, SERVER);
        let (out, _) = rig.run_with(&mut Tap, &[udp], fragment);
        assert_eq!((out[0].verdict, rig.flows.len()), (SEEN, 0));
        // One direction on each of two ports: the SYN comes behind its answer.
        let ends = [(SERVER, V4.client, SYN | ACK), (V4.client, SERVER, SYN)];
        let batch = ends.map(|(src, dst, flags)| foreign(Shape::tcp(flags)).between(src, dst));
        rig.run_with(&mut Tap, &batch, |_| {});
        assert_eq!(rig.flows.iter().next().expect("a flow").1.client_key().src, src);
    }

    #[test]
    fn floods_are_bounded_and_told_of() {
        let mut rig = Rig::new(LIMITS);
        let hello = foreign(Shape::tcp(ACK));
        for flags in [ACK, ACK] {
            rig.run(&mut Tap, foreign(Shape::tcp(flags)).between(V4.client, SERVER));
            rig.run(&mut Tap, foreign(Shape::tcp(flags)).between(SERVER, V4.client));
        }
        for port in 0..1_000 {
            rig.now = Nanos(rig.now.0 + 1);
            let syn = foreign(Shape::syn()).between((V4.client.0, 1_000 + port), SERVER);
            assert_eq!(rig.run(&mut Tap, syn).verdict, SEEN);
        }
        assert_eq!(rig.flows.len(), 17, "the handshakes that may be in progress, and one");
        for port in 0..100 {
            let datagram = foreign(Shape::udp()).between((V4.client.0, 1_000 + port), SERVER);
            let full = Verdict::Drop(DropReason::FlowTableFull);
            let want = if port < 47 { SEEN } else { full };
            assert_eq!(rig.run(&mut Tap, datagram).verdict, want, "{port}");
        }
        assert_eq!(rig.run(&mut Tap, hello.between(V4.client, SERVER)).verdict, SEEN);
        let kept = rig.flows.iter().find(|(_, f)| f.tcp == TcpState::Established);
        assert_eq!(kept.expect("kept").1.packets(), [3, 2]);
    }
}
