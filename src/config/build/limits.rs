//! `[limit.NAME]`, and who is limited by which.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::{Build, id16, index, show};
use crate::base::Prefix;
use crate::base::tomlfile::Leaf;
use crate::config::file::{FileConfig, FileExcess, FileLimit, FilePer, Noted};
use crate::config::limit_atoms::Often;
use crate::policy::spec::RuleSpec;
use crate::qos::limits::{
    BUCKETS_MAX, ClientsSpec, Event, Excess, LIMITS_MAX, LimitSpec, LimitsSpec,
};
use crate::qos::tokens::{BURST_MAX, CLIENTS_MAX, Pace, RATE_MAX};

/// As a network has it that is given to one household.
const V4_LEN: u8 = 32;
const V6_LEN: u8 = 64;
const CLIENTS: u32 = 16_384;
const DELAY: Duration = Duration::from_secs(1);
const DELAY_MIN: Duration = Duration::from_millis(1);
/// Before a backend that waits for a request that is held counts as silent.
const DELAY_MAX: Duration = Duration::from_secs(3);
const SECOND_NS: u64 = 1_000_000_000;

/// All limits, and whom they are for; rules are told whether theirs counts requests.
pub fn limits(b: &mut Build<'_>, file: &FileConfig, rules: &mut [RuleSpec]) -> LimitsSpec {
    if let Some((key, _)) = file.limit.0.get(LIMITS_MAX) {
        b.error(&key.span(), format!("there are {LIMITS_MAX} limits at most"));
    }
    let mut limits: Vec<LimitSpec> = Vec::with_capacity(file.limit.0.len());
    let mut buckets = 0;
    for (key, table) in &file.limit.0 {
        b.name(key);
        let limit = limit(b, key.get_ref(), table);
        buckets += limit.buckets();
        if buckets > BUCKETS_MAX && buckets - limit.buckets() <= BUCKETS_MAX {
            let what = format!(
                "with this one limits keep {buckets} clients' tokens, and {BUCKETS_MAX} at most: \
                 lower `clients_max`"
            );
            b.error(&table.span(), what);
        }
        limits.push(limit);
    }
    let known = index(&file.limit.0);
    let of = |b: &mut Build<'_>, given: &Option<Spanned<String>>| {
        given.as_ref().and_then(|name| b.resolve("limit", name, &known)).map(id16)
    };
    let of_rule: Vec<_> = file.rule.iter().map(|r| of(b, &r.get_ref().limit)).collect();
    for (rule, of) in rules.iter_mut().zip(&of_rule) {
        let limit = of.and_then(|at| limits.get(usize::from(at)));
        rule.counts_requests = limit.is_some_and(|limit| limit.pace(Event::Request).is_some());
    }
    let of_service: Vec<_> =
        file.service.0.iter().map(|(_, s)| of(b, &s.get_ref().limit)).collect();
    check_rules(b, file, rules, (&limits, &of_rule));
    let of_clients = of_clients(b, file);
    check_unused(b, file, of_rule.iter().chain(&of_service));
    LimitsSpec { limits, of_rule, of_service, of_clients }
}

/// The limits that clients have by where they are.
fn of_clients(b: &mut Build<'_>, file: &FileConfig) -> Vec<(Prefix, u16)> {
    let mut taken: HashMap<Prefix, &str> = HashMap::new();
    let mut all = Vec::new();
    for (i, (key, table)) in file.limit.0.iter().enumerate() {
        let given = &table.get_ref().clients;
        let prefixes = b.list(&table.span(), "clients", given, |prefix| *prefix);
        let at = given.as_ref().map_or(table.span(), Spanned::span);
        for prefix in prefixes {
            if let Some(other) = taken.insert(prefix, key.get_ref()) {
                b.error(&at, format!("`{prefix}` has the limit `{other}` already"));
            }
            all.push((prefix, id16(i)));
        }
    }
    all
}

