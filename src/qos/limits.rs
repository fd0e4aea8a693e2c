//! Limits of a configuration: how many connections and requests clients may begin, who is limited
//! by which, and what becomes of more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::tokens::{Pace, Tokens};
use crate::base::hash::hash_endpoint;
use crate::base::{Addr, Nanos, Prefix, Seed};

/// Limits of one configuration at most.
pub const LIMITS_MAX: usize = 65_000;
/// Buckets of all limits of a configuration at most: 128 MiB.
pub const BUCKETS_MAX: u64 = 1 << 24;

/// Limits of one connection or request: its rule's, its service's, its client's.
const LIMITS_OF_ONE: usize = 3;

/// All limits, and whom they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsSpec {
    pub limits: Vec<LimitSpec>,
    /// By rule, in the configuration's order: an index of `limits`. Those beyond the end have none.
    pub of_rule: Vec<Option<u16>>,
    /// The same by service.
    pub of_service: Vec<Option<u16>>,
    /// And by where clients are: the longest prefix counts, which has one limit.
    pub of_clients: Vec<(Prefix, u16)>,
}

/// A limit as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSpec {
    pub name: String,
    /// How often connections may begin.
    pub connections: Option<Pace>,
    /// How often requests in the clear.
    pub requests: Option<Pace>,
    /// `None`: all clients share the tokens.
    pub clients: Option<ClientsSpec>,
    pub excess: Excess,
}

/// What one client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientsSpec {
    /// Bits of an IPv4 address, and of an IPv6 address, that tell clients apart.
    pub v4_len: u8,
    pub v6_len: u8,
    /// Clients that are kept at once.
    pub max: u32,
}

/// What becomes of those that are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// A SYN is dropped, so that it comes again; of a request the connection's packets are.
    Drop,
    /// A TCP connection ends with a reset to both ends.
    Reset,
    /// What takes a token waits for it, so many nanoseconds at most. Beyond that a connection does
    /// not begin, as with [`Excess::Drop`], and a request ends its own, as with [`Excess::Reset`].
    Delay(u64),
}

/// Who begins a connection, or asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub client: Addr,
    /// Numbers of the rule that matches it, and of its service.
    pub rule: Option<u16>,
    pub service: Option<u16>,
    /// There is room for it to wait in.
    pub may_wait: bool,
}

/// Of what there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Connection,
    Request,
}

/// Limits ready for use. Their tokens and counters are all workers'.
#[derive(Debug)]
pub struct Limits {
    list: Vec<Limit>,
    of_rule: Vec<Option<u16>>,
    of_service: Vec<Option<u16>>,
    /// Prefixes by their length, the longest first.
    of_clients: Vec<(u8, HashMap<Prefix, u16>)>,
    seed: Seed,
    /// Some limit in use is for connections, or for requests.
    on: [bool; 2],
}

/// One limit, its tokens, and what it did.
#[derive(Debug)]
struct Limit {
    spec: LimitSpec,
    /// By [`Event`].
    tokens: [Option<Arc<Tokens>>; 2],
    counts: Arc<[Counts; 2]>,
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicU64,
    delayed: AtomicU64,
    refused: AtomicU64,
}

/// What one limit did since it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitCounts<'a> {
    pub spec: &'a LimitSpec,
    /// By [`Event`]; `None` where it is not limited.
    pub events: [Option<EventCounts>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventCounts {
    pub pace: Pace,
    pub passed: u64,
    /// Of those, the ones whose token was still to come.
    pub delayed: u64,
    /// SYNs and other packets that would have begun a connection, or requests.
    pub refused: u64,
    /// Clients whose tokens are not complete now.
    pub clients: u64,
    /// Clients whose tokens another one took over before they were complete.
    pub crowded: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::build(&LimitsSpec::default(), Seed(0), None, Nanos(0))
    }
}

