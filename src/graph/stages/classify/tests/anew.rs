//! Other rules, and flows that are under way.

use super::*;

/// Has a flow decided about.
struct Anew {
    flow: FlowRef,
    changes: bool,
}

impl Stage for Anew {
    fn process(&mut self, cx: &mut Cx<'_>, _: &mut Batch) {
        self.changes = decide_anew(cx, self.flow);
    }
}

/// Whether these rules change what is done with the connection, and its class then.
fn anew(c: &mut Connection, rules: &[RuleSpec]) -> (bool, ClassId) {
    let (flow, _) = c.rig.flows.iter().next().expect("a flow");
    let mut stage = Anew { flow, changes: false };
    c.rig.snapshot.rules = Arc::new(Rules::compile(rules));
    c.rig.run_with(&mut stage, &[], |_| {});
    (stage.changes, c.rig.flows.get(flow).class)
}

/// Between which classes what waits of the connection is to move.
fn moves(c: &mut Connection) -> Vec<(ClassId, ClassId)> {
    let hashes = [true, false].map(|up| c.segment(up, ACK, b"").0.meta.hash);
    let told = c.rig.names.reclassed.drain(..);
    told.map(|r| (assert_eq!(r.hashes, hashes), (r.from, r.to)).1).collect()
}

#[test]
fn what_waits_of_a_flow_follows_it_to_its_class() {
    let by_port = |class| RuleSpec { port: vec![V4.backend.1], class, ..RuleSpec::default() };
    let mut c = Connection::open(&V4, &[by_port(CHAT)]);
    assert_eq!(moves(&mut c), [], "it had no other class before");
    anew(&mut c, &[by_port(BULK)]);
    assert_eq!(moves(&mut c), [(CHAT, BULK)]);
    anew(&mut c, &[by_port(BULK)]);
    assert_eq!(moves(&mut c), []);
    // What changes more than once before packets are queued moves once, to where it is at last.
    for class in [CHAT, BULK, CHAT] {
        anew(&mut c, &[by_port(class)]);
    }
    assert_eq!(moves(&mut c), [(BULK, CHAT)]);
    let mut c = Connection::open(&V4, &[by_name("a.example", CHAT), by_port(BULK)]);
    c.say(&hello("a.example"));
    assert_eq!(moves(&mut c), [(BULK, CHAT)], "what came before the hello was complete");
}

fn by_name(name: &str, class: ClassId) -> RuleSpec {
    RuleSpec { sni: vec![NamePattern::Exact(name.into())], class, ..RuleSpec::default() }
}

#[test]
fn other_rules_decide_by_what_is_known_of_a_flow() {
    let by_port = |class| RuleSpec { port: vec![V4.backend.1], class, ..RuleSpec::default() };
    let by_alpn = RuleSpec { alpn: vec!["h3".into()], class: CHAT, ..RuleSpec::default() };
    let marked = RuleSpec { mark: Some(8), ..by_port(BULK) };
    let mut c = Connection::open(&V4, &[by_port(CHAT)]);
    assert_eq!(anew(&mut c, &[by_port(BULK)]), (true, BULK));
    assert_eq!(anew(&mut c, &[by_port(BULK)]), (false, BULK));
    assert_eq!(anew(&mut c, &[marked]), (true, BULK), "the code point");
    assert_eq!(c.segment(true, ACK, b"").0.meta.dscp(), 8);
    // Nothing was said yet: the first rule might come to match.
    assert_eq!(anew(&mut c, &[by_name("a.example", CHAT), by_port(CHAT)]), (false, BULK));
    assert_eq!(anew(&mut c, &[by_port(CHAT), by_name("a.example", BULK)]), (true, CHAT));
    // What comes only later is a change, too: somebody has to watch the flow for it.
    let grown = RuleSpec { bytes_over: Some(1 << 20), ..by_port(BULK) };
    assert_eq!(anew(&mut c, &[grown, by_port(CHAT)]), (true, CHAT));
    // None ends by that.
    assert_eq!(anew(&mut c, &[by_port(ClassId::REFUSED)]), (false, CHAT));
    assert_eq!(anew(&mut c, &[]), (true, ClassId::UNSET));

    let mut c = Connection::open(&V4, &[by_name("a.example", CHAT)]);
    c.say(&hello("a.example"));
    assert_eq!(anew(&mut c, &[by_name("a.example", CHAT)]), (false, CHAT));
    assert_eq!(anew(&mut c, &[by_name("A.example", BULK)]), (true, BULK));
    assert_eq!(anew(&mut c, &[by_alpn, by_name("a.example", CHAT)]), (false, BULK), "perhaps h3");
    assert_eq!(anew(&mut c, &[by_name("b.example", CHAT), by_port(CHAT)]), (true, CHAT));
}
