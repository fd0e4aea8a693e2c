//! Rules: from what is known of a flow to its class and what else becomes of it.
//!
//! [`Rules::decide`] takes [`Facts`] and gives a [`Decision`]. Compiled so that the cost of a
//! decision does not grow with the number of rules. The values of each condition stand in a hash
//! table (prefixes in one that is searched by length, paths by shape), each with the rules that
//! name it. A rule is looked for under the condition that the fewest others share, its primary; its
//! other conditions are then checked by binary search in the lists of the values that were hit.
//! Only kinds of condition that some rule has are looked at.

pub mod catalogue;
mod compile;
mod ends;
mod facts;
mod kinds;
mod names;
mod normal;
mod paths;
mod prefixes;
mod rule;
mod schedule;
pub mod spec;
#[cfg(test)]
mod tests;
mod texts;
mod unread;
mod values;

use crate::base::Addr;
use crate::base::hash::{hash_bytes, hash_endpoint, hash1};
use crate::inspect::fields::{NameId, Wanted};
use crate::inspect::grpc;
use crate::inspect::inspector::Request;
use crate::packet::ClassId;
use catalogue::{Catalogue, Known, bare_path, without_port};
use kinds::{Hits, Kind, Kinds};
use names::NameTable;
use normal::{Scratch, normal};
use paths::PathTable;
use prefixes::PrefixTable;
use rule::Rule;
use schedule::Schedule;
use spec::Mirror;
use texts::TextTable;
use values::{HashTable, NONE, Values};

pub use facts::{Decision, Facts, Steps};

/// Protocols of one ALPN list that are looked at: as many as an inspected hello can hold.
pub const ALPN_MAX: usize = crate::inspect::tls::ALPN_BYTES_MAX / 2;

/// A configuration's rules, compiled. The first that matches wins.
pub struct Rules {
    rules: Box<[Rule]>,
    /// Kinds of condition that some rule has.
    used: Kinds,
    /// Rules without conditions that tables hold, up to the first that always applies.
    open: Box<[u16]>,
    /// What `bytes_over` names, ascending: level n begins beyond the n-th.
    sizes: Box<[u64]>,
    schedule: Schedule,
    /// A hello can tell whether some rule applies.
    by_hello: bool,
    /// Some rule takes requests to tell.
    by_request: bool,
    /// Rules that ask for more than is known of any flow, and of one with a server name.
    beyond_known: [Box<[u16]>; 2],
    /// Rules that refuse flows by what clients say, or count it.
    guards: Box<[unread::Guard]>,
    /// Rules that have a limit of requests, ascending.
    counting: Box<[u16]>,
    /// Copies that rules ask for.
    mirrors: Box<[Mirror]>,
    values: Values,
    sni: NameTable,
    authority: NameTable,
    path: PathTable,
    /// Values that are text, by kind.
    texts: TextTable,
    /// By number of the header field: the value that stands for any.
    any: Box<[u32]>,
    vip: HashTable<Addr>,
    client: PrefixTable,
    server: PrefixTable,
    dscp: [u32; DSCP_COUNT],
    port: HashTable<u16>,
    wanted: Wanted,
    /// By number of the header field.
    headers: Box<[NameId]>,
    /// Gives classes where no rule does, if any of the configuration's fits.
    catalogue: Option<Catalogue>,
    by_catalogue: bool,
}

const DSCP_COUNT: usize = 64;