impl Limits {
    /// Limits with all their tokens; those that `old` has under the same name go on with what they
    /// lack now.
    pub fn build(spec: &LimitsSpec, seed: Seed, old: Option<&Limits>, now: Nanos) -> Limits {
        let list: Vec<_> = spec
            .limits
            .iter()
            .take(LIMITS_MAX)
            .map(|limit| {
                let known = old.and_then(|o| o.list.iter().find(|l| l.spec.name == limit.name));
                Limit::new(limit, known, now)
            })
            .collect();
        let used = || {
            let by_client = spec.of_clients.iter().map(|(_, at)| at);
            spec.of_rule.iter().chain(&spec.of_service).flatten().chain(by_client)
        };
        let on = [Event::Connection, Event::Request].map(|event| {
            used().any(|&at| list.get(usize::from(at)).is_some_and(|l| l.of(event).is_some()))
        });
        let (of_rule, of_service) = (spec.of_rule.clone(), spec.of_service.clone());
        Limits { list, of_rule, of_service, of_clients: by_length(&spec.of_clients), seed, on }
    }

    /// Whether any limit in use is for such events.
    #[inline]
    pub fn has(&self, event: Event) -> bool {
        self.on[event as usize]
    }

    /// Whether such events of whom asks are limited, whatever rules say.
    pub fn holds(&self, asker: &Asker, event: Event) -> bool {
        let asker = Asker { rule: None, ..*asker };
        self.has(event) && self.of(&asker).any(|limit| limit.of(event).is_some())
    }

    /// Whether one may begin one more, as far as can be told without taking tokens: nobody has
    /// shown yet that the client's address is its own.
    pub fn may(&self, now: Nanos, asker: &Asker, event: Event) -> Result<(), Excess> {
        for limit in self.of(asker) {
            let Some(tokens) = limit.of(event) else { continue };
            let wait = tokens.wait(now, self.hash(limit, asker.client));
            if wait > limit.wait_ns_max(asker) {
                return Err(limit.refuse(event));
            }
        }
        Ok(())
    }

    /// Takes the tokens for one more. Returns in how many nanoseconds the last of them comes, which
    /// is how long it has to wait. `Err`: it has none, and that becomes of it.
    pub fn take(&self, now: Nanos, asker: &Asker, event: Event) -> Result<u64, Excess> {
        self.may(now, asker, event)?;
        let mut waits = [0; LIMITS_OF_ONE];
        for (limit, wait) in self.of(asker).zip(&mut waits) {
            let Some(tokens) = limit.of(event) else { continue };
            let hash = self.hash(limit, asker.client);
            match tokens.take(now, hash, limit.wait_ns_max(asker)) {
                Some(more) => *wait = more,
                None => return Err(limit.refuse(event)),
            }
        }
        for (limit, wait) in self.of(asker).zip(waits) {
            if limit.of(event).is_some() {
                let counts = &limit.counts[event as usize];
                counts.passed.fetch_add(1, Relaxed);
                counts.delayed.fetch_add(u64::from(wait > 0), Relaxed);
            }
        }
        Ok(waits.into_iter().max().unwrap_or_default())
    }

