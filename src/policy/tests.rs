//! Decisions against those of a walk through the rules.

use proptest::prelude::*;

use super::spec::{HeaderPattern, HeaderSpec, NamePattern, PathPattern, RuleSpec, TimeSpec};
use super::*;
use crate::base::Prefix;
use crate::inspect::AlpnList;
use crate::inspect::fields::{Fields, Sink};
use crate::packet::{CopyTo, FlowKey, PortId};

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
    let facts = Facts { sni: Some(sni.as_bytes()), ..Facts::of(&key, 0) };
    rules.decide(&facts).rule
}

fn sni_rule(patterns: &[NamePattern]) -> RuleSpec {
    RuleSpec { sni: patterns.to_vec(), ..RuleSpec::default() }
}

/// What [`Rules`] is to compute, rule by rule.
fn naive(specs: &[RuleSpec], wanted: &Wanted, facts: &Facts<'_>) -> Option<u16> {
    let any = |empty: bool, hit: bool| empty || hit;
    let names = |patterns: &[NamePattern], name: Option<&[u8]>| {
        any(patterns.is_empty(), name.is_some_and(|n| patterns.iter().any(|p| name_is(p, n))))
    };
    let prefixes = |prefixes: &[Prefix], addr: Addr| {
        any(prefixes.is_empty(), prefixes.iter().any(|p| p.contains(addr)))
    };
    let request = facts.request;
    let matches = |s: &RuleSpec| {
        let header = |h: &HeaderSpec| {
            let fields = request.and_then(|r| r.fields);
            let value = fields.and_then(|f| f.get(wanted.id(h.name.as_bytes())));
            value.is_some_and(|value| {
                h.values.iter().any(|pattern| match pattern {
                    HeaderPattern::Any => true,
                    HeaderPattern::Exact(exact) => exact.as_bytes() == value,
                })
            })
        };
        names(&s.sni, facts.sni)
            && names(&s.authority, request.and_then(|r| r.authority))
            && any(s.alpn.is_empty(), s.alpn.iter().any(|p| facts.alpn.contains(p.as_bytes())))
            && any(
                s.method.is_empty(),
                request.is_some_and(|r| s.method.iter().any(|m| m.as_bytes() == r.method)),
            )
            && s.header.iter().all(header)
            && any(s.vip.is_empty(), s.vip.contains(&facts.key.dst))
            && prefixes(&s.client, facts.key.src)
            && prefixes(&s.server, facts.key.dst)
            && any(s.dscp.is_empty(), s.dscp.contains(&facts.dscp))
            && any(s.port.is_empty(), s.port.contains(&facts.key.dport))
            && s.bytes_over.is_none_or(|size| facts.bytes > size)
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
    let facts = Facts { sni: Some(b"A.test"), alpn, ..Facts::of(&good, 46) };
    let want = Decision { rule: Some(0), class: ClassId(9), ..Decision::NONE };
    assert_eq!(rules.decide(&facts), want);
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
        assert_eq!(rules.decide(&facts), Decision::NONE, "{facts:?}");
    }
}

#[test]
fn a_code_point_that_does_not_exist_matches_nothing() {
    let rules = Rules::compile(&[RuleSpec { dscp: vec![200], ..default() }]);
    let key = key("192.0.2.1", "192.0.2.2", 1);
    for dscp in [0, 200] {
        assert_eq!(rules.decide(&Facts::of(&key, dscp)), Decision::NONE);
    }
}

fn request<'a>(method: &'a str, authority: &'a str, path: &'a str) -> Request<'a> {
    let (method, authority) = (method.as_bytes(), Some(authority.as_bytes()));
    Request { method, authority, path: Some(path.as_bytes()), fields: None }
}

