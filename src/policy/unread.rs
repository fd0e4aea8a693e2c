//! What a client says in a way that can't be read must not lead around the rules that would have
//! refused it, nor around limits that count what rules match.

use super::catalogue::bare_host;
use super::kinds::{Kind, Kinds};
use super::spec::RuleSpec;
use super::{Facts, NO_RULE, Rules};
use crate::inspect::fields::NameId;
use crate::inspect::inspector::Said;
use crate::packet::ClassId;

/// Guards that are looked at one by one; of more, some is taken to apply.
const GUARDS_MAX: usize = 64;

/// A rule that refuses flows by what clients say, or whose limit counts what they say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    rule: u16,
    hello: bool,
    requests: bool,
}

/// Those of the rules, in their order; of rules with the same conditions but for what is said, the
/// first.
pub(super) fn guards(specs: &[RuleSpec]) -> Box<[Guard]> {
    let mut guards: Vec<Guard> = Vec::new();
    for (rule, spec) in specs.iter().enumerate() {
        let refuses = spec.class.is_refused();
        let hello = refuses && spec.reads_hellos();
        let requests = (refuses || spec.counts_requests) && spec.reads_requests();
        if !(hello || requests) || guards.len() > GUARDS_MAX {
            continue;
        }
        let covers = |guard: &Guard| {
            guard.hello >= hello
                && guard.requests >= requests
                && spec.is_for_the_same(&specs[usize::from(guard.rule)])
        };
        if !guards.iter().any(covers) {
            guards.push(Guard { rule: rule as u16, hello, requests });
        }
    }
    guards.into_boxed_slice()
}

impl Rules {
    /// Whether a rule might refuse the flow by what its client says, which is not known, or might
    /// count it; by what is known besides, it does not rule itself out, and no other comes before
    /// it for sure.
    pub fn must_read(&self, facts: &Facts<'_>, said: Said) -> bool {
        let counts = said != Said::Hello && !self.counting.is_empty();
        let by = |guard: &&Guard| match said {
            Said::Hello => guard.hello,
            Said::Requests => guard.requests,
            Said::Anything => true,
        };
        let mut guards = self.guards.iter().filter(by).peekable();
        if guards.peek().is_none() && !counts {
            return false;
        }
        let hits = self.hits(&Facts::of(facts.key, facts.dscp), None);
        let first = self.first(&hits, 0).unwrap_or(NO_RULE);
        let applies = |guard: &Guard| {
            let rule = &self.rules[usize::from(guard.rule)];
            let known = rule.needs.both(OUTER);
            let on_time = rule.time.get().is_none_or(|time| self.schedule.holds(time));
            let named =
                |kind| self.values.any(hits.of(kind), |value| self.values.names(value, guard.rule));
            guard.rule < first && on_time && known.iter().all(named)
        };
        counts && self.counting.binary_search(&first).is_ok()
            || self.guards.len() > GUARDS_MAX
            || guards.any(applies)
    }

    /// Whether what a ClientHello says can change what becomes of a flow.
    pub fn reads_hellos(&self) -> bool {
        self.by_hello || self.by_catalogue
    }

    /// Whether any rule refuses by what a ClientHello says.
    pub fn refuses_hellos(&self) -> bool {
        self.guards.len() > GUARDS_MAX || self.guards.iter().any(|guard| guard.hello)
    }

    /// What a request is refused for that can't be read as its server may read it: one that is too
    /// long where rules ask, or that is not clear where they refuse or count.
    pub(super) fn refusal(&self, facts: &Facts<'_>) -> Option<ClassId> {
        let fields = facts.request?.fields?;
        if self.is_too_long(facts) {
            return Some(ClassId::TOO_LONG);
        }
        // What is in terms of a header table that is not known as a whole may be anything: another
        // host, or one more value of a field.
        let unclear = fields.is_malformed() || names_two_hosts(facts) || fields.has_forgotten();
        (unclear && self.must_read(facts, Said::Requests)).then_some(ClassId::UNREAD)
    }
}

/// A server may go by either name (RFC 9112, section 3.2.2; RFC 9113, section 8.3.1).
fn names_two_hosts(facts: &Facts<'_>) -> bool {
    let Some(request) = facts.request else { return false };
    let host = request.fields.and_then(|fields| fields.get(NameId::HOST));
    match (request.authority, host) {
        (Some(authority), Some(host)) => {
            !bare_host(authority).eq_ignore_ascii_case(bare_host(host))
        }
        _ => false,
    }
}

/// Kinds of condition that are known of a flow's first packet.
const OUTER: Kinds = Kinds::of(&[Kind::CLIENT, Kind::SERVER, Kind::VIP, Kind::PORT, Kind::DSCP]);