    /// What each limit did.
    pub fn counts(&self, now: Nanos) -> impl Iterator<Item = LimitCounts<'_>> {
        self.list.iter().map(move |limit| LimitCounts {
            spec: &limit.spec,
            events: [Event::Connection, Event::Request].map(|event| limit.event(event, now)),
        })
    }

    /// The limits of a client, a rule and a service; one that is named twice counts once.
    fn of(&self, asker: &Asker) -> impl Iterator<Item = &Limit> {
        let of = |list: &[Option<u16>], number: Option<u16>| {
            number.and_then(|n| list.get(usize::from(n)).copied().flatten())
        };
        let rule = of(&self.of_rule, asker.rule);
        let service = of(&self.of_service, asker.service);
        let mine = self.of_client(asker.client);
        let service = service.filter(|_| service != rule);
        let mine = mine.filter(|_| mine != rule && mine != service);
        let limit = |at: u16| self.list.get(usize::from(at));
        rule.into_iter().chain(service).chain(mine).filter_map(limit)
    }

    /// The limit of the longest prefix that a client is within.
    fn of_client(&self, client: Addr) -> Option<u16> {
        self.of_clients.iter().find_map(|(len, prefixes)| {
            let len = if client.is_v4() { len.checked_sub(V4_OFFSET)? } else { *len };
            prefixes.get(&Prefix::new(client, len).ok()?).copied()
        })
    }

    fn hash(&self, limit: &Limit, client: Addr) -> u64 {
        let len = |c: ClientsSpec| if client.is_v4() { c.v4_len } else { c.v6_len };
        let prefix = limit.spec.clients.map(|c| Prefix::new(client, len(c)));
        let whole = prefix.and_then(Result::ok).map_or(client, Prefix::addr);
        hash_endpoint(self.seed, whole, 0)
    }
}

/// IPv4 prefixes are so much longer where both families are compared.
const V4_OFFSET: u8 = 96;

fn by_length(prefixes: &[(Prefix, u16)]) -> Vec<(u8, HashMap<Prefix, u16>)> {
    let mut lists: Vec<(u8, HashMap<Prefix, u16>)> = Vec::new();
    for &(prefix, limit) in prefixes {
        let len = prefix.len128();
        match lists.iter_mut().find(|(known, _)| *known == len) {
            Some((_, list)) => _ = list.insert(prefix, limit),
            None => lists.push((len, HashMap::from([(prefix, limit)]))),
        }
    }
    lists.sort_unstable_by_key(|(len, _)| std::cmp::Reverse(*len));
    lists
}

impl Limit {
    fn new(spec: &LimitSpec, old: Option<&Limit>, now: Nanos) -> Limit {
        let max = spec.clients.map(|clients| clients.max);
        let alike = old.filter(|old| old.spec.clients == spec.clients);
        let tokens = |event: Event| {
            let pace = spec.pace(event)?;
            let tokens = match alike.and_then(|old| old.tokens[event as usize].as_ref()) {
                Some(old) if old.pace() == pace => return Some(Arc::clone(old)),
                Some(old) => Tokens::replacing(pace, max, old, now),
                None => Tokens::new(pace, max),
            };
            Some(Arc::new(tokens))
        };
        Limit {
            spec: spec.clone(),
            tokens: [Event::Connection, Event::Request].map(tokens),
            counts: old.map_or_else(Default::default, |old| Arc::clone(&old.counts)),
        }
    }

    fn of(&self, event: Event) -> Option<&Tokens> {
        self.tokens[event as usize].as_deref()
    }

    /// How long it may wait for its token.
    fn wait_ns_max(&self, asker: &Asker) -> u64 {
        match self.spec.excess {
            Excess::Delay(wait_ns_max) if asker.may_wait => wait_ns_max,
            _ => 0,
        }
    }

    fn refuse(&self, event: Event) -> Excess {
        self.counts[event as usize].refused.fetch_add(1, Relaxed);
        self.spec.excess
    }

    fn event(&self, event: Event, now: Nanos) -> Option<EventCounts> {
        let (tokens, counts) = (self.of(event)?, &self.counts[event as usize]);
        Some(EventCounts {
            pace: tokens.pace(),
            passed: counts.passed.load(Relaxed),
            delayed: counts.delayed.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            clients: tokens.busy(now),
            crowded: tokens.crowded(),
        })
    }
}

impl LimitSpec {
    pub fn pace(&self, event: Event) -> Option<Pace> {
        match event {
            Event::Connection => self.connections,
            Event::Request => self.requests,
        }
    }