#[test]
fn requests_are_told_apart_by_all_that_they_say() {
    let path = |text| vec![PathPattern::new(text).expect(text)];
    let grpc = vec!["inference.Service/Infer".to_owned()];
    let rules = Rules::compile(&[
        RuleSpec { path: path("/v1/files/{id}"), method: vec!["GET".into()], ..default() },
        RuleSpec { authority: vec![suffix("llm.test")], path: path("/v1/*"), ..default() },
        RuleSpec { grpc, ..default() },
        RuleSpec { grpc: vec!["inference.Service".into()], ..default() },
    ]);
    let key = key("198.51.100.7", "203.0.113.1", 80);
    let wanted = rules.wanted();
    let mut fields = Fields::new(wanted, 64);
    fields.begin(wanted.id(b"content-type"));
    fields.value(b"application/grpc");
    fields.end();
    let rule = |request: Request<'_>| {
        rules.decide(&Facts { request: Some(request), ..Facts::of(&key, 0) }).rule
    };
    let a = "A.llm.test:8080";
    assert_eq!(rule(request("GET", a, "/v1/files/x?y=/")), Some(0));
    assert_eq!(rule(request("PUT", a, "/v1/files/x")), Some(1));
    assert_eq!(rule(request("GET", a, "http://a.llm.test/v1/chat")), Some(1));
    assert_eq!(rule(request("GET", "llm.test", "/v1/chat")), None);
    assert_eq!(rule(request("GET", a, "/x/%2e./v1/file%73/./x")), Some(0), "another spelling");
    let call = |path: &'static str| {
        let mut fields = fields.clone();
        fields.begin(wanted.id(b":path"));
        fields.value(path.as_bytes());
        fields.end();
        rule(Request { fields: Some(&fields), ..request("POST", "b", path) })
    };
    assert_eq!(call("/inference.Service/Infer"), Some(2));
    assert_eq!(call("/inference.Service/Other"), Some(3));
    assert_eq!(call("/inference.Other/Infer"), None);
    assert_eq!(rule(request("POST", "b", "/inference.Service/Infer")), None, "no gRPC");
    assert_eq!(rules.decide(&Facts::of(&key, 0)), Decision::NONE);
    assert!(rules.follows_requests());
}

#[test]
fn times_open_and_close_rules() {
    let time = |hours: &str| TimeSpec {
        zone: spec::Zone::new("UTC").expect("a zone"),
        days: spec::Weekdays::ALL,
        hours: vec![spec::Hours::parse(hours).expect(hours)],
    };
    let rules = Rules::compile(&[
        RuleSpec { time: Some(time("08:00-18:00")), port: vec![443], ..default() },
        RuleSpec { time: Some(time("18:00-20:00")), ..default() },
        RuleSpec { port: vec![443], ..default() },
    ]);
    let key = key("198.51.100.7", "203.0.113.1", 443);
    let rule = |hour: i64| {
        rules.set_time(hour * 3_600);
        rules.decide(&Facts::of(&key, 0)).rule
    };
    assert_eq!(rules.decide(&Facts::of(&key, 0)).rule, Some(2), "no time was told");
    assert_eq!([7, 8, 17, 18, 19, 20].map(rule), [2, 0, 0, 1, 1, 2].map(Some));
}

#[test]
fn the_catalogue_decides_where_no_rule_does() {
    let names = ["bulk", "interactive"].map(str::to_owned);
    let by_provider = RuleSpec {
        provider: vec!["anthropic".into()],
        operation: vec![catalogue::Operation::Batch],
        class: ClassId(7),
        ..default()
    };
    let key = key("198.51.100.7", "203.0.113.1", 443);
    let catalogue = catalogue::Catalogue::builtin;
    let rules = Rules::compile(&[by_provider]).with_catalogue(catalogue(), &names);
    let class = |request: Request<'_>| {
        rules.decide(&Facts { request: Some(request), ..Facts::of(&key, 0) }).class
    };
    let (chat, files) = ("/v1/chat/completions", "/v1/files");
    assert_eq!(class(request("POST", "api.openai.com", chat)), ClassId(1));
    assert_eq!(class(request("POST", "api.openai.com", files)), ClassId(0));
    assert_eq!(class(request("POST", "my.vllm", chat)), ClassId(1));
    assert_eq!(class(request("POST", "my.vllm", "/v1/embeddings")), ClassId::UNSET, "no `batch`");
    assert_eq!(class(request("POST", "my.vllm", "/index.html")), ClassId::UNSET);
    let batch = "/v1/messages/batches";
    assert_eq!(class(request("POST", "api.anthropic.com", batch)), ClassId(7), "a rule wins");
    let hello = Facts { sni: Some(b"api.openai.com"), ..Facts::of(&key, 0) };
    assert_eq!(rules.decide(&hello).class, ClassId(1));
    assert!(rules.follows_requests());
    let rules = Rules::compile(&[]).with_catalogue(catalogue(), &[]);
    assert_eq!(rules.decide(&hello), Decision::NONE);
    assert!(!rules.follows_requests());
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

fn any_header() -> impl Strategy<Value = HeaderSpec> {
    let pattern = prop::sample::select(vec!["1", "2", "*"]).prop_map(|text| match text {
        "*" => HeaderPattern::Any,
        text => HeaderPattern::Exact(text.to_owned()),
    });
    let values = prop::collection::vec(pattern, 1..3);
    (prop::sample::select(vec!["x-a", "x-b"]), values)
        .prop_map(|(name, values)| HeaderSpec { name: name.to_owned(), values })
}

fn any_method() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["GET", "POST"]).prop_map(str::to_owned)
}

