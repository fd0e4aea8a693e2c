//! Fragments can't hide what rules refuse.

use super::quic::datagrams;
use super::*;
use crate::packet::build::{IpSpec, LinkSpec, ip_packet};
use crate::packet::ipv4;

/// Up to `units` times eight bytes of a packet's payload as its first fragment, and what follows as
/// the last.
fn in_two(packet: &[u8], proto: u8, units: u16) -> [Vec<u8>; 2] {
    const HEADERS: usize = 34;
    let c = client(1);
    let part = |bytes: &[u8], fragment: u16| {
        let ip = IpSpec { fragment, ..IpSpec::new(c.endpoint.0, c.server.0) };
        ip_packet(&LinkSpec::default(), &ip, proto, bytes)
    };
    let (first, last) = packet[HEADERS..].split_at(8 * usize::from(units));
    [part(first, ipv4::MORE_FRAGMENTS), part(last, units)]
}

pub(super) fn quic(units: u16) -> [Vec<u8>; 2] {
    let c = client(1);
    let datagram = &datagrams(usize::MAX)[0];
    in_two(&udp_packet(&UdpSpec::new(c.endpoint, c.server, datagram)), 17, units)
}

fn tls() -> [Vec<u8>; 2] {
    in_two(&client(1).data(0, &hello()), 6, 20)
}

fn verdicts(rules: &[RuleSpec], packets: &[Vec<u8>]) -> Vec<Verdict> {
    let mut rig = Rig::new(4, 8);
    rig.snapshot.rules = Arc::new(Rules::compile(rules));
    let metas = rig.run(packets);
    assert_eq!(rig.inspect.flows(), 0, "none is read");
    metas.iter().map(|meta| meta.verdict).collect()
}

#[test]
fn fragments_of_what_rules_may_refuse_are_dropped() {
    let sni = vec![NamePattern::Suffix("openai.com".into())];
    let refuse = RuleSpec { sni, class: ClassId::REFUSED, ..RuleSpec::default() };
    let dropped = Verdict::Drop(DropReason::Fragment);
    assert_eq!(verdicts(std::slice::from_ref(&refuse), &tls()), [dropped, dropped]);
    // What is behind the first one belongs to no flow then.
    for units in [20, 2, 1] {
        let got = verdicts(std::slice::from_ref(&refuse), &quic(units));
        assert_eq!(got, [dropped, Verdict::Next], "cut behind {units} times 8 bytes");
    }
    let elsewhere = RuleSpec { port: vec![853], ..refuse.clone() };
    let before = RuleSpec { port: vec![443], class: BY_PORT, ..RuleSpec::default() };
    for rules in [rules(), vec![elsewhere], vec![before, refuse.clone()]] {
        for packets in [tls(), quic(20)] {
            let first = &packets[..1];
            assert_eq!(verdicts(&rules, first), [Verdict::Next], "{rules:?}");
        }
    }
    let c = client(1);
    let other = in_two(&udp_packet(&UdpSpec::new(c.endpoint, c.server, &[0x12; 400])), 17, 20);
    assert_eq!(verdicts(&[refuse], &other), [Verdict::Next; 2], "not QUIC");
}