    /// Buckets that it takes.
    pub fn buckets(&self) -> u64 {
        let kinds = u64::from(self.connections.is_some()) + u64::from(self.requests.is_some());
        kinds * self.clients.map_or(1, |clients| u64::from(clients.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limit(name: &str, burst: u32, clients: Option<ClientsSpec>) -> LimitSpec {
        let pace = Pace { count: 1, per_ns: SECOND, burst };
        let (connections, requests) = (Some(pace), Some(Pace { burst: 1, ..pace }));
        LimitSpec { name: name.into(), connections, requests, clients, excess: Excess::Reset }
    }

    fn per_client() -> Option<ClientsSpec> {
        Some(ClientsSpec { v4_len: 32, v6_len: 64, max: 64 })
    }

    fn addr(text: &str) -> Addr {
        text.parse().expect(text)
    }

    fn build(spec: &LimitsSpec, old: Option<&Limits>) -> Limits {
        Limits::build(spec, Seed(1), old, Nanos(0))
    }

    fn connects(limits: &Limits, client: &str, by: (Option<u16>, Option<u16>)) -> bool {
        limits.take(Nanos(0), &asker(client, by), Event::Connection).is_ok()
    }

    fn asker(client: &str, (rule, service): (Option<u16>, Option<u16>)) -> Asker {
        Asker { client: addr(client), rule, service, may_wait: true }
    }

    #[test]
    fn a_client_is_an_address_or_a_prefix() {
        let limits = vec![limit("a", 2, per_client())];
        let spec = LimitsSpec { limits, of_rule: vec![None, Some(0)], ..LimitsSpec::default() };
        let limits = build(&spec, None);
        assert!(limits.has(Event::Connection) && limits.has(Event::Request));
        let by = (Some(1), Some(7));
        let clients = ["198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8:0:1::1"];
        assert!(clients.iter().all(|client| connects(&limits, client, by)));
        assert!(connects(&limits, "2001:db8::ffff", by), "the same /64 has a second");
        assert!(!connects(&limits, "2001:db8::2", by), "but no third");
        assert!(connects(&limits, "198.51.100.1", by) && !connects(&limits, "198.51.100.1", by));
        for by in [(Some(0), None), (None, Some(0)), (Some(9), Some(9)), (None, None)] {
            assert!((0..9).all(|_| connects(&limits, "2001:db8::2", by)), "not limited");
        }
        let counts: Vec<_> = limits.counts(Nanos(0)).collect();
        let [connections, requests] = counts[0].events.map(|e| e.expect("limited"));
        assert_eq!((connections.passed, connections.refused, connections.clients), (6, 2, 4));
        assert_eq!((requests.passed, requests.refused, requests.clients), (0, 0, 0));
    }

    #[test]
    fn rule_and_service_both_limit_and_one_limit_of_both_counts_once() {
        let limits = vec![limit("one", 3, per_client()), limit("all", 4, None)];
        let of_rule = vec![Some(0), Some(1)];
        let spec =
            LimitsSpec { limits, of_rule, of_service: vec![Some(1)], ..LimitsSpec::default() };
        let limits = build(&spec, None);
        let of = |client, rule| connects(&limits, client, (Some(rule), Some(0)));
        assert!((0..3).all(|_| of("198.51.100.1", 0)) && !of("198.51.100.1", 0));
        assert!(of("198.51.100.2", 1) && !of("198.51.100.3", 1), "one of four was left for all");
    }

    #[test]
    fn clients_have_the_limit_of_their_longest_prefix() {
        let limits = vec![limit("wide", 1, None), limit("narrow", 2, None)];
        let prefixes = [("10.0.0.0/8", 0), ("10.64.0.0/16", 1), ("2001:db8::/32", 1)];
        let prefixes = prefixes.map(|(prefix, at)| (prefix.parse().expect(prefix), at));
        let spec = LimitsSpec { limits, of_clients: prefixes.into(), ..LimitsSpec::default() };
        let limits = build(&spec, None);
        let of = |client| connects(&limits, client, (None, None));
        assert!(of("10.1.2.3") && !of("10.200.0.1"), "one for all of the wide one");
        assert!(of("10.64.0.1") && of("2001:db8:1::1") && !of("10.64.0.2"));
        assert!((0..9).all(|_| of("192.0.2.1") && of("2001:db9::1")));
    }

    #[test]
    fn what_is_only_asked_about_takes_nothing() {
        let limits = vec![limit("a", 1, per_client())];
        let spec = LimitsSpec { limits, of_rule: vec![Some(0)], ..LimitsSpec::default() };
        let limits = build(&spec, None);
        let asker = asker("192.0.2.1", (Some(0), None));
        let may = || limits.may(Nanos(0), &asker, Event::Connection);
        assert!((0..1_000).all(|_| may().is_ok()));
        assert!(connects(&limits, "192.0.2.1", (Some(0), None)));
        assert_eq!(may(), Err(Excess::Reset));
    }

    #[test]
    fn what_waits_has_its_own_token_and_no_more_wait_than_may() {
        const MS: u64 = 1_000_000;
        let clients = per_client();
        let slow = |excess| LimitSpec { excess, ..limit("slow", 1, clients) };
        let of = |excess| LimitsSpec {
            limits: vec![slow(excess), limit("wide", 9, None)],
            of_rule: vec![Some(0)],
            of_service: vec![Some(1)],
            ..LimitsSpec::default()
        };
        let limits = build(&of(Excess::Delay(2_500 * MS)), None);
        let by = asker("192.0.2.1", (Some(0), Some(0)));
        let take = |asker: &Asker| limits.take(Nanos(0), asker, Event::Connection);
        let second = Excess::Delay(2_500 * MS);
        assert_eq!(take(&by), Ok(0));
        assert_eq!(take(&Asker { may_wait: false, ..by }), Err(second), "no room");
        assert_eq!([0; 3].map(|_| take(&by)), [Ok(SECOND), Ok(2 * SECOND), Err(second)]);
        assert_eq!(take(&asker("192.0.2.2", (Some(0), Some(0)))), Ok(0));
        let may = |at| limits.may(Nanos(at), &by, Event::Connection);
        assert_eq!((may(0), may(500 * MS)), (Err(second), Ok(())));
        // What was refused by one limit has taken nothing of the other.
        let counted: Vec<_> = limits.counts(Nanos(0)).filter_map(|c| c.events[0]).collect();
        let told: Vec<_> = counted.iter().map(|c| (c.passed, c.delayed, c.refused)).collect();
        assert_eq!(told, [(4, 2, 3), (4, 0, 0)], "who waits is told by whose token it waits for");
        assert_eq!(
            build(&of(Excess::Drop), Some(&limits)).may(Nanos(0), &by, Event::Request),
            Ok(())
        );
    }

    #[test]
    fn a_reload_keeps_tokens_and_counts_of_limits_that_stay() {
        let of = |limits| LimitsSpec { limits, of_rule: vec![Some(0)], ..LimitsSpec::default() };
        let old = build(&of(vec![limit("a", 2, per_client())]), None);
        let by = (Some(0), None);
        assert!((0..2).all(|_| connects(&old, "192.0.2.1", by)));
        let same = build(&of(vec![limit("a", 2, per_client())]), Some(&old));
        assert!(!connects(&same, "192.0.2.1", by) && connects(&same, "192.0.2.2", by));
        let larger = build(&of(vec![limit("a", 3, per_client())]), Some(&same));
        let (first, second) =
            (connects(&larger, "192.0.2.1", by), connects(&larger, "192.0.2.1", by));
        assert!(first && !second, "one more than before");
        let counted = larger.counts(Nanos(0)).next().and_then(|c| c.events[0]).expect("limited");
        assert_eq!((counted.passed, counted.refused), (4, 2));
        let other = build(&of(vec![limit("b", 2, per_client())]), Some(&old));
        assert!(connects(&other, "192.0.2.1", by));
    }
}
