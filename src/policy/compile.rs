//! From rules as configured to the tables of [`Rules`].

use super::names::NameTable;
use super::prefixes::{self, PrefixTable};
use super::spec::{NamePattern, RULES_MAX, RuleSpec};
use super::values::{self, HashTable, NONE, Values};
use super::{DSCP_COUNT, Kind, NO_RULE, Rule, Rules, addr_hash, port_hash, protocol_hash};
use crate::base::{Addr, Prefix};

impl Rules {
    /// Compiles rules in their order.
    ///
    /// # Panics
    /// On more than [`RULES_MAX`]: the configuration is checked for it.
    pub fn compile(specs: &[RuleSpec]) -> Rules {
        assert!(specs.len() <= RULES_MAX, "{} rules", specs.len());
        let mut tables = Tables::with_room_for(specs);
        for (rule, spec) in specs.iter().enumerate() {
            tables.add(rule as u16, spec);
        }
        tables.finish(specs)
    }
}

/// The tables while they are being filled.
struct Tables {
    sni: NameTable,
    alpn: HashTable<Box<[u8]>>,
    vip: HashTable<Addr>,
    client: HashTable<Prefix>,
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
        let exact: usize = count(|s| s.sni.iter().filter(|p| is_exact(p)).count());
        let names: usize = count(|s| s.sni.len());
        Tables {
            sni: NameTable::with_capacity(exact, names - exact),
            alpn: HashTable::with_capacity(count(|s| s.alpn.len())),
            vip: HashTable::with_capacity(count(|s| s.vip.len())),
            client: HashTable::with_capacity(count(|s| s.client.len())),
            dscp: [NONE; DSCP_COUNT],
            port: HashTable::with_capacity(count(|s| s.port.len())),
            naming: Vec::new(),
            kinds: Vec::new(),
            named: vec![Vec::new(); specs.len()],
        }
    }

    fn add(&mut self, rule: u16, spec: &RuleSpec) {
        for pattern in &spec.sni {
            let fresh = self.fresh();
            let value = match pattern {
                NamePattern::Exact(name) => self.sni.insert_exact(name, fresh),
                NamePattern::Suffix(suffix) => self.sni.insert_suffix(suffix, fresh),
            };
            self.note(rule, Kind::Sni, value);
        }
        for protocol in &spec.alpn {
            let key = protocol.as_bytes();
            let fresh = self.fresh();
            let value = self.alpn.find_or_insert(protocol_hash(key), key.into(), fresh);
            self.note(rule, Kind::Alpn, value);
        }
        for &vip in &spec.vip {
            let value = self.vip.find_or_insert(addr_hash(vip), vip, self.fresh());
            self.note(rule, Kind::Vip, value);
        }
        for &prefix in &spec.client {
            let hash = prefixes::prefix_hash(prefix);
            let value = self.client.find_or_insert(hash, prefix, self.fresh());
            self.note(rule, Kind::Client, value);
        }
        for &code in &spec.dscp {
            let fresh = self.fresh();
            // A code point that does not exist matches nothing.
            let Some(value) = self.dscp.get_mut(usize::from(code)) else { continue };
            if *value == NONE {
                *value = fresh;
            }
            let value = *value;
            self.note(rule, Kind::Dscp, value);
        }
        for &port in &spec.port {
            let value = self.port.find_or_insert(port_hash(port), port, self.fresh());
            self.note(rule, Kind::Port, value);
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
        let needs: Vec<u8> = specs.iter().map(needs).collect();
        let primary: Vec<Option<Kind>> =
            (0..specs.len()).map(|rule| self.primary(rule, needs[rule])).collect();
        let values = self.values(&primary);
        let always = needs.iter().position(|&n| n == 0).map_or(NO_RULE, |rule| rule as u16);
        Rules {
            rules: specs
                .iter()
                .zip(needs)
                .map(|(s, needs)| Rule { class: s.class, pool: s.pool, needs })
                .collect(),
            always,
            values,
            sni: self.sni,
            alpn: self.alpn,
            vip: self.vip,
            client: PrefixTable::build(&self.client),
            dscp: self.dscp,
            port: self.port,
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
        self.alpn.map(handle);
        self.vip.map(handle);
        self.client.map(handle);
        self.port.map(handle);
        self.dscp = self.dscp.map(handle);
        values
    }

    /// The kind of condition whose values the rule shares with the fewest other rules.
    fn primary(&self, rule: usize, needs: u8) -> Option<Kind> {
        let sharing = |kind: Kind| {
            let of_kind =
                self.named[rule].iter().filter(|&&value| self.kinds[value as usize] == kind);
            of_kind.map(|&value| self.naming[value as usize].len()).max().unwrap_or(0)
        };
        let needed = Kind::ALL.into_iter().filter(|kind| needs & kind.bit() != 0);
        needed.min_by_key(|&kind| sharing(kind))
    }

    /// For each value, the next wider one of its kind.
    fn wider(&self) -> Vec<u32> {
        let mut wider = vec![NONE; self.naming.len()];
        for (value, by) in self.sni.wider_suffixes() {
            wider[value as usize] = by;
        }
        let lengths = [true, false].map(|v4| prefixes::lengths(&self.client, v4));
        for (prefix, value) in self.client.iter() {
            let lengths = &lengths[usize::from(!prefix.is_v4())];
            let below = prefix.len128();
            wider[value as usize] =
                prefixes::longest_below(&self.client, lengths, prefix.addr(), below);
        }
        wider
    }
}

fn is_exact(pattern: &NamePattern) -> bool {
    matches!(pattern, NamePattern::Exact(_))
}

/// Bits of the kinds that the rule has conditions of.
fn needs(spec: &RuleSpec) -> u8 {
    let given = [
        (Kind::Sni, spec.sni.is_empty()),
        (Kind::Client, spec.client.is_empty()),
        (Kind::Vip, spec.vip.is_empty()),
        (Kind::Port, spec.port.is_empty()),
        (Kind::Alpn, spec.alpn.is_empty()),
        (Kind::Dscp, spec.dscp.is_empty()),
    ];
    given.iter().filter(|(_, empty)| !empty).map(|(kind, _)| kind.bit()).sum()
}
