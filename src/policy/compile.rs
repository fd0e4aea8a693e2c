//! From rules as configured to the tables of [`Rules`].

use std::collections::HashMap;

use super::catalogue::Catalogue;
use super::ends::beyond_known;
use super::kinds::{Kind, Kinds};
use super::names::NameTable;
use super::paths::PathTable;
use super::prefixes::{self, PrefixTable};
use super::rule::{Place, Rule};
use super::schedule::Schedule;
use super::spec::{HeaderPattern, Mirror, NamePattern, RULES_MAX, RuleSpec, header_names};
use super::texts::TextTable;
use super::unread;
use super::values::{self, HashTable, NONE, Values};
use super::{DSCP_COUNT, Rules, addr_hash, port_hash, text_hash};
use crate::base::{Addr, Prefix};
use crate::inspect::fields::Wanted;

impl Rules {
    /// Compiles rules in their order.
    ///
    /// # Panics
    /// On more than [`RULES_MAX`], or other limits of [`super::spec`]: the configuration is checked
    /// for them.
    pub fn compile(specs: &[RuleSpec]) -> Rules {
        assert!(specs.len() <= RULES_MAX, "{} rules", specs.len());
        let mut tables = Tables::with_room_for(specs);
        for (rule, spec) in specs.iter().enumerate() {
            tables.add(rule as u16, spec);
        }
        tables.finish(specs)
    }

    /// Has a catalogue tell providers and operations to rules, and give classes to flows that no
    /// rule gives one: those of these classes, by their ids, that it names.
    pub fn with_catalogue(mut self, mut catalogue: Catalogue, class_names: &[String]) -> Rules {
        self.by_catalogue = catalogue.bind(class_names);
        self.catalogue = Some(catalogue);
        self
    }
}

/// The tables while they are being filled.
struct Tables {
    headers: Vec<String>,
    sni: NameTable,
    authority: NameTable,
    path: PathTable,
    texts: TextTable,
    /// By number of the header field.
    any: Vec<u32>,
    vip: HashTable<Addr>,
    client: HashTable<Prefix>,
    server: HashTable<Prefix>,
    dscp: [u32; DSCP_COUNT],
    port: HashTable<u16>,
    /// The rules that name each value, ascending.
    naming: Vec<Vec<u16>>,
    kinds: Vec<Kind>,
    /// The values that each rule names.
    named: Vec<Vec<u32>>,
}

impl Tables {
    fn with_room_for(specs: &[RuleSpec]) -> Tables {
        let count = |of: fn(&RuleSpec) -> usize| specs.iter().map(of).sum();
        let names = |of: fn(&RuleSpec) -> &Vec<NamePattern>| {
            let all = || specs.iter().flat_map(of);
            let exact = all().filter(|p| matches!(p, NamePattern::Exact(_))).count();
            NameTable::with_capacity(exact, all().count() - exact)
        };
        let headers = header_names(specs);
        Tables {
            any: vec![NONE; headers.len()],
            headers,
            sni: names(|s| &s.sni),
            authority: names(|s| &s.authority),
            path: PathTable::with_room_for(specs.iter().flat_map(|s| &s.path)),
            texts: TextTable::with_capacity(count(texts_of)),
            vip: HashTable::with_capacity(count(|s| s.vip.len())),
            client: HashTable::with_capacity(count(|s| s.client.len())),
            server: HashTable::with_capacity(count(|s| s.server.len())),
            dscp: [NONE; DSCP_COUNT],
            port: HashTable::with_capacity(count(|s| s.port.len())),
            naming: Vec::new(),
            kinds: Vec::new(),
            named: vec![Vec::new(); specs.len()],
        }
    }

    fn add(&mut self, rule: u16, spec: &RuleSpec) {
        self.add_names(rule, spec);
        self.add_texts(rule, spec);
        self.add_addresses(rule, spec);
        for &code in &spec.dscp {
            let fresh = self.fresh();
            // A code point that does not exist matches nothing.
            let Some(value) = self.dscp.get_mut(usize::from(code)) else { continue };
            if *value == NONE {
                *value = fresh;
            }
            let value = *value;
            self.note(rule, Kind::DSCP, value);
        }
        for &port in &spec.port {
            let value = self.port.find_or_insert(port_hash(port), port, self.fresh());
            self.note(rule, Kind::PORT, value);
        }
    }

    fn add_names(&mut self, rule: u16, spec: &RuleSpec) {
        for (kind, patterns) in [(Kind::SNI, &spec.sni), (Kind::AUTHORITY, &spec.authority)] {
            for pattern in patterns {
                let fresh = self.fresh();
                let table = if kind == Kind::SNI { &mut self.sni } else { &mut self.authority };
                let value = match pattern {
                    NamePattern::Exact(name) => table.insert_exact(name, fresh),
                    NamePattern::Suffix(suffix) => table.insert_suffix(suffix, fresh),
                };
                self.note(rule, kind, value);
            }
        }
        for pattern in &spec.path {
            let value = self.path.find_or_insert(pattern, self.fresh());
            self.note(rule, Kind::PATH, value);
        }
    }

