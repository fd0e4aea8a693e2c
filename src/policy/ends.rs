//! What becomes of flows that are under way when the rules change. Of what their clients have said
//! little is kept: rules can be asked about their ends, and about the server name of a hello.

use super::kinds::{Kind, Kinds};
use super::rule::Rule;
use super::{Decision, Facts, NO_RULE, Rules};
use crate::packet::{ClassId, FlowKey};

/// What is known of any flow, and of one whose hello was read and had a server name.
const KNOWN: [Kinds; 2] = [ENDS, ENDS.and(Kinds::of(&[Kind::SNI]))];
const ENDS: Kinds = Kinds::of(&[Kind::CLIENT, Kind::SERVER, Kind::VIP, Kind::PORT]);
/// No code point: no condition names it.
const NO_DSCP: u8 = u8::MAX;
/// Rules that ask for more and are looked at one by one; of more, some is taken to apply.
const LOOKED_AT_MAX: usize = 64;

/// The rules that ask for more than is known, in their order: without a server name, and with one.
pub(super) fn beyond_known(rules: &[Rule]) -> [Box<[u16]>; 2] {
    KNOWN.map(|known| {
        let beyond = (0u16..).zip(rules).filter(|(_, rule)| rule.needs != rule.needs.both(known));
        beyond.map(|(number, _)| number).collect()
    })
}

impl<'a> Facts<'a> {
    /// Of a flow of which only its ends are known, and how much it has carried.
    pub fn of_ends(key: &'a FlowKey, bytes: u64) -> Facts<'a> {
        Facts { bytes, ..Facts::of(key, NO_DSCP) }
    }
}

impl Rules {
    /// What becomes of a flow by its ends, its bytes and its server name, if it is told, whatever
    /// else is true of it. `None`: a rule that comes first, or the catalogue, might decide by more,
    /// now or once the flow has more bytes.
    pub fn decide_by_known(&self, facts: &Facts<'_>) -> Option<Decision> {
        let hits = self.hits(facts, None);
        let first = self.first(&hits, self.level(facts.bytes));
        let bound = first.unwrap_or(NO_RULE);
        let has_name = usize::from(facts.sni.is_some());
        let before = self.beyond_known[has_name].iter().take_while(|&&rule| rule < bound);
        let may_apply = |rule: u16| {
            let known = self.rules[usize::from(rule)].needs.both(KNOWN[has_name]);
            let named =
                |kind| self.values.any(hits.of(kind), |value| self.values.names(value, rule));
            self.applies(rule, self.sizes.len() as u8) && known.iter().all(named)
        };
        if before.clone().nth(LOOKED_AT_MAX).is_some() || before.copied().any(may_apply) {
            return None;
        }
        let decision = self.decision(first, facts, None);
        let is_left = |decision: &Decision| decision.class == ClassId::UNSET;
        let may_know = self.by_catalogue
            && (is_left(&decision) || self.steps(facts).iter().any(|(_, step)| is_left(&step)));
        (!may_know).then_some(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Addr;
    use crate::policy::catalogue;
    use crate::policy::spec::{NamePattern, RuleSpec};

    fn key(dst: &str, dport: u16) -> FlowKey {
        let parse = |a: &str| a.parse::<Addr>().expect("a literal");
        FlowKey { src: parse("198.51.100.7"), dst: parse(dst), sport: 40_000, dport, proto: 6 }
    }

    #[test]
    fn what_is_known_decides_where_no_rule_before_asks_for_more() {
        let by_port = |port: u16| RuleSpec { port: vec![port], ..RuleSpec::default() };
        let rules = Rules::compile(&[
            by_port(1),
            RuleSpec { sni: vec![NamePattern::Exact("a".into())], ..by_port(2) },
            RuleSpec { dscp: vec![0], ..by_port(3) },
            RuleSpec { bytes_over: Some(1_000), ..by_port(4) },
            RuleSpec { bytes_over: Some(1_000), dscp: vec![0], ..by_port(6) },
            RuleSpec {
                vip: vec!["203.0.113.1".parse().expect("an address")],
                ..RuleSpec::default()
            },
            RuleSpec { alpn: vec!["h2".into()], ..RuleSpec::default() },
        ]);
        let rule = |dst: &str, port: u16, bytes: u64| {
            let key = key(dst, port);
            rules.decide_by_known(&Facts::of_ends(&key, bytes)).map(|decision| decision.rule)
        };
        let vip = "203.0.113.1";
        let table = [
            (vip, 1, 0, Some(Some(0))),
            (vip, 2, 0, None),
            (vip, 3, 0, None),
            (vip, 4, 1_000, Some(Some(5))),
            (vip, 4, 1_001, Some(Some(3))),
            (vip, 6, 0, None),
            ("203.0.113.2", 1, 0, Some(Some(0))),
            ("203.0.113.2", 5, 0, None),
        ];
        for (dst, port, bytes, want) in table {
            assert_eq!(rule(dst, port, bytes), want, "{dst} {port}, {bytes} bytes");
        }
        let names = ["bulk", "interactive"].map(str::to_owned);
        let catalogue = catalogue::Catalogue::builtin();
        let (rules, key) = (Rules::compile(&[by_port(1)]), key(vip, 9));
        assert_eq!(rules.decide_by_known(&Facts::of_ends(&key, 0)), Some(Decision::NONE));
        let rules = rules.with_catalogue(catalogue.clone(), &names);
        assert_eq!(rules.decide_by_known(&Facts::of_ends(&key, 0)), None, "the catalogue may know");
        let class = ClassId::UNSET;
        let marked = RuleSpec { bytes_over: Some(1_000), mark: Some(8), class, ..by_port(9) };
        let rules = [marked, RuleSpec { class: ClassId(1), ..by_port(9) }];
        let rules = Rules::compile(&rules).with_catalogue(catalogue, &names);
        assert_eq!(rules.decide_by_known(&Facts::of_ends(&key, 0)), None, "and later, too");
    }
}
