//! Decisions against those of a walk through the rules.

use proptest::prelude::*;

use super::spec::{NamePattern, RuleSpec};
use super::*;
use crate::base::Prefix;

fn exact(name: &str) -> NamePattern {
    NamePattern::Exact(name.to_owned())
}

fn suffix(name: &str) -> NamePattern {
    NamePattern::Suffix(name.to_owned())
}

fn key(src: &str, dst: &str, dport: u16) -> FlowKey {
    let parse = |a: &str| a.parse::<Addr>().expect("a literal");
    FlowKey { src: parse(src), dst: parse(dst), sport: 40_000, dport, proto: 6 }
}

fn decide_name(rules: &Rules, sni: &str) -> Option<u16> {
    let key = key("198.51.100.7", "203.0.113.1", 443);
    let facts = Facts { key: &key, dscp: 0, sni: Some(sni.as_bytes()), alpn: AlpnList::EMPTY };
    rules.decide(&facts).map(|d| d.rule)
}

fn sni_rule(patterns: &[NamePattern]) -> RuleSpec {
    RuleSpec { sni: patterns.to_vec(), ..RuleSpec::default() }
}

/// What [`Rules`] is to compute, rule by rule.
fn naive(specs: &[RuleSpec], facts: &Facts<'_>) -> Option<u16> {
    let any = |empty: bool, hit: bool| empty || hit;
    let matches = |s: &RuleSpec| {
        any(s.sni.is_empty(), facts.sni.is_some_and(|n| s.sni.iter().any(|p| name_is(p, n))))
            && any(s.alpn.is_empty(), s.alpn.iter().any(|p| facts.alpn.contains(p.as_bytes())))
            && any(s.vip.is_empty(), s.vip.contains(&facts.key.dst))
            && any(s.client.is_empty(), s.client.iter().any(|p| p.contains(facts.key.src)))
            && any(s.dscp.is_empty(), s.dscp.contains(&facts.dscp))
            && any(s.port.is_empty(), s.port.contains(&facts.key.dport))
    };
    specs.iter().position(matches).map(|at| at as u16)
}

fn name_is(pattern: &NamePattern, name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    match pattern {
        NamePattern::Exact(want) => name == want,
        NamePattern::Suffix(want) => name
            .strip_suffix(want)
            .and_then(|n| n.strip_suffix('.'))
            .is_some_and(|n| !n.is_empty() && !n.ends_with('.')),
    }
}

#[test]
fn names_match_by_label_without_regard_to_case() {
    let rules = Rules::compile(&[
        sni_rule(&[exact("api.openai.com")]),
        sni_rule(&[suffix("openai.com")]),
        sni_rule(&[suffix("com")]),
    ]);
    let cases = [
        ("api.openai.com", Some(0)),
        ("API.OpenAI.com.", Some(0)),
        ("chat.openai.com", Some(1)),
        ("a.b.c.OPENAI.com", Some(1)),
        ("openai.com", Some(2)),
        ("notopenai.com", Some(2)),
        ("com", None),
        (".com", None),
        ("api.openai.com.evil.example", None),
        ("", None),
        (".", None),
    ];
    for (name, want) in cases {
        assert_eq!(decide_name(&rules, name), want, "{name}");
    }
}

#[test]
fn the_first_rule_wins_whatever_its_kind() {
    let wide = RuleSpec { client: vec!["198.51.100.0/24".parse().expect("literal")], ..default() };
    let rules = [sni_rule(&[suffix("test")]), wide, sni_rule(&[exact("a.test")]), default()];
    assert_eq!(decide_name(&Rules::compile(&rules), "a.test"), Some(0));
    assert_eq!(decide_name(&Rules::compile(&rules[1..]), "a.test"), Some(0));
    assert_eq!(decide_name(&Rules::compile(&rules[2..]), "a.test"), Some(0));
    assert_eq!(decide_name(&Rules::compile(&rules[2..]), "b.test"), Some(1));
    assert_eq!(decide_name(&Rules::compile(&[]), "b.test"), None);
}

fn default() -> RuleSpec {
    RuleSpec::default()
}

#[test]
fn all_conditions_must_hold() {
    let rules = Rules::compile(&[RuleSpec {
        sni: vec![exact("a.test")],
        alpn: vec!["h2".into()],
        vip: vec!["203.0.113.1".parse().expect("literal")],
        client: vec!["198.51.100.0/24".parse().expect("literal")],
        dscp: vec![46],
        port: vec![443],
        class: ClassId(9),
        ..default()
    }]);
    let good = key("198.51.100.7", "203.0.113.1", 443);
    let alpn = AlpnList::from_wire(b"\x08http/1.1\x02h2");
    let facts = Facts { key: &good, dscp: 46, sni: Some(b"A.test"), alpn };
    assert_eq!(rules.decide(&facts), Some(Decision { class: ClassId(9), pool: None, rule: 0 }));
    let other_port = key("198.51.100.7", "203.0.113.1", 80);
    let other_vip = key("198.51.100.7", "203.0.113.2", 443);
    let other_client = key("198.51.101.7", "203.0.113.1", 443);
    for facts in [
        Facts { sni: None, ..facts },
        Facts { sni: Some(b"b.test"), ..facts },
        Facts { alpn: AlpnList::EMPTY, ..facts },
        Facts { dscp: 45, ..facts },
        Facts { dscp: 255, ..facts },
        Facts { key: &other_port, ..facts },
        Facts { key: &other_vip, ..facts },
        Facts { key: &other_client, ..facts },
    ] {
        assert_eq!(rules.decide(&facts), None, "{facts:?}");
    }
}