fn limit(b: &mut Build<'_>, name: &str, table: &Spanned<FileLimit>) -> LimitSpec {
    let (l, at) = (table.get_ref(), table.span());
    let limited = l.connections.is_some() || l.requests.is_some();
    let told = b.faulty.contains(&at, "connections") || b.faulty.contains(&at, "requests");
    if !limited && !told {
        b.error(&at, "neither `connections` nor `requests`: it would limit nothing");
    }
    let connections = pace(b, &at, "connections", &l.connections, &l.connections_burst);
    let requests = pace(b, &at, "requests", &l.requests, &l.requests_burst);
    let shared = matches!(l.per, Some(FilePer::All));
    if shared {
        let given = [
            ("client_len", l.client_len.as_ref().map(Spanned::span)),
            ("client_len_v6", l.client_len_v6.as_ref().map(Spanned::span)),
            ("clients_max", l.clients_max.as_ref().map(Spanned::span)),
        ];
        for (key, span) in given {
            if let Some(span) = span {
                b.error(&span, format!("`{key}` has no effect with `per = \"all\"`"));
            }
        }
    }
    let clients = ClientsSpec {
        v4_len: b.number(&l.client_len, 0..=32, V4_LEN),
        v6_len: b.number(&l.client_len_v6, 0..=128, V6_LEN),
        max: b.number(&l.clients_max, 8..=i64::from(CLIENTS_MAX), CLIENTS),
    };
    LimitSpec {
        name: name.to_string(),
        connections,
        requests,
        clients: (!shared).then_some(clients),
        excess: excess(b, l),
    }
}

/// What becomes of more.
fn excess(b: &mut Build<'_>, l: &FileLimit) -> Excess {
    let delay = matches!(l.action, Some(FileExcess::Delay));
    if let Some(given) = &l.delay_max
        && !delay
    {
        b.error(&given.span(), "`delay_max` has no effect without `action = \"delay\"`");
    }
    match l.action {
        None | Some(FileExcess::Drop) => Excess::Drop,
        Some(FileExcess::Reset) => Excess::Reset,
        Some(FileExcess::Delay) => {
            let most = b.within(&l.delay_max, DELAY_MIN..=DELAY_MAX, DELAY, show);
            Excess::Delay(u64::try_from(most.as_nanos()).unwrap_or(u64::MAX))
        }
    }
}

fn pace(
    b: &mut Build<'_>,
    at: &Range<usize>,
    key: &str,
    often: &Noted<Often>,
    burst: &Option<Spanned<i64>>,
) -> Option<Pace> {
    let Some(often) = often else {
        if let Some(burst) = burst
            && !b.faulty.contains(at, key)
        {
            b.error(&burst.span(), format!("a burst of `{key}` needs `{key}`"));
        }
        return None;
    };
    let Leaf(Often { count, per_ns }) = *often.get_ref();
    let rate = u128::from(count) * u128::from(SECOND_NS) / u128::from(per_ns);
    if rate > u128::from(RATE_MAX) {
        b.error(&often.span(), format!("more than {RATE_MAX} a second are not counted"));
    }
    // What comes in a second.
    let default = u32::try_from(rate).unwrap_or(u32::MAX).max(1);
    let burst = b.number(burst, 1..=i64::from(BURST_MAX), default);
    Some(Pace { count, per_ns, burst })
}

/// Whether a rule can tell what its limit counts.
fn check_rules(
    b: &mut Build<'_>,
    file: &FileConfig,
    rules: &[RuleSpec],
    (limits, of_rule): (&[LimitSpec], &[Option<u16>]),
) {
    for (i, (spec, of)) in rules.iter().zip(of_rule).enumerate() {
        let Some(limit) = of.and_then(|at| limits.get(usize::from(at))) else { continue };
        let Some(place) = file.rule.get(i).and_then(|r| r.get_ref().limit.as_ref()) else {
            continue;
        };
        let at = place.span();
        if spec.bytes_over.is_some() {
            let what = "is asked when connections and requests begin: a rule with `bytes_over` \
                        has no `limit`";
            b.error(&at, what);
        }
        if limit.pace(Event::Connection).is_none() {
            continue;
        }
        if spec.reads_content() {
            let what = format!(
                "limit `{}` counts connections, which begin before it is known what is said in \
                 them: give the rule conditions on addresses alone, or the service the limit",
                limit.name
            );
            b.error(&at, what);
        } else if let Some(before) = rules[..i].iter().find(|spec| spec.reads_content()) {
            let what = format!(
                "limit `{}` counts connections, which begin before it is known whether rule `{}` \
                 matches: put this rule before that one, or give the service the limit",
                limit.name, before.name
            );
            b.error(&at, what);
        }
    }
}

fn check_unused<'a>(
    b: &mut Build<'_>,
    file: &FileConfig,
    used: impl Iterator<Item = &'a Option<u16>>,
) {
    let used: HashSet<usize> = used.flatten().map(|&at| usize::from(at)).collect();
    for (i, (key, table)) in file.limit.0.iter().enumerate() {
        if !used.contains(&i) && table.get_ref().clients.is_none() {
            let what = format!(
                "has no `clients`, and no rule and no service has `limit = \"{}\"`",
                key.get_ref()
            );
            b.warning(&key.span(), what);
        }
    }
}
