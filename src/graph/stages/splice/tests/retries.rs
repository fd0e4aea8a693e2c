//! Backends that do not take a connection: what its client said is read and counted once.

use std::sync::Arc;

use super::answers::Talk;
use super::{V4, delayed};
use crate::base::Seed;
use crate::forward::spec::{BackendId, BackendSpec};
use crate::graph::stages::inspect::{DONE, NOT_YET};
use crate::packet::tcp::flag::{ACK, RST, SYN};
use crate::packet::{ClassId, PacketMeta};
use crate::policy::Rules;
use crate::policy::spec::{PathPattern, RuleSpec};
use crate::qos::limits::{EventCounts, Excess, LimitSpec, Limits, LimitsSpec};
use crate::qos::tokens::Pace;

const ASKS: &[u8] =
    b"GET /first HTTP/1.1\r\nHost: a\r\n\r\nGET /second HTTP/1.1\r\nHost: a\r\n\r\n";
const FIRST: ClassId = ClassId(4);
const SECOND: ClassId = ClassId(5);

/// Two backends; a class by the second path; and tokens for two requests in all.
fn talk() -> Talk {
    let mut spec = delayed();
    let backend = BackendSpec {
        id: BackendId(100),
        name: "other".into(),
        port: V4.backend.1 + 1,
        ..spec.pools[0].backends[0].clone()
    };
    spec.pools[0].backends.push(backend);
    let mut talk = Talk::at(&spec);
    let path = vec![PathPattern::new("/second").expect("a pattern")];
    let rule = RuleSpec { path, class: SECOND, ..RuleSpec::default() };
    let rules = [rule, RuleSpec { class: FIRST, ..RuleSpec::default() }];
    let requests = Some(Pace { count: 1, per_ns: 3_600_000_000_000, burst: 2 });
    let limit = LimitSpec {
        name: "l".into(),
        connections: None,
        requests,
        clients: None,
        excess: Excess::Reset,
    };
    let of_rule = vec![Some(0); 2];
    let spec = LimitsSpec { limits: vec![limit], of_rule, ..LimitsSpec::default() };
    let rig = &mut talk.bench.rig;
    rig.snapshot.rules = Arc::new(Rules::compile(&rules));
    rig.snapshot.limits = Arc::new(Limits::build(&spec, Seed(1), None, rig.now));
    talk
}

fn requests(talk: &Talk) -> EventCounts {
    let rig = &talk.bench.rig;
    let counted = rig.snapshot.limits.counts(rig.now).next().expect("one limit");
    counted.events[1].expect("limited")
}

/// A client asks; our number after its SYN, and the SYN to the backend.
fn asked(talk: &mut Talk) -> (u32, PacketMeta) {
    let [answers, _] = talk.client((99, 0), SYN, b"");
    let next = answers[0].tcp_seq.wrapping_add(1);
    let [_, opened] = talk.client((100, next), ACK, ASKS);
    (next, opened[0].clone())
}

/// The backend refuses.
fn refuse(talk: &mut Talk, syn: &PacketMeta) -> [Vec<PacketMeta>; 2] {
    talk.backend(syn, (0, syn.tcp_seq.wrapping_add(1)), RST | ACK, b"")
}

#[test]
fn a_request_is_read_and_counted_once_however_many_backends_refuse() {
    let mut talk = talk();
    let (next, syn) = asked(&mut talk);
    let [_, again] = refuse(&mut talk, &syn);
    assert_ne!(again[0].key.dport, syn.key.dport, "the other backend");
    talk.backend(&again[0], (5_000, again[0].tcp_seq.wrapping_add(1)), SYN | ACK, b"");
    let told = requests(&talk);
    assert_eq!((told.passed, told.refused), (2, 0), "{told:?}");
    let rig = &talk.bench.rig;
    let (at, flow) = rig.flows.iter().next().expect("the connection");
    assert_eq!((flow.class, talk.inspect.flows()), (SECOND, 1), "by the last request");
    assert!(![DONE, NOT_YET].contains(&flow.inspection), "it is read on");
    let note = rig.names.notes.get(at, rig.flows.details(at)).expect("kept");
    assert_eq!((note.requests, note.path.get()), (2, &b"/second"[..]));
    // Whatever follows is one more.
    talk.client((100 + ASKS.len() as u32, next), ACK, ASKS);
    assert_eq!(requests(&talk).refused, 1, "there are tokens for two");
}

#[test]
fn no_place_of_the_inspector_is_kept_for_whom_no_backend_takes() {
    let mut talk = talk();
    let (_, syn) = asked(&mut talk);
    let [_, again] = refuse(&mut talk, &syn);
    assert_eq!(talk.inspect.flows(), 1);
    let [_, last] = refuse(&mut talk, &again[0]);
    let [told, _] = refuse(&mut talk, &last[0]);
    assert!(told[0].tcp_flags & RST != 0 && talk.bench.rig.flows.iter().next().is_none());
    talk.client((7, 7), ACK, b"");
    assert_eq!(talk.inspect.flows(), 0);
}

#[test]
fn what_was_held_leaves_in_the_class_and_the_flow_of_what_follows() {
    for refusals in [0, 1] {
        let mut talk = talk();
        let (next, mut syn) = asked(&mut talk);
        for _ in 0..refusals {
            let [_, again] = refuse(&mut talk, &syn);
            syn = again[0].clone();
        }
        assert_eq!(syn.class, if refusals == 0 { FIRST } else { SECOND });
        let their = (5_000, syn.tcp_seq.wrapping_add(1));
        let [_, held] = talk.backend(&syn, their, SYN | ACK, b"");
        assert!(!held.is_empty());
        let [_, later] = talk.client((100 + ASKS.len() as u32, next), ACK, b"");
        for sent in &held {
            assert_eq!((sent.class, sent.hash), (SECOND, later[0].hash), "{refusals}");
        }
    }
}