#[test]
fn a_code_point_that_does_not_exist_matches_nothing() {
    let rules = Rules::compile(&[RuleSpec { dscp: vec![200], ..default() }]);
    let key = key("192.0.2.1", "192.0.2.2", 1);
    for dscp in [0, 200] {
        assert_eq!(
            rules.decide(&Facts { key: &key, dscp, sni: None, alpn: AlpnList::EMPTY }),
            None
        );
    }
}

#[test]
fn many_rules_of_one_kind_are_told_apart() {
    let specs: Vec<RuleSpec> =
        (0..10_000).map(|i| sni_rule(&[exact(&format!("tenant-{i}.llm.test"))])).collect();
    let rules = Rules::compile(&specs);
    for i in (0..10_000).step_by(37) {
        assert_eq!(decide_name(&rules, &format!("tenant-{i}.LLM.test")), Some(i));
    }
    assert_eq!(decide_name(&rules, "tenant-10000.llm.test"), None);
}

#[test]
fn names_of_as_many_labels_as_fit_match() {
    let rules = Rules::compile(&[sni_rule(&[suffix("a")]), sni_rule(&[suffix("a.a.a")])]);
    let name = ["a"; 127].join(".");
    assert_eq!(decide_name(&rules, &name), Some(0));
}

fn any_name() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec!["a", "b", "A", "ab", "x-1", ""]);
    prop::collection::vec(label, 1..5).prop_map(|labels| labels.join("."))
}

fn any_pattern() -> impl Strategy<Value = NamePattern> {
    let label = prop::sample::select(vec!["a", "b", "ab", "x-1"]);
    let name = prop::collection::vec(label, 1..4).prop_map(|labels| labels.join("."));
    (any::<bool>(), name).prop_map(|(e, n)| if e { exact(&n) } else { suffix(&n) })
}

/// Few enough bits that prefixes nest and addresses fall into them.
fn any_addr() -> impl Strategy<Value = Addr> {
    (any::<bool>(), 0u8..4, 0u8..4, 0u8..4).prop_map(|(v4, a, b, c)| match v4 {
        true => Addr::v4(u32::from_be_bytes([10, a, b << 6, c])),
        false => Addr {
            hi: 0x2001_0db8 << 32 | u64::from(a) << 14,
            lo: u64::from(b) << 62 | u64::from(c),
        },
    })
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (any_addr(), 0u8..=128).prop_map(|(addr, len)| {
        let len = if addr.is_v4() { len % 33 } else { len };
        Prefix::new(addr, len).expect("a length of its family")
    })
}

fn few<T: std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    let some = prop::collection::vec(item, 1..4);
    prop::option::weighted(0.35, some).prop_map(Option::unwrap_or_default)
}

fn any_protocol() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["h2", "http/1.1", "h3"])
}

prop_compose! {
    fn any_rule()(
        sni in few(any_pattern()),
        alpn in few(any_protocol().prop_map(str::to_owned)),
        vip in few(any_addr()),
        client in few(any_prefix()),
        dscp in few(0u8..4),
        port in few(0u16..4),
        class in 0u16..9,
    ) -> RuleSpec {
        let class = ClassId(class);
        RuleSpec { sni, alpn, vip, client, dscp, port, class, ..RuleSpec::default() }
    }
}

prop_compose! {
    fn any_flow()(src in any_addr(), dst in any_addr(), dport in 0u16..4) -> FlowKey {
        FlowKey { src, dst, sport: 1, dport, proto: 6 }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn decisions_are_those_of_a_walk_through_the_rules(
        specs in prop::collection::vec(any_rule(), 0..40),
        flows in prop::collection::vec(
            (any_flow(), 0u8..4, prop::option::of(any_name()),
             prop::collection::vec(any_protocol(), 0..3)),
            1..20,
        ),
    ) {
        let rules = Rules::compile(&specs);
        for (key, dscp, sni, protocols) in flows {
            let wire: Vec<u8> = protocols
                .iter()
                .flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat())
                .collect();
            let alpn = AlpnList::from_wire(&wire);
            let facts = Facts { key: &key, dscp, sni: sni.as_ref().map(|n| n.as_bytes()), alpn };
            let decision = rules.decide(&facts);
            prop_assert_eq!(decision.map(|d| d.rule), naive(&specs, &facts));
            if let Some(d) = decision {
                prop_assert_eq!(d.class, specs[usize::from(d.rule)].class);
            }
        }
    }

    #[test]
    fn the_longest_prefix_is_found(
        prefixes in prop::collection::vec(any_prefix(), 1..60),
        addrs in prop::collection::vec(any_addr(), 1..40),
    ) {
        let mut table = HashTable::with_capacity(prefixes.len());
        for (i, prefix) in prefixes.iter().enumerate() {
            table.find_or_insert(prefixes::prefix_hash(*prefix), *prefix, i as u32);
        }
        let compiled = PrefixTable::build(&table);
        for addr in addrs {
            let covering = prefixes.iter().enumerate().filter(|(_, p)| p.contains(addr));
            let want = covering.rev().max_by_key(|(_, p)| p.len()).map_or(NONE, |(i, _)| i as u32);
            prop_assert_eq!(compiled.find(addr), want, "{}", addr);
        }
    }
}