impl Rules {
    /// What becomes of a flow: by the first rule whose conditions all hold.
    ///
    /// A request that can't be read where rules ask is refused: what is not known of it must not
    /// lead around them.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        if let Some(class) = self.refusal(facts) {
            return Decision { class, ..Decision::NONE };
        }
        let known = self.known_for_rules(facts);
        let hits = self.hits(facts, known);
        self.decision(self.first(&hits, self.level(facts.bytes)), facts, known)
    }

    /// What becomes of it once it has more bytes, as far as that differs.
    pub fn steps(&self, facts: &Facts<'_>) -> Steps {
        let mut steps = Steps::NONE;
        if self.sizes.is_empty() || self.refusal(facts).is_some() {
            return steps;
        }
        let known = self.known_for_rules(facts);
        let hits = self.hits(facts, known);
        let level = self.level(facts.bytes);
        let mut last = self.first(&hits, level);
        for (i, &size) in self.sizes.iter().enumerate().skip(usize::from(level)) {
            let rule = self.first(&hits, i as u8 + 1);
            if rule != last {
                steps.push(size, self.decision(rule, facts, known));
                last = rule;
            }
        }
        steps
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether requests are to be followed for as long as a connection has any: whether a later one
    /// can be decided differently.
    pub fn follows_requests(&self) -> bool {
        self.by_request || self.by_catalogue
    }

    /// The header fields that are to be read of requests. The ids of another set with the same
    /// names in the same order are the same.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Says what time it is, in seconds since 1970 (UTC), to rules that apply at times only. They
    /// don't apply before this was said once.
    pub fn set_time(&self, unix_seconds: i64) {
        self.schedule.set_time(unix_seconds);
    }

    /// How many of the sizes a flow has passed.
    fn level(&self, bytes: u64) -> u8 {
        self.sizes.iter().take_while(|&&size| bytes > size).count() as u8
    }

    fn first(&self, hits: &Hits, level: u8) -> Option<u16> {
        let open = self.open.iter().copied().find(|&rule| self.applies(rule, level));
        let mut best = open.unwrap_or(NO_RULE);
        for kind in self.used.iter() {
            self.values.any(hits.of(kind), |value| {
                for rule in self.values.primaries(value) {
                    if rule >= best {
                        break;
                    }
                    if self.applies(rule, level) && self.holds(rule, kind, hits) {
                        best = rule;
                        break;
                    }
                }
                false
            });
        }
        (best != NO_RULE).then_some(best)
    }

    /// Whether the rule is for flows of this size, and for this time.
    #[inline]
    fn applies(&self, rule: u16, level: u8) -> bool {
        let rule = &self.rules[usize::from(rule)];
        rule.level <= level && rule.time.get().is_none_or(|time| self.schedule.holds(time))
    }

    /// Whether the rule's conditions of all kinds but `known` hold.
    fn holds(&self, rule: u16, known: Kind, hits: &Hits) -> bool {
        let needs = self.rules[usize::from(rule)].needs.without(known);
        let named = |kind| self.values.any(hits.of(kind), |value| self.values.names(value, rule));
        needs.iter().all(named)
    }

    fn decision(&self, rule: Option<u16>, facts: &Facts<'_>, known: Option<Known<'_>>) -> Decision {
        let mut decision = Decision::NONE;
        if let Some(number) = rule {
            let rule = &self.rules[usize::from(number)];
            let mirror = rule.mirror.get().map(|at| self.mirrors[usize::from(at)]);
            let mirror = mirror.filter(|mirror| facts.key.is_among(mirror.share));
            decision = Decision {
                rule: Some(number),
                class: rule.class,
                pool: rule.pool.get(),
                tenant: rule.tenant.get(),
                mark: rule.mark(),
                mirror: mirror.map(|mirror| mirror.to),
            };
        }
        if decision.class == ClassId::UNSET && self.by_catalogue {
            let known = known.or_else(|| self.known(facts));
            decision.class = known.map_or(ClassId::UNSET, |known| known.class_id);
        }
        decision
    }

    /// Whether a condition asks for a path or a host of which only the beginning is known, or for
    /// one host of several.
    fn is_too_long(&self, facts: &Facts<'_>) -> bool {
        let Some(request) = facts.request else { return false };
        let Some(fields) = request.fields else { return false };
        let cut = |name| fields.truncated(name);
        let hosts = fields.repeated(NameId::HOST);
        if !(hosts || cut(NameId::PATH) || cut(NameId::HOST) || cut(NameId::AUTHORITY)) {
            return false;
        }
        let any = |kinds: [Kind; 3]| kinds.into_iter().any(|kind| self.used.has(kind));
        let by_both = self.by_catalogue || any([Kind::PROVIDER, Kind::OPERATION, Kind::GRPC]);
        let target = request.path.unwrap_or_default();
        // A query may be as long as it likes.
        let path_is_cut = cut(NameId::PATH) && !target.iter().any(|byte| b"?#".contains(byte));
        let host_is_cut = hosts
            || cut(NameId::HOST)
            || cut(NameId::AUTHORITY)
            || path_is_cut && target.first() != Some(&b'/');
        (path_is_cut && (by_both || self.used.has(Kind::PATH)))
            || (host_is_cut && (by_both || self.used.has(Kind::AUTHORITY)))
    }

    fn known_for_rules<'a>(&'a self, facts: &Facts<'_>) -> Option<Known<'a>> {
        let used = self.used.has(Kind::PROVIDER) || self.used.has(Kind::OPERATION);
        used.then(|| self.known(facts)).flatten()
    }

    /// What the catalogue knows.
    fn known(&self, facts: &Facts<'_>) -> Option<Known<'_>> {
        self.catalogue.as_ref()?.find(facts.host(), facts.path())
    }
}

const NO_RULE: u16 = u16::MAX;

// What was hit.
impl Rules {
    fn hits(&self, facts: &Facts<'_>, known: Option<Known<'_>>) -> Hits {
        let mut hits = Hits::none();
        for kind in self.used.iter() {
            let hit = self.hit(kind, facts, known, &mut hits);
            hits.set(kind, hit);
        }
        hits
    }

    /// The values of one kind that are hit; more than two go to `all`.
    #[inline]
    fn hit(
        &self,
        kind: Kind,
        facts: &Facts<'_>,
        known: Option<Known<'_>>,
        all: &mut Hits,
    ) -> [u32; 2] {
        let key = facts.key;
        let text = |text: Option<&[u8]>| [text.map_or(NONE, |t| self.text(kind, t)), NONE];
        let request = facts.request;
        match kind {
            Kind::SNI => facts.sni.map_or([NONE; 2], |name| self.sni.find(name)),
            Kind::CLIENT => [self.client.find(key.src), NONE],
            Kind::SERVER => [self.server.find(key.dst), NONE],
            Kind::VIP => [self.vip.find(addr_hash(key.dst), |&vip| vip == key.dst), NONE],
            Kind::PORT => [self.port.find(port_hash(key.dport), |&port| port == key.dport), NONE],
            Kind::DSCP => [self.dscp.get(usize::from(facts.dscp)).copied().unwrap_or(NONE), NONE],
            Kind::JA4 => text(facts.ja4),
            Kind::PROVIDER => text(known.map(|known| known.provider.as_bytes())),
            Kind::OPERATION => {
                text(known.and_then(|known| known.operation).map(|op| op.name().as_bytes()))
            }
            Kind::ALPN => {
                facts.alpn.iter().for_each(|p| all.add_alpn(self.text(kind, p)));
                [NONE; 2]
            }
            _ => request.map_or([NONE; 2], |request| self.hit_of_request(kind, &request, all)),
        }
    }

    fn hit_of_request(&self, kind: Kind, request: &Request<'_>, all: &mut Hits) -> [u32; 2] {
        match kind {
            Kind::AUTHORITY => {
                let host = request.authority.map(without_port);
                host.map_or([NONE; 2], |host| self.authority.find(host))
            }
            Kind::METHOD => {
                let cut = request.fields.is_some_and(|fields| fields.truncated(NameId::METHOD));
                [if cut { NONE } else { self.text(kind, request.method) }, NONE]
            }
            Kind::PATH => {
                let mut scratch: Scratch = None;
                let path = request.path.map(bare_path).unwrap_or_default();
                all.path_count = self.path.find(normal(path, &mut scratch), &mut all.path);
                [NONE; 2]
            }
            Kind::GRPC => match request.fields.and_then(grpc::call) {
                Some(call) => {
                    let whole = request.path.map(bare_path).and_then(|p| p.strip_prefix(b"/"));
                    let whole = whole.unwrap_or_default();
                    [self.text(kind, call.service), self.text(kind, whole)]
                }
                None => [NONE; 2],
            },
            _ => {
                let number = usize::from(kind.number() - Kind::header(0).number());
                let id = self.headers.get(number).copied().unwrap_or(NameId::OTHER);
                let Some(fields) = request.fields else { return [NONE; 2] };
                let Some(value) = fields.get(id) else { return [NONE; 2] };
                let any = self.any.get(number).copied().unwrap_or(NONE);
                // One that was too long to be kept is longer than any that a rule may name.
                let exact = if fields.truncated(id) { NONE } else { self.text(kind, value) };
                [any, exact]
            }
        }
    }

    fn text(&self, kind: Kind, text: &[u8]) -> u32 {
        self.texts.find(text_hash(kind, text), kind.number(), |known| known == text)
    }
}

// The keys of these tables come from the configuration, so no stranger can make them collide.

fn addr_hash(addr: Addr) -> u64 {
    hash_endpoint(values::SEED, addr, 0)
}

fn port_hash(port: u16) -> u64 {
    hash1(values::SEED, u64::from(port))
}

fn text_hash(kind: Kind, text: &[u8]) -> u64 {
    hash1(values::SEED, hash_bytes(values::SEED, text) ^ u64::from(kind.number()))
}