prop_compose! {
    fn any_rule()(
        sni in few(any_pattern()),
        authority in few(any_pattern()),
        alpn in few(any_protocol().prop_map(str::to_owned)),
        method in few(any_method()),
        header in prop::option::weighted(0.3, any_header()),
        vip in few(any_addr()),
        (client, server) in (few(any_prefix()), few(any_prefix())),
        dscp in few(0u8..4),
        port in few(0u16..4),
        bytes_over in prop::option::weighted(0.3, prop::sample::select(vec![10u64, 20, 30])),
        class in 0u16..9,
    ) -> RuleSpec {
        let (class, header) = (ClassId(class), header.into_iter().collect());
        RuleSpec {
            sni, authority, alpn, method, header, vip, client, server, dscp, port, bytes_over,
            class, ..RuleSpec::default()
        }
    }
}

/// A request's method, authority and headers.
type Asked = (String, Option<String>, Option<&'static str>, Option<&'static str>);

fn any_request() -> impl Strategy<Value = Option<Asked>> {
    let value = || prop::option::of(prop::sample::select(vec!["1", "2", "3"]));
    prop::option::of((any_method(), prop::option::of(any_name()), value(), value()))
}

fn fields(asked: &Asked, wanted: &Wanted) -> Fields {
    let mut fields = Fields::new(wanted, 32);
    for (name, value) in [("x-a", asked.2), ("x-b", asked.3)] {
        let Some(value) = value else { continue };
        fields.begin(wanted.id(name.as_bytes()));
        fields.value(value.as_bytes());
        fields.end();
    }
    fields
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
             prop::collection::vec(any_protocol(), 0..3), any_request(), 0u64..40),
            1..20,
        ),
    ) {
        let rules = Rules::compile(&specs);
        for (key, dscp, sni, protocols, asked, bytes) in flows {
            let wire: Vec<u8> = protocols
                .iter()
                .flat_map(|p| [&[p.len() as u8], p.as_bytes()].concat())
                .collect();
            let fields = asked.as_ref().map(|asked| fields(asked, rules.wanted()));
            let request = asked.as_ref().map(|(method, authority, ..)| Request {
                method: method.as_bytes(),
                authority: authority.as_ref().map(|a| a.as_bytes()),
                path: None,
                fields: fields.as_ref(),
            });
            let (sni, alpn) = (sni.as_ref().map(|n| n.as_bytes()), AlpnList::from_wire(&wire));
            let facts = Facts { bytes, sni, alpn, request, ..Facts::of(&key, dscp) };
            let decision = rules.decide(&facts);
            prop_assert_eq!(decision.rule, naive(&specs, rules.wanted(), &facts));
            if let Some(rule) = decision.rule {
                prop_assert_eq!(decision.class, specs[usize::from(rule)].class);
            }
            // What is decided by little nothing else could have changed.
            for sni in [None, sni] {
                let little = Facts { sni, ..Facts::of_ends(&key, bytes) };
                if let Some(known) = rules.decide_by_known(&little) {
                    prop_assert_eq!(known, decision);
                    prop_assert_eq!(rules.steps(&little), rules.steps(&facts));
                }
            }
            let mut last = decision;
            for (size, step) in rules.steps(&facts).iter() {
                let before = Facts { bytes: size, ..facts };
                prop_assert!(size >= bytes && rules.decide(&before) == last);
                last = rules.decide(&Facts { bytes: size + 1, ..facts });
                prop_assert_eq!(step, last);
            }
            prop_assert_eq!(rules.decide(&Facts { bytes: 1_000, ..facts }), last);
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

#[test]
fn a_share_of_the_flows_is_copied_and_a_larger_one_has_them_too() {
    const TO: CopyTo = CopyTo::Port(PortId(1));
    let copied = |share: u16| -> Vec<u16> {
        let mirror = Some(Mirror { to: TO, share });
        let rules = Rules::compile(&[RuleSpec { mirror, ..RuleSpec::default() }]);
        let is_copied = |sport: &u16| {
            let key = FlowKey { sport: *sport, ..key("198.51.100.7", "203.0.113.1", 443) };
            let decision = rules.decide(&Facts::of(&key, 0));
            assert_eq!(decision.rule, Some(0), "the rule holds for all");
            decision.mirror == Some(TO)
        };
        (20_000..30_000).filter(is_copied).collect()
    };
    let shares = [1, 500, 5_000, Mirror::ALL].map(copied);
    for (flows, wanted) in shares.iter().zip([1, 500, 5_000, 10_000usize]) {
        assert!(flows.len().abs_diff(wanted) <= 100, "{} of {wanted}", flows.len());
    }
    for larger in shares.windows(2) {
        assert!(larger[0].iter().all(|flow| larger[1].contains(flow)));
    }
}