    fn add_texts(&mut self, rule: u16, spec: &RuleSpec) {
        let lists = [
            (Kind::ALPN, &spec.alpn),
            (Kind::JA4, &spec.ja4),
            (Kind::METHOD, &spec.method),
            (Kind::GRPC, &spec.grpc),
            (Kind::PROVIDER, &spec.provider),
        ];
        for (kind, list) in lists {
            list.iter().for_each(|text| self.add_text(rule, kind, text));
        }
        for operation in &spec.operation {
            self.add_text(rule, Kind::OPERATION, operation.name());
        }
        for header in &spec.header {
            let number = self.headers.iter().position(|name| *name == header.name);
            let number = number.unwrap_or_default();
            let kind = Kind::header(number);
            for value in &header.values {
                match value {
                    HeaderPattern::Exact(text) => self.add_text(rule, kind, text),
                    HeaderPattern::Any => {
                        let known = Some(self.any[number]).filter(|&value| value != NONE);
                        let value = known.unwrap_or(self.fresh());
                        self.any[number] = value;
                        self.note(rule, kind, value);
                    }
                }
            }
        }
    }

    fn add_text(&mut self, rule: u16, kind: Kind, text: &str) {
        let (hash, fresh) = (text_hash(kind, text.as_bytes()), self.fresh());
        let value = self.texts.find_or_insert(hash, kind.number(), text.as_bytes(), fresh);
        self.note(rule, kind, value);
    }

    fn add_addresses(&mut self, rule: u16, spec: &RuleSpec) {
        for &vip in &spec.vip {
            let value = self.vip.find_or_insert(addr_hash(vip), vip, self.fresh());
            self.note(rule, Kind::VIP, value);
        }
        for (kind, prefixes) in [(Kind::CLIENT, &spec.client), (Kind::SERVER, &spec.server)] {
            for &prefix in prefixes {
                let (hash, fresh) = (prefixes::prefix_hash(prefix), self.fresh());
                let table = if kind == Kind::CLIENT { &mut self.client } else { &mut self.server };
                let value = table.find_or_insert(hash, prefix, fresh);
                self.note(rule, kind, value);
            }
        }
    }

    /// The number that the next new value gets.
    fn fresh(&self) -> u32 {
        self.naming.len() as u32
    }

    fn note(&mut self, rule: u16, kind: Kind, value: u32) {
        if value == self.fresh() {
            self.naming.push(Vec::new());
            self.kinds.push(kind);
        }
        let naming = &mut self.naming[value as usize];
        // A rule may name a value twice.
        if naming.last() != Some(&rule) {
            naming.push(rule);
            self.named[usize::from(rule)].push(value);
        }
    }

    fn finish(mut self, specs: &[RuleSpec]) -> Rules {
        let needs: Vec<Kinds> = specs.iter().map(|spec| self.needs(spec)).collect();
        let primary: Vec<Option<Kind>> =
            (0..specs.len()).map(|rule| self.primary(rule, needs[rule])).collect();
        let values = self.values(&primary);
        let sizes = sizes(specs);
        let (mut schedule, mut mirrors) = (Schedule::default(), Vec::new());
        let mut places: HashMap<Mirror, u16> = HashMap::new();
        let rules: Box<[Rule]> = specs
            .iter()
            .zip(&needs)
            .map(|(s, &needs)| {
                let over = |size| sizes.partition_point(|s| *s <= size) as u8;
                let level = s.bytes_over.map_or(0, over);
                let time = Place::of(s.time.as_ref().map(|time| schedule.add(time)));
                let mirror = s.mirror.map(|mirror| {
                    *places.entry(mirror).or_insert_with(|| {
                        mirrors.push(mirror);
                        (mirrors.len() - 1) as u16
                    })
                });
                let mirror = Place::of(mirror);
                Rule::new(s, needs, level, time, mirror)
            })
            .collect();
        let wanted = wanted(&self.headers);
        let headers = self.headers.iter().map(|name| wanted.id(name.as_bytes())).collect();
        Rules {
            open: open(&rules),
            beyond_known: beyond_known(&rules),
            used: needs.iter().fold(Kinds::NONE, |all, &needs| all.and(needs)),
            rules,
            sizes,
            schedule,
            by_hello: specs.iter().any(RuleSpec::reads_hellos),
            by_request: specs.iter().any(RuleSpec::reads_requests),
            guards: unread::guards(specs),
            counting: (0..).zip(specs).filter(|(_, s)| s.counts_requests).map(|(n, _)| n).collect(),
            mirrors: mirrors.into_boxed_slice(),
            values,
            sni: self.sni,
            authority: self.authority,
            path: self.path,
            texts: self.texts,
            any: self.any.into_boxed_slice(),
            vip: self.vip,
            client: PrefixTable::build(&self.client),
            server: PrefixTable::build(&self.server),
            dscp: self.dscp,
            port: self.port,
            wanted,
            headers,
            catalogue: None,
            by_catalogue: false,
        }
    }

    /// The lists of all values, whose handles the tables get in place of their numbers.
    fn values(&mut self, primary: &[Option<Kind>]) -> Values {
        let wider = self.wider();
        let is_primary =
            |rule: u16, value: usize| primary[usize::from(rule)] == Some(self.kinds[value]);
        let mut listed = 0;
        let handles: Vec<u32> = self
            .naming
            .iter()
            .enumerate()
            .map(|(value, naming)| {
                if let ([rule], NONE) = (&naming[..], wider[value]) {
                    return values::alone(*rule, is_primary(*rule, value));
                }
                listed += 1;
                listed - 1
            })
            .collect();
        let handle = |value: u32| handles.get(value as usize).copied().unwrap_or(NONE);
        let mut values = Values::default();
        for (value, naming) in self.naming.iter().enumerate() {
            if naming.len() > 1 || wider[value] != NONE {
                let primaries: Vec<u16> =
                    naming.iter().copied().filter(|&rule| is_primary(rule, value)).collect();
                values.push(naming, &primaries, handle(wider[value]));
            }
        }
        self.sni.map(handle);
        self.authority.map(handle);
        self.path.map(handle);
        self.texts.map(handle);
        self.any.iter_mut().for_each(|value| *value = handle(*value));
        self.vip.map(handle);
        self.client.map(handle);
        self.server.map(handle);
        self.port.map(handle);
        self.dscp = self.dscp.map(handle);
        values
    }

    /// The kinds that the rule has conditions of.
    fn needs(&self, spec: &RuleSpec) -> Kinds {
        let given = [
            (Kind::SNI, spec.sni.is_empty()),
            (Kind::AUTHORITY, spec.authority.is_empty()),
            (Kind::PATH, spec.path.is_empty()),
            (Kind::GRPC, spec.grpc.is_empty()),
            (Kind::JA4, spec.ja4.is_empty()),
            (Kind::CLIENT, spec.client.is_empty()),
            (Kind::SERVER, spec.server.is_empty()),
            (Kind::VIP, spec.vip.is_empty()),
            (Kind::PORT, spec.port.is_empty()),
            (Kind::PROVIDER, spec.provider.is_empty()),
            (Kind::OPERATION, spec.operation.is_empty()),
            (Kind::METHOD, spec.method.is_empty()),
            (Kind::ALPN, spec.alpn.is_empty()),
            (Kind::DSCP, spec.dscp.is_empty()),
        ];
        let mut needs = Kinds::NONE;
        given.iter().filter(|(_, empty)| !empty).for_each(|(kind, _)| needs.insert(*kind));
        for (number, name) in self.headers.iter().enumerate() {
            if spec.header.iter().any(|header| header.name == *name) {
                needs.insert(Kind::header(number));
            }
        }
        needs
    }

    /// The kind of condition whose values the rule shares with the fewest other rules.
    fn primary(&self, rule: usize, needs: Kinds) -> Option<Kind> {
        let sharing = |kind: Kind| {
            let of_kind =
                self.named[rule].iter().filter(|&&value| self.kinds[value as usize] == kind);
            of_kind.map(|&value| self.naming[value as usize].len()).max().unwrap_or(0)
        };
        needs.iter().min_by_key(|&kind| sharing(kind))
    }

    /// For each value, the next wider one of its kind.
    fn wider(&self) -> Vec<u32> {
        let mut wider = vec![NONE; self.naming.len()];
        for table in [&self.sni, &self.authority] {
            for (value, by) in table.wider_suffixes() {
                wider[value as usize] = by;
            }
        }
        for table in [&self.client, &self.server] {
            let lengths = [true, false].map(|v4| prefixes::lengths(table, v4));
            for (prefix, value) in table.iter() {
                let lengths = &lengths[usize::from(!prefix.is_v4())];
                let below = prefix.len128();
                wider[value as usize] =
                    prefixes::longest_below(table, lengths, prefix.addr(), below);
            }
        }
        wider
    }
}

/// Values that are text.
fn texts_of(spec: &RuleSpec) -> usize {
    let headers: usize = spec.header.iter().map(|header| header.values.len()).sum();
    let lists = [&spec.alpn, &spec.ja4, &spec.method, &spec.grpc, &spec.provider];
    lists.iter().map(|list| list.len()).sum::<usize>() + spec.operation.len() + headers
}

fn sizes(specs: &[RuleSpec]) -> Box<[u64]> {
    let mut sizes: Vec<u64> = specs.iter().filter_map(|spec| spec.bytes_over).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes.into_boxed_slice()
}

/// The rules that tables don't lead to, up to the first that always applies.
fn open(rules: &[Rule]) -> Box<[u16]> {
    let mut open = Vec::new();
    for (rule, spec) in rules.iter().enumerate().filter(|(_, rule)| rule.needs.is_empty()) {
        open.push(rule as u16);
        if spec.level == 0 && spec.time.get().is_none() {
            break;
        }
    }
    open.into_boxed_slice()
}

/// What is read of requests.
///
/// # Panics
/// On names that are none: the configuration is checked for them.
fn wanted(headers: &[String]) -> Wanted {
    Wanted::new(headers.iter().map(String::as_str))
        .unwrap_or_else(|fault| panic!("header names: {fault}"))
}
